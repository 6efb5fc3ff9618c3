"""The implicit filter: its formulas, its parameters, and what the authors' code makes of the same weights."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from longstream.layers import Hyena, HyenaFilter
from tests import golden_hyena
from tests.numerics import assert_same, tensor

EXACT = 1e-12  # a tap is a few hundred float64 operations on numbers below 100

SMALL: dict[str, Any] = {"order": 3, "max_seq_len": 40, "filter_width": 8, "positional_width": 5}


def taps_by_hand(module, T):
    """The equations, in NumPy and float64, from the module's state."""
    w = {name: value.double().numpy() for name, value in module.state_dict().items()}
    h = w["positions"][:T]
    for i in range(len(module.hidden)):
        h = np.sin(w["frequency"] * (h @ w[f"hidden.{i}.weight"].T + w[f"hidden.{i}.bias"]))
    h = h @ w["out_proj.weight"].T
    if "delta" in w:
        h = h * (np.exp(-w["time"][:T, None] * np.abs(w["delta"])) + module.window_shift)
    if module.normalize_filter:
        h = h / np.abs(h).sum(1, keepdims=True)
    S, C = module.stages, module.channels
    order = (lambda s, c: s * C + c) if module.filter_layout == "stage" else (lambda s, c: c * S + s)
    return np.array([[h[:, order(s, c)] for c in range(C)] for s in range(S)])


@pytest.mark.parametrize("T", [0, 1, 2, 39, 40])
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"filter_layout": "channel", "filter_layers": 0, "window_shift": 0.05},
        {"window": False, "filter_layers": 1},
        {"normalize_filter": True, "filter_layout": "channel"},
        {"normalize_filter": True, "order": 4},
    ],
    ids=str,
)
def test_taps(choices, T):
    module = HyenaFilter(3, **{**SMALL, **choices}).double()
    with torch.no_grad():
        module.frequency.add_(torch.randn(8))  # every unit its own
        for parameter in module.hidden.parameters():
            parameter.normal_()
    h = module(T)
    assert h.shape == (module.stages, 3, T)
    assert_same("h", h, taps_by_hand(module, T))


@pytest.mark.parametrize("max_seq_len", [1, 2, 7, 40])
@pytest.mark.parametrize("positional_width", [3, 5, 33])
def test_features_and_window(max_seq_len, positional_width):
    """z, t and delta as the formulas say: t is scaled by L - 1, the angles by L."""
    module = HyenaFilter(4, max_seq_len=max_seq_len, positional_width=positional_width).double()
    module.reset_parameters()  # in float64
    bands, n = (positional_width - 1) // 2, np.arange(max_seq_len)
    t = n / (max_seq_len - 1) if max_seq_len > 1 else np.zeros(1)
    f = np.linspace(1e-4, bands - 1, bands)
    angle = 2 * np.pi / max_seq_len * n[:, None] * f
    assert_same("z", module.positions, np.concatenate([t[:, None], np.cos(angle), -np.sin(angle)], 1), EXACT)
    assert_same("t", module.time, t, EXACT)
    assert_same("delta", module.delta, np.linspace(np.log(0.01) / 1.5, np.log(0.01) / 0.3, 4), EXACT)


def test_the_window_falls_to_its_target():
    """The slowest channel at the share window_slow of max_seq_len, the fastest at window_fast."""
    choices: dict[str, Any] = {"window_target": 0.05, "window_slow": 0.8, "window_fast": 0.25}
    module = HyenaFilter(5, order=3, max_seq_len=101, **choices).double()
    module.reset_parameters()
    assert module.delta is not None
    window = torch.exp(-module.time[:, None] * module.delta.abs())
    assert_same("slowest", window[80, 0], 0.05, EXACT)
    assert_same("fastest", window[25, -1], 0.05, EXACT)


