"""Golden files: none is forgotten, and a directory without them does not pass for one with them."""

import pytest

from tests import golden


def test_no_file_is_forgotten():
    directory = golden.directory()
    names = {path.stem for pattern in ("hgrn2*", "hgrn1*", "hgrn_lm*") for path in directory.glob(f"{pattern}.npz")}
    assert names - set(golden.NAMES) == set()


def test_files_not_shipped_are_in_use():
    assert set(golden.NAMES) >= golden.NOT_SHIPPED


def test_without_the_variable_tests_are_skipped(monkeypatch):
    monkeypatch.delenv("LONGSTREAM_GOLDEN", raising=False)
    with pytest.raises(pytest.skip.Exception, match="LONGSTREAM_GOLDEN is not set"):
        golden.load("hgrn2_layer")


@pytest.mark.parametrize("name", golden.NAMES)
def test_a_missing_file_is_a_failure_unless_it_is_not_shipped(name, monkeypatch, tmp_path):
    monkeypatch.setenv("LONGSTREAM_GOLDEN", str(tmp_path))
    outcome = pytest.skip.Exception if name in golden.NOT_SHIPPED else pytest.fail.Exception
    with pytest.raises(outcome, match=f"golden file {name}.npz is .*missing"):
        golden.load(name)


@pytest.mark.parametrize("named", ["", "nowhere"])
def test_a_wrong_directory_is_a_failure(named, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGSTREAM_GOLDEN", named)
    with pytest.raises(pytest.fail.Exception, match=f"must name a directory of golden files, got '{named}'"):
        golden.load("hgrn2_layer_1head")
