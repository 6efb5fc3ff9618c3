"""Hyena: long convolutions with implicit filters, gated by projections of the input.

More than 300 lines, a third of which are its arguments.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream.layers._options import check_flags, check_integers, check_one_of
from longstream.layers._padding import run_unpadded
from longstream.layers.hyena_decode import AnySize, BothWays, Modal, Naive, Run, Tiled, check_length
from longstream.layers.hyena_filter import HyenaFilter, check_hyena_filter
from longstream.layers.hyena_state import STATES, check_hyena_state, zero_state
from longstream.layers.hyena_taps import ModalCopy, Snapshot, TapsCache, each_head
from longstream.layers.modal import DistillReport, ModalFilter, distill_filters
from longstream.layers.short_conv import ShortConv
from longstream.layers.state import NoState, refuse_state
from longstream.ops._check import check_cu_seqlens, check_like_weight, check_shapes, weight_of
from longstream.ops._walk import is_symbolic

_ACTIVATIONS = {"none": None, "gelu": F.gelu, "silu": F.silu}


def check_hyena(
    who: str,
    *,
    num_heads: int,
    short_conv_size: int,
    activation: str,
    bias: bool,
    dropout: float,
    causal: bool,
    decode: str,
    **filter_choices: Any,
) -> None:
    """Refuse what `Hyena` does not know; its configuration asks here too. ``filter_choices``: of the filter."""
    check_hyena_filter(who, **filter_choices)
    check_integers(who, num_heads=(num_heads, 1), short_conv_size=(short_conv_size, 1))
    check_one_of(who, activation=(activation, (*_ACTIVATIONS,)), decode=(decode, (*STATES,)))
    check_flags(who, bias=bias, causal=causal)
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"{who}: dropout must be a number >= 0 and < 1, got {dropout!r}")
    if not causal and decode != "tiled":
        raise ValueError(f"{who}: decode must be 'tiled', the default, where causal is False, got {decode!r}")


class Hyena(nn.Module):
    """Hyena mixer (Poli et al. 2023, arXiv:2302.10866) of order N, as the authors compute it::

        [x_0, ..., x_{N-1}, v] = short_conv(W_in u)         N + 1 times D channels
        v = h_i (*) g + skip_i * g,  g = v * x_{N-1-i}      for the stages i = 0 .. N-2
        y = W_out act(v * x_0)

    h_i (*) g is a causal convolution as long as the sequence, per channel; its filters come from `HyenaFilter`. With
    num_heads H > 1 the projected channels are ordered (head, [x_0, ..., v], D / H), and all heads share the filters and
    the skip of D / H channels (the authors' code means to do the same, and fails). With causal False h_i looks both
    ways: a filter over the past and one, ``filter_reverse``, over what follows; the token itself meets both.

    Args:
        hidden_size:     D.
        max_seq_len:     L, the most tokens that can be taken in: the filters' length.
        order:           N >= 2: N - 1 long convolutions, N gates.
        num_heads:       H; it must divide D.
        short_conv_size: W, the taps of the short convolution.
        filter_width, filter_layers, positional_width, frequency, window, window_target, window_fast, window_slow,
        window_shift, filter_layout, normalize_filter, filter_init_std, filter_lr, filter_weight_decay, positions_lr,
        window_lr:
                         of `HyenaFilter`. HyenaDNA has positional_width 5, frequency 10, window_shift 0.05.
        activation:      act: "none", "gelu" or "silu".
        bias:            whether W_in and W_out have biases.
        dropout:         on g, in training.
        causal:          whether it looks back only. If not, there is no state and no step.
        decode:          how it goes on from a state; see `set_decode`.
        backend:         of the ops.
    Raises:
        ValueError: an unknown choice, or num_heads does not divide hidden_size.
    """

    gate_size = None  # no forget gate, so no lower bound

    def __init__(
        self,
        hidden_size: int,
        *,
        max_seq_len: int = 1024,
        order: int = 2,
        num_heads: int = 1,
        short_conv_size: int = 3,
        filter_width: int = 64,
        filter_layers: int = 2,
        positional_width: int = 33,
        frequency: float = 14.0,
        window: bool = True,
        window_target: float = 1e-2,
        window_fast: float = 0.3,
        window_slow: float = 1.5,
        window_shift: float = 0.0,
        filter_layout: str = "stage",
        normalize_filter: bool = False,
        filter_init_std: float | None = None,
        activation: str = "none",
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = True,
        filter_lr: float | None = None,
        filter_weight_decay: float = 0.0,
        positions_lr: float = 1e-5,
        window_lr: float = 0.0,
        decode: str = "tiled",
        backend: str = "auto",
    ):
        super().__init__()
        of_filter: dict[str, Any] = {"order": order, "max_seq_len": max_seq_len, "normalize_filter": normalize_filter}
        of_filter |= {"filter_width": filter_width, "filter_layers": filter_layers, "filter_layout": filter_layout}
        of_filter |= {"positional_width": positional_width, "frequency": frequency, "positions_lr": positions_lr}
        of_filter |= {"filter_lr": filter_lr, "filter_weight_decay": filter_weight_decay, "window_lr": window_lr}
        of_filter |= {"window": window, "window_target": window_target, "window_fast": window_fast}
        of_filter |= {"window_slow": window_slow, "window_shift": window_shift, "filter_init_std": filter_init_std}
        choices: dict[str, Any] = {"num_heads": num_heads, "short_conv_size": short_conv_size, "bias": bias}
        choices |= {"activation": activation, "dropout": dropout, "causal": causal, "decode": decode}
        check_hyena("Hyena", **choices, **of_filter)
        if hidden_size % num_heads:
            raise ValueError(f"Hyena: num_heads must divide hidden_size {hidden_size}, got {num_heads}")
        self.hidden_size, self.max_seq_len, self.order, self.num_heads = hidden_size, max_seq_len, order, num_heads
        self.short_conv_size, self.causal, self.decode, self.backend = short_conv_size, causal, decode, backend
        self.activation = _ACTIVATIONS[activation]
        self.in_proj = nn.Linear(hidden_size, (order + 1) * hidden_size, bias=bias)
        self.short_conv = ShortConv((order + 1) * hidden_size, short_conv_size, bias=True, backend=backend)
        self.filter = HyenaFilter(hidden_size // num_heads, **of_filter)
        self.filter_reverse = None if causal else HyenaFilter(hidden_size // num_heads, skip=False, **of_filter)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self._modal = ModalCopy(None, num_heads)
        self._caches = self._empty_caches()

    def _empty_caches(self) -> dict[str, TapsCache]:
        return {name: TapsCache(self.num_heads) for name in ("filter", "filter_reverse")}

    def __getstate__(self) -> dict[str, Any]:  # copies and pickles make their own
        return {**self.__dict__, "_caches": self._empty_caches()}

    @property
    def longest(self) -> int | None:
        """The most tokens that a row can take in: max_seq_len, or None where modal filters go on past it."""
        return None if self.decode == "modal" and self._modal.extrapolate else self.max_seq_len

    def set_decode(self, mode: str) -> None:
        """How to go on from a state, and so which state there is; one made with another mode is refused.

        "tiled": exact, O(log^2 T) a token; the state is as long as the past.
        "naive": exact, O(T) a token; for tests.
        "modal": with the filters of `distill` or `set_modal` for the true ones, in `forward` too; constant time and
                 memory a token.
        """
        check_one_of("Hyena.set_decode", mode=(mode, (*STATES,)))
        self._needs_causal("set_decode")
        self.decode = mode

    def distill(
        self, order: int | None = None, *, tol: float | None = None, extrapolate: bool = False
    ) -> DistillReport:
        """Fit modal filters to the filters, for decode "modal", and report how close they come. Not in state_dict.

        Args:
            order, tol:  see `longstream.layers.modal.distill_filters`.
            extrapolate: whether to go past max_seq_len, where nothing was fitted.
        Raises:
            ValueError: tol is not met.    RuntimeError: not causal.
        """
        self._needs_causal("distill")
        with torch.no_grad():
            modal, report = distill_filters(self.filter(self.max_seq_len), order, tol=tol)
        self._modal = ModalCopy(modal, self.num_heads, extrapolate, Snapshot(self.filter))
        return report

    def set_modal(self, modal: ModalFilter, *, extrapolate: bool = True) -> None:
        """Give the modal filters for decode "modal", N - 1 stages of D / num_heads channels, as StripedHyena has them.

        extrapolate: whether to go past max_seq_len. ValueError: other shapes, or a pole that grows.
        """
        self._needs_causal("set_modal")
        if not isinstance(modal, ModalFilter):
            raise TypeError(f"Hyena.set_modal: modal must be a ModalFilter, got {type(modal).__name__}")
        sizes = {"N-1": self.order - 1, "D/H": self.hidden_size // self.num_heads, "2": 2}
        poles, residues = (modal.poles, "N-1 D/H M 2"), (modal.residues, "N-1 D/H M 2")
        check_shapes("Hyena.set_modal", sizes, poles=poles, residues=residues, direct=(modal.direct, "N-1 D/H"))
        if (modal.poles.detach().norm(dim=-1) > 1 + 1e-6).any():
            raise ValueError("Hyena.set_modal: modal.poles must have |pole| <= 1, got one that grows")
        self._modal = ModalCopy(modal, self.num_heads, extrapolate)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """The state before the first token: zeros, by default on the layer's device, in its dtype or wider.

        `HyenaState`, `HyenaNaiveState` or `HyenaModalState`, as the present decode has it; `NoState` if not causal.
        """
        if not self.causal:
            return NoState()
        weight = weight_of(self.in_proj)
        dtype = torch.float64 if (dtype or weight.dtype) == torch.float64 else torch.float32
        like = {"device": weight.device if device is None else device, "dtype": dtype}
        return zero_state(self.decode, batch_size, **self._state_sizes(), like=like)

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        lower_bound: None = None,
    ) -> tuple[Tensor, Any]:
        """x (B, T, D) -> y (B, T, D) and the state after the last token, which is `NoState` if not causal.

        Args:
            x:           (B, T, D), any T >= 0.
            state:       of B rows and the present decode, or None for the start. With cu_seqlens, one row for each
                         sequence. Only None if not causal.
            mask:        (B, T), 1 for tokens and 0 for pads, which are as if not there; y is 0 on them.
            cu_seqlens:  (N + 1,) boundaries of N sequences packed in one row (B = 1). Not with mask.
            lower_bound: None; it is other mixers' that have one.
        Raises:
            ValueError: shapes disagree, arguments exclude each other, or more than max_seq_len tokens.
            TypeError: the state is of another decode.
            RuntimeError: decode is "modal" and there are no modal filters, or the true ones changed since.
        """
        check_shapes("Hyena", {"D": self.hidden_size}, x=(x, "B T D"))
        check_like_weight("Hyena", "x", x, self.in_proj)
        if lower_bound is not None:
            raise ValueError("Hyena: lower_bound must be None, for there is no forget gate")
        if not self.causal:
            refuse_state("Hyena", state, "causal=False")
        if mask is not None:
            return run_unpadded("Hyena", self.forward, x, state, mask, cu_seqlens=cu_seqlens)
        bounds = check_cu_seqlens("Hyena", cu_seqlens, *x.shape[:2])
        y, state = self._mix(self.in_proj(x), state, bounds)
        return self.out_proj(y), state

    def step(self, x_t: Tensor, state: Any, *, lower_bound: None = None) -> tuple[Tensor, Any]:
        """One token: x_t (B, D) -> y_t (B, D) and the state after it.

        Raises:
            RuntimeError: not causal, or as `forward`.
        """
        self._needs_causal("step")
        check_shapes("Hyena.step", {"D": self.hidden_size}, x_t=(x_t, "B D"))
        y, state = self.forward(x_t[:, None], state, lower_bound=lower_bound)
        return y[:, 0], state

    def _needs_causal(self, what: str) -> None:
        if not self.causal:
            raise RuntimeError(f"Hyena.{what}: causal is False, which needs a whole sequence at once")

    def _mix(self, projected: Tensor, state: Any, bounds: list[int] | None) -> tuple[Tensor, Any]:
        """All between the projections: (B, T, (N + 1) D) -> (B, T, D) and the state."""
        B, T, _ = projected.shape
        rows = B if bounds is None else len(bounds) - 1
        most = T if bounds is None else max(right - left for left, right in pairwise(bounds))
        before, length = None, torch.zeros(rows, dtype=torch.long, device=projected.device)
        if state is not None:
            check_hyena_state(state, self.decode, rows, **self._state_sizes())
            before, length = state.conv, state.length
        length = length + (T if bounds is None else torch.tensor(bounds, device=projected.device).diff())
        any_size = state is None and bounds is None and is_symbolic(B, T)
        if state is not None and rows:
            # A graph of modes has no other use for the length, and does not stop to look at it.
            most = T if self.decode == "modal" and torch.compiler.is_compiling() else int(length.max())
        elif self.causal and self.decode != "tiled":  # the op of "tiled" begins by itself
            state = self.init_state(rows, device=projected.device, dtype=projected.dtype)
        run = self._run(state, most, bounds, look=any_size or T > 1 or self.training, any_size=any_size)
        c, conv = self.short_conv(projected, before, cu_seqlens=bounds)
        c = c.unflatten(-1, (self.num_heads, self.order + 1, -1))
        first, *gates, v = (part.flatten(-2) for part in c.unbind(-2))
        for stage, gate in enumerate(reversed(gates)):
            v = run.convolve(stage, self.dropout(v * gate))
        y = v * first
        return y if self.activation is None else self.activation(y), run.last(conv, length)

    def _run(self, state: Any, most: int, bounds: list[int] | None, look: bool, any_size: bool) -> Run:
        """The long convolutions of a call after which the longest row has ``most`` tokens."""
        assert self.filter.skip is not None
        skips = each_head(self.filter.by_stage(self.filter.skip), self.num_heads)
        if self.longest is not None:
            check_length(most, self.longest)
        if self.decode == "modal":
            return Modal(self._modal.get(self.filter, look=look), skips, state, bounds)
        if self.causal and any_size:
            return AnySize(each_head(self.filter(self.max_seq_len), self.num_heads), skips)
        taps = self._caches["filter"]
        if self.causal and self.decode == "tiled":
            # A state foretells what its blocks contribute to as many tokens after them as they hold.
            filters = taps.ready(self.filter, min(max(2 * most, 1), self.max_seq_len), look=look)
            return Tiled(filters, skips, state, bounds, self.backend)
        filters = taps.taps(self.filter, max(most, 1), look=look)
        if self.filter_reverse is None:
            return Naive(filters, skips, state, bounds, self.backend)
        filters_reverse = self._caches["filter_reverse"].taps(self.filter_reverse, max(most, 1), look=look)
        return BothWays(filters, filters_reverse, skips, bounds, self.backend)

    def _state_sizes(self) -> dict[str, Any]:
        conv = (self.short_conv_size - 1, (self.order + 1) * self.hidden_size)
        modes = self._modal.order if self.decode == "modal" else 0
        return {"stages": self.order - 1, "D": self.hidden_size, "conv": conv, "modes": modes}
