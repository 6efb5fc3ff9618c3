"""The last states of a model, to return to."""

from collections import deque

from longstream.models.state import State


class StateHistory:
    """A ring of the last states, for going back some frames.

    A model never changes a state that it was given, so one that is kept is a reference: a push costs no copy, and the
    memory is that of the states themselves, of which there are at most ``depth + 1``.

    Args:
        depth: frames to be able to go back, >= 0.
    Raises:
        ValueError: depth is not an integer >= 0.
    """

    def __init__(self, depth: int):
        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 0:
            raise ValueError(f"StateHistory: depth must be an integer >= 0, got {depth!r}")
        self.depth = depth
        self._states: deque[State] = deque(maxlen=depth + 1)

    def __len__(self) -> int:
        """Frames that one can go back now: pushes so far but the first, at most depth."""
        return max(len(self._states) - 1, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the states that are kept."""
        return sum(state.nbytes for state in self._states)

    def push(self, state: State) -> None:
        """Keep the state after a frame; the first one pushed is that before all frames."""
        if not isinstance(state, State):
            raise TypeError(f"StateHistory.push: state must be a State, got {type(state).__name__}")
        self._states.append(state)

    def rollback(self, frames: int) -> State:
        """The state ``frames`` pushes ago, 0 being the last; the later ones are forgotten.

        Raises:
            ValueError: frames is not in [0, len(history)], or nothing was pushed; the history stays.
        """
        if not self._states:
            raise ValueError("StateHistory.rollback: nothing has been pushed yet")
        if not isinstance(frames, int) or isinstance(frames, bool) or not 0 <= frames <= len(self):
            raise ValueError(
                f"StateHistory.rollback: frames must be an integer in [0, {len(self)}], as many as are kept of a depth"
                f" of {self.depth}, got {frames!r}"
            )
        for _ in range(frames):
            self._states.pop()
        return self._states[-1]

    def clear(self) -> None:
        """Forget all, as a state from elsewhere needs."""
        self._states.clear()
