"""Sliding-window attention against the double loop over tokens, with windows in and out and every gradient."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from longstream.layers import AttentionState, SlidingWindowAttention
from longstream.layers.attention import check_attention
from longstream.testing import assert_equivalent
from tests.numerics import assert_same

D = 24
CONFIGS: dict[str, dict[str, Any]] = {
    "one_head": {"num_heads": 1, "window_size": 5},
    "sees_itself": {"num_heads": 3, "window_size": 1},
    "sees_two": {"num_heads": 2, "window_size": 2, "qkv_bias": True},
    "sees_all": {"num_heads": 4, "window_size": 300, "rope_theta": 3.0},
    "grouped": {"num_heads": 6, "num_kv_heads": 2, "window_size": 7, "bias": True, "rope_theta": 50.0},
    "one_group": {"num_heads": 4, "num_kv_heads": 1, "window_size": 70, "qkv_bias": True, "bias": True},
}

# A softmax in float32 of scores of size 5 loses some roundings of 6e-8 * 5. Angles of positions that go on counting
# would, in float32, be off by 1e-3 after 20,000 steps.
FLOAT32_STREAM = 1e-5

# Rounding of inputs, scores and outputs to 8 bits (4e-3), a few times.
BFLOAT16 = 0.03


def layer(config, dtype=torch.float64):
    torch.manual_seed(0)
    module = SlidingWindowAttention(D, **config).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (2 * D**-0.5 if parameter.dim() == 2 else 1))
    return module


def random_state(module, lengths):
    """Windows of ``lengths`` tokens, with zeros before them."""
    past, dtype = module.window_size - 1, module.q_proj.weight.dtype
    length = torch.tensor(lengths).clamp(max=past)
    kept = torch.arange(past) >= past - length[:, None]
    shape = (len(lengths), past, module.num_kv_heads, module.head_dim)
    k, v = (torch.randn(shape, dtype=dtype) * kept[..., None, None] for _ in range(2))
    return AttentionState(k, v, length)


def rotate(x, theta):
    """x (T, heads, head_dim), turned as the tokens at 0 .. T - 1."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x)).double()[:, None, None] * theta ** (-torch.arange(half).double() / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag], -1)


def loop(module, x, state, bounds=None):
    """The definition, sequence by sequence and token by token, with positions from the first token of the window."""
    rows = list(x.split(1)) if bounds is None else [x[:, a:b] for a, b in pairwise(bounds)]
    states = [None] * len(rows) if state is None else zip(*(tensor.split(1) for tensor in state), strict=True)
    ys, lasts = zip(
        *(loop_sequence(module, row[0], start) for row, start in zip(rows, states, strict=True)), strict=True
    )
    y = torch.stack(ys) if bounds is None else torch.cat(ys)[None]
    return y, AttentionState(*map(torch.stack, zip(*lasts, strict=True)))


