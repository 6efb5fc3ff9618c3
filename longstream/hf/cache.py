"""What sits under ``past_key_values``: a shell around the model's state."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache

from longstream.hf._record import Reading, add_reading, begins_anew, go_back, read_on
from longstream.layers.state import allow_weights_only
from longstream.models import State
from longstream.stream.engine import NativeEngine
from longstream.stream.kept import KeptStep


@allow_weights_only
class RecurrentCache(Cache):
    """The state after the tokens so far, and how many columns of input those were.

    transformers expects a cache that the model changes in place; longstream's states are never changed, so each call
    puts a new one here. It is a `transformers.Cache` without layers of keys and values.

    It goes back by `crop` over what was read since `activate_past_recording`, or since the crop before: it keeps the
    state from then and the inputs, and those that still hold are read again with the next ones. That is how
    transformers drops the candidates of an assistant. To return to any other point, keep ``cache.state``, or a
    ``copy.deepcopy`` of the cache.

    Single tokens may be taken in by the native step of `longstream.stream`, in rows of memory of its own; ``state``
    fetches the state from there.

    It can be pickled, also to another process, and saved by `torch.save`; `torch.load` reads it with weights_only where
    longstream.hf has been imported. What it would need to go back stays behind then.

    Args:
        state:      a state of the same model to start from; None is before the first token.
        seq_length: columns of ``input_ids`` behind it, pads included; None is the most tokens that a row has seen.
    """

    def __init__(self, state: State | None = None, seq_length: int | None = None):
        super().__init__(layers=[])
        self._engine: NativeEngine | None = None
        self.kept_step: KeptStep | None = None  # that single tokens were last taken in by
        if state is not None and not isinstance(state, State):
            raise TypeError(
                f"RecurrentCache: state must be a longstream.models.State or None, got {type(state).__name__}"
            )
        self.state = state
        if seq_length is None:
            seq_length = 0 if state is None or not len(state.position) else int(state.position.max())
        self.seq_length = seq_length

    @property
    def state(self) -> State | None:
        """The state after the tokens so far; None before the first. To set it ends what `crop` can go back over."""
        if self._again is not None:  # inputs that still hold, behind a crop
            with torch.set_grad_enabled(self._again.x.requires_grad):
                assert self._model is not None
                after = self._model(self._again.x, self._again.before, mask=self._again.mask)[1]
            self._state, self._again = after, None
        elif self._is_ahead:
            assert self._engine is not None
            self._state, self._is_ahead = self._engine.get(), False
        return self._state

    @state.setter
    def state(self, state: State | None) -> None:
        self._stand_at(state)
        recording = getattr(self, "_record", None) is not None
        self._record: list[Reading] | None = [] if recording else None
        self._model: Callable[..., tuple[Tensor, State]] | None = None

    def _stand_at(self, state: State | None, again: Reading | None = None) -> None:
        self._state, self._again = state, again
        self._is_ahead = False  # whether the rows of the engine are, and the state is yet to be fetched
        self.is_in_step = False  # whether the rows of the engine have the state

    def step(self, kept: KeptStep, ids: Tensor, embed: Callable[[], Tensor]) -> Tensor | None:
        """One token of every row, ids (B,), by the native step -> logits (B, n_out).

        None where it cannot: a state or token that it refuses, logits that are not finite. Then nothing has changed.

        Args:
            kept:  with a compiled step.
            embed: makes the model's inputs (B, 1, D) of these tokens, where they are put on record.
        """
        compiled, engine = kept.compiled, self._engine
        assert compiled is not None
        if engine is None or engine.compiled is not compiled or engine.batch_size != len(ids):
            state = self.state
            self._engine = engine = NativeEngine(compiled, len(ids), threads=kept.threads)
            self._stand_at(state)
        logits = torch.empty(len(ids), compiled.n_out)
        before = self.state if self._record is not None and begins_anew(self._record) else None
        try:
            if not self.is_in_step:
                engine.set(self.state or compiled.model.init_state(len(ids)))  # type: ignore[operator]
                self.is_in_step = True
            if engine.step(ids, logits):
                return None
        except (TypeError, ValueError):
            return None
        self.kept_step = kept
        self._state, self._again, self._is_ahead = None, None, True
        if self._record is not None:
            add_reading(self._record, Reading(before, embed(), None))
            self._model = kept.model.backbone
        self.seq_length += 1
        return logits

    def read(
        self,
        model: Callable[..., tuple[Tensor, State]],
        x: Tensor,
        mask: Tensor | None,
        hidden_states: list[Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """Run ``model``, a Backbone, over new columns x (B, T, D), and stand behind them; returns its y of them."""
        if options.get("cu_seqlens") is not None:  # a column is not a token of each row there
            y, self.state = model(x, self.state, mask=mask, hidden_states=hidden_states, **options)
            return y
        record = None if self._record is None else list(self._record)
        state = self._state if self._again is not None else self.state
        y, after = read_on(model, state, self._again, x, mask, record, hidden_states, **options)
        self._stand_at(after)
        self._record = record
        self._model = None if record is None else model
        return y

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen so far, pads included: what transformers cuts from ``input_ids`` and from the mask."""
        return self.seq_length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: the cache sets no limit; a model with Hyena does, in its configuration."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the mask for ``query_length`` more tokens."""
        return self.seq_length + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether a token has been seen."""
        return self._state is not None or self._again is not None or self._is_ahead

    @property
    def batch_size(self) -> int:
        """Rows of the state; -1 before the first call."""
        if self._again is not None:
            return self._again.x.shape[0]
        if self._is_ahead and self._engine is not None:
            return self._engine.batch_size
        return -1 if self._state is None else len(self._state.position)

    @property
    def is_compileable(self) -> bool:
        """False: transformers compiles for caches that it allocates itself."""
        return False

    @property
    def is_croppable(self) -> bool:
        """True, over what is read after `activate_past_recording`."""
        return True

    @property
    def is_initialized(self) -> bool:
        """Whether a token has been seen."""
        return self.has_previous_state()

    def __len__(self) -> int:
        if self._is_ahead and self._engine is not None:
            return len(self._engine.compiled.layers)
        return 0 if self.state is None else len(self.state.layers)

    def __repr__(self) -> str:
        return f"RecurrentCache(batch_size={self.batch_size}, seq_length={self.seq_length})"

    def __reduce__(self) -> tuple[Any, ...]:
        """By what it is made of, not by what transformers keeps in it; a graph cannot be written down."""
        return type(self), (None if self.state is None else self.state.detach(), self.seq_length)

    def __copy__(self) -> "RecurrentCache":
        return self._copy(lambda state: state, lambda tensor: tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecurrentCache":
        return self._copy(State.clone, Tensor.clone)  # a plain deepcopy refuses what carries a graph

    def _copy(self, states: Callable[[State], State], tensors: Callable[[Tensor], Tensor]) -> "RecurrentCache":
        twin = type(self)(None, self.seq_length)
        self._fetch()
        twin._state, twin._again, twin._model = self._state, self._again, self._model
        twin._record = None if self._record is None else list(self._record)
        twin._map(states, tensors)
        return twin

    def _fetch(self) -> None:
        """Have the state here, if the engine is ahead of it; what is to be read again stays so."""
        if self._again is None:
            _ = self.state

    def _map(self, states: Callable[[State], State], tensors: Callable[[Tensor], Tensor]) -> None:
        self._fetch()
        again = None if self._again is None else self._again.map(states, tensors)
        self._stand_at(None if self._state is None else states(self._state), again)
        self._record = None if self._record is None else [each.map(states, tensors) for each in self._record]

    def reset(self) -> None:
        """Back to before the first token."""
        self.state, self.seq_length = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was; rows may repeat."""
        if beam_idx.device.type == "cpu" and beam_idx.tolist() == [*range(self.batch_size)]:
            return
        self._map(lambda state: state.select(beam_idx), lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices``, in that order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row ``repeats`` times, copies side by side."""
        self._map(lambda state: state.repeat_interleave(repeats), lambda x: x.repeat_interleave(repeats, dim=0))

    def activate_past_recording(self) -> None:
        """From now on keep what `crop` needs: a state or two, and the inputs since the last crop, 4096 at most."""
        if self._record is None:
            self._record = []

    def deactivate_past_recording(self) -> None:
        """Keep nothing more to go back over."""
        self._record = None

    def is_recording_past(self, layer_idx: int = 0) -> bool:
        """Whether `activate_past_recording` was called."""
        return self._record is not None

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last columns of every row: ``crop(-n)`` n of them. What is before is then final, also by 0.

        Raises:
            RuntimeError: nothing was recorded.    ValueError: a positive number, or more than are on record.
        """
        n = -tokens_to_remove
        if n < 0:
            raise ValueError(f"RecurrentCache.crop: tokens_to_remove must be <= 0, got {tokens_to_remove}")
        if n and self._record is None:
            raise RuntimeError(
                "RecurrentCache.crop: the state before the last tokens is not there: call activate_past_recording "
                "before they are read; or keep cache.state, or a copy.deepcopy of the cache, at the point to return to"
            )
        if n:
            record = [self._again] if self._again is not None else self._record or []
            known = sum(reading.columns for reading in record)
            if n > known:
                raise ValueError(
                    f"RecurrentCache.crop: tokens_to_remove must be >= -{known}, as many columns as have been read "
                    f"since activate_past_recording or the crop before, got {tokens_to_remove}"
                )
            back = go_back(record, n)
            self._stand_at(back.before, back if back.columns else None)
            self.seq_length -= n
        if self._record is not None:
            self._record = []

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            "RecurrentCache.update: there are no keys and values here; the model sets cache.state"
        )
