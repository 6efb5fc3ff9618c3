"""What Hyena keeps of its filters, taps and modal filters: made once, and never used for other weights than theirs."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from longstream.layers import Hyena, hyena_taps
from tests.hyena_by_hand import D, make, random_modal
from tests.numerics import assert_same


class Counter:
    """Counts the calls of HyenaFilter.taps, and the taps that they made."""

    def __init__(self, monkeypatch):
        self.spans: list[tuple[int, int]] = []
        original = hyena_taps.HyenaFilter.taps

        def taps(module: Any, start: int, stop: int) -> torch.Tensor:
            self.spans.append((start, stop))
            return original(module, start, stop)

        monkeypatch.setattr(hyena_taps.HyenaFilter, "taps", taps)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_taps_are_made_once(context, monkeypatch):
    layer, counter = make(), Counter(monkeypatch)
    with context():
        _, state = layer(torch.randn(1, 20, D, dtype=torch.float64))
        for _ in range(90):
            _, state = layer.step(torch.randn(1, D, dtype=torch.float64), state)
        layer(torch.randn(3, 250, D, dtype=torch.float64))
    assert counter.spans == [(0, 300)]
    layer(torch.randn(1, 20, D, dtype=torch.float64))  # wants gradients, and as many taps as its state foretells
    assert counter.spans[1:] == [(0, 40)]


@torch.no_grad()
def test_taps_are_made_in_pieces(monkeypatch):
    """Each lag once, and to the last bit as if all had been asked for at the start."""
    monkeypatch.setattr(hyena_taps, "FIRST_PIECE", 16)
    layer, counter = make(), Counter(monkeypatch)
    x, state = torch.randn(1, 300, D, dtype=torch.float64), None
    outs = []
    for t in range(0, 300, 10):
        y, state = layer(x[:, t : t + 10], state)
        outs.append(y)
    assert counter.spans == [(0, 16), (16, 32), (32, 64), (64, 128), (128, 256), (256, 300)]
    again, state = [], None
    for t in range(0, 300, 10):
        y, state = layer(x[:, t : t + 10], state)
        again.append(y)
    assert len(counter.spans) == 6
    assert torch.equal(torch.cat(outs, 1), torch.cat(again, 1))


def test_frozen_filters_are_kept_with_gradients_too(monkeypatch):
    layer, counter = make(), Counter(monkeypatch)
    layer.filter.requires_grad_(False)
    x = torch.randn(1, 5, D, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        layer(x)[0].sum().backward()
    assert len(counter.spans) == 1
    assert x.grad is not None
    assert x.grad.abs().min() > 0


def optimizer_step(optimizer: Any, **kwargs: Any) -> Any:
    def change(layer: Hyena) -> None:
        with torch.enable_grad():
            layer(torch.randn(1, 5, D, dtype=torch.float64))[0].square().sum().backward()
        optimizer(layer.parameters(), lr=0.01, **kwargs).step()
        layer.zero_grad()

    return change


def edit(name: str) -> Any:
    def change(layer: Hyena) -> None:
        layer.filter.state_dict(keep_vars=True)[name].mul_(1.3)

    return change


def edit_in_inference_mode(layer: Hyena) -> None:
    with torch.inference_mode():
        layer.filter.out_proj.weight.mul_(1.3)


def edit_data(layer: Hyena) -> None:
    for parameter in layer.filter.parameters():
        parameter.data.mul_(1.1)


def set_data(layer: Hyena) -> None:
    layer.filter.out_proj.weight.data = 1.1 * layer.filter.out_proj.weight.data


def load(assign: bool) -> Any:
    def change(layer: Hyena) -> None:
        layer.load_state_dict(make(max_seq_len=layer.max_seq_len).state_dict(), assign=assign)

    return change


def new_parameter(layer: Hyena) -> None:
    layer.filter.frequency = nn.Parameter(1.1 * layer.filter.frequency.detach())


def new_module(layer: Hyena) -> None:
    layer.filter.hidden[1] = nn.Linear(8, 8).double()


def parametrize(layer: Hyena) -> None:
    class Half(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 0.5 * weight

    nn.utils.parametrize.register_parametrization(layer.filter.out_proj, "weight", Half())


CHANGES: dict[str, Any] = {
    "SGD": optimizer_step(torch.optim.SGD),
    "AdamW": optimizer_step(torch.optim.AdamW),
    "fused AdamW": optimizer_step(torch.optim.AdamW, fused=True),  # does not count as a new version of a tensor
    "load_state_dict": load(assign=False),
    "load_state_dict, assign": load(assign=True),
    "frequency": edit("frequency"),
    "positions": edit("positions"),
    "time": edit("time"),
    "delta": edit("delta"),
    "a weight": edit("hidden.1.weight"),
    "in inference mode": edit_in_inference_mode,
    ".data edited": edit_data,
    ".data set": set_data,
    "another parameter": new_parameter,
    "another module": new_module,
    "a parametrization": parametrize,
    "another choice": lambda layer: setattr(layer.filter, "window_shift", 0.3),
    "reset_parameters": lambda layer: layer.filter.reset_parameters(),
    "another filter": lambda layer: setattr(layer, "filter", make(max_seq_len=layer.max_seq_len).filter),
}


@pytest.mark.parametrize("where", ["step", "forward", "step in training mode"])
@pytest.mark.parametrize("name", CHANGES)
def test_no_stale_taps(name, where):
    layer = make().train("training" in where)
    x, x_t = torch.randn(1, 5, D, dtype=torch.float64), torch.randn(1, D, dtype=torch.float64)
    with torch.no_grad():
        y, state = layer(x)
        layer.step(x_t, state)
        kept = layer._caches["filter"]._kept
        CHANGES[name](layer)
        fresh = copy.deepcopy(layer)
        assert fresh._caches["filter"]._kept is None
        if where == "forward":
            assert_same("y", layer(x)[0], fresh(x)[0], 0.0)
            assert not torch.allclose(layer(x)[0], y)
        else:
            assert_same("y", layer.step(x_t, state)[0], fresh.step(x_t, state)[0], 0.0)
        now = layer._caches["filter"]._kept
        assert kept is not None
        assert now is not None
        assert not torch.equal(now.taps, kept.taps)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_a_write_that_leaves_no_trace(training):
    """One weight's ``.data``: seen by a call of more than one token, and by each call in training mode."""
    layer = make().train(training)
    x, x_t = torch.randn(1, 5, D, dtype=torch.float64), torch.randn(1, D, dtype=torch.float64)
    _, state = layer(x)
    layer.filter.out_proj.weight.data[3] *= 1.3
    if not training:
        layer(x)
    assert_same("y", layer.step(x_t, state)[0], copy.deepcopy(layer).step(x_t, state)[0], 0.0)


