"""How gla is used: devices, modes, in-place changes, what it keeps, what it refuses."""

import pytest
import torch

from longstream.ops import gla
from tests.cases import backends


@pytest.fixture(params=backends("gla"))
def backend(request):
    return request.param


def signed(B, T, H, K, V, N=None, **options):
    """q, k, v, log_forget and initial_state for tests of how gla is used."""
    q, k, v = torch.randn(B, T, H, K, **options), torch.rand(B, T, H, K, **options), torch.randn(B, T, H, V, **options)
    return [q, k, v, -torch.rand(B, T, H, K, **options), torch.randn(B if N is None else N, H, K, V, **options)]


@pytest.mark.parametrize("before", ["inference_mode", "default_device"])
def test_an_earlier_call_in_another_mode_leaves_nothing_behind(before):
    shape = (1, 70, 2, 3, 4)
    with torch.inference_mode() if before == "inference_mode" else torch.device("meta"):
        gla(*(x.requires_grad_(False) for x in signed(*shape)))
    given = [x.requires_grad_() for x in signed(*shape)]
    out, last = gla(*given)
    assert all(g.isfinite().all() for g in torch.autograd.grad((out, last), given, (out, last)))


@pytest.mark.parametrize("backend", ["auto", *backends("gla", without=["native"])])
def test_shapes_on_the_meta_device(backend):
    out, last = gla(*signed(2, 70, 3, 4, 5, device="meta"), backend=backend)
    assert (out.shape, last.shape, out.device.type) == ((2, 70, 3, 5), (2, 3, 4, 5), "meta")


@pytest.mark.parametrize("T", [0, 1, 70])
def test_no_sequences(backend, T):
    out, last = gla(*signed(0, T, 2, 3, 4), backend=backend)
    assert (out.shape, last.shape) == ((0, T, 2, 4), (0, 2, 3, 4))


@pytest.mark.parametrize("T", [64, 70])  # without and with pads in the last chunk
def test_an_output_can_be_changed_in_place(backend, T):
    given = [x.requires_grad_() for x in signed(1, T, 2, 3, 4)]
    out, last = gla(*given, backend=backend)
    out *= 2
    if backend != "reference":  # the loop needs its last state for its own backward pass, and autograd says so
        last += 1
    doubled = torch.autograd.grad(out.sum(), given[2])[0]
    torch.testing.assert_close(doubled, 2 * torch.autograd.grad(gla(*given, backend=backend)[0].sum(), given[2])[0])


def test_only_some_arguments_need_gradients(backend):
    given = signed(1, 70, 2, 3, 4)
    for i, x in enumerate(given):
        alone = [y.detach() for y in given]
        alone[i] = x.clone().requires_grad_()
        everything = [y.clone().requires_grad_() for y in given]
        got = torch.autograd.grad(gla(*alone, backend=backend)[0].square().sum(), alone[i])[0]
        torch.testing.assert_close(
            got, torch.autograd.grad(gla(*everything, backend=backend)[0].square().sum(), everything)[i]
        )


def test_second_derivatives_are_refused_in_words_or_right():
    given = [x.double().requires_grad_() for x in signed(1, 5, 1, 2, 3)]
    out, _ = gla(*given, backend="torch")
    with pytest.raises(RuntimeError, match="first derivatives only; use backend='reference'"):
        torch.autograd.grad(out.square().sum(), given[:4], create_graph=True)
    assert torch.autograd.gradgradcheck(lambda *x: gla(*x, backend="reference")[0], given)


@pytest.mark.parametrize("K", [16, 128, 512])
def test_what_is_kept_for_the_backward_pass_grows_with_the_tokens_alone(K):
    """At most as many numbers as one input and one output have together, and two states."""
    T = 2048
    given = [x.requires_grad_() for x in signed(1, T, 1, K, K)]
    kept = []

    def pack(x):
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        gla(*given, backend="torch")
    inputs = {x.data_ptr() for x in given}
    more = sum(x.numel() for x in kept if x.data_ptr() not in inputs and x.is_floating_point())
    assert more <= T * 2 * K + 2 * K * K


def test_cu_seqlens_are_whole_numbers():
    given = signed(1, 7, 1, 2, 3, N=2)
    for wrong in ([0, 3.7, 7], "07", 7, [None, 7]):
        with pytest.raises(ValueError, match="gla: cu_seqlens must be a 1-D integer tensor or a sequence of integers"):
            gla(*given, cu_seqlens=wrong)  # type: ignore[arg-type]
    assert gla(*given, cu_seqlens=(0, 3, 7))[1].shape[0] == 2
    assert gla(*given, cu_seqlens=torch.tensor([0, 3, 7], dtype=torch.int32))[1].shape[0] == 2
