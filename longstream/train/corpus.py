"""The built-in corpus: real English that every machine with Python has.

It is the language reference behind ``help()`` (``pydoc_data.topics``) and the docstrings of the standard library, under
Python's own PSF license. Nothing is downloaded, and nothing is imported: an import has side effects and depends on the
platform, so the sources are read with ``ast``.
"""

import ast
import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from longstream.tasks.sources import library_files

# Python version -> (bytes, sha256) as python.org released it. The documentation changes with every release.
EXPECTED = {
    "3.10.13": (1899360, "7f5edb02412f18bf49a31026e8e13de9c08e8d64859368e3bd6f61d2a893e37a"),
    "3.11.7": (1935452, "3efeda44e5081bf1548e3f3b5ae37acce1159562e56190c212b9b538ecedec8f"),
    "3.12.1": (1966105, "181ad386c9044914674b2f86de289021c3cef5d132b93ccff7f2e775e8a2286c"),
    "3.13.0": (1985235, "c04c31bb958a0e0b9845b54cf8ac5ebc381e3ff302e0890aaa92285b276b3bc5"),
}

DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Document(NamedTuple):
    """One text of a corpus: what it is called in messages, and its bytes."""

    name: str
    data: bytes


class CorpusCheck(NamedTuple):
    """Whether the built-in corpus is the recorded one; None where nothing is recorded for this Python."""

    verified: bool | None
    note: str  # the verdict in words
    size: int
    sha256: str


def builtin_documents() -> list[Document]:
    """The corpus: a document per help topic and per module, the same on every machine with this Python.

    Their order is that of a hash of their names, so that a split by position takes some of everything.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    if not (library / "pydoc_data" / "topics.py").is_file():
        raise FileNotFoundError(
            f"builtin corpus: no pydoc_data/topics.py in {library}: this Python comes without its documentation;"
            " install the complete standard library or give files of your own"
        )
    return list(gather(library))


@lru_cache(maxsize=1)
def gather(library: Path) -> tuple[Document, ...]:
    """The documents of a standard library, read once in a process: that takes seconds, and studies train many runs."""
    seen: set[str] = set()  # every paragraph so far: the reference repeats whole sections under several topics
    texts = {}
    for topic, text in _topics(library):
        if _is_new(text, seen):
            texts[f"topic {topic}"] = text
    for module, file in library_files():
        tree = ast.parse(file.read_bytes())
        entries = [f"{header}\n\n{text}" for header, text in _docstrings(tree, module) if _is_new(text, seen)]
        if entries:
            texts[f"module {module}"] = "\n\n\n".join(entries) + "\n"
    # sha512, because its last 5 % are a fair mix: a third reference, the rest modules; sha256 ends in one long topic.
    names = sorted(texts, key=lambda name: hashlib.sha512(name.encode()).digest())
    return tuple(Document(name, texts[name].encode()) for name in names)


def verify(documents: list[Document]) -> CorpusCheck:
    """Compare the gathered documents with the size and hash recorded for this Python version."""
    size = sum(len(document.data) for document in documents)
    sha256 = hashlib.sha256(b"".join(name.encode() + b"\0" + data + b"\0" for name, data in documents)).hexdigest()
    version = platform.python_version()
    if version not in EXPECTED:
        return CorpusCheck(None, f"builtin corpus: not verified: no recorded hash for Python {version}", size, sha256)
    if EXPECTED[version] == (size, sha256):
        return CorpusCheck(True, f"builtin corpus: verified for Python {version}", size, sha256)
    expected_size, expected_sha256 = EXPECTED[version]
    note = (
        f"builtin corpus: not the recorded one for Python {version}: expected {expected_size} bytes with sha256"
        f" {expected_sha256}, got {size} bytes with sha256 {sha256}; do not compare figures measured on it with others"
    )
    return CorpusCheck(False, note, size, sha256)


def _topics(library: Path) -> list[tuple[str, str]]:
    """The help topics, longest first, so that a section is met in its chapter before it is met on its own."""
    tree = ast.parse((library / "pydoc_data" / "topics.py").read_bytes())
    assignment = next(node for node in tree.body if isinstance(node, ast.Assign))
    topics: dict[str, str] = ast.literal_eval(assignment.value)
    return sorted(topics.items(), key=lambda item: (-len(item[1]), item[0]))


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Everything documented in a node as (header, docstring), in the order of the source."""
    if isinstance(node, (ast.Module, *DEFINITIONS)) and (docstring := ast.get_docstring(node)):
        yield _header(node, name), docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, DEFINITIONS):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.stmt, ast.ExceptHandler)):  # definitions inside if, try, with
            yield from _docstrings(child, name)


def _header(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> str:
    """``json.dumps(obj, *, skipkeys=False)`` for a function, ``class json.JSONDecoder`` for a class."""
    if isinstance(node, ast.Module):
        return f"module {name}"
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    return f"{name}({ast.unparse(node.args)})"


def _is_new(text: str, seen: set[str]) -> bool:
    """Whether more than half of a text, by paragraphs, has not been seen; adds its paragraphs to ``seen``."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    fresh = sum(len(paragraph) for paragraph in paragraphs if paragraph not in seen)
    seen.update(paragraphs)
    return 2 * fresh > sum(map(len, paragraphs))
