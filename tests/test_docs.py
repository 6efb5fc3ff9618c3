"""The documents tell the truth: README's code runs, its tree matches the disk, its commands exist."""

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longstream.cli import COMMANDS
from tests.documents import ROOT, SHELLS, blocks, read

GUIDES = [f"docs/guides/{path.name}" for path in sorted((ROOT / "docs/guides").glob("*.md"))]
COMMAND_DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/real_data.md",
    "docs/streaming.md",
    "docs/export.md",
    "docs/tasks.md",
    "docs/studies.md",
    "docs/claims.md",
    "docs/inspect.md",
    "docs/harness.md",
    *GUIDES,
]
BRANCH = re.compile(r"^(?P<indent>[│ ]*)[├└]─+ ?(?P<name>\S+)")
SKIPPED_FOLDERS = {
    ".git",
    ".venv",
    "runs",
    "build",
    "dist",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
}

SKIPPED_FILES = {"workers.log"}  # what the processes of a study said here

# Written so that no pattern matches itself.
FORBIDDEN = {
    "a figure that is still to come": re.compile(r"^(RESULT[S]|FIGUR[E]|TB[D])$", re.MULTILINE),
    "a path of one machine": re.compile(r"(?<![\w./-])/(wor[k]|far[m]|roo[t]|hom[e]|tm[p]/w)(/|\b)"),
    "the host of a package registry": re.compile(
        r"pyp[i]\.org|pythonhoste[d]\.org|download\.pytorc[h]\.org|registry\.npmj[s]|anacond[a]\.org|debia[n]\.org"
    ),
}


def commands(document: str) -> Iterator[tuple[str, list[str]]]:
    """(place, words) of every simple shell command in shell blocks, and of `make ...` and `longstream ...` in prose."""
    lines = []
    for start, language, text in blocks(document):
        if language in SHELLS:
            lines += [(start + i, line) for i, line in enumerate(text.replace("\\\n", "  ").splitlines())]
    prose = re.sub(r"^```.*?^```", lambda match: "\n" * match[0].count("\n"), read(document), flags=re.M | re.S)
    for i, line in enumerate(prose.splitlines(), start=1):
        lines += [(i, code) for code in re.findall(r"`((?:make|longstream) [^`]+)`", line)]
    for number, line in lines:
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|<>()"):
                yield f"{document}:{number}", words
                words = []
            elif words or not re.fullmatch(r"\w+=.*", word):  # VARIABLE=value in front of the command
                words.append(word)


@functools.cache
def verb_help(verb: str) -> str:
    """What `longstream VERB --help` prints; fails the test when there is no such verb."""
    run_cli = "import sys; from longstream.cli import main; sys.argv[0] = 'longstream'; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", run_cli, *verb.split(), "--help"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"longstream {verb} --help: {done.stderr[-500:]}"
    return done.stdout


@pytest.mark.parametrize("document", [*COMMAND_DOCUMENTS, "CHANGELOG.md", "docs/naming.md"])
def test_document_exists(document: str):
    assert (ROOT / document).exists()


@pytest.mark.parametrize(
    "code",
    [pytest.param(text, id=f"line-{line}") for line, language, text in blocks("README.md") if language == "python"],
)
def test_readme_python_runs(code: str, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme_has_python():
    assert any(language == "python" for _, language, _ in blocks("README.md")), "README.md has no ```python block"


def test_readme_tree_matches_disk():
    trees = [text for _, _, text in blocks("README.md") if any(BRANCH.match(line) for line in text.splitlines())]
    assert len(trees) == 1, "README.md needs one file tree: a folder's name on a line, its entries under it behind ├─"
    listed: set[Path] = set()
    above: list[tuple[int, Path]] = []  # (width of the indent, path) from the outermost folder down to the last entry
    for line in filter(str.strip, trees[0].splitlines()):
        branch = BRANCH.match(line)
        width, name = (len(branch["indent"]), branch["name"]) if branch else (-1, line.split()[0])
        above = [folder for folder in above if folder[0] < width]
        path = (above[-1][1] if above else ROOT) / name
        above.append((width, path))
        assert path.is_dir() if name.endswith("/") else path.exists(), f"the tree lists {path.relative_to(ROOT)}"
        listed.add(path)
    package = ROOT / "longstream"
    modules = {path for path in package.glob("*.py") if path.stem != "__init__"}
    folders = {path.parent for path in package.glob("*/*.py")}
    missing = {path.relative_to(ROOT).as_posix() for path in (modules | folders) - listed}
    assert not missing, f"README.md's tree leaves out {sorted(missing)}"


@pytest.mark.parametrize("document", COMMAND_DOCUMENTS)
def test_make_targets_exist(document: str):
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    for place, words in commands(document):
        if words[:1] == ["make"]:
            wanted = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            assert wanted <= targets, f"{place}: make has no target {sorted(wanted - targets)}"


@pytest.mark.parametrize("document", COMMAND_DOCUMENTS)
def test_longstream_commands_exist(document: str):
    for place, words in commands(document):
        if words and words[0].rsplit("/")[-1] == "longstream" and len(words) > 1:
            verb, *rest = words[1:]
            if verb.startswith("-"):
                continue  # longstream --help, --version
            if " ".join(words[1:3]) in COMMANDS:  # a verb of two words
                verb = " ".join(words[1:3])
            printed = re.findall(r"--(\[no-\])?([a-z][\w.-]*)", verb_help(verb))  # --[no-]bf16 stands for two flags
            known = {f"--{name}" for _, name in printed} | {f"--no-{name}" for no, name in printed if no}
            flags = {word.split("=")[0] for word in rest if word.startswith("--")}
            assert flags <= known, f"{place}: longstream {verb} has no {sorted(flags - known)}"


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_names(what: str):
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.endswith(".egg-info")]
        for path in (Path(folder, name) for name in files if name not in SKIPPED_FILES):
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # not a text file
            lines = enumerate(text.splitlines(), start=1)
            found += [f"{path.relative_to(ROOT)}:{i}: {line}" for i, line in lines if FORBIDDEN[what].search(line)]
    assert not found, "\n".join(found)


def test_verdicts_of_claims_are_those_of_the_results():
    """docs/claims.md quotes whole lines, so that it cannot say other than the committed results do."""
    results = {path: path.read_text(encoding="utf-8") for path in (ROOT / "studies/results").glob("*/results.md")}
    quoted = re.findall(r"^\* (\*\*(?:Supported|Contradicted|Not resolved).*)$", read("docs/claims.md"), re.M)
    assert quoted
    for line in quoted:
        assert any(f"- {line}" in text for text in results.values()), line
