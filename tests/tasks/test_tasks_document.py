"""docs/tasks.md: its table is what the code says, and its code runs."""

import re
from dataclasses import fields
from fractions import Fraction

import pytest

from longstream.tasks import TASKS
from tests.documents import blocks, read

DOCUMENT = "docs/tasks.md"
SECTION = read(DOCUMENT).partition("## The tasks")[2].partition("\n## ")[0]
ROWS = {line.split("`")[1]: line.strip("| ").split(" | ") for line in SECTION.splitlines() if line.startswith("| `")}


@pytest.mark.parametrize("name", list(TASKS))
def test_the_table_has_the_fields_and_the_chance(name: str):
    task = TASKS[name]
    *_, listed, chance, source = ROWS[name]
    assert re.findall(r"`([^`]+)`", listed) == [f"{field.name}={field.default}" for field in fields(task)]
    assert Fraction(chance) == Fraction(task().chance).limit_denominator(10**6)
    for paper in re.findall(r"arXiv:\d+\.\d+", source):
        assert paper in str(task.__doc__), "the docstring names the same source"


def test_every_row_is_a_task():
    assert set(ROWS) == set(TASKS)


@pytest.mark.parametrize(("start", "code"), [block[::2] for block in blocks(DOCUMENT) if block[1] == "python"])
def test_its_code_runs(start: int, code: str):
    exec(compile("\n" * start + code, DOCUMENT, "exec"), {})
