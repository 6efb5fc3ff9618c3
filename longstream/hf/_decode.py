"""One token a row by the native step of `longstream.stream`, where it can do what a call of the model would."""

from typing import Any

import torch
from torch import Tensor

from longstream.hf._arguments import mask_of_new
from longstream.hf.cache import RecurrentCache
from longstream.stream.kept import KeptStep, forget_step, kept_step

BACKENDS = ("auto", "eager")


def why_no_native_step(model: Any) -> str | None:
    """Why the model's own step runs for single tokens; None where the native one does. May compile it."""
    if (reason := _at_a_glance(model)) is not None:
        return reason
    return kept_step(model, model.decode_weights).why_not


def step_natively(model: Any, ids: Tensor, mask: Tensor | None, cache: Any) -> Tensor | None:
    """Logits (B, 1, padded vocabulary) of one token a row, ids (B, 1), behind a cache that goes on; or None.

    None is no error: the model itself is to be called, and will also say what is wrong with the arguments.
    """
    if ids.shape[1:] != (1,) or not isinstance(cache, RecurrentCache) or cache.batch_size != len(ids):
        return None
    if torch.is_grad_enabled() or model.training or model.model.training or torch.compiler.is_compiling():
        return None
    if _at_a_glance(model) is not None:
        return None
    if mask is not None and not bool(mask_of_new(type(model).__name__, mask, ids, cache.seq_length).all()):  # type: ignore[union-attr]
        return None
    kept = current_step(model, cache.kept_step, thorough=not cache.is_in_step)
    if kept.compiled is None:
        cache.kept_step = kept
        return None
    logits = cache.step(kept, ids[:, 0], lambda: model.model.embeddings(ids.long()))
    return None if logits is None else logits[:, None]


def current_step(model: Any, kept: KeptStep | None, *, thorough: bool) -> KeptStep:
    """The step that a cache has used, if it is the model's still; else the model's."""
    if kept is None or thorough or kept.weights != model.decode_weights or not kept.is_current(thorough=False):
        return kept_step(model, model.decode_weights)
    return kept


def _at_a_glance(model: Any) -> str | None:
    """What can be seen without looking at all modules."""
    if model.decode_backend not in BACKENDS:
        name = type(model).__name__
        raise ValueError(f"{name}: decode_backend must be one of {list(BACKENDS)}, got {model.decode_backend!r}")
    if model.decode_backend == "eager":
        forget_step(model)
        return "decode_backend is 'eager'"
    weight = getattr(model.lm_head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return "its weights are not float32 on a CPU"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    return None
