"""Causal attention within a sliding window, for hybrids: the state is the keys and values of the window."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream.layers._options import check_flags, check_integers, check_state
from longstream.layers._padding import run_unpadded
from longstream.layers.state import register_state
from longstream.ops import LowerBound
from longstream.ops._check import check_cu_seqlens, check_like_weight, check_shapes, weight_of
from longstream.ops._walk import is_symbolic

BLOCK = 64  # queries worked on together, at least; below that, many small products take longer than the extra scores


def check_attention(
    who: str,
    *,
    num_heads: int,
    window_size: int,
    num_kv_heads: int | None,
    rope_theta: float,
    qkv_bias: bool,
    bias: bool,
) -> None:
    """Refuse what `SlidingWindowAttention` does not know; its configuration asks here too."""
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    check_integers(who, num_heads=(num_heads, 1), window_size=(window_size, 1), num_kv_heads=(num_kv_heads, 1))
    if num_heads % num_kv_heads:
        raise ValueError(f"{who}: num_kv_heads must divide num_heads {num_heads}, got {num_kv_heads}")
    is_number = isinstance(rope_theta, int | float) and not isinstance(rope_theta, bool)
    if not is_number or not 0 < rope_theta < math.inf:
        raise ValueError(f"{who}: rope_theta must be a number > 0, got {rope_theta!r}")
    check_flags(who, qkv_bias=qkv_bias, bias=bias)


@register_state
class AttentionState(NamedTuple):
    """What attention carries from token to token: the window before the next one, float32 or wider."""

    k: Tensor  # (B, window_size - 1, num_kv_heads, head_dim), newest last, not rotated; zeros before the first token
    v: Tensor  # same
    length: Tensor  # (B,) int64, how many of these are tokens: all seen so far, window_size - 1 at most


class SlidingWindowAttention(nn.Module):
    """Causal softmax attention in which a token sees itself and the window_size - 1 tokens before it, per head::

        q_t, k_t, v_t = W_q x_t, W_k x_t, W_v x_t
        o_t = sum_s softmax_s(<R_t q_t, R_s k_s> / sqrt(head_dim)) v_s      t - window_size < s <= t
        y_t = W_out concat over heads of o_t

    R_t turns the pair (i, i + head_dim / 2) by the angle t rope_theta^(-2 i / head_dim): the rotary embedding of Su et
    al. 2021, arXiv:2104.09864. Only t - s matters, so keys are kept unrotated and angles count from the window's start:
    there is no longest sequence. The same as the attention layers of hybrids in flash-linear-attention.

    Args:
        hidden_size:  D.
        num_heads:    H of size head_dim = D / H, an even number.
        window_size:  tokens that a token sees, itself included.
        num_kv_heads: heads of keys and values, each for num_heads / num_kv_heads neighboring heads of queries
                      (grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245); None for num_heads.
        rope_theta:   base of the angles.
        qkv_bias:     whether the projections of q, k and v have biases.
        bias:         whether that of the output has one.
    Raises:
        ValueError: num_heads does not divide hidden_size into even heads, or a choice out of range.
    Notes: O(T window_size) time and memory. The products run in the dtype of the projections.
    """

    gate_size = None  # no forget gate, so no lower bound

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        window_size: int,
        num_kv_heads: int | None = None,
        rope_theta: float = 10000.0,
        qkv_bias: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        check_attention(
            "SlidingWindowAttention",
            num_heads=num_heads,
            window_size=window_size,
            num_kv_heads=num_kv_heads,
            rope_theta=rope_theta,
            qkv_bias=qkv_bias,
            bias=bias,
        )
        if hidden_size % (2 * num_heads):
            raise ValueError(
                f"SlidingWindowAttention: num_heads must divide hidden_size {hidden_size} into heads of even size,"
                f" got {num_heads}"
            )
        self.hidden_size, self.num_heads, self.head_dim = hidden_size, num_heads, hidden_size // num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.window_size, self.rope_theta = window_size, rope_theta
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=qkv_bias)
        self.k_proj = nn.Linear(hidden_size, self.num_kv_heads * self.head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(hidden_size, self.num_kv_heads * self.head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=bias)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionState:
        """The state before the first token: zeros, by default on the layer's device, in its dtype or wider."""
        weight = weight_of(self.q_proj)
        device = weight.device if device is None else device
        dtype = torch.float64 if (dtype or weight.dtype) == torch.float64 else torch.float32
        k = torch.zeros(batch_size, self.window_size - 1, self.num_kv_heads, self.head_dim, device=device, dtype=dtype)
        return AttentionState(k, torch.zeros_like(k), torch.zeros(batch_size, device=device, dtype=torch.int64))

    def forward(
        self,
        x: Tensor,
        state: AttentionState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        lower_bound: LowerBound | Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """x (B, T, D) -> y (B, T, D) and the state after the last token.

        Args:
            x:           (B, T, D), any T >= 0.
            state:       AttentionState of B rows, or None for the start. With cu_seqlens, one row for each sequence.
            mask:        (B, T), 1 for tokens and 0 for pads, which are as if not there; y is 0 on them.
            cu_seqlens:  (N + 1,) boundaries of N sequences packed in one row (B = 1). Not with mask.
            lower_bound: None; there is no gate.
        Raises:
            ValueError: shapes disagree, mask and cu_seqlens are both given, or a lower_bound is.
        """
        check_shapes("SlidingWindowAttention", {"D": self.hidden_size}, x=(x, "B T D"))
        check_like_weight("SlidingWindowAttention", "x", x, self.q_proj)
        if lower_bound is not None:
            raise ValueError("SlidingWindowAttention: lower_bound must be None, for there is no forget gate")
        if mask is not None:
            return run_unpadded("SlidingWindowAttention", self.forward, x, state, mask, cu_seqlens=cu_seqlens)
        bounds = check_cu_seqlens("SlidingWindowAttention", cu_seqlens, *x.shape[:2])
        rows = x.shape[0] if bounds is None else len(bounds) - 1
        if state is not None:
            self._check_state(state, rows)
        q = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        if state is None and bounds is not None:
            o, state = self._one_stream(q, k, v, bounds)
        else:
            o, state = self._rows(q, k, v, state, bounds)
        return self.out_proj(o.flatten(-2)), state

    def step(
        self, x_t: Tensor, state: AttentionState | None, *, lower_bound: LowerBound | Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """One token: x_t (B, D) -> y_t (B, D) and the state after it."""
        check_shapes("SlidingWindowAttention.step", {"D": self.hidden_size}, x_t=(x_t, "B D"))
        y, state = self.forward(x_t[:, None], state, lower_bound=lower_bound)
        return y[:, 0], state

    def _one_stream(self, q: Tensor, k: Tensor, v: Tensor, bounds: list[int]) -> tuple[Tensor, AttentionState]:
        """Packed sequences from their start: one row, in which a token sees back to its sequence's start at most."""
        starts, ends = (torch.tensor(side, device=q.device) for side in (bounds[:-1], bounds[1:]))
        first = starts.repeat_interleave(ends - starts, output_size=q.shape[1])
        o = self._attend(q, k, v, first[None], bounds[:-1])
        places = ends[:, None] - torch.arange(self.window_size - 1, 0, -1, device=q.device)  # (N, window_size - 1)
        places = torch.where(places >= starts[:, None], places, -1)
        k, v = (_pick(tensor, places) for tensor in (k, v))
        return o, AttentionState(_wide(k), _wide(v), (ends - starts).clamp(max=self.window_size - 1))

    def _rows(
        self, q: Tensor, k: Tensor, v: Tensor, state: AttentionState | None, bounds: list[int] | None
    ) -> tuple[Tensor, AttentionState]:
        """One row for each sequence, after the window it comes with; packed ones are padded on the right."""
        past = self.window_size - 1
        size, tokens = torch.full(q.shape[:1], q.shape[1], device=q.device), None
        if bounds is not None:
            size, T = torch.tensor(bounds, device=q.device).diff(), max(b - a for a, b in pairwise(bounds))
            tokens = torch.arange(T, device=q.device) < size[:, None]
            places = torch.tensor(bounds[:-1], device=q.device)[:, None] + torch.arange(T, device=q.device)
            q, k, v = (_pick(tensor, torch.where(tokens, places, -1)) for tensor in (q, k, v))
        first, length = torch.zeros_like(size), torch.zeros_like(size)
        keys, values = _wide(k), _wide(v)
        any_length = is_symbolic(q.shape[1])
        if state is None and any_length:  # a graph for any length has one way to make the window after it
            state = self.init_state(q.shape[0], device=q.device, dtype=q.dtype)
        if state is not None:
            first, length = past - state.length, state.length
            keys, values = torch.cat([state.k, keys], 1), torch.cat([state.v, values], 1)
        o = self._attend(q, keys.to(q.dtype), values.to(q.dtype), first[:, None].expand(-1, q.shape[1]), [0])
        if tokens is not None:
            o, window = o[tokens][None], size[:, None] + torch.arange(past, device=q.device)
            keys, values = (tensor.take_along_dim(window[..., None, None], 1) for tensor in (keys, values))
        else:
            if state is None and keys.shape[1] < past:
                keys, values = (F.pad(t, (0, 0, 0, 0, past - t.shape[1], 0)) for t in (keys, values))
            keys, values = (tensor[:, tensor.shape[1] - past :] for tensor in (keys, values))
            if any_length or q.shape[1] > past:  # do not hold on to the whole sequence
                keys, values = keys.clone(), values.clone()
        return o, AttentionState(keys, values, (length + size).clamp(max=past))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, first: Tensor, starts: list[int]) -> Tensor:
        """Attention of q (R, T, H, head_dim) to the last T and earlier keys, (R, past + T, num_kv_heads, head_dim).

        first (R, T): the first key that a query may see. starts: where it is not that of the query before, in any row.
        """
        (R, T), W = q.shape[:2], self.window_size
        past = k.shape[1] - T
        C = max(W, BLOCK)
        any_length = is_symbolic(T)
        if any_length or T <= C:
            there = torch.arange(past + T, device=q.device)
            here = there[past:, None]
            seen = there >= first[..., None]
            if any_length or T > 1:
                seen = seen & (there <= here) & (there > here - W)
            return self._product(q, k, v, seen)
        # Block b has the queries from b C to b C + C - 1, and as keys these and the W - 1 before them.
        blocks = -(-T // C)
        before, after = W - 1 - past, blocks * C - T
        q = F.pad(q, (0, 0, 0, 0, 0, after)).reshape(R * blocks, C, *q.shape[2:])
        k, v = (F.pad(tensor, (0, 0, 0, 0, before, after)).unfold(1, C + W - 1, C) for tensor in (k, v))
        k, v = (tensor.flatten(0, 1).movedim(-1, 1) for tensor in (k, v))  # (R * blocks, C + W - 1, ...)
        there = torch.arange(C + W - 1, device=q.device)
        here = there[W - 1 :, None]
        seen = (there <= here) & (there > here - W)
        # All blocks have this mask but those that reach back over a start; the first key is one.
        reached = {b for start in starts for b in range(start // C, min(blocks, (start + W - 2) // C + 1))}
        order = sorted(range(R * blocks), key=lambda n: n % blocks not in reached)
        own, rest = torch.tensor(order, device=q.device).tensor_split([R * len(reached)])
        first = F.pad(first + before, (0, after)).view(R * blocks, C, 1)[own] - (own % blocks * C).view(-1, 1, 1)
        o = self._product(q[own], k[own], v[own], seen & (there >= first))
        if len(rest):
            o = torch.cat([o, self._product(q[rest], k[rest], v[rest], seen)])[torch.cat([own, rest]).argsort()]
        return o.view(R, blocks * C, *q.shape[2:])[:, :T]

    def _product(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        """Softmax attention of q (N, T, H, head_dim), which stand where the last T keys do, to the keys seen."""
        cos, sin = _turns(k.shape[1], self.head_dim, self.rope_theta, q)
        first = k.shape[1] - q.shape[1]
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        q, k = _turn(q, cos[first:], sin[first:]), _turn(k, cos, sin)
        seen = seen[:, None] if seen.dim() == 3 else seen
        gqa = self.num_kv_heads < self.num_heads
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=gqa).transpose(1, 2)

    def _check_state(self, state: AttentionState, rows: int) -> None:
        kept = (rows, self.window_size - 1, self.num_kv_heads, self.head_dim)
        check_state("SlidingWindowAttention", state, AttentionState, (kept, kept, (rows,)))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _pick(packed: Tensor, places: Tensor) -> Tensor:
    """Tokens (N, T, ...) at places (N, T) of packed (1, tokens, ...), and zeros where the place is -1."""
    return torch.cat([packed.new_zeros(1, *packed.shape[2:]), packed[0]])[places + 1]


def _turns(size: int, head_dim: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (size, head_dim / 2) of the angles of positions 0 .. size - 1, taken in float64."""
    speeds = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / -head_dim)
    angles = torch.arange(size)[:, None] * speeds
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return angles.cos().to(like.device, dtype), angles.sin().to(like.device, dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., T, head_dim) with the pair (i, i + head_dim / 2) of each position turned by its angle."""
    a, b = _wide(x).chunk(2, -1)
    turned = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(a * sin, b, cos)
    return torch.cat(turned, -1).to(x.dtype)
