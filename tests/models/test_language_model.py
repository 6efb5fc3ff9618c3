"""LanguageModel against the oracle's model and against fla's, in logits, loss, states and every gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longstream.models import HGRN2Config, LanguageModel, ModelConfig, generate
from tests import cases, golden, oracle
from tests.cases import load_params
from tests.numerics import SAME_AS_GOLDEN, assert_same, tensor

VOCAB, D, INTERMEDIATE, LAYERS, B, T = 11, 12, 20, 3, 2, 9
CU_SEQLENS = [0, 3, 4, 4, 9]
LEFT_PADDED = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1]])
RIGHT_PADDED = LEFT_PADDED[:, ::-1].copy()

MIXERS = {
    "fla": {"expand_ratio": 4, "query_scale": 0.5},
    "official": {
        "expand_ratio": 3,
        "query_activation": "sigmoid",
        "value_activation": "silu",
        "norm": "layer",
        "bias": True,
    },
    "conv": {"expand_ratio": 6, "conv_size": 4, "conv_bias": True, "norm": "rms_no_weight"},
}


class Problem:
    """A model with random parameters and its token ids, run by the library and by the oracle."""

    def __init__(self, mixer="fla", *, tied=False, lower_bound="inclusive", rows=B):
        rng = np.random.default_rng(4)
        self.mixer, self.tied, self.lower_bound = MIXERS[mixer], tied, lower_bound
        self.params = cases.language_model_params(
            VOCAB, D, INTERMEDIATE, LAYERS, self.mixer, rng, tied=tied, lower_bound=lower_bound
        )
        self.ids = rng.integers(0, VOCAB, (rows, T))
        self.d_logits = rng.standard_normal((rows, T, VOCAB))
        self.rng = rng

    def module(self):
        config = ModelConfig(
            hidden_size=D,
            num_layers=LAYERS,
            mixer=HGRN2Config(**self.mixer),
            intermediate_size=INTERMEDIATE,
            lower_bound=self.lower_bound,
            vocab_size=VOCAB,
            tie_embeddings=self.tied,
        )
        return load_params(LanguageModel(config), self.params)

    def exact(self, ids=None, states=None, **options):
        return oracle.language_model(
            self.params,
            self.ids if ids is None else ids,
            states,
            num_layers=LAYERS,
            mixer=self.mixer,
            lower_bound=self.lower_bound,
            **options,
        )


def gradients(loss, module):
    """By name, for every parameter; one that the loss does not reach is an error."""
    named = dict(module.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_states(state, exact):
    assert len(state.layers) == len(exact)
    for n, (got, (S, conv)) in enumerate(zip(state.layers, exact, strict=True)):
        assert_same(f"S of layer {n}", got.S, S)
        assert_same(f"conv of layer {n}", got.conv, conv)


def next_token_loss(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("lower_bound", ["inclusive", "exclusive", None])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_logits_loss_and_gradients(mixer, tied, lower_bound):
    problem = Problem(mixer, tied=tied, lower_bound=lower_bound)
    exact, _, exact_states, vjp = problem.exact()
    exact_loss, loss_vjp = oracle.next_token_loss(exact, problem.ids)
    module, ids = problem.module(), torch.from_numpy(problem.ids)
    logits, state = module(ids)
    loss = next_token_loss(logits, ids)
    assert_same("logits", logits, exact)
    assert_same("loss", loss, exact_loss)
    assert_states(state, exact_states)
    exact_grads = vjp(loss_vjp())
    for name, got in gradients(loss, module).items():
        assert_same(f"d {name}", got, exact_grads[name])


@pytest.mark.parametrize("mask", [LEFT_PADDED, RIGHT_PADDED], ids=["left", "right"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_padded(mixer, mask):
    """Logits of the tokens, states and gradients are those of the rows without their pads."""
    problem = Problem(mixer)
    d_logits = problem.d_logits * mask[..., None]
    exact, _, exact_states, vjp = problem.exact(mask=mask)
    module = problem.module()
    logits, state = module(torch.from_numpy(problem.ids), mask=torch.from_numpy(mask))
    assert_same("logits", logits[torch.from_numpy(mask).bool()], exact[mask == 1])
    assert_states(state, exact_states)
    assert state.position.tolist() == mask.sum(1).tolist()
    exact_grads = vjp(d_logits)
    for name, got in gradients((tensor(d_logits) * logits).sum(), module).items():
        assert_same(f"d {name}", got, exact_grads[name])


@pytest.mark.parametrize("mixer", MIXERS)
def test_packed(mixer):
    problem = Problem(mixer, rows=1)
    exact, _, exact_states, vjp = problem.exact(cu_seqlens=CU_SEQLENS)
    module = problem.module()
    logits, state = module(torch.from_numpy(problem.ids), cu_seqlens=torch.tensor(CU_SEQLENS))
    assert_same("logits", logits, exact)
    assert_states(state, exact_states)
    assert state.position.tolist() == [3, 1, 0, 5]
    exact_grads = vjp(problem.d_logits)
    for name, got in gradients((tensor(problem.d_logits) * logits).sum(), module).items():
        assert_same(f"d {name}", got, exact_grads[name])


@pytest.mark.parametrize("split", [1, 2, 5, 8])
@pytest.mark.parametrize("mixer", MIXERS)
def test_continued_from_a_state(mixer, split):
    """In two pieces, gradients flowing back through the state of every layer."""
    problem = Problem(mixer)
    exact, _, exact_states, vjp = problem.exact()
    module, ids = problem.module(), torch.from_numpy(problem.ids)
    first, state = module(ids[:, :split])
    kept = [tuple(t.detach().clone() for t in layer) for layer in state.layers]
    second, last = module(ids[:, split:], state)
    assert_same("logits", torch.cat([first, second], 1), exact)
    assert_states(last, exact_states)
    for layer, before in zip(state.layers, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, before, strict=True)), "forward wrote into its input state"
    assert state.position.tolist() == [split] * B
    assert last.position.tolist() == [T] * B
    exact_grads = vjp(problem.d_logits)
    for name, got in gradients((tensor(problem.d_logits) * torch.cat([first, second], 1)).sum(), module).items():
        assert_same(f"d {name}", got, exact_grads[name])


@pytest.mark.parametrize("mixer", MIXERS)
def test_token_by_token(mixer):
    problem = Problem(mixer)
    exact, _, exact_states, _ = problem.exact()
    module, ids = problem.module(), torch.from_numpy(problem.ids)
    _, state = module(ids[:, :1])
    for t in range(1, T):
        logits, state = module.step(ids[:, t], state)
        assert_same(f"logits at {t}", logits, exact[:, t])
    assert_states(state, exact_states)
    assert state.position.tolist() == [T] * B


def test_the_state_of_a_left_padded_prompt_continues_it():
    problem = Problem("conv")
    module, ids = problem.module(), torch.from_numpy(problem.ids)
    _, state = module(ids, mask=torch.from_numpy(LEFT_PADDED))
    logits, _ = module.step(torch.tensor([3, 7]), state)
    for b, (row, keep) in enumerate(zip(problem.ids, LEFT_PADDED, strict=True)):
        alone = np.append(row[keep == 1], [3, 7][b])[None]
        assert_same(f"logits of row {b}", logits[b], problem.exact(alone)[0][0, -1])


def test_hidden_states_are_the_inputs_of_the_blocks():
    """A block's input and the backbone's output, seen by hooks, are the oracle's hidden states."""
    problem = Problem("fla")
    _, exact_hidden, _, _ = problem.exact()
    module, seen = problem.module(), []
    for layer in module.backbone.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module.backbone.norm.register_forward_hook(lambda _, args, out: seen.append(out))
    module(torch.from_numpy(problem.ids))
    assert len(seen) == LAYERS + 1
    for n, (got, exact) in enumerate(zip(seen, exact_hidden, strict=True)):
        assert_same(f"hidden {n}", got, exact)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("lower_bound", ["inclusive", None])
