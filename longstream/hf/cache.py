"""What sits under ``past_key_values``: a shell around the model's state."""

from typing import Any, NoReturn

from torch import Tensor
from transformers import Cache

from longstream.layers.state import allow_weights_only
from longstream.models import State


@allow_weights_only
class RecurrentCache(Cache):
    """The state after the tokens so far, and how many columns of input those were.

    transformers expects a cache that the model changes in place; longstream's states are never changed, so each call
    puts a new one here. It cannot be cropped: to return to a point, keep ``cache.state`` or a ``copy.deepcopy`` of the
    cache. It is a `transformers.Cache` without layers of keys and values.

    It can be pickled, also to another process, and saved by `torch.save`; `torch.load` reads it with weights_only where
    longstream.hf has been imported.

    Args:
        state:      a state of the same model to start from; None is before the first token.
        seq_length: columns of ``input_ids`` behind it, pads included; None is the most tokens that a row has seen.
    """

    def __init__(self, state: State | None = None, seq_length: int | None = None):
        super().__init__(layers=[])
        if state is not None and not isinstance(state, State):
            raise TypeError(
                f"RecurrentCache: state must be a longstream.models.State or None, got {type(state).__name__}"
            )
        self.state = state
        if seq_length is None:
            seq_length = 0 if state is None or not len(state.position) else int(state.position.max())
        self.seq_length = seq_length

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
        return self.state is not None

    @property
    def batch_size(self) -> int:
        """Rows of the state; -1 before the first call."""
        return -1 if self.state is None else len(self.state.position)

    @property
    def is_compileable(self) -> bool:
        """False: transformers compiles for caches that it allocates itself."""
        return False

    @property
    def is_croppable(self) -> bool:
        """False: a recurrent state cannot be taken back by some tokens."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether a token has been seen."""
        return self.state is not None

    def __len__(self) -> int:
        return 0 if self.state is None else len(self.state.layers)

    def __repr__(self) -> str:
        return f"RecurrentCache(batch_size={self.batch_size}, seq_length={self.seq_length})"

    def __reduce__(self) -> tuple[Any, ...]:
        """By what it is made of, not by what transformers keeps in it; a graph cannot be written down."""
        return type(self), (None if self.state is None else self.state.detach(), self.seq_length)

    def __copy__(self) -> "RecurrentCache":
        return type(self)(self.state, self.seq_length)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecurrentCache":
        state = None if self.state is None else self.state.clone()  # a plain deepcopy refuses what carries a graph
        return type(self)(state, self.seq_length)

    def reset(self) -> None:
        """Back to before the first token."""
        self.state, self.seq_length = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was; rows may repeat."""
        if self.state is not None:
            self.state = self.state.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices``, in that order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row ``repeats`` times, copies side by side."""
        if self.state is not None:
            self.state = self.state.repeat_interleave(repeats)

    def crop(self, tokens_to_remove: int) -> NoReturn:
        raise NotImplementedError(
            "RecurrentCache.crop: a recurrent state cannot be taken back by some tokens; keep cache.state, or a "
            "copy.deepcopy of the cache, at the point to return to"
        )

    def activate_past_recording(self) -> NoReturn:
        raise NotImplementedError(
            "RecurrentCache.activate_past_recording: past states are not recorded; see RecurrentCache.crop"
        )

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            "RecurrentCache.update: there are no keys and values here; the model sets cache.state"
        )
