"""long_conv: what it refuses, and in which words."""

from typing import Any

import pytest
import torch

from longstream.ops import LongConvFilters, LongConvState, long_conv, long_conv_two_sided
from tests.cases import backends, long_conv_case

B, T, D, L = 2, 6, 3, 4


@pytest.fixture(params=backends("long_conv"))
def backend(request):
    return request.param


def good() -> dict[str, Any]:
    inputs, state, _ = long_conv_case(B, T, D, L, lengths=[70, 200]).leaves(torch.float64)
    return {name: tensor.detach() for name, tensor in inputs.items()} | {"initial_state": state}


def call(backend, **changes: Any):
    long_conv(**good() | changes, backend=backend)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("x", (T, D), "(B, T, D), got (6, 3)"),
        ("filters", (D + 1, L), "(D=3, L), got (4, 4)"),
        ("filters", (D, L, 1), "(D=3, L), got (3, 4, 1)"),
        ("skip", (D + 1,), "(D=3), got (4,)"),
        ("skip", (1, D), "(D=3), got (1, 3)"),
    ],
)
def test_wrong_shape(backend, name, shape, expected):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call(backend, **{name: torch.zeros(shape)})
    assert str(error.value) == f"long_conv: {name} must have shape {expected}"


@pytest.mark.parametrize(
    ("field", "wrong", "kind", "expected"),
    [
        (
            0,
            torch.tensor([70]),
            ValueError,
            "length must be torch.int64 of shape (B=2,), got torch.int64 of shape (1,)",
        ),
        (0, torch.tensor([70.0, 1]), ValueError, "length must be torch.int64 of shape (B=2,), got torch.float32 of"),
        (0, torch.tensor([70, -1]), ValueError, "length must be >= 0, got [70, -1]"),
        (
            0,
            torch.tensor([70, 256]),
            ValueError,
            "initial_state needs inputs_2 for its length 256, got ('length', 'rec",
        ),
        (1, torch.zeros(B, 63, D).double(), ValueError, "recent must have shape (B=2, 64, D=3), got (2, 63, 3)"),
        (2, torch.zeros(1, 64, D).double(), ValueError, "inputs_0 must have shape (B=2, 64, D=3), got (1, 64, 3)"),
        (3, torch.zeros(B, 0, D).double(), ValueError, "pending_0 must have shape (B=2, 64, D=3), got (2, 0, 3)"),
        (5, torch.zeros(B, 128, 4).double(), ValueError, "pending_1 must have shape (B=2, 128, D=3), got (2, 128, 4)"),
        (4, torch.zeros(B, 128, D), TypeError, "inputs_1 must be torch.float64 like its recent, got torch.float32"),
        (1, torch.zeros(B, 64, D).long(), TypeError, "recent must be floating point, got torch.int64"),
        (
            5,
            torch.zeros(B, 128, D, device="meta").double(),
            ValueError,
            "pending_1 must be on cpu like the inputs, got",
        ),
    ],
)
def test_wrong_state(backend, field, wrong, kind, expected):
    tensors = list(good()["initial_state"])
    tensors[field] = wrong
    with pytest.raises(kind) as error:
        call(backend, initial_state=LongConvState(*tensors))
    assert str(error.value).startswith("long_conv: initial_state")
    assert expected in str(error.value)


def test_other_bad_arguments(backend):
    given = good()
    with pytest.raises(TypeError, match=r"long_conv: initial_state must be a LongConvState or None, got Tensor"):
        call(backend, initial_state=torch.zeros(B, D))
    with pytest.raises(ValueError, match=r"long_conv: filters must have at least one tap, got shape \(3, 0\)"):
        call(backend, filters=torch.zeros(D, 0))
    with pytest.raises(TypeError, match=r"long_conv: filters must be a tensor of shape \(D=3, L\), got list"):
        call(backend, filters=[1.0])
    for name in ("x", "filters", "skip"):
        with pytest.raises(TypeError, match=rf"long_conv: {name} must be floating point, got torch.int64"):
            call(backend, **{name: given[name].long()})
        with pytest.raises(ValueError, match=r"long_conv: \w+ must be on (cpu|meta) .*, got (cpu|meta)"):
            call(backend, **{name: given[name].to("meta")})
    with pytest.raises(ValueError, match=r"long_conv: cu_seqlens must rise from 0 to T=6, got \[0, 5\]"):
        long_conv(torch.zeros(1, 6, 3), torch.zeros(3, 4), cu_seqlens=[0, 5], backend=backend)
    with pytest.raises(ValueError, match=r"long_conv: initial_state.length .* \(B=3,\), got .*\(2,\)"):
        long_conv(torch.zeros(1, 6, 3), given["filters"], None, given["initial_state"], cu_seqlens=[0, 1, 2, 6])
    with pytest.raises(ValueError, match=r"long_conv: unknown backend 'fft'; choose 'auto' or one of"):
        call("fft")


def test_bad_arguments_of_two_sided(backend):
    x, h = torch.zeros(B, T, D), torch.zeros(D, L)
    with pytest.raises(
        ValueError, match=r"long_conv_two_sided: filters_reverse must have shape \(D=3, L'\), got \(4, 4\)"
    ):
        long_conv_two_sided(x, h, torch.zeros(D + 1, L), backend=backend)
    with pytest.raises(ValueError, match=r"long_conv_two_sided: filters_reverse must have at least one tap, got shape"):
        long_conv_two_sided(x, h, h[:, :0], backend=backend)
    with pytest.raises(ValueError, match=r"long_conv_two_sided: skip must have shape \(D=3\), got \(1,\)"):
        long_conv_two_sided(x, h, h, torch.zeros(1), backend=backend)
    with pytest.raises(ValueError, match=r"long_conv_two_sided: cu_seqlens needs one packed row, .* got batch size 2"):
        long_conv_two_sided(x, h, h, cu_seqlens=[0, 6], backend=backend)


def test_filters_that_cannot_be_made_ready():
    with pytest.raises(ValueError, match=r"LongConvFilters: taps must have shape \(D, L >= 1\), got \(3, 0\)"):
        LongConvFilters(torch.zeros(3, 0))
    with pytest.raises(TypeError, match=r"LongConvFilters: taps must be a floating point tensor, got torch.int64"):
        LongConvFilters(torch.zeros(3, 4).long())
    with pytest.raises(ValueError, match=r"LongConvFilters: taps must not require a gradient; pass the tensor itself"):
        LongConvFilters(torch.zeros(3, 4, requires_grad=True))
