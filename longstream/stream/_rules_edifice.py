"""Step rules of Edifice's HGRN, and of what it shares with Edifice's Hyena."""

from __future__ import annotations

from typing import Any

from longstream.edifice._hgrn import EdificeHGRNState, HGRNBackbone, HGRNBlock, HGRNLayer
from longstream.edifice._hyena import HyenaBackbone
from longstream.edifice._parts import LayerNorm
from longstream.stream._rules import norm, plain_mlp
from longstream.stream._rules_models import whole
from longstream.stream.layout import Fields
from longstream.stream.program import Program
from longstream.stream.rules import ModelStep, apply_rule, join, model_rule, refuse, step_rule


@step_rule(LayerNorm)
def axon_norm(program: Program, module: LayerNorm, in_: int, out: int, path: str) -> None:
    """Axon's layer norm; see `longstream.edifice._parts.LayerNorm`."""
    norm(program, "axon", len(module.weight), module.eps, module.weight, module.bias, in_, out)


@step_rule(HGRNLayer)
def layer(program: Program, module: HGRNLayer, in_: int, out: int, path: str) -> None:
    """y = x + W_c h + b_c. In place: ``out`` is ``in_``."""
    assert in_ == out
    if module.scan != "exact":
        refuse(path, module, f"scan {module.scan!r} takes whole sequences from the start; build with scan='exact'")
    N, G = module.state_size, program.as_linear(module.forget_proj).out_features
    with program.room():
        normed, f, h = program.scratch(module.hidden_size), program.scratch(2 * G + N), program.scratch(N)
        apply_rule(program, module.norm, in_, normed, join(path, "norm"))
        program.linear(normed, f, module.forget_proj, module.input_proj, module.value_proj)
        state = program.state(N)
        program.add("shared_gates", f=f, i=f + G, v=f + 2 * G, out=h, n=N, gates=G, state=state)
        program.linear(h, out, module.contract, add=True)
    program.layers.append(Fields(path, EdificeHGRNState, (state, (N,))))


@step_rule(HGRNBlock)
def block(program: Program, module: HGRNBlock, in_: int, out: int, path: str) -> None:
    """x = layer(x), then x = x + W_down SiLU(W_up norm(x) + b_up) + b_down. In place: ``out`` is ``in_``."""
    with program.room():
        apply_rule(program, module.rnn, in_, out, join(path, "rnn"))
        normed = program.scratch(module.hidden_size)
        apply_rule(program, module.ffn_norm, in_, normed, join(path, "ffn_norm"))
        plain_mlp(program, module.ffn_up, "silu", module.ffn_down, normed, out, add=True)


@step_rule(HGRNBackbone, HyenaBackbone)
def stack(program: Program, module: Any, in_: int, out: int, path: str) -> None:
    """The blocks, over its input, and the final norm."""
    for i, part in enumerate(module.layers):
        here = join(path, f"layers.{i}")
        with program.part(here):
            apply_rule(program, part, in_, in_, here)
    apply_rule(program, module.final_norm, in_, out, join(path, "final_norm"))


@model_rule(HGRNBackbone, HyenaBackbone)
def stack_model(program: Program, model: Any, path: str) -> ModelStep:
    """Frames that are as wide as the stack."""
    return whole(program, model, path, model.hidden_size, model.hidden_size, model.fingerprint)
