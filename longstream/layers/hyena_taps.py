"""The taps of Hyena's filters, made once for as long as nothing they are made of changes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longstream.layers.hyena_filter import HyenaFilter
from longstream.layers.modal import ModalFilter
from longstream.ops import LongConvFilters
from longstream.ops._check import wide

FIRST_PIECE = 1024  # taps; the pieces after it double what there is
PROBE = 8  # taps; one would tell two adapters apart, if it is not of the few where their filters cross


class Snapshot:
    """What a filter's parameters and buffers hold now, to be compared with what they hold later.

    A write is seen by a tensor's version, a new tensor by identity and address. Two ways of writing change neither,
    fused optimizers and ``.data``: only a look at all contents is sure to see them. Without that look, the contents of
    one tensor stand for all. Where there are adapters, which can be switched without any write, the first taps are made
    anew and compared.
    """

    def __init__(self, filter: HyenaFilter):
        self._names = self._find(filter)
        self._contents = [tensor.detach().clone() for tensor in self._tensors]
        self._probe = _probe(filter)

    def holds(self, filter: HyenaFilter, *, look: bool) -> bool:
        """Whether the contents are the same, on whatever device, in whatever dtype; ``look`` reads all of them."""
        if not look and self._same(filter):
            same = _equal(self._tensors[self._sign], self._contents[self._sign])
        else:
            same = self._find(filter) == self._names and all(map(_equal, self._tensors, self._contents))
        probe = _probe(filter) if same else None
        if probe is not None and self._probe is not None:
            same = torch.equal(probe, self._probe.to(probe.device, probe.dtype))
        if not same:
            self._marks = None  # those just taken are of other contents
        return same

    def _find(self, filter: HyenaFilter) -> list[Any]:
        """The names of all that the taps are made of; remembers who they are, and where they are held."""
        tensors: list[tuple[str, dict[str, Any], str, Tensor]] = []
        self._filter, self._modules = filter, []
        for prefix, module in filter.named_modules():
            self._modules += [(module._modules, name, child) for name, child in module._modules.items()]
            for held in (module._parameters, module._buffers):
                tensors += [(prefix, held, name, tensor) for name, tensor in held.items() if tensor is not None]
        tensors = [place for place in tensors if place[-1] is not filter.skip]
        self._places = [(held, name) for _, held, name, _ in tensors]
        self._tensors = [tensor for *_, tensor in tensors]  # held, so that no other tensor gets their identity
        learning = [i for i, tensor in enumerate(self._tensors) if tensor.requires_grad] or range(len(tensors))
        self._sign = min(learning, key=lambda i: self._tensors[i].numel())  # the one that stands for all
        has_versions = not any(tensor.is_inference() for tensor in self._tensors)  # made under inference_mode: none
        self._marks = [(tensor._version, tensor.data_ptr()) for tensor in self._tensors] if has_versions else None
        self._choices = _choices(filter)
        return [*self._choices, *(f"{prefix}.{name}" for prefix, _, name, _ in tensors)]

    def _same(self, filter: HyenaFilter) -> bool:
        if filter is not self._filter or self._marks is None or _choices(filter) != self._choices:
            return False
        for held, name, then in self._modules:
            if held.get(name) is not then:
                return False
        for (held, name), then, mark in zip(self._places, self._tensors, self._marks, strict=True):
            now = held.get(name)
            if now is None or now is not then or (now._version, now.data_ptr()) != mark:
                return False
        return True


def _choices(filter: HyenaFilter) -> tuple[float, bool, str]:
    return filter.window_shift, filter.normalize_filter, filter.filter_layout


def _probe(filter: HyenaFilter) -> Tensor | None:
    """The first taps, where it is not the tensors alone that decide them."""
    if filter.is_plain:
        return None
    with torch.inference_mode(False), torch.no_grad():
        return filter.taps(0, min(PROBE, filter.max_seq_len))


def _equal(now: Tensor, then: Tensor) -> bool:
    if type(now) is type(then) and hasattr(now, "__tensor_flatten__"):  # quantized: torch.equal is not made for it
        parts = now.__tensor_flatten__()[0]  # type: ignore[attr-defined]
        return all(_equal(getattr(now, part), getattr(then, part)) for part in parts)
    dtype = min(now.dtype, then.dtype, key=lambda dtype: dtype.itemsize)
    return now.shape == then.shape and torch.equal(now.to(dtype), then.to(now.device, dtype))


class _Kept(NamedTuple):
    made_from: Snapshot
    taps: Tensor  # (N - 1, H C, some)
    ready: list[LongConvFilters]  # the same, stage by stage


class TapsCache:
    """Taps of one `HyenaFilter` for all heads, kept where no gradient is wanted, in pieces as they are needed.

    The pieces always end at the same lags, so that no tap depends, in its last bits, on how many were asked for.
    """

    def __init__(self, num_heads: int):
        self.num_heads = num_heads
        self._kept: _Kept | None = None  # replaced as a whole: threads may share a module

    def taps(self, filter: HyenaFilter, count: int, *, look: bool) -> Tensor:
        """At least the first ``count`` >= 1 taps, (N - 1, H C, count or more); ``look``: see `Snapshot.holds`."""
        if _made_anew(filter):
            return each_head(filter(count), self.num_heads)
        return self._get(filter, count, look).taps

    def ready(self, filter: HyenaFilter, count: int, *, look: bool) -> Sequence[LongConvFilters | Tensor]:
        """The same for each stage, as `longstream.ops.long_conv` wants it."""
        if _made_anew(filter):
            return each_head(filter(count), self.num_heads).unbind()
        return self._get(filter, count, look).ready

    def _get(self, filter: HyenaFilter, count: int, look: bool) -> _Kept:
        kept, like = self._kept, filter.frequency
        if kept is not None and (kept.taps.dtype != wide(like) or kept.taps.device != like.device):
            kept = None
        if kept is not None and not kept.made_from.holds(filter, look=look):
            kept = None
        have = 0 if kept is None else kept.taps.shape[-1]
        if kept is None or have < count:
            made_from, pieces = (Snapshot(filter), []) if kept is None else (kept.made_from, [kept.taps])
            with torch.inference_mode(False), torch.no_grad():  # a later call may want gradients of its inputs
                while have < count:
                    stop = min(2 * have or FIRST_PIECE, filter.max_seq_len)
                    pieces.append(each_head(filter.taps(have, stop), self.num_heads))
                    have = stop
                taps = torch.cat(pieces, -1)
                self._kept = kept = _Kept(made_from, taps, [LongConvFilters(stage) for stage in taps])
        return kept


def _made_anew(filter: HyenaFilter) -> bool:
    """Whether gradients may be wanted, or the call is being traced."""
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in filter.parameters())
    return learns or torch.compiler.is_compiling()


class ModalCopy:
    """Modal filters in the place of a `HyenaFilter`'s, for all heads.

    Args:
        modal:       of N - 1 stages and C channels; None for none yet.
        num_heads:   H.
        extrapolate: whether they go on past the filter's max_seq_len.
        made_from:   what the filter held when they were distilled from it; None where they were given.
    """

    def __init__(
        self, modal: ModalFilter | None, num_heads: int, extrapolate: bool = False, made_from: Snapshot | None = None
    ):
        self._modal = None if modal is None else ModalFilter(*(each_head(tensor, num_heads) for tensor in modal))
        self.extrapolate, self._made_from = extrapolate, made_from

    @property
    def order(self) -> int:
        """M, modes of a channel."""
        return self._given().poles.shape[2]

    def get(self, filter: HyenaFilter, *, look: bool) -> ModalFilter:
        """Poles and residues (N - 1, H C, M, 2), direct (N - 1, H C), on the filter's device.

        Raises:
            RuntimeError: there are none, or the filter changed after they were distilled.
        """
        modal = self._given()
        made_from = None if torch.compiler.is_compiling() else self._made_from  # a graph does not stop to look
        if made_from is not None and not made_from.holds(filter, look=look):
            raise RuntimeError("Hyena: decode 'modal' is stale: the filters changed after distill(); call it again")
        if modal.poles.device != filter.frequency.device:
            self._modal = modal = ModalFilter(*(tensor.to(filter.frequency.device) for tensor in modal))
        return modal

    def _given(self) -> ModalFilter:
        if self._modal is None:
            raise RuntimeError("Hyena: decode 'modal' needs modal filters; call distill() or set_modal() first")
        return self._modal


def each_head(tensor: Tensor, num_heads: int) -> Tensor:
    """(N - 1, C, ...) -> (N - 1, H C, ...), the same for each head."""
    return tensor if num_heads == 1 else tensor.repeat(1, num_heads, *[1] * (tensor.dim() - 2))
