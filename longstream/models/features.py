"""Models of frames: numbers in, one vector a frame out, with masks, packing, resets and a state."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from longstream.layers._directions import refuse_in_direction
from longstream.layers._padding import repad, run_unpadded
from longstream.models.state import State
from longstream.ops._check import check_cu_seqlens, check_like_weight, check_shapes

OUTPUTS = ("last", "all", "mean")


class FeatureModel(nn.Module):
    """A linear projection of frames, where their size asks for one, and a backbone: ``y = backbone(W x + b)``.

    Args:
        backbone:  maps (B, T, hidden_size) to the same, such as `Backbone`; its states are this model's.
        embed_dim: E, the size of a frame.
        outputs:   what `forward` returns: "last", the vector of the last frame; "mean", the mean over the frames;
                   "all", one for every frame.
        dropout:   on what the backbone gets, in training.
    Raises:
        ValueError: embed_dim < 1, or unknown outputs.
    """

    def __init__(self, backbone: Any, embed_dim: int, *, outputs: str = "last", dropout: float = 0.0):
        super().__init__()
        if not isinstance(embed_dim, int) or isinstance(embed_dim, bool) or embed_dim < 1:
            raise ValueError(f"FeatureModel: embed_dim must be an integer >= 1, got {embed_dim!r}")
        self.outputs = _check_outputs(outputs)
        self.embed_dim, self.hidden_size = embed_dim, backbone.hidden_size
        same = embed_dim == backbone.hidden_size
        self.input_projection = None if same else nn.Linear(embed_dim, backbone.hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.backbone = backbone

    @property
    def output_size(self) -> int:
        """D, the size of an output vector."""
        return self.hidden_size

    @property
    def causal(self) -> bool:
        """Whether it goes from frame to frame."""
        return getattr(self.backbone, "causal", True)

    def init_state(self, batch_size: int = 1, **kwargs: Any) -> State:
        """The state before the first frame, for ``batch_size`` rows."""
        return self.backbone.init_state(batch_size, **kwargs)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        outputs: str | None = None,
    ) -> tuple[Tensor, State]:
        """x (B, T, E) -> y and the state after the last frame.

        Args:
            x:          (B, T, E). Two-dimensional mixers: (B, height, width, E).
            state:      State of B rows, or None for the start. With cu_seqlens, one row for each sequence.
            mask:       (B, T), 1 for frames and 0 for pads, which are as if not there.
            cu_seqlens: (N + 1,) boundaries of N sequences packed in one row (B = 1). Not with mask.
            resets:     (B, T) bool, true where a new episode begins: the state starts anew before that frame, and
                        State.position counts from there. Not with cu_seqlens.
            outputs:    of this call; None is the model's.
        Returns:
            y: "all" (B, T, D), 0 on pads; "last" and "mean" (B, D), or (N, D) with cu_seqlens, over the frames of this
            call, 0 for a row without any.
        Raises:
            ValueError: shapes disagree, there are no frames for "last" or "mean", or arguments exclude each other.
        """
        outputs = self.outputs if outputs is None else _check_outputs(outputs)
        grid = isinstance(x, Tensor) and x.dim() == 4
        check_shapes("FeatureModel", {"E": self.embed_dim}, x=(x, "B Y X E" if grid else "B T E"))
        if grid and not self.causal:
            refuse_in_direction("FeatureModel", "2d", state, mask, cu_seqlens)
            if resets is not None:
                raise ValueError("FeatureModel: resets must be None with (B, height, width, E), got some")
        if outputs != "all" and math.prod(x.shape[1:-1]) == 0:
            raise ValueError(f"FeatureModel: x must have at least one frame for outputs={outputs!r}, got none")
        if resets is not None:
            y, last = self._forward_with_resets(x, state, mask, cu_seqlens, resets)
        elif mask is not None:  # before the projection, so that nothing on a pad meets a gradient
            y, last = run_unpadded("FeatureModel", self._features, x, state, mask, cu_seqlens=cu_seqlens)
        else:
            y, last = self._features(x, state, cu_seqlens=cu_seqlens)
        if outputs == "all":
            return y, last
        return _summarize(y.flatten(1, -2), mask, cu_seqlens, outputs), last

    def _features(
        self, x: Tensor, state: State | None, *, cu_seqlens: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, State]:
        return self.backbone(self.dropout(self._project(x)), state, cu_seqlens=cu_seqlens)

    def _project(self, x: Tensor) -> Tensor:
        if self.input_projection is None:
            return x
        check_like_weight("FeatureModel", "x", x, self.input_projection)
        return self.input_projection(x)

    def step(self, x_t: Tensor, state: State | None = None, *, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """One frame: x_t (B, E) -> y_t (B, D) and the state after it.

        ``reset`` (B,) bool: rows whose new episode begins with this frame.
        """
        sizes = check_shapes("FeatureModel.step", {"E": self.embed_dim}, x_t=(x_t, "B E"))
        if reset is not None:
            _check_resets("FeatureModel.step", "reset", reset, (sizes["B"],))
            if state is not None and bool(reset.any()):
                rows = torch.arange(sizes["B"], device=reset.device).masked_fill(reset, sizes["B"])
                state = State.cat([state, self._fresh(1, state)]).select(rows)
        return self.backbone.step(self.dropout(self._project(x_t)), state)

    def prefill(self, x: Tensor, state: State | None = None, **kwargs: Any) -> State:
        """The state after the frames x (B, T, E), made in parallel; keyword arguments as of `forward`."""
        return self.forward(x, state, outputs="all", **kwargs)[1]

    def _fresh(self, rows: int, like: State) -> State:
        """A first state on the device of another, in its dtype."""
        tensors = like.tensors()
        dtype = next((t.dtype for t in tensors if t.is_floating_point()), None)
        return self.init_state(rows, device=tensors[-1].device, dtype=dtype)

    def _forward_with_resets(
        self, x: Tensor, state: State | None, mask: Tensor | None, cu_seqlens: Any, resets: Tensor
    ) -> tuple[Tensor, State]:
        if cu_seqlens is not None:
            raise ValueError("FeatureModel: resets and cu_seqlens exclude each other; a boundary resets already")
        _check_resets("FeatureModel", "resets", resets, tuple(x.shape[:2]))
        if not len(x):
            return self._features(x, state)
        if mask is not None:  # a reset on a pad counts for the next frame
            return self._unpad_with_resets(x, state, mask, resets)
        B, T = x.shape[:2]
        return self._run_segments(x.flatten(0, 1)[None], state, [T] * B, resets.reshape(-1), (B, T))

    def _unpad_with_resets(self, x: Tensor, state: State | None, mask: Tensor, resets: Tensor) -> tuple[Tensor, State]:
        def run(x: Tensor, state: State | None, *, cu_seqlens: list[int] | None = None) -> tuple[Tensor, State]:
            if cu_seqlens is None:  # no pads
                return self._forward_with_resets(x, state, None, None, resets)
            kept = []
            for row in range(len(mask)):
                places = (mask[row] != 0).nonzero()[:, 0].tolist()
                kept += [bool(resets[row, a + 1 : b + 1].any()) for a, b in pairwise([-1, *places])]
            lengths = [b - a for a, b in pairwise(cu_seqlens)]
            at = torch.tensor(kept, dtype=torch.bool, device=x.device)
            return self._run_segments(x, state, lengths, at, x.shape[:2])

        return run_unpadded("FeatureModel", run, x, state, mask)

    def _run_segments(
        self, x: Tensor, state: State | None, lengths: list[int], resets: Tensor, shape: Sequence[int]
    ) -> tuple[Tensor, State]:
        """x (1, N, E) of rows of ``lengths`` frames one after another, cut at ``resets`` (N,)."""
        is_reset = resets.tolist()
        bounds, origins, lasts, start = [0], [], [], 0  # origins: the row of the state a segment starts from, or fresh
        fresh = len(lengths)
        for row, length in enumerate(lengths):
            cuts = [t for t in range(start, start + length) if is_reset[t] and t > start]
            starts_anew = length > 0 and is_reset[start]
            origins += [fresh if starts_anew else row, *[fresh] * len(cuts)]
            bounds += [*cuts, start + length]
            lasts.append(len(origins) - 1)
            start += length
        if state is not None:
            state = State.cat([state, self._fresh(1, state)]).select(origins)
        y, last = self._features(x, state, cu_seqlens=bounds)
        return y.reshape(*shape, y.shape[-1]), last.select(lasts)


def _check_outputs(outputs: str) -> str:
    if outputs not in OUTPUTS:
        raise ValueError(f"FeatureModel: outputs must be one of {OUTPUTS}, got {outputs!r}")
    return outputs


def _check_resets(who: str, name: str, resets: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(resets, Tensor) or resets.dtype != torch.bool or tuple(resets.shape) != shape:
        got = f"{resets.dtype} {tuple(resets.shape)}" if isinstance(resets, Tensor) else type(resets).__name__
        raise ValueError(f"{who}: {name} must be a bool tensor of shape {shape}, got {got}")


def _summarize(y: Tensor, mask: Tensor | None, cu_seqlens: Any, outputs: str) -> Tensor:
    """The last vector of each sequence, or their mean; 0 for a sequence without frames."""
    if cu_seqlens is not None:  # as padded rows
        bounds = check_cu_seqlens("FeatureModel", cu_seqlens, *y.shape[:2]) or []
        lengths = torch.tensor(bounds, device=y.device).diff()
        mask = torch.arange(max(int(lengths.max()), 1), device=y.device) < lengths[:, None]
        y = repad(y, mask)
    if mask is None:
        return y[:, -1] if outputs == "last" else y.mean(1)
    count = (mask != 0).sum(1, keepdim=True)
    if outputs == "mean":
        return y.sum(1) / count.clamp(min=1)  # y is 0 on pads
    places = torch.arange(y.shape[1], device=y.device)
    last = torch.where(mask != 0, places, -1).amax(1).clamp(min=0)
    return y[torch.arange(len(y), device=y.device), last]
