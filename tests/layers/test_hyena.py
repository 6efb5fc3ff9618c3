"""The Hyena layer: its equations, every way of feeding and decoding it, its states and its arguments."""

import copy
import pickle
from typing import Any

import pytest
import torch

from longstream.layers import Hyena, HyenaState, hyena_decode, hyena_taps
from longstream.layers.hyena_state import HyenaModalState, HyenaNaiveState
from longstream.layers.modal import modal_taps
from longstream.layers.state import NoState, cat_states
from longstream.testing import assert_equivalent
from tests.hyena_by_hand import D, by_hand, make, random_modal
from tests.numerics import BFLOAT16_LAYER, assert_same

CHOICES: dict[str, dict[str, Any]] = {
    "order 2": {},
    "order 3, heads": {"order": 3, "num_heads": 3, "activation": "gelu", "filter_layout": "channel"},
    "order 4": {"order": 4, "short_conv_size": 1, "activation": "silu", "window": False},
    "one channel a head": {"num_heads": 12, "short_conv_size": 5, "normalize_filter": True},
    "both ways": {"causal": False},
    "both ways, order 3, heads": {"causal": False, "order": 3, "num_heads": 2, "short_conv_size": 4},
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", CHOICES)
def test_equations(name, backend):
    layer = make(**CHOICES[name], backend=backend)
    for T in (0, 1, 2, 9):
        x = torch.randn(2, T, D, dtype=torch.float64)
        assert_same("y", layer(x)[0], by_hand(layer, x))


# Every way of feeding. With gradients wanted, the taps are made at each call.

CONTRACT: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "order 2": ({}, (0, 1, 2, 63, 130)),
    "order 3, heads": ({"order": 3, "num_heads": 3, "filter_layout": "channel"}, (0, 2, 66)),
    "no short convolution": ({"short_conv_size": 1, "activation": "gelu"}, (1, 65)),
    "five short taps": ({"short_conv_size": 5, "bias": False}, (0, 1, 2, 4, 67)),
    "the longest there is": ({"max_seq_len": 8}, (0, 1, 2)),  # states of 4 to 6 tokens are gone on from
    "reference": ({"backend": "reference"}, (66, 2)),
    "naive": ({"order": 3, "num_heads": 2, "decode": "naive"}, (0, 1, 2, 20)),
    "naive, reference": ({"decode": "naive", "backend": "reference", "short_conv_size": 1}, (1, 5)),
    "modal": ({"order": 3, "num_heads": 2, "decode": "modal"}, (0, 1, 66, 2)),
    "both ways": ({"causal": False, "order": 3, "num_heads": 2}, (0, 1, 2, 63, 130)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CONTRACT)
def test_every_way_of_feeding_is_equivalent(name, dtype):
    choices, lengths = CONTRACT[name]
    layer = make(dtype=dtype, **choices)
    if layer.decode == "modal":
        layer.set_modal(random_modal(layer.order - 1, D // layer.num_heads, dtype=dtype))
    assert_equivalent(layer, lengths=lengths if dtype == torch.float64 else lengths[-1:])


@torch.no_grad()
@pytest.mark.parametrize("decode", ["tiled", "naive", "modal"])
@pytest.mark.parametrize(("order", "num_heads"), [(2, 1), (3, 2)])
def test_decoding_without_gradients(order, num_heads, decode, monkeypatch):
    """Rows of different lengths, from prompts shorter than the short filter on, past several blocks of the state."""
    monkeypatch.setattr(hyena_taps, "FIRST_PIECE", 16)  # the taps are made in several pieces
    layer = make(order=order, num_heads=num_heads, short_conv_size=4, max_seq_len=290, decode=decode)
    modal = random_modal(order - 1, D // num_heads)
    layer.set_modal(modal)
    prompts, T = [0, 1, 2, 77], 210
    x = torch.randn(4, 77 + T, D, dtype=torch.float64)
    exact = by_hand(layer, x, modal_taps(modal, 77 + T) if decode == "modal" else None)
    mask = torch.arange(77) >= 77 - torch.tensor(prompts)[:, None]
    padded = torch.stack([x[row, :77].roll(77 - P, 0) for row, P in enumerate(prompts)])
    y, state = layer(padded, mask=mask)
    got = [[y[row, 77 - P :]] for row, P in enumerate(prompts)]
    for t in range(T):
        y, state = layer.step(torch.stack([x[row, P + t] for row, P in enumerate(prompts)]), state)
        for row in range(4):
            got[row].append(y[row, None])
    for row, P in enumerate(prompts):
        assert_same(f"row {row}", torch.cat(got[row]), exact[row, : P + T])
    assert state.length.tolist() == [P + T for P in prompts]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("at", [0, 5, 8])
def test_what_a_change_moves(at, causal):
    """No earlier output, unless it looks both ways."""
    layer, x = make(order=3, causal=causal), torch.randn(2, 9, D, dtype=torch.float64)
    changed = x.clone()
    changed[:, at] += 3.0
    y, moved = layer(x)[0], layer(changed)[0]
    assert torch.equal(moved[:, :at], y[:, :at]) == (causal or at == 0)
    assert not torch.isclose(moved[:, at], y[:, at]).any()


@torch.no_grad()
@pytest.mark.parametrize("order", [2, 3])
def test_a_step_copies_no_history(order):
    """The levels that do not change are the same tensors, and a state that was given stays as it was."""
    layer = make(order=order)
    _, state = layer(torch.randn(1, 130, D, dtype=torch.float64))
    before = [t.clone() for t in state]
    _, after = layer.step(torch.randn(1, D, dtype=torch.float64), state)
    assert len(after) == 3 + 2 * 2
    assert all(now is then for now, then in zip(after[3:], state[3:], strict=True))
    for _ in range(70):
        _, after = layer.step(torch.randn(1, D, dtype=torch.float64), after)
    assert all(map(torch.equal, state, before))


# States.


def test_state_of_each_mode():
    layer = make(order=3, short_conv_size=4)
    layer.set_modal(random_modal(2, D, modes=5))
    kinds = {"tiled": HyenaState, "naive": HyenaNaiveState, "modal": HyenaModalState}
    shapes = {"tiled": (3, 2, 64, D), "naive": (3, 2, 0, D), "modal": (3, 2, D, 5, 2)}
    for mode, kind in kinds.items():
        layer.set_decode(mode)
        state = layer.init_state(3)
        assert type(state) is kind
        assert [tuple(t.shape) for t in state] == [(3, 3, 4 * D), (3,), shapes[mode]]
        assert state.length.dtype == torch.int64
        assert not any(t.any() for t in state)
        for other in kinds:
            if other != mode:
                layer.set_decode(other)
                with pytest.raises(TypeError, match=rf"decode is '{other}', got {kind.__name__} of decode '{mode}'"):
                    layer(torch.zeros(3, 1, D, dtype=torch.float64), state)


@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
@pytest.mark.parametrize("mode", ["tiled", "naive", "modal"])
def test_init_state_dtype(mode, dtype, state_dtype):
    layer = make(dtype=dtype, decode=mode)
    layer.set_modal(random_modal(1, D))
    assert {t.dtype for t in layer.init_state(2)} == {state_dtype, torch.int64}
    assert {t.dtype for t in make().init_state(2, dtype=dtype)} == {state_dtype, torch.int64}
    assert {t.device.type for t in layer.init_state(2, device="meta")} == {"meta"}


@torch.no_grad()
def test_a_state_is_a_named_tuple_of_as_many_tensors_as_needed():
    layer = make(order=3)
    _, state = layer(torch.randn(2, 200, D, dtype=torch.float64))
    names = ("conv", "length", "recent", "inputs_0", "pending_0", "inputs_1", "pending_1")
    assert state._fields == names
    assert [tuple(t.shape[1:3]) for t in state[2:]] == [(2, 64), (2, 64), (2, 64), (2, 128), (2, 128)]
    assert state.conv is state[0]
    assert state.length is state[1]
    for other in (copy.deepcopy(state), pickle.loads(pickle.dumps(state)), HyenaState(*state)):
        assert type(other) is HyenaState
        assert all(map(torch.equal, other, state))
    with pytest.raises(TypeError, match=r"expected conv, length, recent and two tensors a level, got 4"):
        HyenaState(*state[:4])


@torch.no_grad()
@pytest.mark.parametrize("decode", ["tiled", "naive"])
def test_states_of_different_lengths_share_a_batch(decode):
    layer = make(order=3, decode=decode)
    x = [torch.randn(1, T, D, dtype=torch.float64) for T in (3, 0, 140)]
    states = [layer(x_i)[1] for x_i in x]
    new = torch.randn(3, 70, D, dtype=torch.float64)
    together, _ = layer(new, cat_states(states))
    for row, state in enumerate(states):
        assert_same(f"row {row}", together[row], layer(new[row, None], state)[0][0])


@torch.no_grad()
@pytest.mark.parametrize("decode", ["tiled", "naive", "modal"])
def test_no_rows(decode):
    layer = make(order=3, decode=decode)
    layer.set_modal(random_modal(2, D))
    y, state = layer(torch.zeros(0, 5, D, dtype=torch.float64))
    assert y.shape == (0, 5, D)
    assert layer.step(torch.zeros(0, D, dtype=torch.float64), state)[0].shape == (0, D)


def test_export():
    """A forward pass without a state has no branch on data."""

    class Outputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make(order=3, num_heads=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0]

    x = torch.randn(2, 9, D, dtype=torch.float64)
    with torch.no_grad():
        outputs = Outputs()
        exported = torch.export.export(outputs, (x,)).module()
        assert_same("y", exported(2 * x), outputs(2 * x))


# The end of the filters.


@pytest.mark.parametrize("decode", ["tiled", "naive", "modal"])
def test_more_tokens_than_taps(decode):
    layer = make(max_seq_len=70, decode=decode)
    layer.set_modal(random_modal(1, D), extrapolate=False)
    x = torch.randn(1, 71, D, dtype=torch.float64)
    message = (
        r"at most max_seq_len=70 tokens, got 71 with those in its state; make max_seq_len larger, .*Window.*distill"
    )
    with pytest.raises(ValueError, match=message):
        layer(x)
    _, state = layer(x[:, :69])
    _, state = layer.step(x[:, 69], state)
    with pytest.raises(ValueError, match=message):
        layer.step(x[:, 70], state)
    with pytest.raises(ValueError, match=message):  # one row is enough
        layer(x[:, :1].expand(2, 1, D), cat_states([layer.init_state(1), state]))
    layer(x[:, :0], state)
    layer(torch.cat([x, x], 1)[:, :140], cu_seqlens=[0, 70, 140])  # it is a row that counts, not a pack


def test_more_tokens_than_taps_both_ways():
    with pytest.raises(ValueError, match=r"at most max_seq_len=70 tokens, got 71"):
        make(max_seq_len=70, causal=False)(torch.zeros(1, 71, D, dtype=torch.float64))


# Both ways.


def test_both_ways_has_no_state():
    layer = make(causal=False)
    x = torch.randn(2, 5, D, dtype=torch.float64)
    assert layer.causal is False
    assert layer.init_state(2) == NoState()
    assert layer(x)[1] == NoState()
    with pytest.raises(ValueError, match="state must be None, got NoState"):
        layer(x, NoState())
    for call in (
        lambda: layer.step(x[:, 0], None),
        lambda: layer.set_decode("naive"),
        lambda: layer.distill(4),
        lambda: layer.set_modal(random_modal(1, D)),
    ):
        with pytest.raises(RuntimeError, match=r"causal is False, which needs a whole sequence"):
            call()
    with pytest.raises(ValueError, match=r"decode must be 'tiled'.*got 'naive'"):
        Hyena(D, causal=False, decode="naive")
    reverse = {name for name in layer.state_dict() if name.startswith("filter_reverse")}
    assert "filter_reverse.skip" not in reverse  # one skip is enough
    assert len(reverse) == len([name for name in layer.state_dict() if name.startswith("filter.")]) - 1


# Dtypes, dropout, arguments.


@pytest.mark.parametrize("decode", ["tiled", "naive", "modal"])
def test_bfloat16(decode):
    """bf16 in and out; the filters, the state, and the sums stay float32."""
    layer = make(dtype=torch.bfloat16, decode=decode, order=3)
    modal = random_modal(2, D, dtype=torch.float32)
    layer.set_modal(modal)
    x = torch.randn(2, 80, D).bfloat16()
    y, state = layer(x)
    exact = copy.deepcopy(layer).double()
    want = by_hand(exact, x.double(), modal_taps(modal, 80).double() if decode == "modal" else None)
    assert y.dtype == torch.bfloat16
    assert (y.double() - want).norm() <= BFLOAT16_LAYER * want.norm()
    y_t, stepped = layer.step(x[:, 0], state)
    assert y_t.dtype == torch.bfloat16
    assert {t.dtype for t in (*state, *stepped)} == {torch.float32, torch.int64}


@pytest.mark.parametrize("decode", ["tiled", "naive", "modal"])
def test_autocast_keeps_the_state_in_float32(decode):
    layer, x = make(dtype=torch.float32, decode=decode), torch.randn(2, 80, D)
    layer.set_modal(random_modal(1, D, dtype=torch.float32))
    exact, state = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, cast_state = layer(x)
        _, stepped = layer.step(x[:, 0], cast_state)
    assert {t.dtype for t in (*state, *cast_state, *stepped)} == {torch.float32, torch.int64}
    assert (y.float() - exact).norm() <= BFLOAT16_LAYER * exact.norm()


def test_dropout_is_on_what_enters_the_long_convolutions(monkeypatch):
    layer, x = make(order=3, dropout=0.5), torch.randn(2, 40, D, dtype=torch.float64)
    entered = []
    original = hyena_decode.Tiled.convolve
    monkeypatch.setattr(hyena_decode.Tiled, "convolve", lambda self, s, g: entered.append(g) or original(self, s, g))
    torch.testing.assert_close(layer(x)[0], by_hand(layer, x))
    assert not any((g == 0).any() for g in entered)
    entered.clear()
    layer.train()(x)
    assert [0.35 < (g == 0).double().mean() < 0.65 for g in entered] == [True, True]


def test_heads_share_the_filters():
    """A head alone, with its rows of the projection, gives its part of the channels."""
    layer, alone = make(order=3, num_heads=3), make(4, order=3)
    alone.filter.load_state_dict(layer.filter.state_dict())
    projected = torch.randn(2, 9, 4 * D, dtype=torch.float64)
    y, _ = layer._mix(projected, None, None)
    for head in range(3):
        own = slice(16 * head, 16 * head + 16)
        with torch.no_grad():
            alone.short_conv.weight.copy_(layer.short_conv.weight[own])
            assert alone.short_conv.bias is not None
            assert layer.short_conv.bias is not None
            alone.short_conv.bias.copy_(layer.short_conv.bias[own])
        assert_same(f"head {head}", alone._mix(projected[..., own], None, None)[0], y[..., 4 * head : 4 * head + 4])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"num_heads": 5}, r"num_heads must divide hidden_size 12, got 5"),
        ({"num_heads": 0}, r"num_heads must be an integer >= 1, got 0"),
        ({"short_conv_size": 0}, r"short_conv_size must be an integer >= 1, got 0"),
        ({"activation": "relu"}, r"activation must be one of .*'none', 'gelu', 'silu'.*got 'relu'"),
        ({"decode": "fast"}, r"decode must be one of .*'tiled', 'naive', 'modal'.*got 'fast'"),
        ({"bias": 1}, r"bias must be True or False, got 1"),
        ({"causal": None}, r"causal must be True or False, got None"),
        ({"dropout": 1.0}, r"dropout must be a number >= 0 and < 1, got 1.0"),
        ({"dropout": "none"}, r"dropout must be .*got 'none'"),
    ],
    ids=str,
)
def test_wrong_choices(choices, message):  # those of the filter: see test_hyena_filter.py
    with pytest.raises(ValueError, match=f"^Hyena: {message}"):
        Hyena(D, **choices)


