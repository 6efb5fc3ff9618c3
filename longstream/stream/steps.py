"""A model behind one surface: its step, its parallel pass and its states, whatever it takes and returns."""

import copy
import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from longstream.models import FeatureModel, LanguageModel, State
from longstream.models.heads import check_ids


class Steps:
    """What a stream asks of a model: one step, one parallel pass, a first state, and the shapes of both ends.

    Takes what has ``step`` and ``init_state``: `FeatureModel`, `LanguageModel`, `Backbone`,
    `longstream.sequences.SequenceModel` and models like them, and a block or a mixer alone, whose state becomes the one
    layer of a `longstream.models.State`. Dropout is off, also in a model in training mode, whose own mode stays.

    Attributes:
        n_in:         numbers of a frame; 1 for tokens.
        tokens:       whether a frame is the number of a token.
        dtype:        of frames: float64 for a float64 model, int64 for tokens, else float32.
        allow_nan:    (n_in,) bool, channels in which NaN is a missing value; None: nowhere.
        output_shape: of a row's output.
        output_dtype: of outputs, float32 or wider.
        first:        the state of one row before the first frame.
    Raises:
        TypeError: the model has no step and no state.    RuntimeError: it looks both ways.
    """

    def __init__(self, model: nn.Module):
        if not isinstance(model, nn.Module):
            raise TypeError(f"Stream: model must be a torch.nn.Module, got {type(model).__name__}")
        if not hasattr(model, "step") or not hasattr(model, "init_state"):
            raise TypeError(f"Stream: model must have step and init_state, got {type(model).__name__}")
        if not getattr(model, "causal", True):
            raise RuntimeError(
                f"Stream: {type(model).__name__} looks both ways and takes whole sequences; see sliding_window"
            )
        self._look_at(model)
        first = self.model.init_state(1)  # type: ignore[operator]
        self._alone = None if isinstance(first, State) else fingerprint_of_part(model)
        if self._alone is not None and not hasattr(first, "_fields"):
            raise TypeError(f"Stream: model must have a State or a named tuple of tensors, got {type(first).__name__}")
        self.first = self.init_state(1)
        zeros = torch.zeros(self.frame_shape(1), dtype=self.dtype, device=self.device)
        y, _ = self.step(zeros, self.first)
        self.output_shape, self.output_dtype = y.shape[1:], torch.promote_types(y.dtype, torch.float32)

    def _look_at(self, model: nn.Module) -> None:
        self.model = without_dropout(model)
        weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.device = weight.device
        self.tokens = isinstance(model, LanguageModel)
        self.dtype = torch.int64 if self.tokens else torch.promote_types(weight.dtype, torch.float32)
        self._weight_dtype = weight.dtype
        self._alone: str | None = None  # the fingerprint of a block or mixer alone, whose state is no `State`
        config = getattr(model, "config", None)
        channels = getattr(config, "channels", None)
        self.checks_values = channels is not None  # refuses infinite numbers itself
        self.n_in: int = 1
        if not self.tokens:
            size = len(channels) if channels is not None else getattr(model, "embed_dim", None)
            size = getattr(model, "hidden_size", None) if size is None else size
            if not isinstance(size, int):
                raise TypeError(
                    f"Stream: {type(model).__name__} must say embed_dim or hidden_size, the size of a frame"
                )
            self.n_in = size
        self.allow_nan: Tensor | None = None
        if indicators := getattr(config, "indicators", None):
            self.allow_nan = torch.zeros(self.n_in, dtype=torch.bool, device=self.device)
            self.allow_nan[list(indicators)] = True

    def frame_shape(self, rows: int) -> tuple[int, ...]:
        """Of the frames of one step."""
        return (rows,) if self.tokens else (rows, self.n_in)

    def init_state(self, rows: int) -> State:
        """The state of ``rows`` rows before the first frame."""
        state = self.model.init_state(rows)  # type: ignore[operator]
        if self._alone is None:
            return state
        return State((state,), torch.zeros(rows, dtype=torch.long, device=self.device), self._alone)

    def is_bad(self, x: Tensor) -> Tensor:
        """Where numbers of x (..., n_in) are infinite, or NaN without being allowed to."""
        if self.allow_nan is None:
            return ~x.isfinite()
        return x.isinf() | (x.isnan() & ~self.allow_nan)

    def is_state_fine(self, tensor: Tensor) -> Tensor:
        """(B,) bool: rows of a state's tensor in which every number is one."""
        return tensor.isfinite().flatten(1).all(1) if tensor.dim() > 1 else tensor.isfinite()

    def check_state(self, who: str, state: Any, rows: int) -> None:
        """Refuse a state of another model, of other rows, or with NaN or infinity in it.

        Raises:
            TypeError, ValueError: by layer and tensor.
        """
        if not isinstance(state, State):
            raise TypeError(f"{who}: state must be a longstream.models.State, got {type(state).__name__}")
        first = self.first
        if state.fingerprint != first.fingerprint:
            raise ValueError(
                f"{who}: the state belongs to another model: expected fingerprint {first.fingerprint}, got"
                f" {state.fingerprint}"
            )
        if len(state.layers) != len(first.layers):
            raise ValueError(f"{who}: state must have {len(first.layers)} layers, got {len(state.layers)}")
        if state.position.dim() != 1:
            raise ValueError(f"{who}: position must have shape (B,), got {tuple(state.position.shape)}")
        if state.batch_size != rows:
            raise ValueError(f"{who}: state must have {rows} rows, got {state.batch_size}")
        for i, (layer, like) in enumerate(zip(state.layers, first.layers, strict=True)):
            if type(layer) is not type(like):
                raise TypeError(f"{who}: layer {i} must be {type(like).__name__}, got {type(layer).__name__}")
            for name, tensor, wanted in zip(layer._fields, layer, [*like, *[None] * len(layer)], strict=False):
                self._check_tensor(f"{who}: layer {i}, {name}", tensor, None if name == "past" else wanted, rows)
        if state.position.dtype != torch.int64 or bool((state.position < 0).any()):
            raise ValueError(f"{who}: position must be int64 >= 0, got {state.position}")

    def _check_tensor(self, what: str, tensor: Tensor, like: Tensor | None, rows: int) -> None:
        """``like`` is None of what grows with a sequence, Hyena's past and tiles: the model itself looks at those."""
        if tensor.device != self.device:
            raise ValueError(f"{what} must be on {self.device}, got {tensor.device}; see State.to")
        shape = (rows, *(tensor if like is None else like).shape[1:])
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{what} must have shape {shape}, got {tuple(tensor.shape)}")
        floats = next((t.dtype for t in self.first.tensors() if t.is_floating_point()), torch.float32)
        dtype = like.dtype if like is not None else floats
        if tensor.dtype != dtype:
            raise TypeError(f"{what} must be {dtype}, got {tensor.dtype}")
        if bad := (~self.is_state_fine(tensor)).nonzero()[:, 0].tolist():
            raise ValueError(f"{what} must be finite, got NaN or infinity in the rows {bad}")

    @torch.no_grad()
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One frame of every row: (B, n_in), or (B,) tokens, -> (B, *output_shape) and the state after it."""
        if self.tokens:
            check_ids("Stream.step", x[:, None], self.model.vocab_size, "frame")  # type: ignore[arg-type]
        return self._step(x, state)

    def _step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self._alone is None:
            out, last = self.model.step(self._cast(x), state)  # type: ignore[operator]
            return _tensor_of(out), last
        out, layer = self.model.step(self._cast(x), state.layers[0])  # type: ignore[operator]
        return out, State((layer,), state.position + 1, self._alone)

    @torch.no_grad()
    def prefill(self, x: Tensor, state: State | None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Frames (B, T, n_in), or (B, T) tokens, T >= 1, at once -> the output of the last one, and the state.

        A row whose frames are all masked has zeros for an output.
        """
        return self._run(x, state, mask)

    def _run(self, x: Tensor, state: State | None, mask: Tensor | None) -> tuple[Tensor, State]:
        model: Any = self.model
        if self.tokens:  # logits of the last token only: those of all would be the largest tensor of all
            check_ids("Stream.prefill", x, model.vocab_size, "frames")
            y, last = model.backbone(model.embeddings(x), state, mask=mask)
            return model.lm_head(_last(y, mask)), last
        if isinstance(model, FeatureModel):
            return model(self._cast(x), state, mask=mask, outputs="last")
        if self._alone is not None:
            state = self.init_state(len(x)) if state is None else state
            y, layer = model(self._cast(x), state.layers[0], mask=mask)
            taken = x.shape[1] if mask is None else (mask != 0).sum(1)
            return _last(y, mask), State((layer,), state.position + taken, self._alone)
        out = model(self._cast(x), mask=mask, state=state)
        y, last = out if isinstance(out, tuple) else (_tensor_of(out), out.state)
        whole = y.dim() > 2 and tuple(y.shape[:2]) == tuple(x.shape[:2])
        return (_last(y, mask) if whole else y), last

    def _cast(self, x: Tensor) -> Tensor:
        return x if self.tokens or self.checks_values else x.to(self._weight_dtype)