@torch.no_grad()
def test_taps_follow_the_dtype():
    layer, x = make(dtype=torch.float32), torch.randn(1, 9, D)
    layer(x)
    layer.double()
    assert_same("y", layer(x.double())[0], copy.deepcopy(layer)(x.double())[0], 0.0)
    layer.float()
    assert layer(x)[0].dtype == torch.float32


def test_weights_made_in_inference_mode():
    """They count no versions, so their contents are looked at each time."""
    with torch.inference_mode():
        layer = make()
        x, x_t = torch.randn(1, 5, D, dtype=torch.float64), torch.randn(1, D, dtype=torch.float64)
        _, state = layer(x)
        layer.step(x_t, state)
        layer.filter.hidden[1].weight.mul_(1.3)  # type: ignore[operator]
        assert_same("y", layer.step(x_t, state)[0], copy.deepcopy(layer).step(x_t, state)[0], 0.0)
    with torch.no_grad():  # and what was kept then serves outside
        layer.step(x_t, state)


def test_copies_and_files_hold_no_taps():
    layer, x = make(), torch.randn(1, 200, D, dtype=torch.float64)
    names, small = set(layer.state_dict()), len(pickle.dumps(layer))
    with torch.no_grad():
        y, _ = layer(x)
        assert set(layer.state_dict()) == names
        assert len(pickle.dumps(layer)) == small
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x)[0], y)
            other.filter.frequency.mul_(1.1)
            assert not torch.allclose(other(x)[0], y)
        assert torch.equal(layer(x)[0], y)


