"""Every op behind one face, for tests that ask the same of all of them: named tensors in, named tensors out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from longstream.ops import (
    LongConvState,
    LowerBound,
    forget_gate,
    gated_scan,
    gla,
    long_conv,
    long_conv_two_sided,
    short_conv,
)
from longstream.ops.gates import gate_input
from tests.cases import CU_SEQLENS, gated_scan_case, gla_case, long_conv_case, short_conv_case, to_tensor
from tests.numerics import assert_no_worse, assert_same

# The loop may be right by luck in a number that takes two operations; an exp and a product may lose a rounding each.
ROUNDINGS = 2

# Where a float32 kernel may lose more than twice what the plain loop does, because which order of a sum loses least is
# luck: gradients that are one sum over all tokens, and sums by FFT (see test_short_conv.py, test_gated_scan_oracle.py,
# test_long_conv.py).
FACTORS = {"d theta": 16.0, "d weight": 4.0, "d bias": 4.0, "d bound": 4.0, "d complement": 4.0}
LONG_CONV_FACTOR = 4.0


class Sample(NamedTuple):
    """A call: what computes it from its tensors on a backend, and the tensors."""

    op: str
    call: Callable[[dict[str, Any], str], dict[str, Tensor]]
    tensors: dict[str, Tensor]


def results(sample, backend, tensors=None, only=None):
    """The outputs, and the gradients of a sum over them (or over the one named ``only``) with random factors, by name.

    Gradients are those of every tensor that wants one, or of all if none does.
    """
    tensors = sample.tensors if tensors is None else tensors
    if not any(tensor.requires_grad for tensor in tensors.values()):
        tensors = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    outputs = sample.call(tensors, backend)
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    used = {name: out for name, out in outputs.items() if out.requires_grad and only in (None, name)}
    factors = [cotangent(name, out) for name, out in used.items()]
    if used:
        grads = torch.autograd.grad(list(used.values()), list(leaves.values()), factors, materialize_grads=True)
    else:  # there is no token
        grads = [torch.zeros_like(leaf) for leaf in leaves.values()]
    outputs = {name: out.detach() for name, out in outputs.items()}
    return outputs | {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def cotangent(name, out):
    """Random numbers that bfloat16 can hold, the same for every dtype and backend."""
    numbers = np.random.default_rng([len(name), *out.shape]).standard_normal(out.shape)
    return to_tensor(numbers, torch.bfloat16).to(out.dtype)


def widened(sample, dtype):
    """The same call with every tensor in ``dtype``."""
    return sample._replace(tensors={name: tensor.detach().to(dtype) for name, tensor in sample.tensors.items()})


def answer(sample, dtype=torch.float64, **options):
    """What the reference makes of it in float64 (exact), or in float32 (the plain loop)."""
    return results(widened(sample, dtype), "reference", **options)


def check(sample, backend="native", tensors=None, loop=None, **options):
    """Hold a backend against the reference in float64: the same, or in less than float64 no worse than the plain loop.

    ``tensors``: the same numbers, otherwise laid out in memory. ``loop``: another plain loop than the reference.
    """
    exact, got = answer(sample, **options), results(sample, backend, tensors, **options)
    if loop is None and not is_float64(sample):
        loop = answer(sample, torch.float32, **options)
    is_fft = sample.op.startswith("long_conv")  # which loses a share of its largest sum in small ones, too
    size = (
        max((float(exact[n].abs().max()) for n in ("out", "d x") if n in exact and exact[n].numel()), default=0.0)
        if is_fft
        else 0.0
    )
    for name, value in got.items():
        if name not in exact:  # a level of a state, which no row needs
            assert value.numel() == 0, name
        elif is_float64(sample):
            assert_same(name, value, exact[name])
        else:
            assert loop is not None
            factor = LONG_CONV_FACTOR if is_fft else FACTORS.get(name, 2.0)
            largest = max(size, float(exact[name].abs().max())) if value.numel() else 0.0
            assert_no_worse(name, value, loop[name], exact[name], factor, ROUNDINGS, largest)
    return got


def is_float64(sample):
    return any(tensor.dtype == torch.float64 for tensor in sample.tensors.values())


def gla_sample(B, T, H, K, V, *, cu_seqlens=None, state=True, **options):
    N = None if cu_seqlens is None else len(cu_seqlens) - 1
    tensors = gla_case(B, T, H, K, V, num_states=N, **options).tensors()

    def call(tensors, backend):
        out, final = gla(**tensors, cu_seqlens=cu_seqlens, backend=backend)
        return {"out": out, "final_state": final}

    return Sample("gla", call, plain(tensors, state))


def gated_scan_sample(B, T, D, *, reverse=False, cu_seqlens=None, state=True, **options):
    N = None if cu_seqlens is None else len(cu_seqlens) - 1
    tensors = gated_scan_case(B, T, D, num_states=N, **options).tensors()

    def call(tensors, backend):
        out, final = gated_scan(**tensors, reverse=reverse, cu_seqlens=cu_seqlens, backend=backend)
        return {"out": out, "final_state": final}

    return Sample("gated_scan", call, plain(tensors, state))


def short_conv_sample(B, T, D, W, *, activation: str | None = "silu", cu_seqlens=None, state=True, **options):
    N = None if cu_seqlens is None else len(cu_seqlens) - 1
    tensors = short_conv_case(B, T, D, W, num_states=N, **options).tensors()

    def call(tensors, backend):
        out, final = short_conv(**tensors, activation=activation, cu_seqlens=cu_seqlens, backend=backend)
        return {"out": out, "final_state": final}

    return Sample("short_conv", call, plain(tensors, state))


def long_conv_sample(B, T, D, L, *, lengths=None, cu_seqlens=None, dtype=torch.float64, **options):
    counts = None if cu_seqlens is None else np.diff(cu_seqlens).tolist()
    case = long_conv_case(B, T, D, L, lengths=lengths, counts=counts, dtype=dtype, **options)
    inputs, state, _ = case.leaves(dtype)
    fields = [] if state is None else [name for name in state._fields if name != "length"]

    def call(tensors, backend):
        given = {name: tensor for name, tensor in tensors.items() if name not in fields}
        if lengths is not None:
            given["initial_state"] = LongConvState(torch.tensor(lengths), *(tensors[name] for name in fields))
        out, final = long_conv(**given, cu_seqlens=cu_seqlens, backend=backend)
        named = zip(final._fields[1:], final[1:], strict=True)
        return {"out": out} | {f"final {name}": tensor for name, tensor in named if tensor.numel()}

    held = {} if state is None else dict(zip(fields, state[1:], strict=True))
    return Sample("long_conv", call, plain(inputs | held))


def two_sided_sample(B, T, D, L, *, cu_seqlens=None, dtype=torch.float64, **options):
    tensors, _, _ = long_conv_case(B, T, D, L, dtype=dtype, **options).leaves(dtype)
    other, _, _ = long_conv_case(B, T, D, L // 2 + 1, dtype=dtype, seed=1).leaves(dtype)
    tensors["filters_reverse"] = other["filters"]

    def call(tensors, backend):
        return {"out": long_conv_two_sided(**tensors, cu_seqlens=cu_seqlens, backend=backend)}

    return Sample("long_conv_two_sided", call, plain(tensors))


def forget_gate_sample(*shape, bound=True, dtype=torch.float64, gates="wide"):
    rng = np.random.default_rng([*shape, bound])
    tensors = {"z": rng.uniform(-20, 20, shape) if gates == "wide" else rng.standard_normal(shape)}
    if bound:
        tensors["bound"] = rng.uniform(0.0, 1.0, shape[-1])
        tensors["complement"] = 1 - tensors["bound"]

    def call(tensors, backend):
        bound = LowerBound(tensors["bound"], tensors["complement"]) if "bound" in tensors else None
        log_forget, input_gate = forget_gate(tensors["z"], bound, backend=backend)
        return {"log_forget": log_forget, "input_gate": input_gate}

    return Sample("forget_gate", call, {name: to_tensor(array, dtype) for name, array in tensors.items()})


def gate_input_sample(*shape, dtype=torch.float64, gates="wide"):
    gate = forget_gate_sample(*shape, dtype=dtype, gates=gates)
    candidate = to_tensor(np.random.default_rng(shape).standard_normal(shape), dtype)

    def call(tensors, backend):
        bound = LowerBound(tensors["bound"], tensors["complement"])
        log_forget, gated_input = gate_input(tensors["candidate"], tensors["z"], bound, backend=backend)
        return {"log_forget": log_forget, "gated_input": gated_input}

    return Sample("forget_gate", call, gate.tensors | {"candidate": candidate})


def plain(tensors, state=True):
    return {name: t.detach() for name, t in tensors.items() if state or name != "initial_state"}


def samples(B=2, T=67, gates="wide", dtype=torch.float32, **more) -> dict[str, Callable[[], Sample]]:
    """One call of every kind that there is, by name, with unequal and odd sizes."""
    old, gated = {"dtype": dtype, **more}, {"gates": gates, "dtype": dtype, **more}
    N = len(CU_SEQLENS) - 1
    packed = {"cu_seqlens": CU_SEQLENS}
    P = CU_SEQLENS[-1]
    return {
        "gla": lambda: gla_sample(B, T, 3, 19, 21, **gated),
        "gla without a state": lambda: gla_sample(B, T, 1, 4, 37, state=False, **gated),
        "gla packed": lambda: gla_sample(1, P, 2, 7, 18, **packed, **gated),
        "gated_scan": lambda: gated_scan_sample(B, T, 37, **gated),
        "gated_scan without a state": lambda: gated_scan_sample(B, T, 5, state=False, **gated),
        "gated_scan in reverse": lambda: gated_scan_sample(B, T, 19, reverse=True, **gated),
        "gated_scan complex": lambda: gated_scan_sample(B, T, 21, unit="complex", **gated),
        "gated_scan complex in reverse": lambda: gated_scan_sample(B, T, 3, unit="complex", reverse=True, **gated),
        "gated_scan packed": lambda: gated_scan_sample(1, P, 18, **packed, **gated),
        "gated_scan complex packed": lambda: gated_scan_sample(1, P, 9, unit="complex", **packed, **gated),
        "short_conv": lambda: short_conv_sample(B, T, 37, 4, **old),
        "short_conv without bias, activation and state": lambda: short_conv_sample(
            B, T, 18, 3, bias=False, activation=None, state=False, **old
        ),
        "short_conv packed": lambda: short_conv_sample(1, P, 21, 4, **packed, **old),
        "long_conv": lambda: long_conv_sample(B, T, 19, 150, **old),
        "long_conv without skip": lambda: long_conv_sample(B, T, 4, 30, skip=False, **old),
        "long_conv from a state": lambda: long_conv_sample(B, T, 5, 260, lengths=[190] * B, **old),
        "long_conv packed": lambda: long_conv_sample(1, P, 7, 90, lengths=[130] * N, **packed, **old),
        "long_conv_two_sided": lambda: two_sided_sample(B, T, 19, 60, **old),
        "long_conv_two_sided packed": lambda: two_sided_sample(1, P, 6, 40, **packed, **old),
        "forget_gate": lambda: forget_gate_sample(B, T, 37, gates=gates, dtype=dtype),
        "forget_gate without a bound": lambda: forget_gate_sample(B, T, 5, bound=False, gates=gates, dtype=dtype),
        "forget_gate with an input": lambda: gate_input_sample(B, T, 19, gates=gates, dtype=dtype),
    }


KINDS = list(samples())


ONE_OF_EACH = [kind for kind in KINDS if " " not in kind]  # one kind an op


def assert_same_bits(got, expected):
    assert list(got) == list(expected)
    for name, value in got.items():
        assert torch.equal(value, expected[name]), f"{name}: {int((value != expected[name]).sum())} differ"


def place(tensor):
    """A number in the middle, in an odd channel, the same for every backend."""
    return int(np.ravel_multi_index([(size - 1) // 2 for size in tensor.shape], tensor.shape)) if tensor.numel() else 0
