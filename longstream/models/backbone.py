"""Block and Backbone: one file for every mixer."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longstream.layers import RMSNorm, ShortConv, SwiGLU
from longstream.layers._padding import repad, run_unpadded
from longstream.models.config import ModelConfig
from longstream.models.state import State
from longstream.ops import LowerBound, lower_bounds
from longstream.ops._check import check_cu_seqlens, check_shapes


class Block(nn.Module):
    """Pre-norm residual block: ``x = x + mixer(norm(x))``, then ``x = x + mlp(norm(x))``, with RMS norms and SwiGLU.

    Arguments, shapes and errors of `forward` and `step` are the mixer's.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.mixer_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mixer = config.build_mixer()
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.mlp_size)

    def init_state(self, batch_size: int, **kwargs: Any) -> Any:
        """The mixer's state before the first token."""
        return self.mixer.init_state(batch_size, **kwargs)

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        lower_bound: LowerBound | Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """x (B, T, D) -> (B, T, D) and the mixer's state."""
        if mask is not None:
            return run_unpadded("Block", self.forward, x, state, mask, cu_seqlens=cu_seqlens, lower_bound=lower_bound)
        y, state = self.mixer(self.mixer_norm(x), state, cu_seqlens=cu_seqlens, lower_bound=lower_bound)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), state

    def step(self, x_t: Tensor, state: Any, *, lower_bound: LowerBound | Tensor | None = None) -> tuple[Tensor, Any]:
        """x_t (B, D) -> (B, D) and the mixer's state."""
        check_shapes("Block.step", {"D": self.hidden_size}, x_t=(x_t, "B D"))
        y, state = self.forward(x_t[:, None], state, lower_bound=lower_bound)
        return y[:, 0], state


class Backbone(nn.Module):
    """Blocks and a final RMS norm on feature sequences, with the lower bounds that the blocks share.

    The bounds come from one parameter, ``lower_bounds`` (L, D); see `longstream.ops.lower_bounds`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.fingerprint = fingerprint(config)
        shape = (config.num_layers, config.hidden_size)
        self.lower_bounds = None if config.lower_bound is None else nn.Parameter(torch.zeros(shape))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.apply(self.init_weights)

    def init_weights(self, module: nn.Module) -> None:
        """The initialization of one submodule: normal weights, no biases, norms 1, lower bounds evenly spaced."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ShortConv | RMSNorm | nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, Backbone) and module.lower_bounds is not None:
            nn.init.zeros_(module.lower_bounds)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token, for ``batch_size`` rows; by default on the model's device, in its dtype."""
        layers = tuple(block.init_state(batch_size, device=device, dtype=dtype) for block in self.layers)  # type: ignore[operator]
        device = self.norm.weight.device if device is None else device
        return State(layers, torch.zeros(batch_size, dtype=torch.long, device=device), self.fingerprint)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        run_block: Callable[..., tuple[Tensor, Any]] | None = None,
        hidden_states: list[Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """x (B, T, D) -> normalized y (B, T, D) and the state after the last token.

        Args:
            x:             (B, T, D), any T >= 0.
            state:         State of B rows, or None for the start. With cu_seqlens, one row for each sequence.
            mask:          (B, T), 1 for tokens and 0 for pads, which are as if not there; y is 0 on them.
            cu_seqlens:    (N + 1,) boundaries of N sequences packed in one row (B = 1). Not with mask.
            run_block:     called as ``run_block(block, x, layer_state, cu_seqlens=..., lower_bound=...)`` instead of
                           the block itself, for gradient checkpointing.
            hidden_states: a list to which the input of each block is appended, then y. It is 0 on pads.
        Raises:
            ValueError: shapes disagree, mask and cu_seqlens are both given, or the state is another model's.
        """
        check_shapes("Backbone", {"D": self.hidden_size}, x=(x, "B T D"))
        if mask is not None:
            collected: list[Tensor] | None = None if hidden_states is None else []
            kwargs = {"cu_seqlens": cu_seqlens, "run_block": run_block, "hidden_states": collected}
            y, last = run_unpadded("Backbone", self.forward, x, state, mask, **kwargs)
            if hidden_states is not None and collected is not None:
                hidden_states.extend(h if h.shape == y.shape else repad(h, mask) for h in collected)
            return y, last
        bounds = check_cu_seqlens("Backbone", cu_seqlens, *x.shape[:2])
        rows = x.shape[0] if bounds is None else len(bounds) - 1
        if state is None:  # each mixer makes its own
            before, position = [None] * len(self.layers), torch.zeros(rows, dtype=torch.long, device=x.device)
        else:
            self._check_state(state, rows)
            before, position = state.layers, state.position
        run = run_block or (lambda block, *args, **kwargs: block(*args, **kwargs))
        limits = None if self.lower_bounds is None else lower_bounds(self.lower_bounds, self.config.lower_bound or "")
        layers = []
        for i, block in enumerate(self.layers):
            if hidden_states is not None:
                hidden_states.append(x)
            # Layer 0 has no bound under either sum and takes the shorter path, unless it is the only layer: sharded
            # training wants every parameter in the graph.
            limit = None if limits is None or (i == 0 and len(self.layers) > 1) else limits.of_layer(i)
            x, layer = run(block, x, before[i], cu_seqlens=bounds, lower_bound=limit)
            layers.append(layer)
        y = self.norm(x)
        if hidden_states is not None:
            hidden_states.append(y)
        if bounds is None:
            taken = torch.full_like(position, x.shape[1])
        else:
            taken = torch.tensor(bounds, device=x.device).diff()
        return y, State(tuple(layers), position + taken, self.fingerprint)

    def step(self, x_t: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One token: x_t (B, D) -> y_t (B, D) and the state after it."""
        check_shapes("Backbone.step", {"D": self.hidden_size}, x_t=(x_t, "B D"))
        y, last = self.forward(x_t[:, None], state)
        return y[:, 0], last

    def _check_state(self, state: State, rows: int) -> None:
        if not isinstance(state, State):
            raise TypeError(f"Backbone: state must be a State or None, got {type(state).__name__}")
        if state.fingerprint != self.fingerprint:
            raise ValueError(
                "Backbone: the state belongs to another model: "
                f"expected fingerprint {self.fingerprint}, got {state.fingerprint}"
            )
        if len(state.layers) != len(self.layers):
            raise ValueError(f"Backbone: state must have {len(self.layers)} layers, got {len(state.layers)}")
        if state.batch_size != rows:
            raise ValueError(f"Backbone: state must have {rows} rows, one for each sequence, got {state.batch_size}")


def fingerprint(config: ModelConfig) -> str:
    """A short hash of what decides a state's meaning; the vocabulary, the backend and the initialization do not."""
    mixer = {name: value for name, value in vars(config.mixer).items() if name != "backend"}
    mixer |= {name: float(mixer[name]) for name in ("query_scale", "norm_eps")}  # 1 and 1.0 are one setting
    deciding = [type(config.mixer).__name__, sorted(mixer.items()), config.hidden_size, config.num_layers]
    deciding += [config.mlp_size, float(config.norm_eps), config.lower_bound]
    return hashlib.sha256(repr(deciding).encode()).hexdigest()[:16]