def inner_model(model: Any) -> Any:
    """The model, or the `LanguageModel` of its own modules that one of longstream.hf has inside."""
    inside = getattr(model, "language_model", None)
    return inside if isinstance(inside, LanguageModel) else model


def without_dropout(model: nn.Module) -> nn.Module:
    """The model in evaluation mode: itself, or a twin with the same tensors where training it would be another."""
    drops = any(getattr(m, "p", 0) > 0 for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd))
    drops = drops or any(m.dropout > 0 for m in model.modules() if isinstance(m, nn.RNNBase))
    if not drops and not any(module.training for module in model.modules()):
        return model
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()


def fingerprint_of_part(model: nn.Module) -> str:
    """Of a block or mixer alone: its class and the shapes of its weights."""
    deciding = (type(model).__name__, getattr(model, "hidden_size", None), [tuple(p.shape) for p in model.parameters()])
    return hashlib.sha256(repr(deciding).encode()).hexdigest()[:16]


def _tensor_of(out: Any) -> Tensor:
    """The numbers of an output: of a `SequenceModel` its logits or predictions."""
    if isinstance(out, Tensor):
        return out
    return out.prediction if out.logits is None else out.logits


def _last(y: Tensor, mask: Tensor | None) -> Tensor:
    """y (B, T, ...) at the last frame of each row; 0 for a row whose frames are all masked."""
    if mask is None:
        return y[:, -1]
    there = mask != 0
    places = torch.arange(y.shape[1], device=y.device)
    last = torch.where(there, places, -1).amax(1)
    chosen = y[torch.arange(len(y), device=y.device), last.clamp(min=0)]
    return chosen * (last >= 0).view(-1, *[1] * (chosen.dim() - 1))
