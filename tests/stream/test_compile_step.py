"""The native step of every model is the model's own step, and its parallel pass at every prefix."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from longstream import build
from longstream.baselines import make_backbone
from longstream.layers import HGRN, HGRN2, ShortConv, SlidingWindowAttention
from longstream.models import FeatureModel, HGRN2Config, HGRNConfig, HyenaConfig
from longstream.stream.compile import CannotCompile, compile_step
from longstream.stream.program import Program
from tests.numerics import assert_same
from tests.stream import programs
from tests.stream.programs import BACKBONES, MODELS, NO_NATIVE, D, engine, forward, inputs, make, run, steps

pytestmark = pytest.mark.skipif(NO_NATIVE is not None, reason=str(NO_NATIVE))

# Two float32 computations of one network in a different order of sums, judged by the largest number: a layer rounds a
# few dozen times at 6e-8, and a gate near 1 adds up what it remembers.
SAME_STEP = 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_parallel_pass_at_every_prefix_and_the_models_own_step(name):
    model = make(name)
    x = inputs(model, 3, 120)
    whole, last = forward(model, x)
    native = engine(model, 3)
    assert_same(name, run(native, x), whole, SAME_STEP)
    for got, expected in zip(native.get().tensors(), last.tensors(), strict=True):
        assert_same(f"{name}: state", got, expected, SAME_STEP)
    native = engine(model, 3)
    own, last = steps(model, x[:, :25])
    assert_same(name, run(native, x[:, :25]), own, SAME_STEP)
    for got, expected in zip(native.get().tensors(), last.tensors(), strict=True):
        assert_same(f"{name}: state", got, expected, SAME_STEP)


@pytest.mark.parametrize("name", MODELS)
def test_goes_on_from_the_models_state_and_the_model_from_its(name):
    model = make(name)
    x = inputs(model, 2, 40)
    whole, _ = forward(model, x)
    _, half = forward(model, x[:, :17])
    native = engine(model, 2)
    native.set(half)
    assert_same(f"{name}: after the model's prefix", run(native, x[:, 17:]), whole[:, 17:], SAME_STEP)
    native = engine(model, 2)
    run(native, x[:, :17])
    after, _ = forward(model, x[:, 17:], native.get())
    assert_same(f"{name}: the model after the native prefix", after, whole[:, 17:], SAME_STEP)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_does_not_depend_on_the_others_nor_on_threads(name):
    model = make(name)
    x = inputs(model, 5, 12)
    together = run(engine(model, 5), x)
    assert torch.equal(run(engine(model, 5, threads=2), x), together)
    for row in (0, 3, 4):
        assert torch.equal(run(engine(model, 1), x[row : row + 1]), together[row : row + 1])


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["hgrn complex conv", "hgrn2 conv", "attention groups", "edifice", "language tied"])
def test_narrow_weights_are_those_of_a_rounded_model(name, weights):
    model = make(name)
    x = inputs(model, 2, 20)
    narrow, full = engine(model, 2, weights=weights), engine(programs.round_weights(model, weights), 2)
    got, expected = run(narrow, x), run(full, x)
    if weights == "bfloat16":
        assert torch.equal(got, expected)
    else:  # the scale multiplies the sum, not each term
        assert_same(name, got, expected, 2e-6)
    exact, _ = forward(model, x)
    assert 1e-5 < (got - exact).norm() / exact.norm() < 0.2
    assert narrow.weight_bytes < {"bfloat16": 0.7, "int8": 0.5}[weights] * full.weight_bytes


def test_bounds_of_gates_are_those_of_each_layer():
    for kind in ("inclusive", "exclusive", None):
        model = programs.backbone(*[HGRNConfig()] * 3, lower_bound=kind)
        programs.scramble(model)
        names = [bound is None for bound in model.bounds_of_layers()]
        assert names == ([True, False, False] if kind else [True] * 3)
        x = inputs(model, 2, 30)
        assert_same(str(kind), run(engine(model, 2), x), forward(model, x)[0], SAME_STEP)


@pytest.mark.parametrize(
    "layer",
    [
        HGRN(D, unit="complex"),
        HGRN2(D, expand_ratio=8, conv_size=3),
        SlidingWindowAttention(D, num_heads=2, window_size=4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_one_mixer_alone(layer):
    programs.scramble(layer)
    x = inputs(layer, 2, 20)
    with torch.no_grad():
        whole, last = layer(x)
    native = engine(layer, 2)
    assert_same("mixer", run(native, x), whole, SAME_STEP)
    state = native.get()
    assert len(state.layers) == 1
    assert type(state.layers[0]) is type(last)
    for got, expected in zip(state.layers[0], last, strict=True):
        assert_same("state", got, expected, SAME_STEP)


def test_what_a_compiled_step_says_of_itself():
    model = make("language tied")
    compiled = compile_step(model)
    assert compiled.tokens
    assert (compiled.n_in, compiled.n_out, compiled.output_shape, compiled.vocab_size) == (D, 24, (24,), 21)
    assert compiled.embedding is not None
    assert compiled.embedding.data_ptr() == model.embeddings.weight.data_ptr()
    assert compiled.fingerprint == model.backbone.fingerprint
    read = sum(p.nbytes for name, p in model.named_parameters() if not name.startswith("embeddings"))
    read += model.embeddings.weight.nbytes  # as the head
    assert 0.9 * read < compiled.weight_bytes < 1.1 * read
    assert set(compiled.layer_bytes) == {"", "backbone.layers.0", "backbone.layers.1", "lm_head"}
    assert compiled.layer_bytes["lm_head"] == 32 * D * 4  # panels of 16 outputs
    with pytest.raises(dataclasses.FrozenInstanceError):
        compiled.n_in = 3  # type: ignore[misc]


def test_compiling_changes_nothing_and_later_changes_do_not_reach_it():
    model = make("hgrn2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = inputs(model, 1, 5)
    native = engine(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(p.grad_fn is not None or p.grad is not None for p in model.parameters())
    was = run(native, x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    native.reset()
    assert torch.equal(run(native, x), was)


def refused(model, *words, weights="float32"):
    with pytest.raises(CannotCompile) as caught:
        compile_step(model, weights)
    for word in ("compile_step", *words):
        assert word in str(caught.value)


def test_refuses_what_is_not_causal():
    refused(programs.backbone(HGRNConfig(direction="bidirectional")), "layers.0.mixer (HGRN)", "bidirectional")
    mixed = programs.backbone(HGRN2Config(expand_ratio=4), HGRN2Config(expand_ratio=4, direction="2d_series"))
    refused(mixed, "layers.1.mixer (HGRN2)", "2d_series")
    refused(programs.backbone(HyenaConfig(causal=False)), "layers.0.mixer (Hyena)", "causal")
    refused(build("edifice-hgrn", embed_dim=4, hidden_size=8, scan="edifice"), "rnn (HGRNLayer)", "scan='exact'")


def test_refuses_other_networks_and_their_relatives():
    refused(FeatureModel(make_backbone("gru", hidden_size=8), 4), "no native step", "HGRN2")
    refused(nn.Linear(3, 3), "the model (Linear)", "LanguageModel")

    class Mine(HGRN):
        def forward(self, *args, **kwargs):
            y, state = super().forward(*args, **kwargs)
            return 2 * y, state

    model = make("hgrn")
    model.layers[1].mixer = Mine(D)
    refused(model, "layers.1.mixer (Mine)", "derived from HGRN")
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got int"):
        compile_step(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights must be one of"):
        compile_step(make("hgrn"), "int4")


def test_refuses_wrapped_and_changed_linear_maps():
    class Adapter(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer, self.in_features, self.out_features = base_layer, *base_layer.weight.shape

        def forward(self, x):
            return self.base_layer(x)

    model = make("hgrn2")
    model.layers[0].mixer.v_proj = Adapter(model.layers[0].mixer.v_proj)
    refused(model, "layers.0.mixer.v_proj (Adapter)", "plain torch.nn.Linear", "merge adapters")
    for name in ("gate_proj", "down_proj"):
        model = make("hgrn2")
        setattr(model.layers[1].mlp, name, Adapter(getattr(model.layers[1].mlp, name)))
        refused(model, f"layers.1.mlp.{name} (Adapter)", "merge")

    class Quantized(torch.Tensor):
        pass

    model = make("hgrn2")
    weight = model.layers[0].mixer.q_proj.weight.detach().as_subclass(Quantized)
    model.layers[0].mixer.q_proj._parameters["weight"] = weight
    refused(model, "layers.0.mixer.q_proj (Linear)", "weight is a Quantized", "int8")


def test_refuses_parts_that_are_not_what_the_rules_know():
    class Noise(nn.Dropout):
        pass

    class Conv(ShortConv):
        pass

    model = make("hgrn2 conv")
    model.layers[1].dropout = Noise(0.1)
    refused(model, "layers.1.dropout (Noise)", "no native step")
    model = make("hgrn2 conv")
    model.layers[0].mixer.v_conv = Conv(D, 4, bias=True)
    refused(model, "layers.0.mixer.v_conv (Conv)", "no native step")
    model = make("hgrn2 conv")
    model.layers[1].dropout = nn.Identity()
    compile_step(model)


def test_refuses_hooks_and_replaced_methods():
    model = make("hgrn")
    handle = model.layers[1].mlp.register_forward_hook(lambda *_: None)
    refused(model, "layers.1.mlp (SwiGLU)", "hooks")
    handle.remove()
    model.norm.register_forward_pre_hook(lambda *_: None)
    refused(model, "norm (RMSNorm)", "hooks")
    model = make("hgrn")
    model.layers[0].forward = model.layers[0].forward
    refused(model, "layers.0 (Block)", "replaced")
    compiled = nn.Module()  # as torch.compile makes it
    compiled._orig_mod = make("hgrn")
    refused(compiled, "made by torch.compile", "_orig_mod")


def test_refuses_embeddings_that_change_when_looked_at():
    model = make("language")
    model.embeddings.max_norm = 1.0
    refused(model, "embeddings (Embedding)", "max_norm")


def test_a_program_knows_its_instructions_and_keeps_to_its_memory():
    program = Program()
    in_ = program.begin(4)
    with pytest.raises(ValueError, match=r"op must be one of \['begin', 'linear'.*got 'bend'"):
        program.add("bend")
    with pytest.raises(ValueError, match=r"the fields of multiply must be .*'activation'.*got \('a', 'b'\)"):
        program.add("multiply", a=0, b=-1)
    with program.room():
        within = program.scratch(100)
    assert program.scratch(3) == within
    assert all(program.scratch(n) % 16 == 0 for n in (1, 17, 5))
    program.add("multiply", a=in_, activation=0, b=-1, out=10_000, n=4)
    with pytest.raises(RuntimeError, match="multiply"):
        program.finish(in_, 4)
    with pytest.raises(ValueError, match="weights must be one of"):
        Program("float16")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_refuses_other_dtypes(dtype):
    refused(make("hgrn").to(dtype), f"lower_bounds must be float32, got {dtype}", "model.float()")


def test_refuses_other_devices():
    refused(BACKBONES["hgrn"]().to("meta"), "must be on the CPU, got meta")


@pytest.mark.slow
@pytest.mark.parametrize("memory", [None, 1000])
@pytest.mark.parametrize(
    "name", ["hgrn wide", "hgrn complex conv", "hgrn2 conv", "attention", "hybrid", "edifice", "language tied"]
)
def test_twenty_thousand_steps_equal_the_parallel_pass(name, memory):
    """With gates that remember a thousand frames float32 itself is off by more than this, so it is that in float64."""
    model = make(name)
    for key, parameter in model.named_parameters():
        if memory and key.endswith("forget_proj.bias"):
            torch.nn.init.constant_(parameter, math.log(memory))
    x, native = inputs(model, 1, 20_000), engine(model)
    exact = copy.deepcopy(model).double() if memory else model
    state = exact.init_state(1)
    for t in range(0, x.shape[1], 4000):
        frames = x[:, t : t + 4000]
        whole, state = forward(exact, frames.to(torch.float64) if memory and x.is_floating_point() else frames, state)
        assert_same(f"{name} from {t}", run(native, frames), whole, SAME_STEP)
    for got, expected in zip(native.get().tensors(), state.tensors(), strict=True):
        assert_same(f"{name}: state", got, expected, SAME_STEP)
