"""The compiled step of a language model, kept for as long as the model is what it was when it was compiled."""

import threading
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from longstream.models import LanguageModel
from longstream.stream.compile import CompiledStep, compile_step
from longstream.stream.stream import ONE_THREAD

_SAMPLE = 64  # numbers of each tensor that are looked at
_PLAIN = (nn.Parameter, nn.Buffer, Tensor)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class KeptStep:
    """A compiled step with what it was compiled from; or, in ``why_not``, why there is none.

    Attributes:
        model:    `LanguageModel` of the same modules, for the parallel pass.
        compiled: the step, or None.
        why_not:  None, or why there is no native step.
        weights:  kind of its weights.
    """

    def __init__(self, model: nn.Module, weights: str):
        self.weights = weights
        self.model = as_language_model(model)
        self._watch = Watch(model)
        self.compiled: CompiledStep | None = None
        self.why_not: str | None = self._watch.why_not
        if type(self.model.embeddings) is not nn.Embedding:
            self.why_not = f"its embeddings are of {type(self.model.embeddings).__name__}, not torch.nn.Embedding"
        if self.why_not is None:
            try:
                self.compiled = compile_step(self.model, weights)
            except (TypeError, ValueError, RuntimeError) as error:
                self.why_not = str(error)

    def is_current(self, *, thorough: bool = True) -> bool:
        """Whether the model has the tensors and modules that it had.

        Tensors count as the same where they are the same objects and torch has counted no change of them. ``thorough``
        also looks at a few numbers of each, which finds what was written past torch's counting, as merging a LoRA does,
        and at the plain attributes of all modules.
        """
        return self._watch.is_same(thorough)

    @property
    def threads(self) -> int:
        """For an engine: 1 for small models, else torch's."""
        small = self.compiled is None or self.compiled.weight_bytes < ONE_THREAD
        return 1 if small else torch.get_num_threads()


class Watch:
    """What a module consists of, remembered."""

    def __init__(self, model: nn.Module):
        modules = [*model.modules()]
        self.children: list[tuple[dict[str, Any], str, Any]] = []
        self.tensors: list[tuple[dict[str, Any], str, Tensor, int, int]] = []
        self.absent: list[tuple[dict[str, Any], str]] = []  # as a bias that may be put there later
        self.hooks = [getattr(module, name) for module in modules[1:] for name in _HOOKS]
        self._first = ref(model)  # a key of `_kept`, and its table may have methods of its own bound to it
        self._tables = [vars(part) for part in modules[1:]]
        for part in modules:
            self.children += [(part._modules, name, child) for name, child in part._modules.items()]
            for table in (part._parameters, part._buffers):
                self.tensors += [(table, name, t, *_count(t)) for name, t in table.items() if t is not None]
                self.absent += [(table, name) for name, t in table.items() if t is None]
        self.had_hooks, self.had = any(self.hooks), self.why_not
        self.attributes = [_plain(table) for table in self._all_tables()]
        self.samples = [_sample(t) for _, _, t, _, _ in self.tensors]

    @property
    def why_not(self) -> str | None:
        """What of this a native step would not run."""
        if any(self.hooks):
            return "a part of it has forward hooks, which a native step would not run"
        if any("forward" in table for table in self._tables):
            return "the forward of a part of it was replaced on the instance, which a native step would not run"
        return None

    def _all_tables(self) -> list[dict[str, Any]]:
        first = self._first()
        return [{} if first is None else vars(first), *self._tables]

    def is_same(self, thorough: bool) -> bool:
        same = (
            all(table.get(name) is child for table, name, child in self.children)
            and all(
                table.get(name) is t and _count(t) == (version, place)
                for table, name, t, version, place in self.tensors
            )
            and all(table.get(name) is None for table, name in self.absent)
            and any(self.hooks) == self.had_hooks
        )
        if not same or not thorough:
            return same
        return (
            self.why_not == self.had
            and all(_plain(table) == plain for table, plain in zip(self._all_tables(), self.attributes, strict=True))
            and all(torch.equal(_sample(t), s) for (_, _, t, _, _), s in zip(self.tensors, self.samples, strict=True))
        )


def _count(tensor: Tensor) -> tuple[int, int]:
    """How often torch has seen a tensor change, and where it is; quantized ones, without a native step, do not say."""
    if type(tensor) not in _PLAIN:
        return 0, 0
    return 0 if tensor.is_inference() else tensor._version, tensor.data_ptr()


def _sample(tensor: Tensor) -> Tensor:
    if type(tensor) not in _PLAIN or tensor.is_meta:
        return torch.empty(0)
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE].clone()


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """What of a module's attributes are plain values; and Hyena's modes, which are no submodule."""
    kinds = str | int | float | None
    return {k: v for k, v in table.items() if (isinstance(v, kinds) and k != "training") or k == "_modal"}


def as_language_model(model: Any) -> LanguageModel:
    """A `LanguageModel` of the model's own modules: a second object, so that what keeps it does not keep the model.

    Args:
        model: `LanguageModel`, or what has one of the same modules as ``language_model``.
    """
    found = getattr(model, "language_model", model)
    if not isinstance(found, LanguageModel):
        raise TypeError(f"generate: model must be a longstream language model, got {type(model).__name__}")
    return LanguageModel.of_parts(found.config, found.embeddings, found.dropout, found.backbone, found.lm_head)


_kept: WeakKeyDictionary[nn.Module, KeptStep] = WeakKeyDictionary()
_lock = threading.RLock()


def kept_step(model: nn.Module, weights: str = "float32") -> KeptStep:
    """The compiled step of a model: the one from before where the model has not changed, else a new one.

    One for each model, with a packed copy of its weights, until the model is gone or `forget_step` is called.
    """
    with _lock:
        kept = _kept.get(model)
        if kept is None or kept.weights != weights or not kept.is_current():
            _kept.pop(model, None)  # before the next takes as much memory
            del kept
            kept = _kept[model] = KeptStep(model, weights)
        return kept


def forget_step(model: nn.Module) -> None:
    """Free the packed copy of a model's weights."""
    with _lock:
        _kept.pop(model, None)
