"""The HGRN2 layer against the oracle and against the authors' code, in values, states and every gradient."""

import numpy as np
import pytest
import torch

from longstream.layers import HGRN2, HGRN2State
from longstream.ops import LowerBound
from tests import cases, golden, oracle
from tests.cases import HGRN2_CONFIGS, load_params
from tests.numerics import BFLOAT16_LAYER, SAME_AS_GOLDEN, assert_same, tensor

D = 12
CU_SEQLENS = [0, 0, 3, 4, 4, 9, 9]
MASKS = {
    "left_padded": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9],
    "right_padded": [[1, 1, 1, 1, 1, 1, 1, 0, 0], [1] * 9],
    "mostly_pads": [[0] * 9, [0, 0, 0, 0, 1, 0, 0, 0, 0]],
    "pads_inside": [[1, 0, 0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0, 0, 1]],
}


class Problem:
    """A layer with random parameters, its inputs and its cotangents, run by the library and by the oracle."""

    def __init__(
        self, config, *, B=2, T=9, bound="LowerBound", with_state=True, mask=None, cu_seqlens=None, backend="auto"
    ):
        rng = np.random.default_rng(3)
        self.config, self.backend, self.cu_seqlens = config, backend, cu_seqlens
        self.B, self.T, self.N = B, T, B if cu_seqlens is None else len(cu_seqlens) - 1
        self.mask = None if mask is None else np.array(mask)
        self.params = cases.hgrn2_params(D, config, rng)
        self.x, self.d_y = rng.standard_normal((2, B, T, D))
        self.state = cases.hgrn2_state(self.N, D, config, rng) if with_state else None
        self.d_state = cases.hgrn2_state(self.N, D, config, rng)
        self.bound_kind, self.bound = bound, None if bound is None else rng.uniform(0.05, 0.95, D)

    def module(self):
        return load_params(HGRN2(D, **self.config, backend=self.backend), self.params)

    def exact(self):
        y, state, vjp = oracle.hgrn2(
            self.params,
            self.x,
            self.state,
            bound=self.bound,
            mask=self.mask,
            cu_seqlens=self.cu_seqlens,
            **self.config,
        )
        grads = vjp(self.d_y, *self.d_state)
        return {"y": y, "S": state[0], "conv": state[1]} | {f"d {name}": g for name, g in grads.items()}

    def leaves(self):
        """x, S, conv and the bound, as leaves; the lower bound and the state as the layer takes them."""
        leaves = {"x": tensor(self.x)}
        state = lower_bound = None
        if self.state is not None:
            state = HGRN2State(*(tensor(a) for a in self.state))
            leaves |= state._asdict()
        if self.bound is not None:
            leaves["bound"] = lower_bound = tensor(self.bound)
            if self.bound_kind == "LowerBound":
                leaves["complement"] = tensor(1 - self.bound)
                lower_bound = LowerBound(leaves["bound"], leaves["complement"])
        for leaf in leaves.values():
            leaf.requires_grad_()
        return leaves, state, lower_bound

    def results(self, module, leaves, y, state):
        """y, the final state and every gradient, by the oracle's names."""
        d_S, d_conv = (tensor(a) for a in self.d_state)
        loss = (tensor(self.d_y) * y).sum() + (d_S * state.S).sum() + (d_conv * state.conv).sum()
        wanted = leaves | dict(module.named_parameters())
        grads = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
        grads = dict(zip(wanted, grads, strict=True))
        if "complement" in grads:  # the bound moves both: d complement = -d bound
            grads["bound"] = grads["bound"] - grads.pop("complement")
        return {"y": y, "S": state.S, "conv": state.conv} | {f"d {name}": g for name, g in grads.items()}

    def got(self):
        module, (leaves, state, lower_bound) = self.module(), self.leaves()
        mask = None if self.mask is None else torch.from_numpy(self.mask)
        cu_seqlens = None if self.cu_seqlens is None else torch.tensor(self.cu_seqlens)
        y, state = module(leaves["x"], state, mask=mask, cu_seqlens=cu_seqlens, lower_bound=lower_bound)
        assert isinstance(state, HGRN2State)
        return self.results(module, leaves, y, state)


def check(problem, got=None):
    exact = problem.exact()
    for name, value in (problem.got() if got is None else got).items():
        assert_same(name, value, exact[name])


@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no_state"])
@pytest.mark.parametrize("bound", ["LowerBound", "tensor", None])
@pytest.mark.parametrize("name", HGRN2_CONFIGS)
def test_forward(name, bound, with_state):
    check(Problem(HGRN2_CONFIGS[name], bound=bound, with_state=with_state))


@pytest.mark.parametrize("T", [0, 1, 2, 70])
@pytest.mark.parametrize("name", ["official", "conv", "conv_bias"])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_lengths(backend, name, T):
    """No token, one, fewer than the taps of a convolution, and past a chunk."""
    check(Problem(HGRN2_CONFIGS[name], T=T, backend=backend))


