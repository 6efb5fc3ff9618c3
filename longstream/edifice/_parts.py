"""What both of Edifice's models are made of: Axon's layer norm, its initialization, and the stack of blocks."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longstream.layers import ShortConv
from longstream.layers._padding import run_unpadded
from longstream.models.state import State
from longstream.ops._check import check_cu_seqlens, check_like_weight, check_shapes, wide


class LayerNorm(nn.Module):
    """Axon's layer norm over the last dimension: ``y = weight (x - m) s + bias`` with mean m, biased variance v and

        s = 1 / sqrt(v + eps)  where v >= eps,      s = 1 / sqrt(eps)  where v < eps

    which is up to a factor of sqrt 2 more than `torch.nn.LayerNorm` on vectors that are almost constant.

    Args:
        hidden_size: D, the size of the last dimension.
        eps:         see above.
    Notes: computes in float32 (float64 if x is); y has the dtype of x.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))  # gamma, of either sign
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        dtype = wide(x)
        d = x.to(dtype) - x.to(dtype).mean(dim=-1, keepdim=True)
        v = d.square().mean(dim=-1, keepdim=True)
        s = torch.where(v >= self.eps, v + self.eps, self.eps).rsqrt()
        return torch.addcmul(self.bias.to(dtype), d * s, self.weight.to(dtype)).to(x.dtype)


@torch.no_grad()
def init_weights(modules: Iterable[nn.Module], init: str) -> None:
    """Axon's initialization of linear layers, norms and short convolutions, or ours, which differs in the last two.

    Both: kernels uniform in +-sqrt(6 / (inputs + outputs)), biases 0. "axon": the scales of norms are drawn from
    U(-sqrt 3, sqrt 3), signs and all, and taps from +-sqrt(6 / (W + W C)), which makes them the smaller the more
    channels there are. "modern": scales are 1, and taps from +-W^-1/2.
    """
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, LayerNorm):
            if init == "axon":
                nn.init.uniform_(module.weight, -math.sqrt(3), math.sqrt(3))
            else:
                nn.init.ones_(module.weight)
        elif isinstance(module, ShortConv):
            channels, taps = module.weight.shape
            limit = math.sqrt(6 / (taps + taps * channels)) if init == "axon" else taps**-0.5
            nn.init.uniform_(module.weight, -limit, limit)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def fingerprint(*deciding: Any) -> str:
    """A short hash of what decides a state's meaning."""
    return hashlib.sha256(repr(deciding).encode()).hexdigest()[:16]


class Part(nn.Module):
    """What a layer, a block and a stack have in common: `step`, and the refusals of scan "edifice"."""

    hidden_size: int
    scan = "exact"

    def axon_layers(self) -> dict[str, nn.Module]:
        """The layers that have parameters, by Axon's names."""
        raise NotImplementedError

    def step(self, x_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One frame: x_t (B, D) -> y_t (B, D) and the state after it."""
        who = f"{type(self).__name__}.step"
        check_shapes(who, {"D": self.hidden_size}, x_t=(x_t, "B D"))
        if self.scan == "edifice":
            raise RuntimeError(f"{who}: scan 'edifice' takes whole sequences from the start; build with scan='exact'")
        y, last = self.forward(x_t[:, None], state)
        return y[:, 0], last

    def check_whole(self, **arguments: Any) -> None:
        """Scan "edifice" cannot start from a state, nor stop at a boundary or at a pad."""
        given = [name for name, value in arguments.items() if value is not None]
        if self.scan == "edifice" and given:
            raise ValueError(
                f"{type(self).__name__}: {' and '.join(given)} must be None with scan 'edifice', which takes whole"
                " sequences from the start; build with scan='exact'"
            )


class Stack(Part):
    """Blocks one after another and a final norm, on (B, T, D); `HGRNBackbone` and `HyenaBackbone` say of what."""

    def __init__(self, blocks: Sequence[nn.Module], hidden_size: int, init: str, fingerprint: str):
        super().__init__()
        self.hidden_size, self.fingerprint = hidden_size, fingerprint
        self.layers = nn.ModuleList(blocks)
        self.final_norm = LayerNorm(hidden_size)
        init_weights([self.final_norm], init)

    def axon_layers(self) -> dict[str, nn.Module]:
        """The layers that have parameters, by Axon's names."""
        layers: dict[str, nn.Module] = {"final_norm": self.final_norm}
        for block in self.layers:
            layers |= block.axon_layers()  # type: ignore[operator]
        return layers

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first frame, for ``batch_size`` rows; by default on the model's device, in its dtype."""
        layers = tuple(block.init_state(batch_size, device=device, dtype=dtype) for block in self.layers)  # type: ignore[operator]
        device = self.final_norm.weight.device if device is None else device
        return State(layers, torch.zeros(batch_size, dtype=torch.long, device=device), self.fingerprint)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, State]:
        """x (B, T, D) -> normalized y (B, T, D) and the state after the last frame.

        Args:
            x:          (B, T, D), any T >= 0.
            state:      State of B rows, or None for the start. With cu_seqlens, one row for each sequence.
            mask:       (B, T), 1 for frames and 0 for pads, which are as if not there; y is 0 on them.
            cu_seqlens: (N + 1,) boundaries of N sequences packed in one row (B = 1). Not with mask.
        Raises:
            ValueError: shapes disagree, mask and cu_seqlens are both given, or the state is another model's; any of
                the three with scan "edifice".
        """
        who = type(self).__name__
        check_shapes(who, {"D": self.hidden_size}, x=(x, "B T D"))
        check_like_weight(who, "x", x, self.final_norm)
        self.check_whole(state=state, mask=mask, cu_seqlens=cu_seqlens)
        if mask is not None:
            return run_unpadded(who, self.forward, x, state, mask, cu_seqlens=cu_seqlens)
        bounds = check_cu_seqlens(who, cu_seqlens, *x.shape[:2])
        rows = x.shape[0] if bounds is None else len(bounds) - 1
        if state is None:  # each block makes its own
            before, position = [None] * len(self.layers), torch.zeros(rows, dtype=torch.long, device=x.device)
        else:
            self._check_state(state, rows)
            before, position = state.layers, state.position
        layers = []
        for block, layer in zip(self.layers, before, strict=True):
            x, layer = block(x, layer, cu_seqlens=bounds)
            layers.append(layer)
        if bounds is None:
            taken = torch.full_like(position, x.shape[1])
        else:
            taken = torch.tensor(bounds, device=x.device).diff()
        return self.final_norm(x), State(tuple(layers), position + taken, self.fingerprint)

    def _check_state(self, state: State, rows: int) -> None:
        who = type(self).__name__
        if not isinstance(state, State):
            raise TypeError(f"{who}: state must be a State or None, got {type(state).__name__}")
        if state.fingerprint != self.fingerprint or len(state.layers) != len(self.layers):
            raise ValueError(
                f"{who}: the state belongs to another model: expected fingerprint {self.fingerprint} and"
                f" {len(self.layers)} layers, got {state.fingerprint} and {len(state.layers)}"
            )
        if state.batch_size != rows:
            raise ValueError(f"{who}: state must have {rows} rows, one for each sequence, got {state.batch_size}")
