"""PyTorch's GRU and LSTM as mixers of a `longstream.models.Block`: same norm, residual and MLP as the other mixers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from longstream.layers._options import check_integers, check_state
from longstream.layers._padding import run_unpadded
from longstream.layers.state import register_state
from longstream.models.config import register_mixer
from longstream.ops import LowerBound
from longstream.ops._check import check_cu_seqlens, check_shapes, no_autocast


@dataclass(frozen=True, kw_only=True)
class GRUConfig:
    """The arguments of `GRU` except hidden_size."""

    expand_ratio: int = 1

    def __post_init__(self) -> None:
        check_integers(type(self).__name__, expand_ratio=(self.expand_ratio, 1))


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(GRUConfig):
    """The arguments of `LSTM` except hidden_size."""


@register_state
class GRUState(NamedTuple):
    """What a GRU carries from token to token, float32 or wider."""

    h: Tensor  # (B, E)


@register_state
class LSTMState(NamedTuple):
    """What an LSTM carries from token to token, float32 or wider."""

    h: Tensor  # (B, E)
    c: Tensor  # (B, E)


class _LSTM(nn.LSTM):
    """torch.nn.LSTM whose forget gates begin open: bias 1 (Jozefowicz et al. 2015, Gers et al. 2000)."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        E = self.hidden_size
        with torch.no_grad():  # the two biases are added; gates stand in the order input, forget, cell, output
            self.get_parameter("bias_ih_l0")[E : 2 * E] = 1.0
            self.get_parameter("bias_hh_l0")[E : 2 * E] = 0.0


class _Recurrent(nn.Module):
    """``y_t = W_out h_t`` where h is the output of a recurrent layer of torch.nn."""

    _kind: type[nn.RNNBase]
    _state: type[Any]

    def __init__(self, hidden_size: int, expand_ratio: int = 1):
        super().__init__()
        check_integers(type(self).__name__, hidden_size=(hidden_size, 1), expand_ratio=(expand_ratio, 1))
        self.hidden_size, self.state_size = hidden_size, expand_ratio * hidden_size
        self.rnn = self._kind(hidden_size, self.state_size, batch_first=True)  # type: ignore[call-arg]
        self.rnn.keeps_own_init = True  # type: ignore[assignment]
        self.out_proj = nn.Linear(self.state_size, hidden_size, bias=False)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """The state before the first token: zeros, by default on the layer's device, in its dtype or wider."""
        weight = self.out_proj.weight
        dtype = torch.float64 if (dtype or weight.dtype) == torch.float64 else torch.float32
        zeros = torch.zeros(
            batch_size, self.state_size, device=weight.device if device is None else device, dtype=dtype
        )
        return self._state(*(zeros.clone() for _ in self._state._fields))

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        lower_bound: LowerBound | Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """x (B, T, D) -> y (B, T, D) and the state after the last token.

        Args:
            x:           (B, T, D), any T >= 0.
            state:       state of B rows, or None for the start. With cu_seqlens, one row for each sequence.
            mask:        (B, T), 1 for tokens and 0 for pads, which are as if not there; y is 0 on them.
            cu_seqlens:  (N + 1,) boundaries of N sequences packed in one row (B = 1). Not with mask.
            lower_bound: None; there is no gate that longstream bounds.
        Notes: the recurrence runs in float32 (float64 if the weights are), under autocast too.
        """
        who = type(self).__name__
        check_shapes(who, {"D": self.hidden_size}, x=(x, "B T D"))
        if lower_bound is not None:
            raise ValueError(f"{who}: lower_bound must be None, got one")
        if mask is not None:
            return run_unpadded(who, self.forward, x, state, mask, cu_seqlens=cu_seqlens)
        bounds = check_cu_seqlens(who, cu_seqlens, *x.shape[:2])
        rows = x.shape[0] if bounds is None else len(bounds) - 1
        state = self.init_state(rows, device=x.device) if state is None else state
        check_state(who, state, self._state, [(rows, self.state_size)] * len(self._state._fields))
        weight = self.rnn.get_parameter("weight_ih_l0")
        with no_autocast(x.device):
            h, last = self._run(x.to(weight.dtype), tuple(s.to(weight.dtype) for s in state), bounds)
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return self.out_proj(h.to(x.dtype)), self._state(*(s.to(wide) for s in last))

    def step(self, x_t: Tensor, state: Any, *, lower_bound: LowerBound | Tensor | None = None) -> tuple[Tensor, Any]:
        """One token: x_t (B, D) -> y_t (B, D) and the state after it."""
        check_shapes(f"{type(self).__name__}.step", {"D": self.hidden_size}, x_t=(x_t, "B D"))
        y, state = self.forward(x_t[:, None], state, lower_bound=lower_bound)
        return y[:, 0], state

    def _run(self, x: Tensor, state: tuple[Tensor, ...], bounds: list[int] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs (B, T, E), or (1, N, E) packed, and the tensors of the last state."""
        lengths = [x.shape[1]] * len(x) if bounds is None else [b - a for a, b in pairwise(bounds)]
        if not sum(lengths):
            return x.new_zeros(*x.shape[:2], self.state_size), state
        if len(set(lengths)) == 1:
            h, last = self._call(x.reshape(len(lengths), lengths[0], -1), state)
            return h.reshape(*x.shape[:2], self.state_size), last
        there = [row for row, length in enumerate(lengths) if length]  # torch packs no empty sequences
        rows, sizes = torch.tensor(there, device=x.device), [lengths[row] for row in there]
        padded = pad_sequence([part for part in x[0].split(lengths) if len(part)], batch_first=True)
        packed = pack_padded_sequence(padded, torch.tensor(sizes), batch_first=True, enforce_sorted=False)
        h, last = self._call(packed, tuple(s[rows] for s in state))
        h, _ = pad_packed_sequence(h, batch_first=True)
        h = torch.cat([row[:size] for row, size in zip(h, sizes, strict=True)])[None]
        return h, tuple(s.index_copy(0, rows, new) for s, new in zip(state, last, strict=True))

    def _call(self, x: Any, state: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...]]:
        """The layer of torch.nn, whose states have a leading dimension of 1, and are a tuple only if there are two."""
        first, *more = (s[None].contiguous() for s in state)
        h, last = self.rnn(x, (first, *more) if more else first)
        return h, tuple(s[0] for s in (last if isinstance(last, tuple) else (last,)))


class GRU(_Recurrent):
    """`torch.nn.GRU` (Cho et al. 2014, arXiv:1406.1078) and a projection into the residual stream.

    Args:
        hidden_size:  D, of input and output.
        expand_ratio: channels E of the recurrence over D.
    """

    _kind, _state = nn.GRU, GRUState


class LSTM(_Recurrent):
    """`torch.nn.LSTM` (Hochreiter & Schmidhuber 1997) and a projection into the residual stream.

    Its forget gates begin with a bias of 1, as Jozefowicz et al. 2015 found that it must; everything else begins as
    PyTorch has it.

    Args:
        hidden_size:  D, of input and output.
        expand_ratio: channels E of the recurrence over D.
    """

    _kind, _state = _LSTM, LSTMState


RECURRENT = {"gru": GRUConfig, "lstm": LSTMConfig}
register_mixer(GRUConfig, GRU)
register_mixer(LSTMConfig, LSTM)
