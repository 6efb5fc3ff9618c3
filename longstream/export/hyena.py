"""Hyena in a graph: what carries on from token to token has one size, where the model's own state grows with the past.

Two forms. The exact one keeps the inputs of every long convolution as far back as its filters reach and adds up taps
times inputs. The modal one keeps the modes of filters that `longstream.distill` or `set_modal` put in their place.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream.edifice._hyena import HyenaBlock
from longstream.edifice.hyena import EdificeHyenaState
from longstream.layers import Hyena, HyenaState
from longstream.layers._modal_conv import walk_tokens
from longstream.layers.hyena_state import HyenaModalState
from longstream.layers.hyena_taps import each_head
from longstream.ops import LongConvState
from longstream.ops._walk import is_symbolic
from longstream.ops.long_conv.state import BLOCK, runs


class PastState(NamedTuple):
    """The state of the exact form, float32."""

    conv: Tensor  # (B, W - 1, channels): the last inputs of the short convolution, oldest first
    past: Tensor  # (B, S, D, L - 1): those of each long convolution, newest last, zeros before the first token


class ModesState(NamedTuple):
    """The state of the modal form, float32."""

    conv: Tensor  # (B, W - 1, channels)
    modes: Tensor  # (B, S, D, M, 2), as in HyenaModalState


class LongConvs(nn.Module):
    """The S long convolutions of a layer, one after the other, exactly.

    Args:
        taps: (S, D, L), lag 0 first, with the skip in it.
    """

    taps: Tensor

    def __init__(self, taps: Tensor):
        super().__init__()
        self.register_buffer("taps", taps.flip(-1).contiguous())  # newest last, as the past has it

    def init_state(self, rows: int) -> Tensor:
        """(B, S, D, L - 1), zeros."""
        S, D, L = self.taps.shape
        return torch.zeros(rows, S, D, L - 1)

    def forward(self, stage: int, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) and past (B, D, L - 1) -> y (B, T, D) and the past after it."""
        taps = self.taps[stage]  # (D, L)
        stream = torch.cat([past, x.transpose(1, 2)], dim=-1)  # (B, D, L - 1 + T)
        T = x.shape[1]
        if not is_symbolic(T) and T == 1:
            return (stream * taps).sum(-1)[:, None], stream[..., 1:]
        y = F.conv1d(stream, taps[:, None], groups=taps.shape[0])
        return y.transpose(1, 2), stream[..., T:]