@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no_state"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", HGRN2_CONFIGS)
def test_a_pad_is_as_if_it_were_not_there(name, mask, with_state):
    problem = Problem(HGRN2_CONFIGS[name], mask=MASKS[mask], with_state=with_state)
    got = problem.got()
    check(problem, got)
    assert not got["y"][problem.mask == 0].any()


@pytest.mark.parametrize("name", ["official", "conv_bias"])
def test_what_a_pad_holds_does_not_matter(name):
    """Not even a NaN on a pad reaches an output, a state or a gradient."""
    problem = Problem(HGRN2_CONFIGS[name], mask=MASKS["left_padded"])
    exact = problem.exact()
    problem.x[problem.mask == 0] = np.nan
    problem.d_y[problem.mask == 0] = 1e3
    for key, value in problem.got().items():
        assert_same(key, value, exact[key])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64], ids=str)
def test_mask_dtypes(dtype):
    problem = Problem(HGRN2_CONFIGS["conv"], mask=MASKS["left_padded"])
    mask = torch.from_numpy(problem.mask).to(dtype)
    module, (leaves, state, lower_bound) = problem.module(), problem.leaves()
    check(problem, problem.results(module, leaves, *module(leaves["x"], state, mask=mask, lower_bound=lower_bound)))


@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no_state"])
@pytest.mark.parametrize("bound", ["LowerBound", None])
@pytest.mark.parametrize("name", HGRN2_CONFIGS)
def test_packed(name, bound, with_state):
    """Sequences of length 0 and 1 among others: a boundary resets the state and the convolutions."""
    check(Problem(HGRN2_CONFIGS[name], B=1, cu_seqlens=CU_SEQLENS, bound=bound, with_state=with_state))


@pytest.mark.parametrize("with_state", [True, False], ids=["state", "init_state"])
@pytest.mark.parametrize("name", HGRN2_CONFIGS)
def test_token_by_token(name, with_state):
    """step, one token after the other: outputs, state and every gradient as of the whole sequence at once."""
    problem = Problem(HGRN2_CONFIGS[name], with_state=with_state)
    module, (leaves, state, lower_bound) = problem.module(), problem.leaves()
    if state is None:
        state = module.init_state(problem.B)
        assert state.S.shape == problem.d_state[0].shape
        assert state.conv.shape == problem.d_state[1].shape
        assert not state.S.any()
        assert not state.conv.any()
    outs = []
    for t in range(problem.T):
        before = HGRN2State(*(s.detach().clone() for s in state))
        y, after = module.step(leaves["x"][:, t], state, lower_bound=lower_bound)
        assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True)), "step wrote into its input state"
        outs.append(y)
        state = after
    check(problem, problem.results(module, leaves, torch.stack(outs, 1), state))


@pytest.mark.parametrize("split", [0, 1, 2, 5, 8, 9])
@pytest.mark.parametrize("name", ["defaults", "conv", "conv_bias", "conv_of_one_tap"])
def test_split_anywhere(name, split):
    problem = Problem(HGRN2_CONFIGS[name])
    module, (leaves, state, lower_bound) = problem.module(), problem.leaves()
    first, state = module(leaves["x"][:, :split], state, lower_bound=lower_bound)
    second, state = module(leaves["x"][:, split:], state, lower_bound=lower_bound)
    check(problem, problem.results(module, leaves, torch.cat([first, second], 1), state))


@pytest.mark.parametrize("at", [0, 4, 8])
@pytest.mark.parametrize("name", ["official", "conv"])
def test_a_change_never_moves_earlier_outputs(name, at):
    problem = Problem(HGRN2_CONFIGS[name])
    module, (leaves, state, lower_bound) = problem.module(), problem.leaves()
    changed = leaves["x"].detach().clone()
    changed[:, at] += 3.0
    y, _ = module(leaves["x"], state, lower_bound=lower_bound)
    moved, _ = module(changed, state, lower_bound=lower_bound)
    assert torch.equal(moved[:, :at], y[:, :at])
    assert not torch.isclose(moved[:, at], y[:, at]).any()


@pytest.mark.parametrize("name", ["official", "conv_bias"])
def test_bfloat16(name):
    """bf16 in and out; the state, and what feeds it, stay float32."""
    problem = Problem(HGRN2_CONFIGS[name], T=70)
    module, x = problem.module().bfloat16(), tensor(problem.x).bfloat16()
    rounded = {n: p.detach().double().numpy() for n, p in module.named_parameters()}
    y, state = module(x, lower_bound=tensor(problem.bound).float())
    exact, (S, _), _ = oracle.hgrn2(rounded, x.double().numpy(), bound=problem.bound, **problem.config)
    assert y.dtype == torch.bfloat16
    for name_, got, want in (("y", y, exact), ("S", state.S, S)):
        err = np.linalg.norm(got.detach().double().numpy() - want) / np.linalg.norm(want)
        assert err <= BFLOAT16_LAYER, f"{name_}: {err:.1e}"
    y_t, stepped = module.step(x[:, 0], state, lower_bound=tensor(problem.bound).float())
    assert y_t.dtype == torch.bfloat16
    initial = module.init_state(2)
    assert {s.dtype for s in (*state, *stepped, *initial)} == {torch.float32}


