"""Step rules of Hyena and of Edifice's Hyena, and how their states stand in rows and on tapes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from longstream.edifice._hyena import TAPS, HyenaBlock
from longstream.edifice._hyena_state import EdificeHyenaState
from longstream.layers import Hyena, ShortConv
from longstream.layers.hyena_decode import check_length
from longstream.layers.hyena_state import HyenaModalState, HyenaNaiveState, HyenaState
from longstream.layers.hyena_taps import each_head
from longstream.ops import LongConvFilters, long_conv
from longstream.ops.long_conv.state import BLOCK
from longstream.stream._rules import activation, short_conv
from longstream.stream._tiles import Tiles
from longstream.stream.layout import check_shape, put, take
from longstream.stream.program import ACTIVATIONS, NONE, Program
from longstream.stream.rules import apply_rule, join, refuse, step_rule

_SAME = ACTIVATIONS.index("none")


@step_rule(Hyena)
def hyena(
    program: Program,
    module: Hyena,
    in_: int,
    out: int,
    path: str,
    *,
    add: bool = False,
    lower_bound: None = None,
) -> None:
    """The equations of `Hyena`, in order. The channels of each of x_0, ..., v stand together, whatever the heads."""
    if not module.causal:
        refuse(path, module, "causal is False, which needs a whole sequence at once")
    D, parts, stages = module.hidden_size, module.order + 1, module.order - 1
    order = None
    if module.num_heads > 1:  # (head, part, D / H) -> (part, head, D / H)
        order = torch.arange(parts * D).view(module.num_heads, parts, -1).transpose(0, 1).flatten()
    assert module.filter.skip is not None
    skips = each_head(module.filter.by_stage(module.filter.skip.detach()), module.num_heads)
    if module.longest is not None:
        program.limit(module.longest, partial(check_length, max_seq_len=module.longest))
    with program.room():
        projected, c, g, v = (program.scratch(size) for size in (parts * D, parts * D, D, D))
        program.linear(in_, projected, _reordered_linear(module.in_proj, order))
        at = short_conv(program, [_reordered_conv(module.short_conv, order)], projected, c)
        conv = _Conv(path, at, (module.short_conv_size - 1, parts * D), order)
        layout = _LAYOUTS[module.decode](path, module, skips, conv)
        now = c + stages * D + D
        for stage in range(stages):
            _multiply(program, now, c + (stages - stage) * D, g, D)
            layout.convolve(program, g, v)
            now = v
        _multiply(program, v, c, g, D)
        if module.activation is not None:
            number = activation(path, module, module.activation)
            program.add("multiply", a=g, activation=number, b=NONE, out=v, n=D)
            g = v
        program.linear(g, out, module.out_proj, add=add)
    program.layers.append(layout)


@step_rule(HyenaBlock)
def hyena_block(program: Program, module: HyenaBlock, in_: int, out: int, path: str) -> None:
    """The equations of `HyenaBlock`, in order. In place: ``out`` is ``in_``."""
    assert in_ == out
    D, order = module.hidden_size, module.order

    def check_frames(frames: int) -> None:
        module._check_length([frames], [1])

    program.limit(module.seq_len, check_frames)
    with program.room(), program.part(path):
        u, c, y = (program.scratch(size) for size in (D, D, (order + 1) * D))
        apply_rule(program, module.norm, out, u, join(path, "norm"))
        conv = _Conv(path, short_conv(program, [module.short_dw_conv], u, c), (TAPS - 1, D), None)
        program.linear(c, y, module.proj)
        tiles = []
        for j, network in enumerate(module.filters):
            taps = network()
            taps = taps.taps if isinstance(taps, LongConvFilters) else taps.detach()
            tiles.append(Tiles(program, u if j else y, c, taps, None, module.seq_len))
            _multiply(program, c, y + (j + 1) * D, u, D)
        program.linear(u if order else y, out, module.out_proj, add=True)
    with program.room(), program.part(path):
        q, both, product = (program.scratch(size) for size in (D, 8 * D, 4 * D))
        apply_rule(program, module.ffn_norm, out, q, join(path, "ffn_norm"))
        program.linear(q, both, module.ffn_gate, module.ffn_up)
        silu = ACTIVATIONS.index("silu")
        program.add("multiply", a=both, activation=silu, b=both + 4 * D, out=product, n=4 * D)
        program.linear(product, out, module.ffn_down, add=True)
    program.layers.append(_Edifice(path, conv, tiles))


def _multiply(program: Program, a: int, b: int, out: int, n: int) -> None:
    program.add("multiply", a=a, activation=_SAME, b=b, out=out, n=n)


def _reordered_linear(linear: nn.Linear, order: Tensor | None) -> nn.Linear:
    if order is None or type(linear) is not nn.Linear:  # the program refuses others
        return linear
    copy = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    copy.weight = nn.Parameter(linear.weight.detach()[order])
    copy.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach()[order])  # type: ignore[assignment]
    return copy


def _reordered_conv(conv: ShortConv, order: Tensor | None) -> ShortConv:
    if order is None:
        return conv
    with torch.device("meta"):  # where nothing is drawn from the user's random numbers
        copy = ShortConv(*conv.weight.shape, bias=conv.bias is not None)
    copy.load_state_dict({name: tensor[order] for name, tensor in conv.state_dict().items()}, assign=True)
    return copy


class _Conv:
    """Where the last inputs of the short convolution stand, (W - 1, channels), the channels in another order."""

    def __init__(self, path: str, offset: int, shape: tuple[int, int], order: Tensor | None):
        self.path, self.offset, self.shape, self.order = path, offset, shape, order
        self.back = None if order is None else order.argsort()

    def write(self, conv: Tensor, rows: Tensor) -> None:
        check_shape(self.path, "conv", conv, (len(rows), *self.shape))
        put(conv if self.order is None else conv[..., self.order], rows, self.offset)

    def read(self, rows: Tensor) -> Tensor:
        conv = take(rows, self.offset, self.shape)
        return conv if self.back is None else conv[..., self.back]


class _Tiled:
    """The state of `Hyena` with decode "tiled": its long convolutions on the tape."""

    kind: type[Any] = HyenaState

    def __init__(self, path: str, module: Hyena, skips: Tensor, conv: _Conv):
        self.path, self.conv, self.longest = path, conv, module.max_seq_len
        self.taps = module._caches["filter"].taps(module.filter, self.longest, look=True)[..., : self.longest].detach()
        self.skips, self.tiles = skips, list[Tiles]()

    def convolve(self, program: Program, in_: int, out: int) -> None:
        """The next stage's."""
        stage = len(self.tiles)
        self.tiles.append(Tiles(program, in_, out, self.taps[stage], self.skips[stage], self.longest))

    def write(self, layer: Any, rows: Tensor, tape: Tensor, position: Tensor) -> None:
        """See `LayerLayout`."""
        self.conv.write(layer.conv, rows)
        check_shape(self.path, "recent", layer[2], (len(rows), len(self.tiles), BLOCK, self.tiles[0].channels))
        for tiles, state in zip(self.tiles, layer.stages(), strict=True):
            tiles.write(f"State: layer {self.path}", state, tape, position)

    def read(self, rows: Tensor, tape: Tensor, position: Tensor) -> Any:
        """See `LayerLayout`."""
        states = [tiles.read(tape, position)[1:] for tiles in self.tiles]
        return HyenaState(
            self.conv.read(rows), position.clone(), *(torch.stack(same, 1) for same in zip(*states, strict=True))
        )


