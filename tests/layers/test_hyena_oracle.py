"""The Hyena layer against the NumPy oracle; gradients against finite differences of the oracle's forward."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from longstream.layers import Hyena
from longstream.layers.state import NoState
from longstream.ops import available_backends
from tests import oracle_layers
from tests.numerics import assert_same, tensor
from tests.oracle_layers import HYENA_CONFIGS
from tests.test_oracle import check_gradients

D, LONGEST = 6, 24
CU_SEQLENS = [0, 0, 3, 4, 4, 17, 17]
MASKS = {
    "left_padded": [[0] * 5 + [1] * 12, [1] * 17],
    "right_padded": [[1] * 13 + [0] * 4, [1] * 17],
    "mostly_pads": [[0] * 17, [0] * 8 + [1] + [0] * 8],
    "pads_inside": [[1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 1, 0, 0, 0] + [1] * 9],
}
BACKENDS = [name for name, refusal in available_backends("long_conv").items() if refusal is None]
CAUSAL = [name for name, config in HYENA_CONFIGS.items() if config.get("causal", True)]
BOTH_WAYS = [name for name in HYENA_CONFIGS if name not in CAUSAL]


def build(name, **options):
    """A float64 layer with every parameter moved away from its start.

    The default frequency makes the filter so curved that finite differences of it mean nothing.
    """
    options = {"max_seq_len": LONGEST, "filter_width": 5, "frequency": 1.5} | HYENA_CONFIGS[name] | options
    module = Hyena(D, **options).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, p in module.named_parameters():
            scale = 0.05 if key.endswith(("positions", "frequency")) else 0.5
            p += scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return module


def arrays_of(module):
    """Parameters and buffers by name."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {key: t.detach().numpy() for key, t in named}


def problem(name, B=2, T=17, **options):
    module = build(name, **options)
    rng = np.random.default_rng(7)
    return module, arrays_of(module), *rng.standard_normal((2, B, T, D))


def check(name, module, arrays, x, d_y, y, leaf, *, gradients=True, **feeding):
    config = HYENA_CONFIGS[name]
    assert_same("y", y, oracle_layers.hyena(arrays, x, **feeding, **config))
    if not gradients:
        return
    leaves = {"x": leaf} | dict(module.named_parameters())
    grads = torch.autograd.grad((tensor(d_y) * y).sum(), list(leaves.values()), materialize_grads=True)
    inputs = {"x": x} | {key: arrays[key] for key in leaves if key != "x"}

    def loss(moved):
        now = arrays | {key: a for key, a in moved.items() if key != "x"}
        return (d_y * oracle_layers.hyena(now, moved["x"], **feeding, **config)).sum()

    got = {key: g.numpy() for key, g in zip(leaves, grads, strict=True)}
    check_gradients(loss, inputs, got, np.random.default_rng(1))


@pytest.mark.parametrize("name", HYENA_CONFIGS)
def test_forward(name):
    module, arrays, x, d_y = problem(name)
    leaf = tensor(x).requires_grad_()
    y, state = module(leaf)
    assert (state == NoState()) == (name in BOTH_WAYS)
    check(name, module, arrays, x, d_y, y, leaf)


@pytest.mark.parametrize("name", HYENA_CONFIGS)
def test_a_new_layer_at_the_default_frequency(name):
    """Nothing moved away from its start, and the other defaults too."""
    config = {"positional_width": 33, "frequency": 14.0} | HYENA_CONFIGS[name]
    module = Hyena(D, **config).double()
    x = np.random.default_rng(7).standard_normal((2, 70, D))
    assert_same("y", module(tensor(x))[0], oracle_layers.hyena(arrays_of(module), x, **config))


