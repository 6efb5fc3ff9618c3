"""A checkpoint that several files read."""

import pytest

from tests.convert import plain


@pytest.fixture(scope="module")
def fla(tmp_path_factory):
    return plain.fla_folder(tmp_path_factory.mktemp("convert") / "fla", "hgrn2_lm")
