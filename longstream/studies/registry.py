"""The studies by name, each in a module of its own that is imported when it is asked for."""

from __future__ import annotations

import importlib

from longstream.studies.study import Study
from longstream.train.settings import nearest

# In the order of the questions that they answer; the module of each has it as STUDY.
STUDIES = {
    name: f"longstream.studies.{name.replace('-', '_')}"
    for name in (
        "expansion",
        "heads",
        "hgrn1-vs-hgrn2",
        "depth-vs-state",
        "lower-bound",
        "lm",
        "hybrid",
        "recall",
        "lra",
        "images",
        "domains",
        "throughput",
        "filters",
    )
}
WORDS = ("list", "all")  # that the command takes in place of a name


def module_of(name: str) -> str:
    """The module of a study.

    Raises:
        ValueError: there is no such study; the message says the nearest and all that there are.
    """
    if name not in STUDIES:
        known = [*STUDIES, *WORDS]
        raise ValueError(f"study: no study is called {name!r}{nearest(name, known)}; there are {', '.join(STUDIES)}")
    return STUDIES[name]


def load_study(module: str) -> Study:
    """The STUDY of a module.

    Raises:
        ValueError: the module has none.
    """
    study = getattr(importlib.import_module(module), "STUDY", None)
    if not isinstance(study, Study):
        raise ValueError(f"study: {module}.STUDY must be a Study, got {type(study).__name__}")
    return study