@pytest.mark.parametrize("T", [0, 1, 2, LONGEST])
@pytest.mark.parametrize("name", ["order_3", "no_window", "two_sided"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths(backend, name, T):
    """No token, one, fewer than the taps of the short convolution, and as many as the filter has lags."""
    module, arrays, x, d_y = problem(name, T=T, backend=backend)
    leaf = tensor(x).requires_grad_()
    check(name, module, arrays, x, d_y, module(leaf)[0], leaf, gradients=T == 2)


@pytest.mark.parametrize("name", ["order_3", "heads", "two_sided"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_past_blocks(backend, name):
    """Long enough for several blocks of 64 tokens."""
    module, arrays, x, d_y = problem(name, T=200, max_seq_len=201, backend=backend)
    leaf = tensor(x).requires_grad_()
    check(name, module, arrays, x, d_y, module(leaf)[0], leaf, gradients=False)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", HYENA_CONFIGS)
def test_a_pad_is_as_if_it_were_not_there(name, mask):
    """Not even a NaN on a pad reaches an output or a gradient, though biases make the projections of pads nonzero."""
    module, arrays, x, d_y = problem(name)
    gradients, mask = name in ("order_3", "two_sided") and mask == "pads_inside", np.array(MASKS[mask])
    spoiled = np.where(mask[..., None] == 1, x, np.nan)
    leaf = tensor(spoiled).requires_grad_()
    y, _ = module(leaf, mask=torch.from_numpy(mask))
    assert not y[mask == 0].any()
    check(name, module, arrays, x, d_y, y, leaf, gradients=gradients, mask=mask)


@pytest.mark.parametrize("name", HYENA_CONFIGS)
def test_packed(name):
    """Sequences of length 0 and 1 among others: neither the short convolution nor the long ones cross a boundary."""
    module, arrays, x, d_y = problem(name, B=1)
    leaf = tensor(x).requires_grad_()
    y, _ = module(leaf, cu_seqlens=torch.tensor(CU_SEQLENS))
    gradients = name in ("order_3", "two_sided")
    check(name, module, arrays, x, d_y, y, leaf, gradients=gradients, cu_seqlens=CU_SEQLENS)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_padded_and_packed_equal_alone(name):
    module, _, x, _ = problem(name, B=1)
    x = tensor(x)
    packed, _ = module(x, cu_seqlens=torch.tensor(CU_SEQLENS))
    for left, right in pairwise(CU_SEQLENS):
        alone, state = module(x[:, left:right])
        assert state == NoState()
        assert_same("packed", packed[:, left:right], alone)
        padded, mask = torch.full((2, 20, D), torch.nan, dtype=torch.float64), torch.zeros(2, 20)
        for row, places in enumerate((slice(20 - right + left, 20), slice(2, 2 + right - left))):
            padded[row, places], mask[row, places] = x[0, left:right], 1
        y, _ = module(padded, mask=mask)
        for row in (0, 1):
            assert_same("padded", y[row : row + 1, mask[row] == 1], alone)


@pytest.mark.parametrize("cuts", [(0,), (1,), (9, 10), (17,)], ids=str)
@pytest.mark.parametrize("name", CAUSAL)
def test_in_pieces(name, cuts):
    module, arrays, x, d_y = problem(name)
    leaf, state, outs = tensor(x).requires_grad_(), None, []
    for left, right in pairwise((0, *cuts, 17)):
        y, state = module(leaf[:, left:right], state)
        outs.append(y)
    gradients = cuts == (9, 10) and name == "order_3"
    check(name, module, arrays, x, d_y, torch.cat(outs, 1), leaf, gradients=gradients)


@pytest.mark.parametrize("decode", ["tiled", "naive"])
@pytest.mark.parametrize("name", CAUSAL)
def test_token_by_token(name, decode):
    module, arrays, x, d_y = problem(name, decode=decode)
    leaf, state, outs = tensor(x).requires_grad_(), module.init_state(2), []
    for t in range(17):
        y, state = module.step(leaf[:, t], state)
        outs.append(y)
    check(name, module, arrays, x, d_y, torch.stack(outs, 1), leaf, gradients=name == "order_3" and decode == "tiled")


@pytest.mark.parametrize("prompt", [1, 63, 130])
@pytest.mark.parametrize("name", ["order_3", "heads"])
def test_tokens_after_a_prompt(name, prompt):
    """Past blocks of 64 tokens, from a prompt that ends anywhere in one."""
    module, arrays, x, d_y = problem(name, B=1, T=195, max_seq_len=200)
    leaf = tensor(x)
    with torch.no_grad():
        y, state = module(leaf[:, :prompt])
        outs = [y]
        for t in range(prompt, 195):
            y, state = module.step(leaf[:, t], state)
            outs.append(y[:, None])
    check(name, module, arrays, x, d_y, torch.cat(outs, 1), leaf, gradients=False)


@pytest.mark.parametrize("name", HYENA_CONFIGS)
def test_features_and_window_are_as_written(name):
    """The features and rates of a new layer, by their formulas; buffers may have been made in float32."""
    config = HYENA_CONFIGS[name]
    module = Hyena(D, max_seq_len=LONGEST, filter_width=5, **config)
    names = {key for key, _ in module.named_parameters()}
    channels = (config.get("order", 2) - 1) * D // config.get("num_heads", 1)
    for filter_name in ("filter",) if name in CAUSAL else ("filter", "filter_reverse"):
        arrays = oracle_layers._sub(arrays_of(module), filter_name)
        z = oracle_layers.positional_features(LONGEST, config.get("positional_width", 33))
        assert_same("positions", arrays["positions"], z, 1e-6)
        assert_same("time", arrays["time"], np.linspace(0, 1, LONGEST), 1e-6)
        assert_same("frequency", arrays["frequency"], np.full(5, config.get("frequency", 14.0)))
        assert (f"{filter_name}.positions" in names) == (config.get("positions_lr", 1e-5) != 0)
        assert (f"{filter_name}.delta" in names) == (config.get("window_lr", 0.0) != 0)
        if config.get("window", True):
            how = (
                config.get(f"window_{key}", usual) for key, usual in (("target", 1e-2), ("fast", 0.3), ("slow", 1.5))
            )
            assert_same("rates", np.abs(arrays["delta"]), np.abs(oracle_layers.decay_rates(channels, *how)), 1e-6)


def test_every_choice_of_the_layer_is_met():
    """The configurations above give every argument that a forward pass reads a value that is not its default."""
    met = {key for config in HYENA_CONFIGS.values() for key in config}
    assert met >= {"order", "num_heads", "short_conv_size", "filter_layers", "positional_width", "frequency", "window"}
    assert met >= {"window_target", "window_fast", "window_slow", "window_shift", "filter_layout", "normalize_filter"}
    assert met >= {"activation", "bias", "causal"}