def test_autocast_keeps_the_state_in_float32():
    problem = Problem(HGRN2_CONFIGS["conv"])
    module, bound = problem.module().float(), tensor(problem.bound).float()
    x = tensor(problem.x).float()
    exact, state = module(x, lower_bound=bound)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, cast_state = module(x, lower_bound=bound)
        _, stepped = module.step(x[:, 0], cast_state, lower_bound=bound)
    assert {s.dtype for s in (*state, *cast_state, *stepped)} == {torch.float32}
    assert (y.float() - exact).norm() <= BFLOAT16_LAYER * exact.norm()


@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_init_state_dtype(dtype, state_dtype):
    """float32, or the dtype asked for where that is wider."""
    module = HGRN2(D, expand_ratio=4, conv_size=3).to(dtype)
    assert {s.dtype for s in module.init_state(2)} <= {torch.float32, state_dtype}
    assert {s.dtype for s in module.init_state(2, dtype=dtype)} == {state_dtype}
    assert {s.device.type for s in module.init_state(2, device="meta")} == {"meta"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"expand_ratio": 5}, r"expand_ratio.*5"),
        ({"expand_ratio": 0}, r"expand_ratio.*0"),
        ({"expand_ratio": 4, "query_activation": "gelu"}, r"query_activation.*gelu"),
        ({"expand_ratio": 4, "value_activation": "sigmoid"}, r"value_activation.*sigmoid"),
        ({"expand_ratio": 4, "norm": "batch"}, r"norm.*batch"),
        ({"expand_ratio": 4, "conv_size": -1}, r"conv_size.*-1"),
    ],
    ids=str,
)
def test_wrong_configuration(config, message):
    with pytest.raises(ValueError, match=message):
        HGRN2(D, **config)


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"unknown backend 'cuda'"):
        HGRN2(D, expand_ratio=4, backend="cuda")(torch.zeros(1, 2, D))


def test_wrong_input():
    layer = HGRN2(D, expand_ratio=4, conv_size=3)
    x = torch.zeros(2, 5, D)
    with pytest.raises(ValueError, match=r"x must have shape .*D=12.*got \(2, 5, 13\)"):
        layer(torch.zeros(2, 5, D + 1))
    with pytest.raises(ValueError, match=r"mask must have shape .*B=2, T=5.*got \(2, 4\)"):
        layer(x, mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"must have shape .*got \(5,\)"):
        layer(x, lower_bound=torch.zeros(5))
    with pytest.raises(ValueError, match=r"must have shape .*got \(1, 3, 4, 4\)"):
        layer(x, layer.init_state(1))
    with pytest.raises(ValueError, match=r"x_t must have shape .*got \(2, 1, 12\)"):
        layer.step(x[:, :1], layer.init_state(2))


@pytest.mark.parametrize("name", golden.LAYERS)
def test_golden(name):
    """The authors' code and fla, in float64: outputs, final states and every gradient they recorded."""
    case = golden.layer_case(name)
    module = load_params(HGRN2(case.hidden_size, **case.config), case.params)
    leaves, state = {"x": tensor(case.x).requires_grad_()}, None
    if case.S_in is not None:
        leaves["S"] = tensor(case.S_in).requires_grad_()
        state = HGRN2State(leaves["S"], module.init_state(case.num_sequences).conv)
    if case.bound is not None:
        leaves["bound"] = tensor(case.bound).requires_grad_()
    mask, cu_seqlens = (None if a is None else torch.from_numpy(a) for a in (case.mask, case.cu_seqlens))
    y, state = module(leaves["x"], state, mask=mask, cu_seqlens=cu_seqlens, lower_bound=leaves.get("bound"))
    loss = (tensor(case.d_y) * y).sum()
    assert_same("y", y, case.y, SAME_AS_GOLDEN)
    if case.S_out is not None:
        assert case.d_S is not None
        loss = loss + (tensor(case.d_S) * state.S).sum()
        assert_same("S", state.S, case.S_out, SAME_AS_GOLDEN)
    if case.conv_out is not None:
        assert_same("conv", state.conv, case.conv_out, SAME_AS_GOLDEN)
    wanted = leaves | dict(module.named_parameters())
    grads = torch.autograd.grad(loss, list(wanted.values()))
    assert set(wanted) == set(case.grads)
    for key, got in zip(wanted, grads, strict=True):
        assert_same(f"d {key}", got, case.grads[key], SAME_AS_GOLDEN)