def test_parameter_names(tied, lower_bound):
    """What is saved is found again under the same names."""
    problem = Problem("fla", tied=tied, lower_bound=lower_bound)
    assert set(dict(problem.module().named_parameters())) == set(problem.params)


@pytest.mark.parametrize(("hidden", "intermediate"), [(64, 256), (2048, 5632), (2560, 6912)])
def test_default_width_of_the_mlp(hidden, intermediate):
    """The widths in the published 1.3B and 2.7B checkpoints."""
    with torch.device("meta"):
        config = ModelConfig(hidden_size=hidden, num_layers=1, mixer=HGRN2Config(expand_ratio=64), vocab_size=8)
        model = LanguageModel(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["backbone.layers.0.mlp.gate_proj.weight"] == (intermediate, hidden)
    assert shapes["backbone.layers.0.mlp.up_proj.weight"] == (intermediate, hidden)
    assert shapes["backbone.layers.0.mlp.down_proj.weight"] == (hidden, intermediate)


def test_initialization():
    """Weights and embeddings N(0, initializer_range), norms 1, lower bounds l / L."""
    config = ModelConfig(
        hidden_size=64, num_layers=4, mixer=HGRN2Config(expand_ratio=16), vocab_size=300, initializer_range=0.05
    )
    model = LanguageModel(config)
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (p == 1).all(), name
        elif name.endswith("lower_bounds"):
            bound = oracle.lower_bounds(p.detach().double().numpy())[0]
            assert_same(name, bound, np.arange(4)[:, None] / 4 * np.ones((4, 64)), 1e-6)
        else:
            # 4096 numbers or more: their mean and deviation stray by 1 / sqrt(4096) and less of the deviation
            assert abs(p.std().item() / 0.05 - 1) < 0.06, name
            assert abs(p.mean().item() / 0.05) < 0.08, name


@pytest.mark.parametrize("name", golden.LANGUAGE_MODELS)
def test_golden(name):
    """fla's model in float64: logits, loss, hidden states, final states, every gradient, left-padded logits, greedy."""
    case = golden.language_model_case(name)
    config = ModelConfig(
        hidden_size=case.config["hidden_size"],
        num_layers=case.num_layers,
        mixer=HGRN2Config(**case.mixer),
        intermediate_size=case.config["intermediate_size"],
        hidden_ratio=case.config["hidden_ratio"],
        norm_eps=case.config["norm_eps"],
        vocab_size=case.config["vocab_size"],
        tie_embeddings="lm_head.weight" not in case.params,
    )
    module, ids, hidden = load_params(LanguageModel(config), case.params), torch.from_numpy(case.ids), []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: hidden.append(args[0])) for layer in module.backbone.layers
    ]
    hooks.append(module.backbone.norm.register_forward_hook(lambda _, args, out: hidden.append(out)))
    logits, state = module(ids)
    for hook in hooks:
        hook.remove()
    loss = next_token_loss(logits, ids)
    assert_same("logits", logits, case.logits, SAME_AS_GOLDEN)
    assert_same("loss", loss, case.loss, SAME_AS_GOLDEN)
    assert len(hidden) == len(case.hidden)
    for n, (got, expected) in enumerate(zip(hidden, case.hidden, strict=True)):
        assert_same(f"hidden.{n}", got, expected, SAME_AS_GOLDEN)
    for n, (got, expected) in enumerate(zip(state.layers, case.states, strict=True)):
        assert_same(f"state.{n}", got.S, expected, SAME_AS_GOLDEN)
    grads = gradients(loss, module)
    assert set(grads) == set(case.grads)
    for key, got in grads.items():
        assert_same(f"d {key}", got, case.grads[key], SAME_AS_GOLDEN)
    mask = torch.from_numpy(case.mask)
    padded, _ = module(ids, mask=mask)
    assert_same("left-padded logits", padded * mask[..., None], case.logits_leftpad, SAME_AS_GOLDEN)
    written = generate(module, ids[:, :12].tolist(), 16, temperature=0.0)
    assert [row[-16:] for row in written] == case.generated[:, 12:].tolist()
