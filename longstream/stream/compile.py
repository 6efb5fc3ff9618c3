"""A model's step compiled once: its instructions over packed weights, for `NativeEngine` to run in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from longstream.edifice import _hyena as edifice_hyena
from longstream.layers import HyenaFilter, ShortConv
from longstream.stream import _hyena, _rules, _rules_edifice, _rules_models  # noqa: F401  they register what they know
from longstream.stream.layout import LayerLayout
from longstream.stream.pack import check_weights
from longstream.stream.program import Program
from longstream.stream.rules import MODEL_RULES, STEP_RULES, find_rule, refuse
from longstream.stream.rules import CannotCompile as CannotCompile
from longstream.stream.rules import model_rule as model_rule
from longstream.stream.rules import step_rule as step_rule

_PARTS = (nn.Linear, nn.Embedding, nn.Dropout, nn.Identity, nn.ModuleList, ShortConv)  # what rules read or leave out
_WHOLE = (HyenaFilter, edifice_hyena.HyenaFilter)  # what rules ask for its result, whatever is in it


@dataclass(frozen=True, eq=False)
class CompiledStep:
    """What `compile_step` makes. It has its own copy of the weights: later changes of the model's do not reach it.

    Of the embeddings of tokens there is no copy.

    Attributes:
        model:        that was compiled, for its parallel pass.
        weights:      kind of the weights of linear maps.
        tokens:       whether the inputs are tokens, whose rows of ``embedding`` (vocabulary, n_in) are the frames.
        vocab_size:   of such a model.
        n_in, n_out:  numbers of a frame and of the result of a row.
        output_shape: of the result of a row.
        fingerprint:  of the model's states.
        layers:       how the state of each layer stands in a row.
        longest:      the most frames that a row can take in; None is no limit.
        check_frames: raises, in the model's words, for a number of frames that is more.
        weight_bytes: of constants read in a step.
        layer_bytes:  the same by the paths of the model's layers; "" is what belongs to none.
        program, constants, state_size, tape_size, scratch_size: see csrc/stream.h.
    """

    model: nn.Module
    weights: str
    tokens: bool
    vocab_size: int | None
    embedding: Tensor | None
    n_in: int
    n_out: int
    output_shape: tuple[int, ...]
    fingerprint: str
    layers: tuple[LayerLayout, ...]
    longest: int | None
    check_frames: Callable[[int], None]
    layer_bytes: Mapping[str, int]
    program: Tensor
    constants: Tensor
    state_size: int
    tape_size: int
    scratch_size: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of constants read in a step."""
        return sum(self.layer_bytes.values())


@torch.no_grad()
def compile_step(model: nn.Module, weights: str = "float32") -> CompiledStep:
    """Compile the step of a model for the native library.

    Args:
        model:   `Backbone`, `FeatureModel` with any of the library's backbones, `LanguageModel`, one mixer alone, or a
                 model whose package has registered a rule; causal, in float32, on the CPU. Dropout is not run.
        weights: of its linear maps: "float32", "bfloat16", or "int8" with a scale for each output. All else, sums and
                 states too, stays float32.
    Raises:
        CannotCompile: a part has no native step; the message has its path, its class and why.
        RuntimeError: the library is not there.    ValueError: unknown weights.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compile_step: model must be a torch.nn.Module, got {type(model).__name__}")
    check_weights("compile_step", weights)
    _refuse_unusual(model)
    program = Program(weights, model)
    step = find_rule(MODEL_RULES, model, "")(program, model, "")
    _refuse_unknown(model)
    n_out = torch.Size(step.output_shape).numel()
    longest, check_frames = min(program.limits, key=lambda limit: limit[0], default=(None, _no_limit))
    return CompiledStep(
        model=model,
        weights=weights,
        tokens=step.embedding is not None,
        vocab_size=step.vocab_size,
        embedding=step.embedding,
        n_in=program.n_in,
        n_out=n_out,
        output_shape=step.output_shape,
        fingerprint=step.fingerprint,
        layers=tuple(program.layers),
        longest=longest,
        check_frames=check_frames,
        layer_bytes=MappingProxyType(dict(program.part_bytes)),
        **program.finish(step.out, n_out)._asdict(),
    )


def _no_limit(frames: int) -> None:
    """Any number of frames is fine."""


def _refuse_unusual(model: nn.Module) -> None:
    """Refuse what the instructions would not know of: hooks, replaced methods, other dtypes, devices and tensors."""
    for path, module in model.named_modules():
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            if hooks := getattr(module, name):
                refuse(path, module, f"it has forward hooks ({len(hooks)}), which a native step would not run")
        if hasattr(module, "_orig_mod"):
            refuse(path, module, "it is made by torch.compile; give the module that it was made of, its _orig_mod")
        if "forward" in vars(module) or "step" in vars(module):
            refuse(path, module, "its forward or step was replaced on the instance, which a native step would not run")
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors:
            _refuse_tensor(path, module, name, tensor)


def _refuse_unknown(model: nn.Module) -> None:
    """Refuse modules that no rule has looked at: the model may run them."""
    whole = ()
    for path, module in model.named_modules():
        if type(module) in _WHOLE:
            whole += (f"{path}.",)
        elif not path.startswith(whole) and type(module) not in (*STEP_RULES, *MODEL_RULES, *_PARTS):
            refuse(path, module, "there is no native step for it")


def _refuse_tensor(path: str, module: nn.Module, name: str, tensor: Any) -> None:
    if type(tensor) not in (nn.Parameter, nn.Buffer, Tensor):
        why = f"{name} is a {type(tensor).__name__}; give the float32 model and weights='int8' or 'bfloat16'"
        refuse(path, module, why)
    if tensor.device.type != "cpu":
        refuse(path, module, f"{name} must be on the CPU, got {tensor.device}")
    if tensor.is_floating_point() and tensor.dtype != torch.float32:
        refuse(path, module, f"{name} must be float32, got {tensor.dtype}; call model.float() first")
