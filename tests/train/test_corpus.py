import ast
import hashlib
import platform
import sys

import pytest

from longstream.tasks.sources import SKIPPED
from longstream.train import corpus
from longstream.train.corpus import Document, builtin_documents, verify
from longstream.train.data import split


@pytest.fixture(scope="module")
def documents():
    return builtin_documents()


def test_gathering_again_gives_the_same_and_imports_nothing(documents):
    before = set(sys.modules)
    corpus.gather.cache_clear()
    assert builtin_documents() == documents
    assert set(sys.modules) == before


def test_this_python_is_verified_or_says_that_it_is_not(documents):
    check = verify(documents)
    assert check.size == sum(len(document.data) for document in documents)
    version = platform.python_version()
    if version not in corpus.EXPECTED:
        pytest.skip(f"no recorded hash for Python {version}")
    assert check.verified, f"{check.note} (or this Python's packager changed its documentation)"
    assert check.note == f"builtin corpus: verified for Python {version}"
    assert (check.size, check.sha256) == corpus.EXPECTED[version]


def test_verdicts(monkeypatch):
    documents = [Document("a", b"first"), Document("b", b"second")]
    sha256 = hashlib.sha256(b"a\0first\0b\0second\0").hexdigest()
    monkeypatch.setattr(corpus, "EXPECTED", {})
    check = verify(documents)
    assert check == (
        None,
        f"builtin corpus: not verified: no recorded hash for Python {platform.python_version()}",
        11,
        sha256,
    )
    monkeypatch.setattr(corpus, "EXPECTED", {platform.python_version(): (11, sha256)})
    assert verify(documents).verified is True
    check = verify(documents[::-1])  # order is part of the hash
    assert check.verified is False
    assert f"expected 11 bytes with sha256 {sha256}, got 11 bytes with sha256 {check.sha256}" in check.note


def test_sizes_and_names(documents):
    names = [document.name for document in documents]
    assert len(set(names)) == len(names) > 300
    assert all(document.data for document in documents)
    assert 1_500_000 < sum(len(document.data) for document in documents) < 4_000_000
    assert {"topic assignment", "module json", "module json.decoder", "module argparse"} < set(names)
    assert not any(set(name.split()[1].split(".")) & SKIPPED for name in names if name.startswith("module"))


def test_text_is_docstrings_under_their_names(documents):
    text = {document.name: document.data.decode() for document in documents}
    assert text["module json"].startswith("module json\n\nJSON (JavaScript Object Notation)")
    assert "\n\n\njson.loads(s, *, cls=None" in text["module json"]
    assert "\n\n\nclass json.decoder.JSONDecoder(object)\n\n" in text["module json.decoder"]
    assert "\n\n\njson.decoder.JSONDecoder.decode(self, s" in text["module json.decoder"]


def test_nothing_is_repeated(documents):
    """Validation must not be a copy of what was trained on, and the reference prints whole sections twice."""
    assert len({document.data for document in documents}) == len(documents)
    total, seen, repeated = 0, set(), 0
    for document in documents:
        paragraphs = [" ".join(paragraph.split()) for paragraph in document.data.decode().split("\n\n")]
        total += sum(map(len, paragraphs))
        repeated += sum(len(paragraph) for paragraph in paragraphs if paragraph in seen)
        seen.update(paragraphs)
    assert repeated < 0.02 * total


def test_the_end_is_a_fair_mix(documents):
    """The last 5 % validate: not all of one kind, and not one long document."""
    total = sum(len(document.data) for document in documents)
    validation = split(documents, 0.05)[1]
    topics = sum(len(data) for name, data in validation if name.startswith("topic"))
    assert 0.1 < topics / (0.05 * total) < 0.6
    assert max(len(data) for _, data in validation) < 0.4 * 0.05 * total


def test_headers_and_order():
    source = '''
"""About m."""
if x:
    class C(Base, metaclass=M):
        """About C."""
        def f(self, a, *, b=1): "About f."
        def undocumented(self): pass
        async def g(self) -> None: "About g."
else:
    def h(): "About h."
'''
    assert list(corpus._docstrings(ast.parse(source), "m")) == [
        ("module m", "About m."),
        ("class m.C(Base)", "About C."),
        ("m.C.f(self, a, *, b=1)", "About f."),
        ("m.C.g(self)", "About g."),
        ("m.h()", "About h."),
    ]


def test_new_means_mostly_unseen():
    seen = set()
    assert corpus._is_new("one\n\ntwo", seen)
    assert not corpus._is_new("one", seen)
    assert not corpus._is_new("  two\n\none", seen)
    assert corpus._is_new("two\n\nthree, which is longer", seen)


def test_python_without_documentation(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r"no pydoc_data/topics.py in .* give files of your own"):
        builtin_documents()
