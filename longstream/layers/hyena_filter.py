"""The implicit filter of Hyena: long convolution filters that a small network makes from the time step."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream.layers._options import check_flags, check_integers, check_one_of
from longstream.ops._check import no_autocast, wide

# nn.Linear under the name that quantization passes over: int8 would make neighboring time steps one.
_Linear = nn.modules.linear.NonDynamicallyQuantizableLinear


def check_hyena_filter(
    who: str,
    *,
    order: int,
    max_seq_len: int,
    filter_width: int,
    filter_layers: int,
    positional_width: int,
    frequency: float,
    window: bool,
    window_target: float,
    window_fast: float,
    window_slow: float,
    window_shift: float,
    filter_layout: str,
    normalize_filter: bool,
    filter_init_std: float | None,
    filter_lr: float | None,
    filter_weight_decay: float,
    positions_lr: float,
    window_lr: float,
) -> None:
    """Refuse what `HyenaFilter` does not know; `Hyena` asks here too."""
    check_integers(
        who,
        order=(order, 2),
        max_seq_len=(max_seq_len, 1),
        filter_width=(filter_width, 1),
        filter_layers=(filter_layers, 0),
        positional_width=(positional_width, 3),
    )
    if positional_width % 2 == 0:
        raise ValueError(f"{who}: positional_width must be odd, 1 + 2 for each frequency, got {positional_width}")
    check_one_of(who, filter_layout=(filter_layout, ("stage", "channel")))
    check_flags(who, window=window, normalize_filter=normalize_filter)
    _check_numbers(who, "a finite number", lambda value: True, frequency=frequency, window_shift=window_shift)
    _check_numbers(who, "a number > 0", lambda value: value > 0, window_fast=window_fast, window_slow=window_slow)
    _check_numbers(who, "a number between 0 and 1", lambda value: 0 < value < 1, window_target=window_target)
    if filter_init_std is not None:
        _check_numbers(who, "None or a number > 0", lambda value: value > 0, filter_init_std=filter_init_std)
    rates = {"filter_weight_decay": filter_weight_decay, "positions_lr": positions_lr, "window_lr": window_lr}
    rates |= {} if filter_lr is None else {"filter_lr": filter_lr}
    _check_numbers(who, "a number >= 0", lambda value: value >= 0, **rates)
    if window_lr and not window:
        raise ValueError(f"{who}: window_lr must be 0 where window is False, got {window_lr!r}")


def _check_numbers(who: str, expected: str, holds: Callable[[float], bool], **arguments: Any) -> None:
    for name, value in arguments.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not holds(value):
            raise ValueError(f"{who}: {name} must be {expected}, got {value!r}")


class HyenaFilter(nn.Module):
    """The filters h of Hyena's long convolutions (Poli et al. 2023, arXiv:2302.10866), with L = max_seq_len::

        z_n = [t_n, cos(f w_n), -sin(f w_n)]    t_n = n / (L - 1), w_n = 2 pi n / L, f evenly from 1e-4 to bands - 1
        a_0 = sin(freq * (W_0 z_n + b_0));      a_i = sin(freq * (W_i a_{i-1} + b_i)), i = 1 .. filter_layers
        h_n = W_out a * (exp(-t_n |delta|) + window_shift)

    freq is one learned vector that all sines share. h at n does not depend on how many taps are asked for, but it does
    on max_seq_len. Values, as in the authors' code: delta goes evenly from the slowest channel to the fastest, whose
    window falls to window_target after the shares window_slow and window_fast of max_seq_len.

    Flat channels: the rows of ``out_proj.weight``, ``delta`` and ``skip`` are ordered as filter_layout says, "stage"
    (all channels of the first stage come first, as in the authors' stand-alone code and HyenaDNA) or "channel" (all
    stages of the first channel come first, as in their full code, safari).

    Args:
        channels:            C of each stage.
        order:               N >= 2; there are N - 1 stages.
        max_seq_len:         L, the number of taps there are.
        filter_width:        hidden size of the network.
        filter_layers:       hidden layers besides the first.
        positional_width:    width of z, odd: 1 + 2 bands. With 3 there is one band that hardly moves.
        frequency:           initial value of freq. The higher, the rougher the first filters.
        window:              whether there is the factor of exp(-t |delta|) + window_shift.
        window_target, window_fast, window_slow, window_shift: see above.
        filter_layout:       "stage" or "channel".
        normalize_filter:    divide by the sum over all flat channels of |h_n|, at each n (an option of safari).
        filter_init_std:     standard deviation of the network's first weights, whose biases are then 0; None: as torch
                             does linear layers. The authors' language models have 0.02, which leaves the filters of a
                             low frequency next to 0: with 3 positional features, frequency 1 and width 64 they are
                             about a thousand times smaller than by torch's.
        skip:                whether there is the (N - 1) C vector of skip weights; this module only holds it.
        filter_lr:           learning rate of the network, for `optimizer_hints`; None for the model's.
        filter_weight_decay: weight decay of the network, for `optimizer_hints`.
        positions_lr:        learning rate of z, which is trained if this is > 0.
        window_lr:           learning rate of delta, which is trained if this is > 0.
    Raises:
        ValueError: an unknown choice, or a number out of range.
    Notes: never narrower than float32, whatever ``.to`` or autocast say: in half precision neighboring time steps would
        be one. A model's own initialization leaves them alone.
    """

    keeps_own_init = True  # a model's initialization must leave the linear layers alone
    positions: Tensor  # z, (max_seq_len, positional_width)
    time: Tensor  # t, (max_seq_len,)
    delta: Tensor | None  # ((N - 1) C,)

    def __init__(
        self,
        channels: int,
        *,
        order: int = 2,
        max_seq_len: int = 1024,
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
        skip: bool = True,
        filter_lr: float | None = None,
        filter_weight_decay: float = 0.0,
        positions_lr: float = 1e-5,
        window_lr: float = 0.0,
    ):
        super().__init__()
        check_hyena_filter(
            "HyenaFilter",
            order=order,
            max_seq_len=max_seq_len,
            filter_width=filter_width,
            filter_layers=filter_layers,
            positional_width=positional_width,
            frequency=frequency,
            window=window,
            window_target=window_target,
            window_fast=window_fast,
            window_slow=window_slow,
            window_shift=window_shift,
            filter_layout=filter_layout,
            normalize_filter=normalize_filter,
            filter_init_std=filter_init_std,
            filter_lr=filter_lr,
            filter_weight_decay=filter_weight_decay,
            positions_lr=positions_lr,
            window_lr=window_lr,
        )
        self.channels, self.stages, self.max_seq_len = channels, order - 1, max_seq_len
        self.initial_frequency, self.filter_layout, self.normalize_filter = frequency, filter_layout, normalize_filter
        self.window_target, self.window_fast, self.window_slow = window_target, window_fast, window_slow
        self.window_shift, self.filter_init_std = window_shift, filter_init_std
        self.filter_lr, self.filter_weight_decay = filter_lr, filter_weight_decay
        self.positions_lr, self.window_lr = positions_lr, window_lr
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        flat = self.stages * channels
        self._hold("positions", torch.empty(max_seq_len, positional_width, dtype=dtype), trained=positions_lr > 0)
        self._hold("time", torch.empty(max_seq_len, dtype=dtype), trained=False)
        self._hold("delta", torch.empty(flat, dtype=dtype) if window else None, trained=window_lr > 0)
        self.frequency = nn.Parameter(torch.empty(filter_width, dtype=dtype))
        widths = (positional_width, *[filter_width] * (filter_layers + 1))
        self.hidden = nn.ModuleList(_Linear(n, m, dtype=dtype) for n, m in pairwise(widths))
        self.out_proj = _Linear(filter_width, flat, bias=False, dtype=dtype)
        self.skip = nn.Parameter(torch.empty(flat, dtype=dtype)) if skip else None
        self.reset_parameters()

    def _hold(self, name: str, tensor: Tensor | None, *, trained: bool) -> None:
        if trained and tensor is not None:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HyenaFilter":
        """What `.to`, `.half` and their like go through."""

        def at_least_float32(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            narrowed = out.dtype.is_floating_point and out.dtype.itemsize < 4 <= tensor.dtype.itemsize
            return tensor.to(out.device, torch.float32) if narrowed else out

        return super()._apply(at_least_float32, recurse)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Make everything anew: z, time and delta from their formulas, the rest at random."""
        L, device = self.max_seq_len, self.frequency.device
        bands = (self.positions.shape[1] - 1) // 2
        time = torch.linspace(0, 1, L, dtype=torch.float64, device=device)
        angle = torch.arange(L, dtype=torch.float64, device=device) * (2 * math.pi / L)
        angle = angle[:, None] * torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64, device=device)
        self.positions.copy_(torch.cat([time[:, None], angle.cos(), -angle.sin()], dim=1))
        self.time.copy_(time)
        if self.delta is not None:
            first, last = (math.log(self.window_target) / share for share in (self.window_slow, self.window_fast))
            self.delta.copy_(torch.linspace(first, last, len(self.delta), dtype=torch.float64, device=device))
        self.frequency.fill_(self.initial_frequency)
        for linear in (*self.hidden, self.out_proj):
            linear.reset_parameters()  # type: ignore[operator]
            if self.filter_init_std is not None:
                linear.weight.normal_(std=self.filter_init_std)  # type: ignore[operator, union-attr]
                if linear.bias is not None:
                    linear.bias.zero_()  # type: ignore[operator, union-attr]
        if self.skip is not None:
            self.skip.normal_()

    def optimizer_hints(self) -> dict[str, dict[str, float]]:
        """Learning rates (absolute, at the peak) and weight decays of the parameters that want their own."""
        network: dict[str, float] = {"weight_decay": self.filter_weight_decay}
        if self.filter_lr is not None:
            network["lr"] = self.filter_lr
        rates = {"positions": self.positions_lr, "delta": self.window_lr}
        hints = {}
        for name, _ in self.named_parameters():
            if name in rates:
                hints[name] = {"lr": rates[name], "weight_decay": 0.0}
            elif name != "skip":
                hints[name] = dict(network)
        return hints

    def forward(self, T: int) -> Tensor:
        """The first T taps of every filter, (N - 1, C, T), lag 0 first.

        Raises:
            ValueError: T is not from 0 to max_seq_len.
        """
        return self.taps(0, T)

    def taps(self, start: int, stop: int) -> Tensor:
        """The taps of the lags from ``start`` up to ``stop``, (N - 1, C, stop - start)."""
        if not 0 <= start <= stop <= self.max_seq_len:
            raise ValueError(f"HyenaFilter: lags must be from 0 to max_seq_len={self.max_seq_len}, got {start}, {stop}")
        dtype = wide(self.frequency)
        with no_autocast(self.frequency.device):
            h = self.positions[start:stop].to(dtype)
            for linear in self.hidden:
                h = torch.sin(self.frequency.to(dtype) * _through(linear, h))  # (T, filter_width)
            h = _through(self.out_proj, h)  # (T, (N - 1) C)
            if self.delta is not None:
                window = torch.exp(-self.time[start:stop, None].to(dtype) * self.delta.to(dtype).abs())
                h = h * (window + self.window_shift)
            if self.normalize_filter:
                h = h / h.abs().sum(dim=1, keepdim=True)
        return self.by_stage(h.t())

    def by_stage(self, flat: Tensor) -> Tensor:
        """((N - 1) C, ...) in the flat order -> (N - 1, C, ...)."""
        if self.filter_layout == "stage":
            return flat.unflatten(0, (self.stages, self.channels))
        return flat.unflatten(0, (self.channels, self.stages)).transpose(0, 1)

    @property
    def is_plain(self) -> bool:
        """Whether its tensors alone decide the taps. Adapters around its layers can be switched without a change."""
        return all(type(linear) in (nn.Linear, _Linear) for linear in (*self.hidden, self.out_proj))


def _through(linear: nn.Module, h: Tensor) -> Tensor:
    """The layer on h, whose dtype is not narrowed to that of the weights."""
    if isinstance(linear, nn.Linear) and linear.weight.dtype != h.dtype:  # sharded training may hold narrow ones
        return F.linear(h, linear.weight.to(h.dtype), None if linear.bias is None else linear.bias.to(h.dtype))
    return linear(h)
