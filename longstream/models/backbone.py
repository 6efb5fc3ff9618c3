"""Block and Backbone: one file for every mixer."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longstream.layers import HGRN, HGRN2, RMSNorm, ShortConv, make_mlp, make_norm
from longstream.layers._directions import refuse_in_direction
from longstream.layers._padding import repad, run_unpadded
from longstream.models.config import ModelConfig, deciding, has_gates
from longstream.models.state import State
from longstream.ops import LowerBound, lower_bounds
from longstream.ops._check import check_cu_seqlens, check_shapes


class Block(nn.Module):
    """Pre-norm residual block: ``x = x + mixer(norm(x))``, then ``x = x + mlp(norm(x))``; dropout on what is added.

    Args:
        config: which norm, MLP (perhaps none, which leaves out the second half) and dropout, and the mixers.
        layer:  whose mixer this block has.

    Arguments, shapes and errors of `forward` and `step` are the mixer's.
    """

    def __init__(self, config: ModelConfig, layer: int = 0):
        super().__init__()
        self.hidden_size = config.hidden_size
        backend = getattr(config.mixers[layer], "backend", "auto")
        self.mixer_norm = make_norm(config.norm, config.hidden_size, config.norm_eps, backend)
        self.mixer = config.build_mixer(layer)
        has_mlp = config.mlp != "none"
        self.mlp_norm = make_norm(config.norm, config.hidden_size, config.norm_eps, backend) if has_mlp else None
        self.mlp = make_mlp(config.mlp, config.hidden_size, config.mlp_size, backend) if has_mlp else None
        self.dropout = nn.Dropout(config.dropout)

    @property
    def causal(self) -> bool:
        """Whether the mixer goes from token to token."""
        return getattr(self.mixer, "causal", True)

    def init_state(self, batch_size: int, **kwargs: Any) -> Any:
        """The mixer's state before the first token."""
        return self.mixer.init_state(batch_size, **kwargs)  # type: ignore[operator]

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
            if x.dim() == 4 and not self.causal:
                refuse_in_direction("Block", "2d", state, mask, cu_seqlens)
            return run_unpadded("Block", self.forward, x, state, mask, cu_seqlens=cu_seqlens, lower_bound=lower_bound)
        y, state = self.mixer(self.mixer_norm(x), state, cu_seqlens=cu_seqlens, lower_bound=lower_bound)
        x = x + self.dropout(y)
        if self.mlp_norm is None or self.mlp is None:
            return x, state
        return x + self.dropout(self.mlp(self.mlp_norm(x))), state

    def step(self, x_t: Tensor, state: Any, *, lower_bound: LowerBound | Tensor | None = None) -> tuple[Tensor, Any]:
        """x_t (B, D) -> (B, D) and the mixer's state."""
        check_goes_on("Block.step", self)
        check_shapes("Block.step", {"D": self.hidden_size}, x_t=(x_t, "B D"))
        y, state = self.forward(x_t[:, None], state, lower_bound=lower_bound)
        return y[:, 0], state


