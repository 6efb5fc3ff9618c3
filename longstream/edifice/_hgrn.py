"""The modules of Edifice's HGRN: the layer that looks back, the block, and the stack."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream.edifice._options import check_options
from longstream.edifice._parts import LayerNorm, Part, Stack, fingerprint, init_weights
from longstream.layers._options import check_one_of, check_state
from longstream.layers._padding import run_unpadded
from longstream.layers.state import NoState, register_state
from longstream.ops import forget_gate, gated_scan
from longstream.ops._check import check_cu_seqlens, check_like_weight, check_shapes, wide

SCANS = ("exact", "edifice")


def gate_width(N: int, layer_idx: int) -> int:
    """How many gates layer ``layer_idx``, from 1, has for its N channels."""
    return max(1, N >> (layer_idx - 1))


def check_gates(who: str, hidden_size: int, state_expansion: int, layers: Iterable[int]) -> None:
    """Refuse a hidden_size whose channels the gates of one of the layers do not divide."""
    layers = [*layers]
    for layer in layers:
        N = hidden_size * state_expansion
        G = gate_width(N, layer)
        if N % G:
            raise ValueError(
                f"{who}: the {G} gates of layer {layer} must divide its {N} channels, hidden_size {hidden_size} *"
                f" state_expansion {state_expansion}; they are {N} >> {layer - 1}, half as many with each layer. Take"
                f" {_remedy(hidden_size, state_expansion, layers)}at most {layer - 1} layers"
            )


def _remedy(hidden_size: int, state_expansion: int, layers: Sequence[int]) -> str:
    """The nearest hidden sizes that all layers fit, below and above."""

    def fits(D: int) -> bool:
        N = D * state_expansion
        return all(N % gate_width(N, layer) == 0 for layer in layers)

    below = next(filter(fits, range(hidden_size - 1, 0, -1)), None)
    above = next(filter(fits, range(hidden_size + 1, 2 * hidden_size + 4096)), None)
    sizes = " or ".join(str(size) for size in (below, above) if size)
    return f"hidden_size {sizes}, or " if sizes else ""


@register_state
class EdificeHGRNState(NamedTuple):
    """What a layer of Edifice's HGRN carries from frame to frame, float32 or wider."""

    h: Tensor  # (B, N)


