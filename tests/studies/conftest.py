"""A tiny study, carried out once, whose folder the tests read or copy."""

from pathlib import Path

import pytest

from longstream.studies import runner
from longstream.studies.runner import run_study
from longstream.studies.study import Plan
from tests.studies.tiny_study import STUDY, HerePool, write_data

MODULE = "tests.studies.tiny_study"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the study's text."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, finished; never changed."""
    folder = tmp_path_factory.mktemp("whole") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Pool", HerePool)
        run_study(MODULE, STUDY, Plan(data=data), folder)
    return folder