@pytest.mark.parametrize("normalize_filter", [False, True])
def test_more_taps_do_not_change_the_first(normalize_filter):
    module = HyenaFilter(3, **SMALL, normalize_filter=normalize_filter).double()
    assert_same("prefix", module(23), module(40)[..., :23], EXACT)
    assert_same("middle", module.taps(7, 23), module(40)[..., 7:23], EXACT)


@pytest.mark.parametrize("span", [(0, 41), (-1, 3), (5, 4)])
def test_lags_that_do_not_exist(span):
    with pytest.raises(ValueError, match=r"lags must be from 0 to max_seq_len=40"):
        HyenaFilter(3, **SMALL).taps(*span)


def test_what_is_trained_and_what_is_kept():
    """z and delta are parameters where they have a learning rate, else buffers; the sines share one parameter."""
    network = {"frequency", "skip", "out_proj.weight"} | {
        f"hidden.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")
    }
    everything = network | {"positions", "time", "delta"}
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"positions"}),
        ({"positions_lr": 0.0}, set()),
        ({"positions_lr": 0, "window_lr": 1e-3}, {"delta"}),
    ]
    for choices, trained in cases:
        module = HyenaFilter(3, **SMALL, **choices)
        assert set(dict(module.named_parameters())) == network | trained
        assert set(module.state_dict()) == everything
    assert set(HyenaFilter(3, **SMALL, window=False, skip=False).state_dict()) == everything - {"delta", "skip"}
    module = HyenaFilter(3, **SMALL)
    assert module.frequency.shape == (8,)
    assert [tuple(t.shape) for t in (module.skip, module.delta) if t is not None] == [(6,), (6,)]


def test_optimizer_hints():
    module = HyenaFilter(3, **SMALL, filter_lr=6e-4, filter_weight_decay=0.01, positions_lr=2e-5, window_lr=1e-3)
    hints = module.optimizer_hints()
    assert hints.pop("positions") == {"lr": 2e-5, "weight_decay": 0.0}
    assert hints.pop("delta") == {"lr": 1e-3, "weight_decay": 0.0}
    assert set(hints) == set(dict(module.named_parameters())) - {"positions", "delta", "skip"}
    assert all(hint == {"lr": 6e-4, "weight_decay": 0.01} for hint in hints.values())
    module = HyenaFilter(3, **SMALL, positions_lr=0)
    assert set(module.optimizer_hints()) == set(dict(module.named_parameters())) - {"skip"}
    assert all(hint == {"weight_decay": 0.0} for hint in module.optimizer_hints().values())


def test_first_filters_are_alive():
    """As large and as rough as torch's initialization makes them: most frequencies are there."""
    h = HyenaFilter(64, max_seq_len=512)(512)[0].detach()
    assert 0.05 < h.square().mean().sqrt() < 0.2
    energy = torch.fft.rfft(h).abs().square().mean(0).sort(descending=True).values.cumsum(0)
    assert int((energy < 0.9 * energy[-1]).sum()) > 257 // 2
    assert HyenaFilter.keeps_own_init is True


