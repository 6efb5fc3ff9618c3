"""The layering of the package, read from its syntax: who may import whom, open files or read the environment."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "longstream").rglob("*.py"))

# A part imports itself and the parts before it. "longstream" is longstream/__init__.py.
ORDER = [
    "ops",
    "layers",
    "models",
    "edifice",
    "catalog",
    "testing",
    "stream",
    "longstream",
    "hf",
    "baselines",
    "sequences",
    "tasks",
    "train",
    "convert",
    "export",
    "sklearn",
    "bench",
    "inspect",
    "studies",
    "cli",
    "__main__",
]

# Who may import what besides the standard library; a package named nowhere here is not used at all.
EVERYWHERE = {"longstream", "torch", "numpy"}
THIRD_PARTY = {
    "safetensors": {"models/state.py", "edifice/axon.py", "stream", "hf", "sequences", "train", "convert", "sklearn"},
    "transformers": {"hf", "baselines", "sequences", "train", "convert", "studies"},
    "tokenizers": {"hf", "train"},
    "huggingface_hub": {"hf", "convert"},
    "accelerate": {"train"},
    "pandas": {"sequences"},
    "pyarrow": {"sequences"},
    "datasets": {"sequences"},
    "scipy": {"sequences", "studies"},
    "sklearn": {"tasks", "sequences", "train", "sklearn"},
    "mlxtend": {"tasks"},
    "lm_eval": {"train"},
    "tensorboard": {"train"},
    "matplotlib": {"sequences", "train", "bench", "inspect", "studies", "cli"},
    "rich": {"train", "bench", "inspect", "studies", "cli"},
    "onnx": {"export", "bench"},
    "onnxscript": {"export"},
    "onnxruntime": {"export", "bench"},
    "tomli": {"train", "cli"},
}
FILES_AND_ENVIRONMENT = {
    "models/state.py",
    "edifice/axon.py",
    "stream/prefix.py",
    "tasks",
    "sequences",
    "train",
    "convert",
    "export",
    "sklearn",
    "bench",
    "inspect",
    "studies",
    "cli",
}  # states, and weights by Axon's names
TOUCHES_FILES = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "save_file", "load_file", "safe_open"}
RUNS_CODE = {"pickle", "shelve", "marshal"}  # reading such a file runs what is in it


def names(file: Path) -> set[str]:
    """What the tables above may call this file: its path in the package, and the part it belongs to."""
    path = file.relative_to(ROOT / "longstream")
    part = path.parts[0].removesuffix(".py")
    return {path.as_posix(), "longstream" if part == "__init__" else part}


def imports(file: Path) -> list[str]:
    """The full dotted name of everything a file imports, relative imports resolved, wherever the statement stands."""
    package = ("longstream", *file.relative_to(ROOT / "longstream").parent.parts)
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            found += [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_point_one_way(file: Path):
    (part,) = names(file) - {file.relative_to(ROOT / "longstream").as_posix()}
    assert part in ORDER, f"{part} has no place in ORDER yet: give it one"
    for name in imports(file):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top == "longstream":
            target = target if target in ORDER else "longstream"
            assert target == part or ORDER.index(target) < ORDER.index(part), f"{part} must not import {name}"
        elif top not in EVERYWHERE and top not in sys.stdlib_module_names:
            allowed = THIRD_PARTY.get(top, set())
            assert allowed & names(file), f"{name} may be imported in {sorted(allowed) or 'no file'} only"
        assert top not in RUNS_CODE, f"{name}: files of tensors are safetensors"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_who_touches_files_and_the_environment(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        where = f"line {getattr(node, 'lineno', 0)}: {name}"
        if name in {"environ", "getenv"} | TOUCHES_FILES:
            assert FILES_AND_ENVIRONMENT & names(file), f"{where} belongs into {sorted(FILES_AND_ENVIRONMENT)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") == "True", f"line {node.lineno}: torch.load needs weights_only=True"


def test_importing_longstream_loads_torch_and_nothing_else_heavy():
    code = "import sys, longstream; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())
    assert "torch" in loaded
    assert not loaded & set(THIRD_PARTY)