class HGRNLayer(Part):
    """Edifice's HGRN layer, with its norm and residual; u = norm(x), N = D * state_expansion channels::

        f_t = sigmoid(W_f u_t + b_f), i_t = sigmoid(W_i u_t + b_i)    G = max(1, N >> (layer_idx - 1)) gates each,
                                                                    every one for N / G neighboring channels
        v_t = SiLU(W_v u_t + b_v)
        h_t = f_t * h_{t-1} + i_t * v_t
        y_t = x_t + dropout(W_c h_t + b_c)

    scan "exact" computes this at any length. scan "edifice" computes what Edifice v0.2.0 does,
    ``c = exp(cumsum(log(f + 1e-10))), h = c * cumsum(i v / (c + 1e-10))``, to reproduce a model that was trained so:
    where the product c of the gates falls below 1e-10, after some 33 frames of gates of 1/2, the newest inputs vanish.
    It takes whole sequences only, and its state is `NoState`.

    init "axon" is Axon's: kernels of +-sqrt(6 / (inputs + outputs)), biases 0, so gates near 1/2 which forget within a
    few frames, and norms scaled by U(-sqrt 3, sqrt 3). init "modern" has norms of scale 1, and gates that remember
    seq_len frames: W_f = 0, and b_f gives gate k of G, k = 1 .. G, the time constant tau_k = seq_len^(k / G) in frames,
    f = exp(-1 / tau_k); b_i = -b_f makes i near 1 - f, as the papers tie them, so that no channel drowns in noise.

    Args:
        hidden_size:     D.
        state_expansion: N / D.
        dropout:         on what is added to x, in training only.
        layer_idx:       from 1; see above.
        name:            what the Axon names of the parameters begin with.
        seq_len:         frames that init "modern" remembers.
        scan:            "exact" or "edifice".
        init:            "modern" or "axon".
        backend:         of the ops.
    Raises:
        ValueError: the gates do not divide the channels, an unknown choice, or an argument out of range.
    """

    def __init__(
        self,
        hidden_size: int = 256,
        *,
        state_expansion: int = 2,
        dropout: float = 0.1,
        layer_idx: int = 1,
        name: str = "hgrn",
        seq_len: int = 60,
        scan: str = "exact",
        init: str = "modern",
        backend: str = "auto",
    ):
        super().__init__()
        sizes = {"hidden_size": hidden_size, "state_expansion": state_expansion, "layer_idx": layer_idx}
        check_options("HGRNLayer", **sizes, seq_len=seq_len, dropout=dropout, init=init)
        check_one_of("HGRNLayer", scan=(scan, SCANS))
        check_gates("HGRNLayer", hidden_size, state_expansion, [layer_idx])
        N = hidden_size * state_expansion
        G = gate_width(N, layer_idx)
        self.hidden_size, self.state_size, self.sharing = hidden_size, N, N // G
        self.name, self.scan, self.backend = name, scan, backend
        self.norm = LayerNorm(hidden_size)
        self.forget_proj = nn.Linear(hidden_size, G)
        self.input_proj = nn.Linear(hidden_size, G)
        self.value_proj = nn.Linear(hidden_size, N)
        self.contract = nn.Linear(N, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters(init, seq_len)

    @torch.no_grad()
    def reset_parameters(self, init: str, seq_len: int) -> None:
        """Both inits; see the class."""
        init_weights(self.children(), init)
        if init == "modern":
            G = len(self.forget_proj.bias)
            k = torch.arange(1, G + 1, dtype=torch.float64, device=self.forget_proj.bias.device)
            bias = -torch.expm1(float(seq_len) ** (-k / G)).log()  # the logit of exp(-1 / tau)
            self.forget_proj.weight.zero_()
            self.forget_proj.bias.copy_(bias)
            self.input_proj.bias.copy_(-bias)

    def axon_layers(self) -> dict[str, nn.Module]:
        """The layers that have parameters, by Axon's names."""
        names = ("norm", "forget_proj", "input_proj", "value_proj", "contract")
        return {f"{self.name}_{name}": getattr(self, name) for name in names}

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> EdificeHGRNState | NoState:
        """The state before the first frame: zeros, by default on the layer's device, in its dtype or wider."""
        if self.scan == "edifice":
            return NoState()
        weight = self.contract.weight
        dtype = torch.float64 if (dtype or weight.dtype) == torch.float64 else torch.float32
        device = weight.device if device is None else device
        return EdificeHGRNState(torch.zeros(batch_size, self.state_size, device=device, dtype=dtype))

    def forward(
        self,
        x: Tensor,
        state: EdificeHGRNState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, EdificeHGRNState | NoState]:
        """x (B, T, D) -> y (B, T, D) and the state after the last frame; arguments as of `HGRNBackbone`."""
        check_shapes("HGRNLayer", {"D": self.hidden_size}, x=(x, "B T D"))
        check_like_weight("HGRNLayer", "x", x, self.contract)
        self.check_whole(state=state, mask=mask, cu_seqlens=cu_seqlens)
        if mask is not None:
            return run_unpadded("HGRNLayer", self.forward, x, state, mask, cu_seqlens=cu_seqlens)
        bounds = check_cu_seqlens("HGRNLayer", cu_seqlens, *x.shape[:2])
        rows = x.shape[0] if bounds is None else len(bounds) - 1
        if state is not None:
            check_state("HGRNLayer", state, EdificeHGRNState, [(rows, self.state_size)])

        u = self.norm(x)
        v = F.silu(self.value_proj(u))
        z = self.forget_proj(u)
        gated_input = (self._per_channel(torch.sigmoid(self.input_proj(u).to(wide(u)))) * v).to(v.dtype)  # (B, T, N)
        if self.scan == "edifice":
            h, last = _two_cumsums(gated_input, self._per_channel(torch.sigmoid(z.to(wide(u))))), NoState()
        else:
            log_forget, _ = forget_gate(z, backend=self.backend)
            initial = None if state is None else state.h
            h, final = gated_scan(
                gated_input, self._per_channel(log_forget), initial, cu_seqlens=bounds, backend=self.backend
            )
            last = EdificeHGRNState(final)
        return x + self.dropout(self.contract(h)), last

    def _per_channel(self, gates: Tensor) -> Tensor:
        """(B, T, G) -> (B, T, N)."""
        return gates.repeat_interleave(self.sharing, dim=-1) if self.sharing > 1 else gates


def _two_cumsums(x: Tensor, forget: Tensor) -> Tensor:
    """Edifice's scan. It is right only while the product c of all gates so far is far above 1e-10."""
    c = torch.log(forget + 1e-10).cumsum(1).exp()
    return (c * (x / (c + 1e-10)).cumsum(1)).to(x.dtype)


class HGRNBlock(Part):
    """``x = layer(x)``, then ``x = x + dropout(W_down SiLU(W_up norm(x) + b_up) + b_down)``, 4 D wide.

    Arguments as of `HGRNLayer`, whose Axon names begin with ``{name}_rnn``.
    """

    def __init__(self, hidden_size: int = 256, *, name: str = "hgrn_block", **options: Any):
        super().__init__()
        self.name, self.hidden_size, self.scan = name, hidden_size, options.get("scan", "exact")
        self.rnn = HGRNLayer(hidden_size, name=f"{name}_rnn", **options)
        self.ffn_norm = LayerNorm(hidden_size)
        self.ffn_up = nn.Linear(hidden_size, 4 * hidden_size)
        self.ffn_down = nn.Linear(4 * hidden_size, hidden_size)
        self.dropout = nn.Dropout(self.rnn.dropout.p)
        init_weights([self.ffn_norm, self.ffn_up, self.ffn_down], options.get("init", "modern"))

    def axon_layers(self) -> dict[str, nn.Module]:
        """The layers that have parameters, by Axon's names."""
        names = ("ffn_norm", "ffn_up", "ffn_down")
        return self.rnn.axon_layers() | {f"{self.name}_{name}": getattr(self, name) for name in names}

    def init_state(self, batch_size: int, **kwargs: Any) -> EdificeHGRNState | NoState:
        """The layer's state before the first frame."""
        return self.rnn.init_state(batch_size, **kwargs)

    def forward(
        self,
        x: Tensor,
        state: EdificeHGRNState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, EdificeHGRNState | NoState]:
        """x (B, T, D) -> y (B, T, D) and the layer's state; arguments as of `HGRNBackbone`."""
        self.check_whole(state=state, mask=mask, cu_seqlens=cu_seqlens)
        if mask is not None:
            return run_unpadded("HGRNBlock", self.forward, x, state, mask, cu_seqlens=cu_seqlens)
        x, last = self.rnn(x, state, cu_seqlens=cu_seqlens)
        return x + self.dropout(self.ffn_down(F.silu(self.ffn_up(self.ffn_norm(x))))), last


class HGRNBackbone(Stack):
    """num_layers `HGRNBlock`s and a final norm on (B, T, D); arguments as of `HGRNLayer`.

    Its state is constant in size, N float32 numbers a layer and row. With scan "edifice", `forward` takes no state, no
    mask and no cu_seqlens, and there is no step.
    """

    def __init__(
        self,
        hidden_size: int = 256,
        *,
        num_layers: int = 6,
        state_expansion: int = 2,
        dropout: float = 0.1,
        seq_len: int = 60,
        scan: str = "exact",
        init: str = "modern",
        backend: str = "auto",
    ):
        check_options("HGRNBackbone", hidden_size=hidden_size, state_expansion=state_expansion, num_layers=num_layers)
        check_gates("HGRNBackbone", hidden_size, state_expansion, range(1, num_layers + 1))
        options: dict[str, Any] = {"state_expansion": state_expansion, "dropout": dropout, "seq_len": seq_len}
        options |= {"scan": scan, "init": init, "backend": backend}
        blocks = [
            HGRNBlock(hidden_size, name=f"hgrn_block_{layer}", layer_idx=layer, **options)
            for layer in range(1, num_layers + 1)
        ]
        deciding = ("edifice.hgrn", hidden_size, num_layers, state_expansion, scan)
        super().__init__(blocks, hidden_size, init, fingerprint(*deciding))
        self.scan = scan