def test_from_the_meta_device():
    with torch.device("meta"):
        module = HyenaFilter(3, **SMALL, window_lr=1e-3)
    assert module.positions.is_meta
    module = module.to_empty(device="cpu")
    for value in module.state_dict().values():
        value.fill_(float("nan"))
    module.reset_parameters()
    made = HyenaFilter(3, **SMALL, window_lr=1e-3).state_dict()
    for name, value in module.state_dict().items():
        assert value.isfinite().all()
        if name in ("positions", "time", "delta", "frequency"):
            assert torch.equal(value, made[name])
        else:
            assert value.std() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_never_narrower_than_float32(dtype):
    """In bfloat16 the times of neighboring steps would be one."""
    layer = Hyena(8, max_seq_len=600)
    before = copy.deepcopy(layer.filter.state_dict())
    layer.to(dtype)
    assert layer.in_proj.weight.dtype == dtype
    for name, value in layer.filter.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    assert {value.dtype for value in layer.filter.double().state_dict().values()} == {torch.float64}
    assert {value.dtype for value in layer.filter.to(dtype).state_dict().values()} == {torch.float32}
    torch.set_default_dtype(dtype)
    try:
        assert {value.dtype for value in HyenaFilter(3).state_dict().values()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def test_autocast_does_not_reach_it():
    module = HyenaFilter(3, **SMALL)
    exact = module(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = module(40)
    assert h.dtype == torch.float32
    assert torch.equal(h, exact)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"order": 1}, r"order must be an integer >= 2, got 1"),
        ({"max_seq_len": 0}, r"max_seq_len must be an integer >= 1, got 0"),
        ({"filter_width": 0}, r"filter_width.*>= 1, got 0"),
        ({"filter_layers": -1}, r"filter_layers.*>= 0, got -1"),
        ({"filter_layers": 1.5}, r"filter_layers.*got 1.5"),
        ({"positional_width": 1}, r"positional_width must be an integer >= 3, got 1"),
        ({"positional_width": 4}, r"positional_width must be odd.*got 4"),
        ({"frequency": "14"}, r"frequency must be a finite number, got '14'"),
        ({"frequency": float("inf")}, r"frequency must be a finite number, got inf"),
        ({"window": 1}, r"window must be True or False, got 1"),
        ({"window_target": 0.0}, r"window_target must be a number between 0 and 1, got 0.0"),
        ({"window_target": 1}, r"window_target must be a number between 0 and 1, got 1"),
        ({"window_fast": 0}, r"window_fast must be a number > 0, got 0"),
        ({"window_slow": -1.0}, r"window_slow must be a number > 0, got -1.0"),
        ({"window_shift": None}, r"window_shift must be a finite number, got None"),
        ({"filter_layout": "head"}, r"filter_layout must be one of .*'stage', 'channel'.*got 'head'"),
        ({"normalize_filter": "l1"}, r"normalize_filter must be True or False, got 'l1'"),
        ({"filter_lr": -1e-3}, r"filter_lr must be a number >= 0, got -0.001"),
        ({"filter_weight_decay": None}, r"filter_weight_decay must be a number >= 0, got None"),
        ({"positions_lr": -1.0}, r"positions_lr must be a number >= 0, got -1.0"),
        ({"window_lr": float("nan")}, r"window_lr must be a number >= 0, got nan"),
        ({"window": False, "window_lr": 1e-3}, r"window_lr must be 0 where window is False, got 0.001"),
    ],
    ids=str,
)
def test_wrong_choices(choices, message):
    with pytest.raises(ValueError, match=f"^HyenaFilter: {message}"):
        HyenaFilter(3, **choices)
    with pytest.raises(ValueError, match=f"^Hyena: {message}"):
        Hyena(3, **choices)


@pytest.mark.parametrize("name", golden_hyena.OPERATORS)
def test_golden(name):
    """The authors' network, window and taps, in the stages and channels of either of their layouts."""
    case = golden_hyena.operator_case(name)
    layer = Hyena(case.hidden_size, **case.config).double()
    layer.load_state_dict({key: tensor(value) for key, value in case.params.items()})
    module, L = layer.filter, case.x.shape[1]
    h = module(L)
    assert_same("h", h, case.mid["h"], EXACT)
    assert_same("flat h", h, module.by_stage(tensor(case.mid["h_flat"]).t()), EXACT)
    if "window" in case.mid and module.delta is not None:
        window = torch.exp(-module.time[:L, None] * module.delta.abs()) + module.window_shift
        assert_same("window", window, case.mid["window"], EXACT)
    if module.delta is not None:  # ours, made in float64, against theirs, made in float32
        fresh = HyenaFilter(case.hidden_size, **_of_filter(case.config)).double()
        fresh.reset_parameters()
        assert_same("z", fresh.positions, module.positions, 1e-6)
        assert_same("delta", fresh.delta, module.delta, 5e-6)


def _of_filter(config):
    return {name: value for name, value in config.items() if name not in ("short_conv_size", "activation")}
