"""Step rules of blocks and backbones, and of the models that they make."""

from __future__ import annotations

from typing import Any

from torch import nn

from longstream.layers import HGRN, HGRN2, Hyena, SlidingWindowAttention
from longstream.models import Backbone, Block, FeatureModel, LanguageModel
from longstream.ops import LowerBound
from longstream.stream.program import Program
from longstream.stream.rules import ModelStep, apply_rule, join, model_rule, refuse, step_rule
from longstream.stream.steps import fingerprint_of_part


@step_rule(Block)
def block(
    program: Program, module: Block, in_: int, out: int, path: str, *, lower_bound: LowerBound | None = None
) -> None:
    """x = x + mixer(norm(x)), then, where there is an MLP, x = x + mlp(norm(x)). In place: ``out`` is ``in_``."""
    assert in_ == out
    context = {} if lower_bound is None else {"lower_bound": lower_bound}
    with program.room():
        normed = program.scratch(module.hidden_size)
        apply_rule(program, module.mixer_norm, in_, normed, join(path, "mixer_norm"))
        apply_rule(program, module.mixer, normed, out, join(path, "mixer"), add=True, **context)
        if module.mlp_norm is not None and module.mlp is not None:
            apply_rule(program, module.mlp_norm, in_, normed, join(path, "mlp_norm"))
            apply_rule(program, module.mlp, normed, out, join(path, "mlp"), add=True)


@step_rule(Backbone)
def backbone(program: Program, module: Backbone, in_: int, out: int, path: str) -> None:
    """The blocks, over its input, and the last norm."""
    for i, (layer, bound) in enumerate(zip(module.layers, module.bounds_of_layers(), strict=True)):
        here = join(path, f"layers.{i}")
        with program.part(here):
            apply_rule(program, layer, in_, in_, here, lower_bound=bound)
    apply_rule(program, module.norm, in_, out, join(path, "norm"))


@step_rule(FeatureModel)
def features(program: Program, module: FeatureModel, in_: int, out: int, path: str) -> None:
    """y = backbone(W x + b). Writes over its input."""
    x = in_
    if module.input_projection is not None:
        x = program.scratch(module.hidden_size)
        program.linear(in_, x, module.input_projection)
    apply_rule(program, module.backbone, x, out, join(path, "backbone"))


@model_rule(FeatureModel)
def feature_model(program: Program, model: FeatureModel, path: str) -> ModelStep:
    """Frames in, one vector a frame out."""
    return whole(program, model, path, model.embed_dim, model.hidden_size, model.backbone.fingerprint)


@model_rule(Backbone)
def backbone_model(program: Program, model: Any, path: str) -> ModelStep:
    """Frames that are as wide as the backbone."""
    return whole(program, model, path, model.hidden_size, model.hidden_size, model.fingerprint)


@model_rule(HGRN, HGRN2, Hyena, SlidingWindowAttention)
def mixer_model(program: Program, model: Any, path: str) -> ModelStep:
    """One mixer alone, without a lower bound; its `State` has one layer."""
    return whole(program, model, path, model.hidden_size, model.hidden_size, fingerprint_of_part(model))


def whole(program: Program, model: nn.Module, path: str, n_in: int, n_out: int, fingerprint: str) -> ModelStep:
    """A model of frames that is one module with a step rule."""
    in_ = program.begin(n_in)
    out = program.scratch(n_out)
    apply_rule(program, model, in_, out, path)
    return ModelStep(out, (n_out,), fingerprint)


@model_rule(LanguageModel)
def language_model(program: Program, model: LanguageModel, path: str) -> ModelStep:
    """Rows of the embeddings in, logits out."""
    if model.embeddings.max_norm is not None:
        refuse(join(path, "embeddings"), model.embeddings, "max_norm must be None, for rows are taken as they are")
    in_, vocabulary = program.begin(model.config.hidden_size), program.as_linear(model.lm_head).out_features
    hidden, out = program.scratch(model.config.hidden_size), program.scratch(vocabulary)
    apply_rule(program, model.backbone, in_, hidden, join(path, "backbone"))
    with program.part(join(path, "lm_head")):
        program.linear(hidden, out, model.lm_head)
    fingerprint = model.backbone.fingerprint
    return ModelStep(
        out, (model.lm_head.out_features,), fingerprint, model.embeddings.weight.detach(), model.vocab_size
    )
