"""How gated_scan is used: what it changes, modes, devices, sizes of 0, what it refuses."""

from typing import Any

import pytest
import torch

from longstream.ops import available_backends, gated_scan
from tests.cases import backends, gated_scan_case

LEFT_OVER = 67  # no chunk near the usual length divides it


@pytest.fixture(params=backends("gated_scan"))
def backend(request):
    return request.param


@pytest.fixture(params=["real", "complex"])
def unit(request):
    return request.param


def results(case, backend):
    """out, final_state and the gradients of a loss of both, in this order."""
    tensors, cotangents = case.tensors(), case.cotangents()
    outs = gated_scan(**tensors, backend=backend)
    return [*outs, *torch.autograd.grad(outs, list(tensors.values()), cotangents)]


@pytest.mark.parametrize("T", [0, 1, 2, LEFT_OVER])
def test_results_have_memory_of_their_own(backend, unit, T):
    """Changing results in place must change neither one another nor what was given."""
    case = gated_scan_case(2, T, 5, unit=unit, dtype=torch.float32)
    tensors = {name: t.detach() for name, t in case.tensors().items()}
    before = {name: t.clone() for name, t in tensors.items()}
    out, final = gated_scan(**tensors, backend=backend)
    expected = final.clone()
    out.fill_(7)
    assert torch.equal(final, expected)
    final.fill_(7)
    for name, t in tensors.items():
        assert torch.equal(t, before[name])