def test_wrong_input():
    layer = make(dtype=torch.float32)
    x = torch.zeros(2, 5, D)
    with pytest.raises(ValueError, match=r"Hyena: x must have shape .*D=12.*got \(2, 5, 13\)"):
        layer(torch.zeros(2, 5, D + 1))
    with pytest.raises(TypeError, match=r"Hyena: x must be torch.float32 like the weights, got torch.float64"):
        layer(x.double())
    with pytest.raises(ValueError, match=r"Hyena: lower_bound must be None"):
        layer(x, lower_bound=torch.zeros(D))
    with pytest.raises(ValueError, match=r"Hyena: mask must have shape .*got \(2, 4\)"):
        layer(x, mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"Hyena: mask and cu_seqlens exclude each other"):
        layer(x, mask=torch.ones(2, 5), cu_seqlens=[0, 5])
    with pytest.raises(ValueError, match=r"Hyena: cu_seqlens needs one packed row"):
        layer(x, cu_seqlens=[0, 5])
    with pytest.raises(ValueError, match=r"Hyena.step: x_t must have shape .*got \(2, 1, 12\)"):
        layer.step(x[:, :1], None)
    with pytest.raises(ValueError, match=r"mode must be one of .*got 'fast'"):
        layer.set_decode("fast")
    with pytest.raises(ValueError, match=r"unknown backend 'cuda'"):
        make(dtype=torch.float32, backend="cuda")(x)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: make(dtype=torch.float32).init_state(1), r"state.conv must have shape \(2, 2, 36\), got \(1, 2, 36\)"),
        (lambda: make(order=3).init_state(2), r"state.conv must have shape \(2, 2, 36\), got \(2, 2, 48\)"),
        (lambda: HyenaState(*make().init_state(2)[:2], torch.zeros(2, 2, 64, D)), r"state.recent must have shape"),
        (
            lambda: HyenaState(make().init_state(2).conv, torch.zeros(3), torch.zeros(0)),
            r"state.length must have shape",
        ),
    ],
)
def test_wrong_state(state, message):
    with pytest.raises(ValueError, match=f"Hyena: {message}"):
        make(dtype=torch.float32)(torch.zeros(2, 5, D), state())
    with pytest.raises(TypeError, match=r"state must be a HyenaState or None.*got tuple"):
        make(dtype=torch.float32)(torch.zeros(2, 5, D), tuple(state()))