class ModalConvs(nn.Module):
    """The same by modal filters: poles and residues (S, D, M, 2), direct (S, D) with the skip in it."""

    poles: Tensor
    residues: Tensor
    direct: Tensor

    def __init__(self, poles: Tensor, residues: Tensor, direct: Tensor):
        super().__init__()
        self.register_buffer("poles", poles.contiguous())
        self.register_buffer("residues", residues.contiguous())
        self.register_buffer("direct", direct.contiguous())

    def init_state(self, rows: int) -> Tensor:
        """(B, S, D, M, 2), zeros."""
        return torch.zeros(rows, *self.poles.shape)

    def forward(self, stage: int, x: Tensor, modes: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) and modes (B, D, M, 2) -> y (B, T, D) and the modes after it."""
        filters = self.poles[stage], self.residues[stage], self.direct[stage]
        return walk_tokens(x, *filters, modes)


class HyenaGraph(nn.Module):
    """`longstream.layers.Hyena` with a state of one size; takes its place in a block."""

    causal, gate_size = True, None

    def __init__(self, layer: Hyena, modal: bool):
        super().__init__()
        self.in_proj, self.short_conv, self.out_proj = layer.in_proj, layer.short_conv, layer.out_proj
        self.activation, self.num_heads, self.order = layer.activation, layer.num_heads, layer.order
        assert layer.filter.skip is not None
        skip = each_head(layer.filter.by_stage(layer.filter.skip), layer.num_heads)
        if modal:
            filters = layer._modal.get(layer.filter, look=True)
            self.convs: LongConvs | ModalConvs = ModalConvs(filters.poles, filters.residues, filters.direct + skip)
        else:
            taps = each_head(layer.filter(layer.max_seq_len), layer.num_heads).clone()
            taps[..., 0] += skip
            self.convs = LongConvs(taps)
        self._conv_shape = (layer.short_conv_size - 1, (layer.order + 1) * layer.hidden_size)

    def init_state(self, batch_size: int, **_: Any) -> PastState | ModesState:
        """The state before the first token: zeros."""
        kind = ModesState if isinstance(self.convs, ModalConvs) else PastState
        return kind(torch.zeros(batch_size, *self._conv_shape), self.convs.init_state(batch_size))

    def forward(
        self, x: Tensor, state: PastState | ModesState, *, cu_seqlens: None = None, lower_bound: None = None
    ) -> tuple[Tensor, PastState | ModesState]:
        """As `Hyena.forward`."""
        c, conv = self.short_conv(self.in_proj(x), state.conv)
        c = c.unflatten(-1, (self.num_heads, self.order + 1, -1))
        first, *gates, v = (part.flatten(-2) for part in c.unbind(-2))
        after = []
        for stage, gate in enumerate(reversed(gates)):
            v, last = self.convs(stage, v * gate, state[1][:, stage])
            after.append(last)
        y = v * first
        y = y if self.activation is None else self.activation(y)
        return self.out_proj(y), type(state)(conv, torch.stack(after, 1))


class HyenaBlockGraph(nn.Module):
    """The block of Edifice's Hyena with a state of one size; takes its place in the stack."""

    def __init__(self, block: HyenaBlock):
        super().__init__()
        self.block = block
        taps = [network._taps() for network in block.filters]  # type: ignore[operator]
        self.convs = LongConvs(torch.stack(taps)) if taps else None
        self._conv_shape = (block.short_dw_conv.weight.shape[1] - 1, block.hidden_size)

    def init_state(self, batch_size: int, **_: Any) -> PastState:
        """The state before the first frame: zeros."""
        past = torch.zeros(batch_size, 0) if self.convs is None else self.convs.init_state(batch_size)
        return PastState(torch.zeros(batch_size, *self._conv_shape), past)

    def forward(self, x: Tensor, state: PastState, *, cu_seqlens: None = None) -> tuple[Tensor, PastState]:
        """As `HyenaBlock.forward`."""
        u, conv = self.block.short_dw_conv(self.block.norm(x), state.conv)
        y, *gates = self.block.proj(u).chunk(self.block.order + 1, dim=-1)
        after = []
        for stage, gate in enumerate(gates):
            assert self.convs is not None
            y, last = self.convs(stage, y, state.past[:, stage])
            y = gate * y
            after.append(last)
        return self.block._add(x, y), PastState(conv, torch.stack(after, 1) if after else state.past)


def graph_state(state: Any, like: Any) -> Any:
    """A layer's own state as its graph carries it; ``like`` is a first state of the graph's layer."""
    if isinstance(state, HyenaState | EdificeHyenaState) and isinstance(like, PastState):
        stages = state.stages() if isinstance(state, HyenaState) else state.convolutions()
        reach = like.past.shape[-1]
        pasts = [_past(stage, reach) for stage in stages]
        return PastState(state.conv, torch.stack(pasts, 1) if pasts else like.past.new_zeros(len(state.conv), 0))
    if isinstance(state, HyenaModalState) and isinstance(like, ModesState):
        return ModesState(state.conv, state.modes)
    return state


def _past(state: LongConvState, reach: int) -> Tensor:
    """The last ``reach`` inputs of each row, (B, D, reach), zeros before the first."""
    rows = []
    for row, length in enumerate(state.length.tolist()):
        parts = [state.level(m)[0][row] for m, _ in runs(length // BLOCK)]
        inputs = torch.cat([*parts, state.recent[row, : length % BLOCK]])[-reach:] if reach else state.recent[row, :0]
        rows.append(F.pad(inputs, (0, 0, reach - len(inputs), 0)).T)
    return torch.stack(rows) if rows else state.recent.new_zeros(0, state.recent.shape[-1], reach)
