"""What `stream_check` refuses of a program, and `stream_step` of the memory it is given."""

import struct

import pytest
import torch
from torch import Tensor

from tests.stream.machine import HOLD, KERNELS, LAYOUT, Machine, needs_native

pytestmark = needs_native


def edited(op: str, field: str, value: int) -> Machine:
    """A program of every kind of instruction, one field of which is another."""
    n, m = 32, Machine(32, 32)
    out, floats = m.scratch(4 * n), m.constant(torch.ones(64 * n))
    other = out + 3 * n
    state = m.state(n * n)
    index = m.constant(torch.zeros(4, dtype=torch.int64))
    weight = {"weight": floats, "bias": floats}
    bound = {"bound": floats, "complement": floats}
    fields = {
        "linear": {"in": 0, "n_in": n, "out": out, "n_out": n, "kind": 2, "scale": floats, "add": 0, **weight},
        "norm": {"in": 0, "out": out, "n": n, "kind": 0, "eps": 0, "gate": 0, **weight},
        "multiply": {"a": 0, "activation": 0, "b": 0, "out": out, "n": n},
        "affine": {"in": 0, "out": out, "n": n, **weight},
        "short_conv": {"in": 0, "out": out, "n": n, "taps": 4, "state": state, **weight},
        "hgrn": {"c": 0, "z": 0, "out": out, "n": n // 2, "theta": floats, "state": state, **bound},
        "gla": {"q": 0, "z": 0, "v": 0, "out": out, "heads": 2, "size": 16, "act_q": 1, "scale": 0, "act_v": 1}
        | {"state": state, **bound},
        "shared_gates": {"f": 0, "i": 0, "v": 0, "out": out, "n": n, "gates": 4, "state": state},
        "attention": {"q": 0, "k": 0, "v": 0, "out": out, "heads": 4, "kv_heads": 2, "size": 8, "window": 5}
        | {"turns": floats, "state": state},
        "modal": {"in": 0, "out": out, "n": n, "modes": 4, "poles": floats, "residues": floats, "direct": floats}
        | {"state": state},
        "normalize": {
            "in": 0,
            "out": other,
            "n": n - 4,
            "mean": floats,
            "std": floats,
            "indicators": 4,
            "index": index,
        },
        "pool": {"in": 0, "out": out, "n": n, "kind": 0, "state": state},
    }
    for name, given in fields.items():
        m.add(name, **{**given, **({field: value} if name == op else {})})
    if op == "begin":
        m.lines[0][1 + LAYOUT["ops"]["begin"][1:].index(field)] = value
    return m


FREE = {("norm", "eps"), ("gla", "scale")}  # any number will do
EVERY = [(op, field) for op, (_, *fields) in LAYOUT.get("ops", {}).items() for field in fields if op != "long_conv"]


def test_a_good_program_is_not_refused():
    m = edited("", "", 0).start(2, threads=2)
    assert m.step(torch.randn(2, 32))[0] in (0, -1, -2)


@pytest.mark.parametrize(("op", "field"), [pair for pair in EVERY if pair not in FREE])
def test_every_field_is_checked(op, field):
    for value in (-2, 1 << 20, 1 << 40, (1 << 62) + 64, -(1 << 63), (1 << 63) - 1):
        with pytest.raises(RuntimeError, match=rf"instruction \d+ \({op}\)"):
            edited(op, field, value).start(1)


def test_what_else_is_refused():
    def refused(m: Machine, what: str) -> None:
        with pytest.raises(RuntimeError, match=what):
            m.start(1)

    refused(edited("linear", "out", 16), "overlaps")
    refused(edited("gla", "out", 0), "overlaps")
    refused(edited("norm", "out", 4), "overlaps")
    refused(edited("affine", "weight", 4), "multiple of 64")
    refused(edited("attention", "kv_heads", 3), "divide")
    refused(edited("shared_gates", "gates", 5), "divide")
    refused(edited("hgrn", "complement", -1), "complement")
    refused(edited("linear", "scale", -1), "outside")
    m = edited("", "", 0)
    m.constants[-8:] = struct.pack("<q", 28)
    refused(m, "index names a channel")
    m = edited("", "", 0)
    m.lines[3][0] = 99
    refused(m, "unknown")
    m.lines[3] = m.lines[0]
    refused(m, "one begin")
    m.lines = m.lines[1:3]
    refused(m, "one begin")
    m.lines = []
    m.lines = [[0] * 15]
    refused(m, "shape")


def test_memory_of_another_size_or_kind_is_refused():
    m = Machine(2, 2)
    m.add("pool", **{"in": 0}, out=0, n=2, kind=0, state=m.state(2))
    m.start(2)
    x, y = torch.zeros(2, 2), torch.zeros(2, 2)
    good = m.arguments(x, y, torch.zeros(2, dtype=torch.bool))
    assert KERNELS.stream_step(*good) == 0
    names = [argument.name for argument in KERNELS.stream_step.default._schema.arguments]
    for place, (name, argument) in enumerate(zip(names, good, strict=True)):
        if not isinstance(argument, Tensor):
            continue
        wrong = [argument[:-1], argument.to(torch.float64), argument.t() if argument.dim() == 2 else argument[None]]
        if name in ("program", "constants"):
            wrong = wrong[1:]
        for other in wrong:
            if name == "tape" or (other.shape == argument.shape and other.dtype == argument.dtype):
                continue
            with pytest.raises(RuntimeError):
                KERNELS.stream_step(*good[:place], other, *good[place + 1 :])
    for place, value in ((12, 3), (12, -1), (13, 0)):
        with pytest.raises(RuntimeError):
            KERNELS.stream_step(*good[:place], value, *good[place + 1 :])
    without = list(m.arguments(x, y, policy=HOLD))
    without[6] = None
    with pytest.raises(RuntimeError, match="held"):
        KERNELS.stream_step(*without)
    for slot in (-1, 3):
        m.slot[1] = slot
        with pytest.raises(RuntimeError, match="row 1"):
            m.step(x)
