"""SlidingWindowAttention against the NumPy oracle; gradients against finite differences of the oracle's forward."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from longstream.layers.attention import SlidingWindowAttention
from tests import oracle_layers
from tests.numerics import assert_same, tensor
from tests.test_oracle import check_gradients

D = 24
CONFIGS = {
    "one_head": {"num_heads": 1, "window_size": 4},
    "heads": {"num_heads": 4, "window_size": 5, "qkv_bias": True},
    "shared_heads": {"num_heads": 6, "num_kv_heads": 2, "window_size": 3, "bias": True, "rope_theta": 100.0},
    "one_head_of_keys": {"num_heads": 3, "num_kv_heads": 1, "window_size": 7, "qkv_bias": True, "bias": True},
    "sees_itself": {"num_heads": 2, "window_size": 1},
    "sees_all": {"num_heads": 2, "window_size": 100},
}
CU_SEQLENS = [0, 0, 3, 4, 4, 17, 17]
MASKS = {
    "left_padded": [[0] * 5 + [1] * 12, [1] * 17],
    "right_padded": [[1] * 13 + [0] * 4, [1] * 17],
    "mostly_pads": [[0] * 17, [0] * 8 + [1] + [0] * 8],
    "pads_inside": [[1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 1, 0, 0, 0] + [1] * 9],
}


class Problem:
    """A layer in float64 with random parameters, its input and a cotangent."""

    def __init__(self, name, B=2, T=17):
        config, rng = CONFIGS[name], np.random.default_rng([B, T])
        self.oracle_config = {key: value for key, value in config.items() if key not in ("qkv_bias", "bias")}
        self.module = SlidingWindowAttention(D, **config).double()
        with torch.no_grad():
            for p in self.module.parameters():
                p.copy_(tensor(rng.standard_normal(p.shape) * (2 * D**-0.5 if p.dim() == 2 else 1)))
        self.params = {key: p.detach().numpy() for key, p in self.module.named_parameters()}
        keys = D // config["num_heads"] * config.get("num_kv_heads", config["num_heads"])
        biased = {n for n in "qkv" if config.get("qkv_bias")} | ({"out"} if config.get("bias") else set())
        shapes = {f"{n}_proj.weight": (keys if n in "kv" else D, D) for n in ("q", "k", "v", "out")}
        shapes |= {f"{n}_proj.bias": (keys if n in "kv" else D,) for n in biased}
        assert {key: a.shape for key, a in self.params.items()} == shapes
        self.x, self.d_y = rng.standard_normal((2, B, T, D))
        self.leaf = tensor(self.x).requires_grad_()

    def check(self, y, *, gradients=True, **feeding):
        run = lambda moved: oracle_layers.attention(moved, moved["x"], **self.oracle_config, **feeding)  # noqa: E731
        inputs = self.params | {"x": self.x}
        assert_same("y", y, run(inputs))
        if gradients:
            leaves = dict(self.module.named_parameters()) | {"x": self.leaf}
            grads = torch.autograd.grad((tensor(self.d_y) * y).sum(), list(leaves.values()), materialize_grads=True)
            got = {key: g.numpy() for key, g in zip(leaves, grads, strict=True)}
            check_gradients(lambda moved: (self.d_y * run(moved)).sum(), inputs, got, np.random.default_rng(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_forward(name):
    problem = Problem(name)
    problem.check(problem.module(problem.leaf)[0])


@pytest.mark.parametrize("T", [0, 1, 2, 150])
@pytest.mark.parametrize("name", ["shared_heads", "sees_all"])
def test_lengths(name, T):
    problem = Problem(name, T=T)
    problem.check(problem.module(problem.leaf)[0], gradients=T < 100)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_pad_is_as_if_it_were_not_there(name, mask):
    """Not even a NaN on a pad reaches an output or a gradient; the window counts tokens, not pads."""
    problem, mask = Problem(name), np.array(MASKS[mask])
    problem.leaf = tensor(np.where(mask[..., None] == 1, problem.x, np.nan)).requires_grad_()
    y, _ = problem.module(problem.leaf, mask=torch.from_numpy(mask))
    assert not y[mask == 0].any()
    problem.check(y, gradients=name == "shared_heads" and mask[0, 9] == 0, mask=mask)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed(name):
    problem = Problem(name, B=1)
    y, _ = problem.module(problem.leaf, cu_seqlens=torch.tensor(CU_SEQLENS))
    problem.check(y, gradients=name == "shared_heads", cu_seqlens=CU_SEQLENS)


@pytest.mark.parametrize("cuts", [(0,), (1,), (2, 3), (9, 10), (17,)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_in_pieces(name, cuts):
    problem, state, outs = Problem(name), None, []
    for left, right in pairwise((0, *cuts, 17)):
        y, state = problem.module(problem.leaf[:, left:right], state)
        outs.append(y)
    problem.check(torch.cat(outs, 1), gradients=name == "shared_heads" and cuts == (9, 10))


@pytest.mark.parametrize("name", CONFIGS)
def test_token_by_token(name):
    problem = Problem(name)
    state, outs = problem.module.init_state(2), []
    for t in range(17):
        y, state = problem.module.step(problem.leaf[:, t], state)
        outs.append(y)
    problem.check(torch.stack(outs, 1), gradients=name == "shared_heads")


@pytest.mark.parametrize("name", ["one_head", "shared_heads"])
def test_rows_that_stand_at_different_tokens(name):
    """Padded prompts of different lengths, then tokens together: each row goes on from its own place."""
    problem, mask = Problem(name), np.ones((2, 17), int)
    mask[0, :6], mask[1, :1] = 0, 0
    y, state = problem.module(problem.leaf[:, :8], mask=torch.from_numpy(mask[:, :8]))
    outs = [y]
    for t in range(8, 17):
        y, state = problem.module.step(problem.leaf[:, t], state)
        outs.append(y[:, None])
    problem.check(torch.cat(outs, 1), mask=mask)