class Backbone(nn.Module):
    """Blocks and a final norm on feature sequences, with the lower bounds that the blocks with forget gates share.

    The bounds come from one parameter, ``lower_bounds`` (L, E), E being the width of the gates and L the number of all
    layers; see `longstream.ops.lower_bounds`. Under "fixed" of lower_bound_mode it is a buffer; under "decreasing"
    layer i has the bound that else layer L - 1 - i has.
    """

    lower_bounds: Tensor | None

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.fingerprint = fingerprint(config)
        E = config.gate_size
        gamma = None if E is None else torch.zeros(config.num_layers, E)
        if gamma is None or config.lower_bound_mode == "fixed":
            self.register_buffer("lower_bounds", gamma)
        else:
            self.lower_bounds = nn.Parameter(gamma)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        backend = getattr(config.mixers[-1], "backend", "auto")
        self.norm = make_norm(config.norm, config.hidden_size, config.norm_eps, backend)
        for block in self.layers:
            block.mixer.out_proj.writes_residual = True  # type: ignore[union-attr]
            if block.mlp is not None:
                block.mlp.down_proj.writes_residual = True  # type: ignore[union-attr]
        for module in self.modules():
            if getattr(module, "keeps_own_init", False):
                for part in [*module.modules()][1:]:
                    part.initialized_by_owner = True  # type: ignore[assignment]
        self.apply(self.init_weights)

    @property
    def causal(self) -> bool:
        """Whether every layer goes from token to token."""
        return all(getattr(block, "causal", True) for block in self.layers)

    def init_weights(self, module: nn.Module) -> None:
        """The initialization of one submodule: normal weights, no biases, norms 1, lower bounds evenly spaced.

        Modules with ``keeps_own_init``, as Hyena's filters, make themselves with all that is in them.
        """
        if getattr(module, "initialized_by_owner", False):
            return
        if getattr(module, "keeps_own_init", False):
            module.reset_parameters()  # type: ignore[operator]
        elif isinstance(module, nn.Linear | nn.Embedding):
            shrinks = self.config.rescale_residual and getattr(module, "writes_residual", False)
            scale = (2 * self.config.num_layers) ** -0.5 if shrinks else 1.0
            nn.init.normal_(module.weight, std=self.config.initializer_range * scale)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ShortConv | RMSNorm | nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, HGRN | HGRN2):
            if isinstance(module, HGRN):
                module.reset_parameters()
            if self.config.memory:
                _remember(module, self.config.memory)
        elif isinstance(module, Backbone) and module.lower_bounds is not None:
            nn.init.zeros_(module.lower_bounds)

    def bounds_of_layers(self) -> list[LowerBound | None]:
        """The lower bound that each layer's forget gate has now; None for no gate or no bound."""
        if self.lower_bounds is None:
            return [None] * len(self.layers)
        limits = lower_bounds(self.lower_bounds, self.config.lower_bound or "")
        gates = [has_gates(mixer) for mixer in self.config.mixers]
        rows = range(len(gates))  # of the sums, in the order of the layers
        if self.config.lower_bound_mode == "decreasing":
            rows = rows[::-1]
        # Row 0 is no bound under either sum and its layer takes the shorter path, unless only that one has gates:
        # sharded training wants every parameter in the graph.
        bounded = [has and (row > 0 or sum(gates) == 1) for row, has in zip(rows, gates, strict=True)]
        return [limits.of_layer(row) if has else None for row, has in zip(rows, bounded, strict=True)]

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state before the first token, for ``batch_size`` rows; by default on the model's device, in its dtype."""
        layers = tuple(block.init_state(batch_size, device=device, dtype=dtype) for block in self.layers)  # type: ignore[operator]
        if device is None:
            device = next(self.parameters()).device
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
            x:             (B, T, D), any T >= 0; with two-dimensional mixers (B, height, width, D).
            state:         State of B rows, or None for the start. With cu_seqlens, one row for each sequence.
            mask:          (B, T), 1 for tokens and 0 for pads, which are as if not there; y is 0 on them.
            cu_seqlens:    (N + 1,) boundaries of N sequences packed in one row (B = 1). Not with mask.
            run_block:     called as ``run_block(block, x, layer_state, cu_seqlens=..., lower_bound=...)`` instead of
                           the block itself, for gradient checkpointing.
            hidden_states: a list to which the input of each block is appended, then y. It is 0 on pads.
        Raises:
            ValueError: shapes disagree, mask and cu_seqlens are both given, or the state is another model's.
        """
        is_grid = isinstance(x, Tensor) and x.dim() == 4
        check_shapes("Backbone", {"D": self.hidden_size}, x=(x, "B Y X D" if is_grid else "B T D"))
        if is_grid and not self.causal:
            refuse_in_direction("Backbone", "2d", state, mask, cu_seqlens)
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
            self._check_state(state, rows, x.device)
            before, position = state.layers, state.position
        run = run_block or (lambda block, *args, **kwargs: block(*args, **kwargs))
        layers = []
        for i, (block, limit) in enumerate(zip(self.layers, self.bounds_of_layers(), strict=True)):
            if hidden_states is not None:
                hidden_states.append(x)
            x, layer = run(block, x, before[i], cu_seqlens=bounds, lower_bound=limit)
            layers.append(layer)
        y = self.norm(x)
        if hidden_states is not None:
            hidden_states.append(y)
        if bounds is None:
            taken = torch.full_like(position, math.prod(x.shape[1:-1]))
        else:
            taken = torch.tensor(bounds, device=x.device).diff()
        return y, State(tuple(layers), position + taken, self.fingerprint)

    def step(self, x_t: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One token: x_t (B, D) -> y_t (B, D) and the state after it.

        Raises:
            RuntimeError: a layer is not causal.
        """
        check_goes_on("Backbone.step", self)
        check_shapes("Backbone.step", {"D": self.hidden_size}, x_t=(x_t, "B D"))
        y, last = self.forward(x_t[:, None], state)
        return y[:, 0], last

    def _check_state(self, state: State, rows: int, device: torch.device) -> None:
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
        if state.position.device != device:
            raise ValueError(f"Backbone: state must be on {device} like x, got {state.position.device}; see State.to")


def check_goes_on(who: str, model: Any) -> None:
    """Refuse to go from token to token where a layer looks both ways: its first token would be taken for all."""
    if not model.causal:
        raise RuntimeError(f"{who}: a mixer that is not causal needs the whole sequence; only forward takes one")


@torch.no_grad()
def _remember(mixer: HGRN | HGRN2, tokens: int) -> None:
    """Biases with which the forget gates take 2 to ``tokens`` tokens to fall by e, evenly in their logs.

    Tallec & Ollivier 2018 (arXiv:1804.11188) draw such times at random; here the channels of a head have all of them.
    """
    bias = mixer.forget_proj.bias
    assert bias is not None
    channels = mixer.expand_ratio if isinstance(mixer, HGRN2) else len(bias)
    times = torch.logspace(math.log10(2), math.log10(max(tokens, 2)), channels, dtype=torch.float64)
    bias.copy_((times - 1).log().to(bias.device).repeat(len(bias) // channels))


def fingerprint(config: ModelConfig) -> str:
    """A short hash of what decides a state's meaning; the vocabulary, the backend and the initialization do not."""
    parts: list[Any] = [deciding(mixer) for mixer in config.mixers]
    parts += [config.hidden_size, config.mlp, config.mlp_size, config.norm, float(config.norm_eps), config.lower_bound]
    parts += ["decreasing"] if config.lower_bound_mode == "decreasing" else []  # the others read the bounds alike
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
