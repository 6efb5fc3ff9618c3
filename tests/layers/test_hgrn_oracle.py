"""The HGRN layer against the NumPy oracle: outputs, final states and every gradient, in every way of feeding it."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from longstream.layers import HGRN, HGRNState
from longstream.layers.state import NoState
from longstream.ops import LowerBound, available_backends
from tests import oracle_layers
from tests.cases import load_params
from tests.numerics import assert_same, tensor
from tests.oracle_layers import HGRN_CONFIGS, hgrn_params, hgrn_state_shapes

D = 6
CU_SEQLENS = [0, 0, 3, 4, 4, 9, 9]
MASKS = {
    "left_padded": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9],
    "right_padded": [[1, 1, 1, 1, 1, 1, 1, 0, 0], [1] * 9],
    "mostly_pads": [[0] * 9, [0, 0, 0, 0, 1, 0, 0, 0, 0]],
    "pads_inside": [[1, 0, 0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0, 0, 1]],
}
BACKENDS = [name for name, refusal in available_backends("gated_scan").items() if refusal is None]
CAUSAL = [name for name, config in HGRN_CONFIGS.items() if "direction" not in config]
BOTH_WAYS = [name for name, config in HGRN_CONFIGS.items() if config.get("direction") == "bidirectional"]
PICTURES = [name for name, config in HGRN_CONFIGS.items() if config.get("direction") == "2d"]


class Problem:
    """A layer with random parameters, its inputs and its cotangents, run by the library and by the oracle."""

    def __init__(
        self, name, shape=(2, 9), *, bound="LowerBound", with_state=True, mask=None, cu_seqlens=None, backend="auto"
    ):
        rng = np.random.default_rng(3)
        self.config, self.backend, self.cu_seqlens = HGRN_CONFIGS[name], backend, cu_seqlens
        self.shape, self.causal = shape, name in CAUSAL
        self.N, self.E = shape[0] if cu_seqlens is None else len(cu_seqlens) - 1, D * self.config.get("expand_ratio", 1)
        self.mask = None if mask is None else np.array(mask)
        self.params = hgrn_params(D, self.config, rng)
        self.x, self.d_y = rng.standard_normal((2, *shape, D))
        shapes = hgrn_state_shapes(self.N, D, self.config) if self.causal else ()
        self.d_state = tuple(rng.standard_normal(s) for s in shapes)
        self.state = tuple(rng.standard_normal(s) for s in shapes) if with_state and self.causal else None
        self.bound_kind, self.bound = bound, None if bound is None else rng.uniform(0.05, 0.95, self.E)

    def module(self):
        return load_params(HGRN(D, **self.config, backend=self.backend), self.params)

    def exact(self):
        options = {"bound": self.bound, "mask": self.mask, "cu_seqlens": self.cu_seqlens}
        y, state, vjp = oracle_layers.hgrn(self.params, self.x, self.state, **options, **self.config)
        grads = vjp(self.d_y, *self.d_state)
        values = {"y": y} | (dict(zip(("h", "conv"), state, strict=True)) if state else {})
        return values | {f"d {name}": g for name, g in grads.items()}

    def leaves(self):
        """x, h, conv and the bound, as leaves; the lower bound and the state as the layer takes them."""
        leaves, state, lower_bound = {"x": tensor(self.x)}, None, None
        if self.state is not None:
            state = HGRNState(*(tensor(a) for a in self.state))
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
        loss = (tensor(self.d_y) * y).sum()
        for d, s in zip(self.d_state, state, strict=True):
            loss = loss + (tensor(d) * s).sum()
        wanted = leaves | dict(module.named_parameters())
        grads = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
        grads = dict(zip(wanted, grads, strict=True))
        if "complement" in grads:  # the bound moves both: d complement = -d bound
            grads["bound"] = grads["bound"] - grads.pop("complement")
        return {"y": y} | state._asdict() | {f"d {name}": g for name, g in grads.items()}

    def got(self):
        module, (leaves, state, lower_bound) = self.module(), self.leaves()
        options = {"mask": None if self.mask is None else torch.from_numpy(self.mask)} if self.mask is not None else {}
        if self.cu_seqlens is not None:
            options["cu_seqlens"] = torch.tensor(self.cu_seqlens)
        y, state = module(leaves["x"], state, **options, lower_bound=lower_bound)
        assert isinstance(state, HGRNState if self.causal else NoState)
        return self.results(module, leaves, y, state)


def check(problem, got=None):
    exact = problem.exact()
    got = problem.got() if got is None else got
    for name in exact:  # with no state given there is no gradient of one, and with no bound none of that
        assert name in got or name in ("d h", "d conv", "d bound"), name
    for name, value in got.items():
        assert_same(name, value, exact[name])


@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no_state"])
@pytest.mark.parametrize("bound", ["LowerBound", "tensor", None])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal(name, bound, with_state):
    check(Problem(name, bound=bound, with_state=with_state))


@pytest.mark.parametrize("T", [0, 1, 2, 70])
@pytest.mark.parametrize("name", ["gate_first", "conv", "complex_conv", "both_ways", "both_ways_two_thetas"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths(backend, name, T):
    """No token, one, fewer than the taps of a convolution, and past a chunk."""
    check(Problem(name, (2, T), backend=backend))


@pytest.mark.parametrize("bound", ["LowerBound", None])
@pytest.mark.parametrize("name", BOTH_WAYS)
def test_bidirectional(name, bound):
    check(Problem(name, bound=bound))


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 5), (1, 5, 1), (2, 1, 1), (1, 0, 3), (1, 3, 0)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PICTURES)
def test_2d(name, backend, shape):
    check(Problem(name, shape, backend=backend))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CAUSAL + BOTH_WAYS)
def test_a_pad_is_as_if_it_were_not_there(name, mask):
    problem = Problem(name, mask=MASKS[mask])
    got = problem.got()
    check(problem, got)
    assert not got["y"][problem.mask == 0].any()


@pytest.mark.parametrize("name", ["complex_conv", "both_ways_two_thetas"])
def test_what_a_pad_holds_does_not_matter(name):
    """Not even a NaN on a pad reaches an output, a state or a gradient."""
    problem = Problem(name, mask=MASKS["pads_inside"])
    exact = problem.exact()
    problem.x[problem.mask == 0] = np.nan
    problem.d_y[problem.mask == 0] = 1e3
    for key, value in problem.got().items():
        assert_same(key, value, exact[key])


@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no_state"])
@pytest.mark.parametrize("name", CAUSAL + BOTH_WAYS)
def test_packed(name, with_state):
    """Sequences of length 0 and 1 among others: a boundary resets the state and the convolutions, either way."""
    check(Problem(name, (1, CU_SEQLENS[-1]), cu_seqlens=CU_SEQLENS, with_state=with_state))


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_padded_and_packed_equal_alone(name):
    """Bit for bit is too much to ask of another batch, but rounding is all that may differ."""
    problem = Problem(name, (1, CU_SEQLENS[-1]), cu_seqlens=CU_SEQLENS)
    module, (leaves, _, bound) = problem.module(), problem.leaves()
    x = leaves["x"].detach()
    packed, _ = module(x, cu_seqlens=torch.tensor(CU_SEQLENS), lower_bound=bound)
    for left, right in pairwise(CU_SEQLENS):
        alone, state = module(x[:, left:right], lower_bound=bound)
        assert state == NoState()
        assert_same("packed", packed[:, left:right], alone)
        padded = torch.full((2, 12, D), torch.nan, dtype=torch.float64)
        mask = torch.zeros(2, 12)
        for row, places in enumerate((slice(12 - right + left, 12), slice(2, 2 + right - left))):
            padded[row, places], mask[row, places] = x[0, left:right], 1
        y, _ = module(padded, mask=mask, lower_bound=bound)
        for row in (0, 1):
            assert_same("padded", y[row : row + 1, mask[row] == 1], alone)


@pytest.mark.parametrize("with_state", [True, False], ids=["state", "init_state"])
@pytest.mark.parametrize("name", CAUSAL)
def test_token_by_token(name, with_state):
    """step, one token after the other: outputs, state and every gradient as of the whole sequence at once."""
    problem = Problem(name, with_state=with_state)
    module, (leaves, state, lower_bound) = problem.module(), problem.leaves()
    if state is None:
        state = module.init_state(2)
    outs = []
    for t in range(9):
        y, state = module.step(leaves["x"][:, t], state, lower_bound=lower_bound)
        outs.append(y)
    check(problem, problem.results(module, leaves, torch.stack(outs, 1), state))


@pytest.mark.parametrize("split", [0, 1, 2, 5, 8, 9])
@pytest.mark.parametrize("name", ["conv", "complex", "complex_conv"])
def test_split_anywhere(name, split):
    problem = Problem(name)
    module, (leaves, state, lower_bound) = problem.module(), problem.leaves()
    first, state = module(leaves["x"][:, :split], state, lower_bound=lower_bound)
    second, state = module(leaves["x"][:, split:], state, lower_bound=lower_bound)
    check(problem, problem.results(module, leaves, torch.cat([first, second], 1), state))


@pytest.mark.parametrize("expand_ratio", [1, 3])
def test_initial_angles(expand_ratio):
    """10000^(-2k/E), k = 0 .. E - 1, for both directions."""
    module = HGRN(D, unit="complex", expand_ratio=expand_ratio, direction="bidirectional", shared_theta=False)
    E = D * expand_ratio
    for theta in (module.theta, module.theta_reverse):
        assert_same("theta", theta, 10000.0 ** (-2 * np.arange(E) / E), 1e-6)
    assert module.gate_size == E


def test_every_choice_of_the_layer_is_met():
    """The configurations above name every argument with a value that is not its default."""
    met = {(key, value) for config in HGRN_CONFIGS.values() for key, value in config.items()}
    assert {key for key, _ in met} >= {"expand_ratio", "unit", "direction", "shared_theta", "norm", "norm_eps"}
    assert {key for key, _ in met} >= {"norm_first", "gate_activation", "bias", "conv_size", "conv_bias"}
    for key, values in (("direction", ("bidirectional", "2d")), ("norm", ("layer", "rms_no_weight"))):
        assert {(key, value) for value in values} <= met
