"""Small models with every option of the layers, their parameters drawn at random, and ways to run them."""

import copy

import torch
from torch import nn

from longstream import build
from longstream.models import (
    AttentionConfig,
    Backbone,
    HGRN2Config,
    HGRNConfig,
    LanguageModel,
    ModelConfig,
)
from longstream.stream.compile import compile_step
from longstream.stream.engine import NativeEngine
from longstream.stream.pack import rounded
from longstream.stream.program import why_not_native

D = 16
NO_NATIVE = why_not_native()


def backbone(*mixers, **options):
    """A backbone whose layers have these mixers, and as many layers."""
    options = {"num_layers": max(2, len(mixers)), "hidden_size": D, "intermediate_size": 24, **options}
    return Backbone(ModelConfig(layers=mixers, **options))


def language_model(*mixers, **options):
    return LanguageModel(ModelConfig(layers=mixers, num_layers=2, hidden_size=D, intermediate_size=24, **options))


BACKBONES = {
    "hgrn": lambda: backbone(HGRNConfig(), HGRNConfig(), HGRNConfig()),
    "hgrn wide": lambda: backbone(HGRNConfig(expand_ratio=2, bias=True), lower_bound="exclusive"),
    "hgrn conv": lambda: backbone(HGRNConfig(conv_size=4, conv_bias=True, gate_activation="sigmoid")),
    "hgrn one tap": lambda: backbone(HGRNConfig(conv_size=1)),
    "hgrn norm last": lambda: backbone(HGRNConfig(norm_first=False, norm="rms_no_weight")),
    "hgrn norm last sigmoid": lambda: backbone(HGRNConfig(norm_first=False, norm="layer", gate_activation="sigmoid")),
    "hgrn layer norm": lambda: backbone(HGRNConfig(norm="layer", norm_eps=1e-2), lower_bound=None),
    "hgrn complex": lambda: backbone(HGRNConfig(unit="complex")),
    "hgrn complex conv": lambda: backbone(HGRNConfig(unit="complex", conv_size=3, norm="layer", bias=True)),
    "hgrn2": lambda: backbone(*[HGRN2Config(expand_ratio=8)] * 3),
    "hgrn2 options": lambda: backbone(
        HGRN2Config(expand_ratio=4, query_activation="sigmoid", value_activation="silu", query_scale=0.5, norm="layer"),
        norm="layer",
        mlp="gelu",
    ),
    "hgrn2 conv": lambda: backbone(HGRN2Config(expand_ratio=16, conv_size=4, conv_bias=True, bias=True)),
    "hgrn2 heads of one": lambda: backbone(
        HGRN2Config(expand_ratio=1, conv_size=2, norm="rms_no_weight"), mlp="bilinear", norm="rms_no_weight"
    ),
    "attention": lambda: backbone(AttentionConfig(num_heads=2, window_size=9)),
    "attention groups": lambda: backbone(
        AttentionConfig(num_heads=4, num_kv_heads=2, window_size=6, qkv_bias=True, bias=True, rope_theta=50.0)
    ),
    "attention window 1": lambda: backbone(AttentionConfig(num_heads=2, window_size=1)),
    "attention window 2": lambda: backbone(AttentionConfig(num_heads=4, num_kv_heads=1, window_size=2)),
    "hybrid": lambda: backbone(
        AttentionConfig(num_heads=2, window_size=7), HGRN2Config(expand_ratio=8), HGRNConfig(conv_size=2)
    ),
    "gates last": lambda: backbone(HGRNConfig(), AttentionConfig(num_heads=2, window_size=5)),
}
MODELS = {
    **BACKBONES,
    "features": lambda: build("hgrn2", embed_dim=7, hidden_size=D, num_layers=2),
    "features as wide": lambda: build("hgrn", embed_dim=D, hidden_size=D, num_layers=2, dropout=0.5),
    "hybrid of the catalog": lambda: build("hybrid", embed_dim=7, hidden_size=D, num_layers=3, window_size=6),
    "edifice": lambda: build("edifice-hgrn", embed_dim=7, hidden_size=D, num_layers=3),
    "edifice wide": lambda: build("edifice-hgrn", embed_dim=D, hidden_size=D, num_layers=2, state_expansion=3),
    "language": lambda: language_model(HGRN2Config(expand_ratio=8), vocab_size=21),
    "language tied": lambda: language_model(
        HGRNConfig(), HGRN2Config(expand_ratio=4), vocab_size=21, vocab_multiple=8, tie_embeddings=True
    ),
}


def make(name, table=None):
    """A model by name, in training mode, every parameter drawn at random."""
    model = (MODELS if table is None else table)[name]()
    scramble(model)
    return model


@torch.no_grad()
def scramble(model):
    """Random parameters, biases and norms and lower bounds too, so that one left out or misplaced is seen."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.5, 1.5)
        elif parameter.dim() == 2 and "lower_bounds" not in name and "conv" not in name:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
        else:
            parameter.normal_(std=0.7)


def inputs(model, rows, frames):
    """(rows, frames, E) numbers, or (rows, frames) tokens."""
    if isinstance(model, LanguageModel):
        return torch.randint(0, model.vocab_size, (rows, frames))
    return torch.randn(rows, frames, getattr(model, "embed_dim", model.hidden_size))


def engine(model, rows=1, *, history=0, threads=1, weights="float32"):
    return NativeEngine(compile_step(model, weights), rows, history + 2, threads)


def run(native, x):
    """The outputs (B, T, n_out) of an engine for x (B, T, ...), frame by frame."""
    outs = torch.full((*x.shape[:2], native.compiled.n_out), torch.nan)
    for t in range(x.shape[1]):
        y = torch.empty(len(x), native.compiled.n_out)
        assert native.step(x[:, t].contiguous(), y) == 0
        outs[:, t] = y
    return outs


@torch.no_grad()
def forward(model, x, state=None):
    """All outputs of the parallel pass, and the state; dropout is off."""
    model.eval()
    kwargs = {"outputs": "all"} if hasattr(model, "outputs") else {}
    return model(x, state, **kwargs)


@torch.no_grad()
def steps(model, x, state=None):
    """The outputs of the model's own step, frame by frame, and the state."""
    model.eval()
    state, outs = model.init_state(len(x)) if state is None else state, []
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], state)
        outs.append(y)
    return torch.stack(outs, 1), state


def round_weights(model, weights):
    """A float32 copy of the model whose linear maps have the numbers that packed weights stand for."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.weight = nn.Parameter(rounded(module.weight.detach(), weights))
    return model