def loop_sequence(module, x, state):
    H, G, K, W = module.num_heads, module.num_kv_heads, module.head_dim, module.window_size
    length = 0 if state is None else int(state[2])
    k, v = (projection(x).view(-1, G, K) for projection in (module.k_proj, module.v_proj))
    if state is not None:
        k, v = (torch.cat([past[0, W - 1 - length :], new]) for past, new in zip(state[:2], (k, v), strict=True))
    q = torch.cat([x.new_zeros(length, H, K), module.q_proj(x).view(-1, H, K)])
    keys = rotate(k, module.rope_theta).repeat_interleave(H // G, 1)
    queries, values, outs = rotate(q, module.rope_theta), v.repeat_interleave(H // G, 1), [x[:0]]
    for t in range(length, len(k)):
        seen = slice(max(0, t - W + 1), t + 1)
        weights = torch.softmax((keys[seen] * queries[t]).sum(-1) / math.sqrt(K), 0)  # (keys, H)
        outs.append(module.out_proj((weights[..., None] * values[seen]).sum(0).flatten())[None])
    zeros = x.new_zeros(W - 1, G, K)
    k, v = (torch.cat([zeros, kept])[len(kept) :] for kept in (k, v))
    return torch.cat(outs), (k, v, torch.tensor(min(len(keys), W - 1)))


class Problem:
    """A layer, its input, windows before it, and cotangents of the output and of the windows after it."""

    def __init__(self, config, *, B=2, T=17, bounds=None, lengths=(3, 100)):
        self.module, self.bounds = layer(config), bounds
        N = B if bounds is None else len(bounds) - 1
        self.x = torch.randn(B, T, D, dtype=torch.float64).requires_grad_()
        self.d_y = torch.randn(B, T, D, dtype=torch.float64)
        self.d_state = random_state(self.module, [10**6] * N)
        self.state = None
        if lengths is not None:
            k, v, length = random_state(self.module, [lengths[n % len(lengths)] for n in range(N)])
            self.state = AttentionState(k.requires_grad_(), v.requires_grad_(), length)

    def results(self, y, state):
        past = self.module.window_size - 1
        kept = (torch.arange(past) >= past - state.length[:, None])[..., None, None]
        loss = (y * self.d_y).sum() + (kept * (state.k * self.d_state.k + state.v * self.d_state.v)).sum()
        leaves = dict(self.module.named_parameters()) | {"x": self.x}
        leaves |= {} if self.state is None else {"k": self.state.k, "v": self.state.v}
        grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return {"y": y} | state._asdict() | {f"d {name}": g for name, g in zip(leaves, grads, strict=True)}

    def check(self, y, state):
        exact = self.results(*loop(self.module, self.x, self.state, self.bounds))
        assert isinstance(state, AttentionState)
        for name, got in self.results(y, state).items():
            assert_same(name, got, exact[name])


@pytest.mark.parametrize("lengths", [None, (0, 1), (3, 100)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_forward(name, lengths):
    problem = Problem(CONFIGS[name], lengths=lengths)
    problem.check(*problem.module(problem.x, problem.state))


@pytest.mark.parametrize("lengths", [None, (3, 100)], ids=str)
@pytest.mark.parametrize("T", [0, 1, 2, 64, 65, 150])
@pytest.mark.parametrize("name", ["grouped", "one_group"])
def test_lengths(name, T, lengths):
    """Nothing, one step, and both sides of a block and of several; blocks are of 64 and of 70 queries."""
    problem = Problem(CONFIGS[name], B=1, T=T, lengths=lengths)
    problem.check(*problem.module(problem.x, problem.state))


@pytest.mark.parametrize("lengths", [None, (3, 100)], ids=str)
@pytest.mark.parametrize("bounds", [[0, 0, 5, 6, 6, 17, 17], [0, 66, 67, 150], [0, 0]], ids=str)
@pytest.mark.parametrize("name", ["sees_itself", "grouped", "one_group", "sees_all"])
def test_packed(name, bounds, lengths):
    problem = Problem(CONFIGS[name], B=1, T=bounds[-1], bounds=bounds, lengths=lengths)
    problem.check(*problem.module(problem.x, problem.state, cu_seqlens=torch.tensor(bounds)))


@pytest.mark.parametrize("name", CONFIGS)
def test_steps(name):
    problem = Problem(CONFIGS[name])
    outs, state = [], problem.state
    for x_t in problem.x.unbind(1):
        y, state = problem.module.step(x_t, state)
        outs.append(y)
    problem.check(torch.stack(outs, 1), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["sees_two", "grouped", "one_group"])
def test_contract(name, dtype):
    assert_equivalent(layer(CONFIGS[name], dtype), lengths=(0, 1, 2, 63, 130) if name == "one_group" else (0, 1, 9))


def test_only_distance_matters():
    """The same tokens after 10 others that are out of the window give the same: no position is absolute."""
    module = layer(CONFIGS["grouped"])
    x, before = (torch.randn(1, T, D, dtype=torch.float64) for T in (20, 10))
    alone, _ = module(x)
    after, _ = module(torch.cat([before, x], 1))
    assert_same("y", after[:, 16:], alone[:, 6:])
    assert (after[:, 15] - alone[:, 5]).abs().max() > 1e-3


def test_the_window_is_the_window():
    """A change of a token moves the window_size outputs from it on, and no other."""
    module = layer(CONFIGS["grouped"])
    x = torch.randn(1, 100, D, dtype=torch.float64)
    changed = x.clone()
    changed[:, 40] += 1
    moved = (module(x)[0] - module(changed)[0]).abs().amax((0, 2)) > 0
    assert moved.nonzero()[:, 0].tolist() == list(range(40, 47))


def test_a_long_stream_loses_nothing():
    module = layer({"num_heads": 2, "window_size": 32}, torch.float32)
    with torch.no_grad():
        x = torch.randn(1, 20_000, D)
        exact, last = module.double()(x.double())
        whole, _ = module.float()(x)
        state, outs = module.init_state(1), []
        for x_t in x.unbind(1):
            y, state = module.step(x_t, state)
            outs.append(y)
    assert_same("at once", whole, exact, FLOAT32_STREAM)
    assert_same("by steps", torch.stack(outs, 1), exact, FLOAT32_STREAM)
    assert_same("k", state.k, last.k, FLOAT32_STREAM)
    assert int(state.length) == 31


def test_a_state_is_not_changed_and_holds_no_more_than_it_says():
    module = layer(CONFIGS["one_group"])
    x = torch.randn(2, 500, D, dtype=torch.float64)
    _, state = module(x)
    before = [tensor.clone() for tensor in state]
    module.step(x[:, 0], state)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))
    assert state.k.untyped_storage().nbytes() == state.k.numel() * 8


def test_memory_is_not_quadratic(monkeypatch):
    """No product of more than two windows of keys."""
    sizes, product = [], SlidingWindowAttention._product

    def watched(self, q, k, v, seen):
        sizes.append((q.shape[1], k.shape[1], len(seen) if seen.dim() == 3 else 1))
        return product(self, q, k, v, seen)

    monkeypatch.setattr(SlidingWindowAttention, "_product", watched)
    module = layer({"num_heads": 2, "window_size": 100}, torch.float32)
    module(torch.randn(1, 2000, D))
    assert sizes == [(100, 199, 1), (100, 199, 1)]
    sizes.clear()
    module(torch.randn(1, 2000, D), cu_seqlens=[0, 950, 2000])
    assert sizes == [(100, 199, 3), (100, 199, 1)]


@pytest.mark.parametrize("T", [1, 20])
def test_half_precision(T):
    """Whole layer, or autocast: the window stays float32."""
    module = layer(CONFIGS["grouped"], torch.float32)
    x = torch.randn(2, T, D).bfloat16()
    with torch.no_grad():
        start = random_state(layer(CONFIGS["grouped"], torch.float32), [3, 6])
        exact, last = module(x.float(), start)
        with torch.autocast("cpu", torch.bfloat16):
            cast = module(x.float(), start)
        half = module.bfloat16()(x, start)
        for feeding in ({}, {"cu_seqlens": [0, T]}, {"cu_seqlens": [0, T], "state": module.init_state(1)}):
            _, state = module(x[:1], **feeding)
            assert (state.k.dtype, state.v.dtype) == (torch.float32, torch.float32)
    for y, state in (cast, half):
        assert y.dtype == torch.bfloat16
        assert state.k.dtype == state.v.dtype == torch.float32
        assert (y.float() - exact).norm() < BFLOAT16 * exact.norm()
        assert (state.v - last.v).norm() < BFLOAT16 * last.v.norm()


def test_init_state():
    module = layer(CONFIGS["grouped"], torch.float32)
    for state, dtype in (
        (module.init_state(3), torch.float32),
        (module.init_state(3, dtype=torch.float64), torch.float64),
    ):
        assert state.k.shape == state.v.shape == (3, 6, 2, 4)
        assert state.k.dtype == state.v.dtype == dtype
        assert state.length.tolist() == [0, 0, 0]
        assert state.length.dtype == torch.int64
    assert module.bfloat16().init_state(1).k.dtype == torch.float32
    assert module.init_state(1, device="meta").length.device.type == "meta"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads must be an integer >= 1, got 0"),
        ({"num_heads": 5}, "num_heads must divide hidden_size 24 into heads of even size, got 5"),
        ({"num_heads": 8}, "num_heads must divide hidden_size 24 into heads of even size, got 8"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads 4, got 3"),
        ({"num_kv_heads": 0}, "num_kv_heads must be an integer >= 1, got 0"),
        ({"window_size": 0}, "window_size must be an integer >= 1, got 0"),
        ({"window_size": 2.5}, "window_size must be an integer >= 1, got 2.5"),
        ({"rope_theta": 0.0}, "rope_theta must be a number > 0, got 0.0"),
        ({"rope_theta": math.inf}, "rope_theta must be a number > 0, got inf"),
        ({"rope_theta": "1e4"}, "rope_theta must be a number > 0, got '1e4'"),
        ({"qkv_bias": 1}, "qkv_bias must be True or False, got 1"),
        ({"bias": None}, "bias must be True or False, got None"),
    ],
)
def test_choices_are_refused(change, message):
    with pytest.raises(ValueError, match=f"^SlidingWindowAttention: {message}"):
        SlidingWindowAttention(D, **{"num_heads": 4, "window_size": 5} | change)


def test_a_configuration_can_ask():
    with pytest.raises(ValueError, match=r"^AttentionConfig: num_kv_heads must divide num_heads 4, got 3"):
        check_attention(
            "AttentionConfig",
            num_heads=4,
            window_size=5,
            num_kv_heads=3,
            rope_theta=1e4,
            qkv_bias=False,
            bias=False,
        )


def test_bad_input():
    module = layer(CONFIGS["grouped"], torch.float32)
    x, state = torch.zeros(2, 5, D), module.init_state(2)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, r"x must have shape \(B, T, D=24\), got \(2, 5, 23\)", {"x": x[..., 1:]}),
        (TypeError, "x must be torch.float32 like the weights, got torch.float64", {"x": x.double()}),
        (TypeError, "state must be an AttentionState or None, got tuple", {"state": tuple(state)}),
        (ValueError, r"state.k must have shape \(2, 6, 2, 4\), got \(3, 6, 2, 4\)", {"state": module.init_state(3)}),
        (
            ValueError,
            r"state.length must have shape \(2,\), got \(1,\)",
            {"state": state._replace(length=state.length[1:])},
        ),
        (ValueError, "mask and cu_seqlens exclude each other", {"mask": torch.ones(2, 5), "cu_seqlens": [0, 5]}),
        (ValueError, "cu_seqlens needs one packed row", {"cu_seqlens": [0, 5]}),
        (ValueError, "lower_bound must be None", {"lower_bound": torch.zeros(D)}),
    ]
    for error, message, change in cases:
        with pytest.raises(error, match=f"^SlidingWindowAttention: .*{message}"):
            module(**{"x": x, "state": state} | change)
    with pytest.raises(ValueError, match=r"^SlidingWindowAttention.step: x_t must have shape \(B, D=24\)"):
        module.step(x, state)
    with pytest.raises(ValueError, match="lower_bound must be None"):
        module.step(x[:, 0], state, lower_bound=torch.zeros(D))
