"""Tasks by name and from a line of text."""

import subprocess
import sys
from dataclasses import dataclass, fields
from types import ModuleType
from typing import ClassVar, Literal

import numpy as np
import pytest

import longstream.tasks
from longstream.tasks import TASKS, Examples, TokenTask, make_task, registry


@dataclass(frozen=True, kw_only=True)
class Typed(TokenTask):
    name: ClassVar[str] = "typed"
    count: int = 1
    share: float = 0.5
    flag: bool = False
    word: str = "a"
    kind: Literal["a", "b"] = "a"
    most: int | None = None

    @property
    def vocab_size(self) -> int:
        return 2

    @property
    def length(self) -> int:
        return 1

    @property
    def chance(self) -> float:
        return 0.5

    def make(self, count: int, seed: int, split: str = "train") -> Examples:
        return Examples(np.zeros((count, 1), np.int64), np.zeros((count, 1), np.int64))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("longstream.tasks.typed")
    module.Typed = Typed  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry._CLASSES, "typed", "Typed")


def test_every_name_leads_to_its_class_and_module():
    assert len(TASKS) == len(list(TASKS)) >= 10
    for name, task in TASKS.items():
        assert issubclass(task, TokenTask)
        assert task.name == name
        assert getattr(longstream.tasks, name).__name__ == task.__module__ == f"longstream.tasks.{name}"
        assert task.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        longstream.tasks.nothing  # noqa: B018
    with pytest.raises(KeyError):
        TASKS["nothing"]


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_describes_itself_as_it_is_read(name: str):
    assert TASKS[name]().describe() == name
    assert make_task(name) == TASKS[name]()


@pytest.mark.parametrize(
    "text",
    [
        "mqar:vocabulary=64,seq_len=64,num_pairs=4,power=0.5,random_fill=True",
        "selective_copying:rules=mamba",
        "noisy_recall:noise=0.4,multi_query=False",
    ],
)
def test_what_a_task_describes_is_read_again(text: str):
    assert make_task(text).describe() == text


@pytest.mark.usefixtures("typed")
def test_values_have_the_type_of_the_field():
    read = make_task(" typed : count = 3, share=1, flag=yes, word=b c, kind=b, most=4 ")
    assert read == Typed(count=3, share=1.0, flag=True, word="b c", kind="b", most=4)
    assert [type(getattr(read, field.name)) for field in fields(read)] == [int, float, bool, str, str, int]
    assert make_task("typed:most=none,flag=0") == Typed()
    assert make_task("typed:") == Typed()


@pytest.mark.usefixtures("typed")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mqra", "make_task: unknown task 'mqra', did you mean 'mqar'?; tasks are mqar, "),
        ("zzz", "make_task: unknown task 'zzz'; tasks are mqar, "),
        ("", "make_task: unknown task ''; tasks are mqar, "),
        ("typed:cuont=1", "typed: unknown field 'cuont', did you mean 'count'?; its fields are count, share, "),
        ("typed:name=x", "typed: unknown field 'name'; its fields are count"),
        ("typed:count", "typed: fields are written as field=value, got 'count'"),
        ("typed:count=1,count=2", "typed: count is given twice"),
        ("typed:count=1.5", "typed: count must be an integer, got '1.5'"),
        ("typed:count=", "typed: count must be an integer, got ''"),
        ("typed:share=x", "typed: share must be a number, got 'x'"),
        ("typed:flag=2", "typed: flag must be true or false, got '2'"),
        ("typed:kind=c", "typed: kind must be one of ['a', 'b'], got 'c'"),
        ("typed:most=x", "typed: most must be an integer, got 'x'"),
    ],
)
def test_refusals(text: str, message: str):
    with pytest.raises(ValueError, match=r"^\w") as error:
        make_task(text)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, longstream.tasks as tasks; print(*sys.modules); tasks.make_task('mqar').make(1, 0)"
    code += "; print(*sys.modules)"
    lines = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    before, after = ({name for name in TASKS if f"longstream.tasks.{name}" in line.split()} for line in lines)
    assert before == set()
    assert after == {"mqar"}
    assert not {name.split(".")[0] for name in lines[1].split()} & {"sklearn", "mlxtend", "transformers", "scipy"}