def test_modal_filters_stand_for_the_true_ones():
    """Smooth filters, met by a few modes: decoding and forward come as close to the true outputs as the report says."""
    layer = make(order=3, num_heads=2, positional_width=3, frequency=1.0, max_seq_len=90)
    report = layer.distill(8)
    assert report.order == 8
    assert report.error < 1e-6
    x = torch.randn(2, 90, D, dtype=torch.float64)
    y, _ = layer(x)
    layer.set_decode("modal")
    modal_y, state = layer(x)
    assert_same("y", modal_y, y, 1e-6)
    assert state.modes.shape == (2, 2, D, 8, 2)
    with pytest.raises(ValueError, match=r"max_seq_len=90 tokens, got 91"):
        layer.step(x[:, 0], state)
    layer.distill(8, extrapolate=True)
    layer.step(x[:, 0], state)
    assert layer.distill(tol=1e-3).error <= 1e-3
    with pytest.raises(ValueError, match="order or tol"):
        layer.distill()


def test_modal_filters_go_with_the_layer_and_not_into_files():
    layer = make(positional_width=3, frequency=1.0, max_seq_len=50)
    names, x = set(layer.state_dict()), torch.randn(1, 9, D, dtype=torch.float64)
    layer.distill(3)
    layer.set_decode("modal")
    y, _ = layer(x)
    assert set(layer.state_dict()) == names
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x)[0], y)
    layer.requires_grad_(False)  # to freeze a filter, or to move it to another dtype, does not change it
    assert torch.equal(layer(x)[0], y)
    assert layer.float()(x.float())[0].dtype == torch.float32


@pytest.mark.parametrize("name", CHANGES)
def test_stale_modal_filters_are_refused(name):
    layer = make(max_seq_len=20)
    x_t, layer.decode = torch.randn(1, D, dtype=torch.float64), "modal"
    layer.distill(2)
    _, state = layer.step(x_t, None)
    layer.step(x_t, state)
    with torch.no_grad():
        layer.set_decode("tiled")
        CHANGES[name](layer)
        layer.set_decode("modal")
    for _ in range(3):  # and again: to have looked does not make them right
        with pytest.raises(RuntimeError, match=r"stale: the filters changed after distill\(\)"):
            layer.step(x_t, state)
    layer.distill(2)
    layer.step(x_t, state)


def test_modal_filters_that_are_not_there():
    layer = make(decode="modal")
    for call in (lambda: layer(torch.zeros(1, 1, D, dtype=torch.float64)), lambda: layer.init_state(1)):
        with pytest.raises(RuntimeError, match=r"needs modal filters; call distill\(\) or set_modal\(\) first"):
            call()
    with pytest.raises(ValueError, match=r"Hyena.set_modal: residues must have shape \(N-1=1, D/H=12, M=4, 2=2\)"):
        layer.set_modal(random_modal(1, D)._replace(residues=torch.zeros(1, D, 3, 2)))
    with pytest.raises(ValueError, match=r"poles must have shape"):
        layer.set_modal(random_modal(2, D))


def test_taps_made_in_inference_mode_meet_gradients_later():
    layer = make().requires_grad_(False)
    x = torch.randn(1, 20, D, dtype=torch.float64)
    with torch.inference_mode():
        y, _ = layer(x)
    x.requires_grad_()
    again, _ = layer(x)
    assert torch.equal(again, y)
    assert torch.autograd.grad(again.sum(), x)[0].isfinite().all()


def test_modal_filters_that_grow_or_are_none_are_refused():
    layer = make()
    modal = random_modal(layer.order - 1, D)
    with pytest.raises(TypeError, match=r"Hyena\.set_modal: modal must be a ModalFilter, got NoneType"):
        layer.set_modal(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"modal\.poles must have \|pole\| <= 1, got one that grows"):
        layer.set_modal(modal._replace(poles=3 * modal.poles / modal.poles.norm(dim=-1, keepdim=True)))