@pytest.mark.parametrize("T", [1, LEFT_OVER])
def test_autocast_changes_nothing(backend, unit, T):
    case = gated_scan_case(2, T, 5, unit=unit, gates="slow", dtype=torch.float32)
    expected = results(case, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = results(case, backend)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("T", [1, LEFT_OVER])
def test_without_gradients(backend, unit, T):
    case = gated_scan_case(2, T, 5, unit=unit)
    expected = gated_scan(**case.tensors(), backend=backend)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            got = gated_scan(**case.tensors(), backend=backend)
        assert not any(t.requires_grad for t in got)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("T", [0, 1, LEFT_OVER])
@pytest.mark.parametrize(
    ("B", "D", "device"), [(2, 5, "meta"), (0, 5, "cpu"), (2, 0, "cpu")], ids=["meta", "no_rows", "no_channels"]
)
def test_shapes_without_numbers(backend, unit, T, B, D, device):
    if available_backends("gated_scan", torch.empty(0, device=device))[backend]:
        pytest.skip(f"{backend} does not run on {device}, and test_dispatch.py looks at how it says so")
    case = gated_scan_case(B, T, D, unit=unit)
    tensors = {n: t.detach().to(device).requires_grad_() for n, t in case.tensors().items()}
    out, final = gated_scan(**tensors, backend=backend)
    assert (out.shape, final.shape, out.device.type) == (case.d_out.shape, case.d_final.shape, device)
    grads = torch.autograd.grad(out.sum() + final.sum(), list(tensors.values()), materialize_grads=True)
    assert all(grad.shape == t.shape for grad, t in zip(grads, tensors.values(), strict=True))


B, T, D = 2, 6, 5


def good(unit="complex") -> dict[str, Any]:
    return {n: t.detach() for n, t in gated_scan_case(B, T, D, unit=unit).tensors().items()}


@pytest.mark.parametrize(
    ("unit", "name", "shape", "expected"),
    [
        ("real", "x", (B, T), "x must have shape (B, T, D), got (2, 6)"),
        ("real", "x", (B, T, 2, D), "x must have shape (B, T, D), got (2, 6, 2, 5)"),
        ("complex", "x", (B, T, D), "x must have shape (B, T, pair=2, D), got (2, 6, 5)"),
        ("complex", "x", (B, T, 3, D), "x must have shape (B, T, pair=2, D), got (2, 6, 3, 5)"),
        ("real", "log_forget", (B, D, T), "log_forget must have shape (B=2, T=6, D=5), got (2, 5, 6)"),
        ("real", "log_forget", (B, T, 1), "log_forget must have shape (B=2, T=6, D=5), got (2, 6, 1)"),
        ("complex", "log_forget", (B, T, 2, D), "log_forget must have shape (B=2, T=6, D=5), got (2, 6, 2, 5)"),
        ("complex", "theta", (D + 1,), "theta must have shape (D=5), got (6,)"),
        ("complex", "theta", (1,), "theta must have shape (D=5), got (1,)"),
        ("complex", "theta", (1, 1, D), "theta must have shape (D=5), got (1, 1, 5)"),
        ("real", "initial_state", (1, D), "initial_state must have shape (N=2, D=5), got (1, 5)"),
        ("real", "initial_state", (B, 2, D), "initial_state must have shape (N=2, D=5), got (2, 2, 5)"),
        ("complex", "initial_state", (B, D), "initial_state must have shape (N=2, pair=2, D=5), got (2, 5)"),
        ("complex", "initial_state", (B, D, 2), "initial_state must have shape (N=2, pair=2, D=5), got (2, 5, 2)"),
    ],
)
def test_wrong_shape(backend, unit, name, shape, expected):
    tensors = good(unit)
    tensors[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        gated_scan(**tensors, backend=backend)
    assert str(error.value) == f"gated_scan: {expected}"


@pytest.mark.parametrize("name", ["x", "log_forget", "theta", "initial_state"])
@pytest.mark.parametrize("wrong", ["int64", "bool", "complex128", "number", "meta"])
def test_not_a_float_tensor_on_the_same_device(backend, name, wrong):
    tensors = good()
    if wrong == "number":
        tensors[name] = 0.5
    elif wrong == "meta":
        tensors[name] = tensors[name].to("meta")
    else:
        tensors[name] = tensors[name].to(getattr(torch, wrong))
    expected = r"gated_scan: \w+ .*(cpu.*meta|meta.*cpu)" if wrong == "meta" else f"gated_scan: {name} must be"
    with pytest.raises((ValueError, TypeError), match=expected):
        gated_scan(**tensors, backend=backend)


@pytest.mark.parametrize(
    ("cu_seqlens", "expected"),
    [
        ([1, 6], "from 0 to T=6, got .*1, 6"),
        ([0, 4, 3, 6], "from 0 to T=6, got .*0, 4, 3, 6"),
        ([0, 7], "from 0 to T=6, got .*0, 7"),
        ([0], "from 0 to T=6, got .*0"),
        (torch.tensor([[0, 6]]), "1-D.* got"),
        ([0.0, 6.0], "integers, got"),
    ],
    ids=str,
)
def test_wrong_cu_seqlens(backend, cu_seqlens, expected):
    tensors = {n: t[:1] for n, t in good("real").items() if n != "initial_state"}
    with pytest.raises(ValueError, match=rf"gated_scan: cu_seqlens must .*{expected}"):
        gated_scan(**tensors, cu_seqlens=cu_seqlens, backend=backend)


def test_cu_seqlens_wants_one_row_and_one_state_per_sequence(backend):
    tensors = good("real")
    with pytest.raises(ValueError, match=r"gated_scan: cu_seqlens needs .*batch size 1, got batch size 2"):
        gated_scan(**tensors, cu_seqlens=[0, 6], backend=backend)
    row = {n: t[:1] for n, t in tensors.items()}
    with pytest.raises(ValueError, match=r"gated_scan: initial_state must have shape \(N=2, D=5\), got \(1, 5\)"):
        gated_scan(**row, cu_seqlens=[0, 2, 6], backend=backend)


def test_unknown_backend():
    with pytest.raises(
        ValueError, match=r"gated_scan: unknown backend 'cuda'; choose 'auto' or one of \[.*'torch', 'ref"
    ):
        gated_scan(**good(), backend="cuda")
