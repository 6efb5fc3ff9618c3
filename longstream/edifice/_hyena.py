"""The modules of Edifice's Hyena: the implicit filter, the block, and the stack."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream.edifice._hyena_state import EdificeHyenaState
from longstream.edifice._options import check_options
from longstream.edifice._parts import LayerNorm, Part, Stack, fingerprint, init_weights
from longstream.layers import ShortConv
from longstream.layers._padding import run_unpadded
from longstream.layers.state import NoState
from longstream.ops import LongConvFilters, long_conv
from longstream.ops._check import check_cu_seqlens, check_like_weight, check_shapes, no_autocast, wide
from longstream.ops._walk import is_symbolic
from longstream.ops.long_conv.fft import convolve_any

TAPS = 3  # of the short convolution


class HyenaFilter(nn.Module):
    """``h(t) = W_3 sin(W_2 sin(W_1 t + b_1) + b_2) + b_3`` at ``t_k = k / max(seq_len - 1, 1)``, k = 0 .. seq_len - 1.

    init "axon" draws kernels from +-sqrt(6 / (inputs + outputs)) and makes biases 0: sines that hardly bend, so h is 0
    at lag 0 and a straight line from there, and the newest frames go unseen. init "modern" gives the first sines
    frequencies from half a wave in the window to half a wave in a frame, evenly spaced in their logarithm, and random
    phases, and scales W_3 so that the squares of h sum to 1 over the lags: on white noise the output is as large as the
    input, and every lag counts.

    Args:
        hidden_size: D.
        filter_size: W, the width of the network.
        seq_len:     L, the number of taps there are.
        init:        "modern" or "axon".
    Notes: computes in float32 or wider: in half precision neighboring frames would be one.
    """

    def __init__(self, hidden_size: int, filter_size: int, seq_len: int, init: str):
        super().__init__()
        self.seq_len = seq_len
        self.dense1 = nn.Linear(1, filter_size)
        self.dense2 = nn.Linear(filter_size, filter_size)
        self.dense3 = nn.Linear(filter_size, hidden_size)
        self._kept: tuple[list[Any], LongConvFilters] | None = None  # what the taps were made from, and the taps
        self.reset_parameters(init)

    @torch.no_grad()
    def reset_parameters(self, init: str) -> None:
        """Both inits; see the class."""
        init_weights(self.children(), init)
        if init == "modern":
            W, L = self.dense2.weight.shape[0], self.seq_len
            share = torch.linspace(0, 1, W, dtype=torch.float64, device=self.dense1.weight.device)
            self.dense1.weight.copy_((math.pi * max(L - 1, 1) ** share)[:, None])
            nn.init.uniform_(self.dense1.bias, -math.pi, math.pi)
            # The inner sines take sums of variance 1/2, whose sine has the variance (1 - exp(-1)) / 2.
            nn.init.normal_(self.dense3.weight, std=(L * W * (1 - math.exp(-1)) / 2) ** -0.5)

    def forward(self) -> Tensor | LongConvFilters:
        """The taps (D, L), lag 0 first. Without gradients they are kept until a parameter changes.

        A change is seen by the tensors' identities, addresses and versions, and, where all these stay, which is so
        after a write through ``.data``, by the contents of the last bias.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._taps()
        parameters = [p for dense in (self.dense1, self.dense2, self.dense3) for p in (dense.weight, dense.bias)]
        if any(p.is_inference() for p in parameters):  # they have no versions
            return self._taps()
        marks = [(id(p), p.data_ptr(), p._version, p.dtype) for p in parameters]
        bias = self.dense3.bias.detach()
        if self._kept is None or self._kept[0][1] != marks or not torch.equal(self._kept[0][2], bias):
            # The parameters are held, so that no other tensor gets their identity.
            self._kept = [parameters, marks, bias.clone()], LongConvFilters(self._taps())
        return self._kept[1]

    def _taps(self) -> Tensor:
        dtype, device = wide(self.dense1.weight), self.dense1.weight.device
        h = torch.arange(self.seq_len, dtype=dtype, device=device)[:, None] / max(self.seq_len - 1, 1)
        with no_autocast(device):
            for i, dense in enumerate((self.dense1, self.dense2, self.dense3)):
                h = F.linear(torch.sin(h) if i else h, dense.weight.to(dtype), dense.bias.to(dtype))
        return h.t()