class _Naive(_Tiled):
    """The same with decode "naive": what runs prepare is in no such state, and is made when one is written."""

    kind = HyenaNaiveState

    def write(self, layer: Any, rows: Tensor, tape: Tensor, position: Tensor) -> None:
        """See `LayerLayout`."""
        self.conv.write(layer.conv, rows)
        lengths, D = position.tolist(), self.tiles[0].channels
        check_shape(self.path, "past", layer.past, (len(rows), len(self.tiles), layer.past.shape[-2], D))
        if layer.length.tolist() != lengths or layer.past.shape[2] < max(lengths, default=0):
            raise ValueError(
                f"State: layer {self.path}: length must be the state's position {lengths}, and as many past"
            )
        for stage, (tiles, taps) in enumerate(zip(self.tiles, self.taps, strict=True)):
            for row, length in enumerate(lengths):
                here = slice(row, row + 1)
                _, state = long_conv(layer.past[here, stage, :length], taps)
                tiles.write(f"State: layer {self.path}", state, tape[here], position[here])

    def read(self, rows: Tensor, tape: Tensor, position: Tensor) -> Any:
        """See `LayerLayout`."""
        past = torch.stack([tiles.inputs(tape, position) for tiles in self.tiles], 1)
        return HyenaNaiveState(self.conv.read(rows), position.clone(), past)


class _Modal:
    """The state of `Hyena` with decode "modal"."""

    kind = HyenaModalState

    def __init__(self, path: str, module: Hyena, skips: Tensor, conv: _Conv):
        self.path, self.skips, self.conv = path, skips, conv
        self.modal = module._modal.get(module.filter, look=True)
        if any(tensor.dtype != torch.float32 for tensor in self.modal):
            refuse(path, module, f"its modal filters must be float32, got {self.modal.poles.dtype}")
        self.states: list[int] = []

    def convolve(self, program: Program, in_: int, out: int) -> None:
        """The next stage's."""
        stage = len(self.states)
        poles, residues, direct = (tensor[stage].detach() for tensor in self.modal)  # (D, M, 2) twice, and (D,)
        self.states.append(program.state(poles.numel()))
        program.add(
            "modal",
            in_=in_,
            out=out,
            n=len(direct),
            modes=poles.shape[1],
            poles=program.constant(poles.permute(1, 2, 0)),
            residues=program.constant(residues.permute(1, 2, 0)),
            direct=program.constant(direct + self.skips[stage]),
            state=self.states[-1],
        )

    def write(self, layer: Any, rows: Tensor, tape: Tensor, position: Tensor) -> None:
        """See `LayerLayout`."""
        self.conv.write(layer.conv, rows)
        check_shape(self.path, "modes", layer.modes, (len(rows), *self.modal.poles.shape))
        if layer.length.tolist() != position.tolist():
            wanted, got = position.tolist(), layer.length.tolist()
            raise ValueError(f"State: layer {self.path}: length must be the state's position {wanted}, got {got}")
        for stage, offset in enumerate(self.states):
            put(layer.modes[:, stage].permute(0, 2, 3, 1), rows, offset)

    def read(self, rows: Tensor, tape: Tensor, position: Tensor) -> Any:
        """See `LayerLayout`."""
        _, D, modes, _ = self.modal.poles.shape
        stages = [take(rows, offset, (modes, 2, D)).permute(0, 3, 1, 2) for offset in self.states]
        return HyenaModalState(self.conv.read(rows), position.clone(), torch.stack(stages, 1))


class _Edifice:
    """The state of `HyenaBlock`."""

    kind = EdificeHyenaState

    def __init__(self, path: str, conv: _Conv, tiles: list[Tiles]):
        self.path, self.conv, self.tiles = path, conv, tiles

    def write(self, layer: Any, rows: Tensor, tape: Tensor, position: Tensor) -> None:
        """See `LayerLayout`."""
        self.conv.write(layer.conv, rows)
        shape = (len(rows), len(self.tiles), BLOCK, self.conv.shape[1])
        check_shape(self.path, "recent", layer.recent, shape)
        if layer.length.tolist() != position.tolist():
            wanted, got = position.tolist(), layer.length.tolist()
            raise ValueError(f"State: layer {self.path}: length must be the state's position {wanted}, got {got}")
        for tiles, state in zip(self.tiles, layer.convolutions(), strict=True):
            tiles.write(f"State: layer {self.path}", state, tape, position)

    def read(self, rows: Tensor, tape: Tensor, position: Tensor) -> Any:
        """See `LayerLayout`."""
        D = self.conv.shape[1]
        start = EdificeHyenaState.zeros(len(rows), len(self.tiles), D, 1, rows.device, rows.dtype)
        return start.after(self.conv.read(rows), position.clone(), [tiles.read(tape, position) for tiles in self.tiles])


_LAYOUTS: dict[str, type[_Tiled | _Modal]] = {"tiled": _Tiled, "naive": _Naive, "modal": _Modal}