class HyenaBlock(Part):
    """Edifice's Hyena block, with its norms and residuals; order filters h_1, h_2, ... of their own `HyenaFilter`::

        u = norm(x);  u_t = b + w_0 u_{t-2} + w_1 u_{t-1} + w_2 u_t        per channel
        y, x_1, .., x_order = split(W_p u + b_p)
        y <- x_j * (h_j conv y)                                        for j = 1 .. order, causal
        x <- x + dropout(W_o y + b_o)
        x <- x + dropout(W_d (SiLU(W_g q + b_g) * (W_u q + b_u)) + b_d)    q = norm(x), 4 D wide

    The filters end after seq_len lags, and so does a sequence, where it goes on from a state too. Edifice takes
    sequences of just seq_len frames; shorter ones are treated as the beginnings of such, so a block is causal and gives
    the same for a whole sequence as for its pieces.

    init "axon" and "modern" differ in norms (scaled by U(-sqrt 3, sqrt 3), or 1), in the taps w (the smaller the more
    channels, or +-3^-1/2) and most of all in the filters, see `HyenaFilter`.

    Args:
        hidden_size: D.
        order:       long convolutions, each followed by a gate; 0 or more.
        filter_size: W, the width of the networks that make the filters.
        dropout:     on what is added to x, in training only.
        seq_len:     L, the longest sequence.
        name:        what the Axon names of the parameters begin with.
        init:        "modern" or "axon".
        backend:     of the convolutions.
    Raises:
        ValueError: an unknown choice, or an argument out of range.
    """

    def __init__(
        self,
        hidden_size: int = 256,
        *,
        order: int = 2,
        filter_size: int = 64,
        dropout: float = 0.1,
        seq_len: int = 60,
        name: str = "hyena_block",
        init: str = "modern",
        backend: str = "auto",
    ):
        super().__init__()
        sizes = {"hidden_size": hidden_size, "order": order, "filter_size": filter_size, "seq_len": seq_len}
        check_options("HyenaBlock", **sizes, dropout=dropout, init=init)
        self.hidden_size, self.order, self.seq_len, self.name, self.backend = hidden_size, order, seq_len, name, backend
        self.norm = LayerNorm(hidden_size)
        self.short_dw_conv = ShortConv(hidden_size, TAPS, bias=True, backend=backend)
        self.proj = nn.Linear(hidden_size, (order + 1) * hidden_size)
        self.filters = nn.ModuleList(HyenaFilter(hidden_size, filter_size, seq_len, init) for _ in range(order))
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.ffn_norm = LayerNorm(hidden_size)
        self.ffn_gate = nn.Linear(hidden_size, 4 * hidden_size)
        self.ffn_up = nn.Linear(hidden_size, 4 * hidden_size)
        self.ffn_down = nn.Linear(4 * hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        init_weights(self.children(), init)

    def axon_layers(self) -> dict[str, nn.Module]:
        """The layers that have parameters, by Axon's names."""
        names = ("norm", "short_dw_conv", "proj", "out_proj", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        layers = {f"{self.name}_{name}": getattr(self, name) for name in names}
        for j, network in enumerate(self.filters):
            layers |= {f"{self.name}_filter{j}_dense{i}": getattr(network, f"dense{i}") for i in (1, 2, 3)}
        return layers

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> EdificeHyenaState:
        """The state before the first frame: zeros, by default on the layer's device, in its dtype or wider."""
        weight = self.proj.weight
        dtype = torch.float64 if (dtype or weight.dtype) == torch.float64 else torch.float32
        device = weight.device if device is None else device
        return EdificeHyenaState.zeros(batch_size, self.order, self.hidden_size, TAPS, device, dtype)

    def forward(
        self,
        x: Tensor,
        state: EdificeHyenaState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, EdificeHyenaState | NoState]:
        """x (B, T, D) -> y (B, T, D) and the state after the last frame; arguments as of `HyenaBackbone`.

        Raises:
            ValueError: a sequence, with what its state has seen, is longer than seq_len.
        """
        check_shapes("HyenaBlock", {"D": self.hidden_size}, x=(x, "B T D"))
        check_like_weight("HyenaBlock", "x", x, self.proj)
        if mask is not None:
            return run_unpadded("HyenaBlock", self.forward, x, state, mask, cu_seqlens=cu_seqlens)
        bounds = check_cu_seqlens("HyenaBlock", cu_seqlens, *x.shape[:2])
        rows = x.shape[0] if bounds is None else len(bounds) - 1
        if state is None and bounds is None and is_symbolic(*x.shape[:2]):
            return self._any_size(x)
        taken = [x.shape[1]] * rows if bounds is None else [right - left for left, right in pairwise(bounds)]
        if state is None:
            state, pasts = self.init_state(rows, device=x.device, dtype=x.dtype), [None] * self.order
            self._check_length(taken, taken)
        else:
            self._check_state(state, rows)
            self._check_length([n + t for n, t in zip(state.length.tolist(), taken, strict=True)], taken)
            pasts = state.convolutions()
        length = state.length + torch.tensor(taken, dtype=torch.long, device=x.device)

        u, taps = self.short_dw_conv(self.norm(x), state.conv, cu_seqlens=bounds)
        y, *gates = self.proj(u).chunk(self.order + 1, dim=-1)
        convolutions = []
        for gate, network, past in zip(gates, self.filters, pasts, strict=True):
            y, past = long_conv(y, network(), initial_state=past, cu_seqlens=bounds, backend=self.backend)
            y = gate * y
            convolutions.append(past)
        return self._add(x, y), state.after(taps, length, convolutions)

    def _any_size(self, x: Tensor) -> tuple[Tensor, NoState]:
        """`forward` in a graph that is to take any sizes: how many tensors a state has depends on the length."""
        self._check_length([x.shape[1]], [x.shape[1]])
        y, *gates = self.proj(self.short_dw_conv(self.norm(x))[0]).chunk(self.order + 1, dim=-1)
        for gate, network in zip(gates, self.filters, strict=True):
            y = gate * convolve_any(y, network._taps())  # type: ignore[operator]
        return self._add(x, y), NoState()

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        """What comes after the convolutions."""
        x = x + self.dropout(self.out_proj(y))
        q = self.ffn_norm(x)
        return x + self.dropout(self.ffn_down(F.silu(self.ffn_gate(q)) * self.ffn_up(q)))

    def _check_length(self, lengths: list[int], taken: list[int]) -> None:
        longest = max([0, *lengths])  # not default=0, which torch.compile does not always trace
        if longest > self.seq_len:
            T = taken[lengths.index(longest)]
            raise ValueError(
                f"HyenaBlock: a sequence must end within seq_len={self.seq_len} frames, got {T} frames after"
                f" {longest - T}; build with a larger seq_len, or slide a window over the frames with"
                " longstream.models.Window"
            )

    def _check_state(self, state: EdificeHyenaState, rows: int) -> None:
        if not isinstance(state, EdificeHyenaState):
            raise TypeError(f"HyenaBlock: state must be an EdificeHyenaState or None, got {type(state).__name__}")
        expected = EdificeHyenaState.zeros(rows, self.order, self.hidden_size, TAPS, "meta", torch.float32)
        for name, tensor, like in zip(expected._fields, state, expected, strict=False):  # the op looks at the levels
            if tensor.shape != like.shape:
                raise ValueError(
                    f"HyenaBlock: state.{name} must have shape {tuple(like.shape)}, got {tuple(tensor.shape)}"
                )


class HyenaBackbone(Stack):
    """num_layers `HyenaBlock`s and a final norm on (B, T, D); arguments as of `HyenaBlock`.

    A sequence has at most seq_len frames, and the state, which is exact, grows with it.
    """

    def __init__(
        self,
        hidden_size: int = 256,
        *,
        order: int = 2,
        filter_size: int = 64,
        num_layers: int = 4,
        dropout: float = 0.1,
        seq_len: int = 60,
        init: str = "modern",
        backend: str = "auto",
    ):
        check_options("HyenaBackbone", num_layers=num_layers)
        options: dict[str, Any] = {"order": order, "filter_size": filter_size, "dropout": dropout, "seq_len": seq_len}
        options |= {"init": init, "backend": backend}
        blocks = [HyenaBlock(hidden_size, name=f"hyena_block_{layer}", **options) for layer in range(1, num_layers + 1)]
        deciding = ("edifice.hyena", hidden_size, order, filter_size, num_layers, seq_len)
        super().__init__(blocks, hidden_size, init, fingerprint(*deciding))
