"""The equivalence contract as a function: every way of feeding a sequence gives the same numbers.

    parallel == in pieces == token by token == left-padded == right-padded == packed == batched with others

in outputs, final states and every gradient: of inputs, parameters, initial and final states.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longstream.layers.state import cat_states, even_out
from longstream.models.state import State

# Of the largest value of the tensor compared. A float64 operation loses 1e-16 and a few hundred add up: 6e-15 was the
# worst seen over 257 tokens and 3 layers, 1e-9 is far above that and far below any mistake. A float32 operation loses
# 6e-8 and the ways sum in different orders: 5e-6 was the worst seen.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 5e-5}


class _Sequences(NamedTuple):
    """Sequences of different lengths, each with the state it starts from and the cotangents of what it gives."""

    inputs: list[Tensor]  # (1, T_i, ...)
    states: list[Any]  # of one row each; None for a module that looks both ways
    out_cotangents: list[Tensor]
    state_cotangents: list[list[list[Tensor]]]  # of each layer's tensors; zeros for integers


def assert_equivalent(
    module: nn.Module,
    make_input: Callable[[int], Tensor] | None = None,
    *,
    lengths: Sequence[int] = (0, 1, 2, 63, 130),
    tolerance: float | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> None:
    """Check that ``module`` honors the equivalence contract, in the dtype of its parameters.

    The module has ``forward(x, state=None, *, mask=None, cu_seqlens=None) -> (y, state)`` and ``step(x_t, state)``,
    state being a NamedTuple of tensors or a `State`; every layer, block and model of this library does, and anyone's
    may. For each length T, sequences of T, about T/2 and 0 tokens, each from a nonzero state, are run alone, in one
    pass. That is compared with: the batch of them padded on the left, on the right and inside, with NaN (for ids: 0)
    on the pads; packed in one row; two of length T batched; cut into pieces, at the ends and in between; and token by
    token. A module whose attribute ``causal`` is False looks both ways: it has no state and no step, and is compared in
    the ways that need neither.

    Args:
        module:     in the mode (train or eval) to be checked; it must be deterministic.
        make_input: T -> one sequence (T, ...). None makes normal features of size ``module.hidden_size``, or ids below
                    ``module.vocab_size`` if there is one.
        lengths:    the T to check, in tokens.
        tolerance:  largest difference allowed, relative to the largest value of the tensor compared. None: 1e-9 in
                    float64, 5e-5 in float32, 5e-2 in half precision. Integers must be equal.
        seed:       of inputs, states and cotangents.
        kwargs:     more keyword arguments of forward and step; tensors that require gradients are checked too.
    Raises:
        AssertionError: the way of feeding, the length, which output, state or gradient differs, and by how much.
    """
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    tolerance = TOLERANCES.get(dtype, 5e-2) if tolerance is None else tolerance
    make_input = make_input or _input_maker(module, dtype)
    if not lengths:
        raise ValueError("assert_equivalent: lengths must hold at least one length, got none")
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        for T in lengths:
            ragged = _sequences(module, make_input, [T, (T + 1) // 2, 0], kwargs)
            even = _sequences(module, make_input, [T, T], kwargs)
            for sequences in (ragged, even):
                alone = _measure(module, sequences, _alone, kwargs)
                for way, feed in _ways(T, _is_causal(module)):
                    if feed is _batched and sequences is ragged:
                        continue
                    got = _measure(module, sequences, feed, kwargs)
                    _compare(f"{way}, T={T}", got, alone, tolerance)
            if _is_causal(module):
                _check_start(module, make_input(max(T, 1))[None], kwargs, tolerance)
    finally:
        torch.random.set_rng_state(generator_state)


# The ways of feeding: each takes the module, inputs and states of the sequences, and kwargs; returns outs and states.


def _is_causal(module: nn.Module) -> bool:
    return bool(getattr(module, "causal", True))


def _ways(T: int, causal: bool) -> Iterator[tuple[str, Callable[..., Any]]]:
    yield "left-padded", _padded("left")
    yield "right-padded", _padded("right")
    yield "padded inside", _padded("inside")
    yield "packed", _packed
    yield "batched", _batched
    if not causal:
        return
    cuts = {(0,), (T,), (1,), (T // 2,), (T - 1,), (T // 3, T // 3, T - 2)}
    for cut in sorted(cut for cut in cuts if all(0 <= at <= T for at in cut)):
        yield f"in pieces, cut at {cut}", _pieces(cut)
    yield "token by token", _steps


def _alone(module: nn.Module, inputs: list[Tensor], states: list[Any], kwargs: dict[str, Any]) -> Any:
    return zip(*(module(x, state, **kwargs) for x, state in zip(inputs, states, strict=True)), strict=True)


def _batched(module: nn.Module, inputs: list[Tensor], states: list[Any], kwargs: dict[str, Any]) -> Any:
    y, state = module(torch.cat(inputs), _join(states), **kwargs)
    return y.split(1), _part(state, len(inputs))


def _packed(module: nn.Module, inputs: list[Tensor], states: list[Any], kwargs: dict[str, Any]) -> Any:
    lengths = [x.shape[1] for x in inputs]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    y, state = module(torch.cat(inputs, dim=1), _join(states), cu_seqlens=cu_seqlens, **kwargs)
    return y.split(lengths, dim=1), _part(state, len(inputs))


def _padded(side: str) -> Callable[..., Any]:
    def feed(module: nn.Module, inputs: list[Tensor], states: list[Any], kwargs: dict[str, Any]) -> Any:
        width = max(x.shape[1] for x in inputs) + 3
        mask = torch.zeros(len(inputs), width, dtype=torch.long)
        rows = []
        for row, x in enumerate(inputs):
            T = x.shape[1]
            places = {
                "left": torch.arange(width - T, width),
                "right": torch.arange(T),
                "inside": torch.randperm(width)[:T].sort().values,
            }[side]
            mask[row, places] = 1
            pads = x.new_full((1, width, *x.shape[2:]), float("nan") if x.is_floating_point() else 0)
            rows.append(pads.index_copy(1, places, x))
        y, state = module(torch.cat(rows), _join(states), mask=mask, **kwargs)
        if (y[mask == 0] != 0).any():
            raise AssertionError(f"assert_equivalent: padded ({side}): outputs at pads must be 0")
        return [y[row : row + 1, mask[row] == 1] for row in range(len(inputs))], _part(state, len(inputs))

    return feed


def _pieces(cut: tuple[int, ...]) -> Callable[..., Any]:
    def feed(module: nn.Module, inputs: list[Tensor], states: list[Any], kwargs: dict[str, Any]) -> Any:
        outs, lasts = [], []
        for x, state in zip(inputs, states, strict=True):
            parts = []
            for left, right in zip((0, *cut), (*cut, x.shape[1]), strict=True):
                y, state = module(x[:, left:right], state, **kwargs)
                parts.append(y)
            outs.append(torch.cat(parts, dim=1))
            lasts.append(state)
        return outs, lasts

    return feed


def _steps(module: nn.Module, inputs: list[Tensor], states: list[Any], kwargs: dict[str, Any]) -> Any:
    outs, lasts = [], []
    for x, state in zip(inputs, states, strict=True):
        parts = [module(x[:, :0], state, **kwargs)[0]]
        for t in range(x.shape[1]):
            y, state = module.step(x[:, t], state, **kwargs)  # type: ignore[operator]
            parts.append(y[:, None])
        outs.append(torch.cat(parts, dim=1))
        lasts.append(state)
    return outs, lasts


# Making sequences, running one way of feeding, comparing.


def _input_maker(module: nn.Module, dtype: torch.dtype) -> Callable[[int], Tensor]:
    vocab_size, hidden_size = getattr(module, "vocab_size", None), getattr(module, "hidden_size", None)
    if isinstance(vocab_size, int):
        return lambda T: torch.randint(vocab_size, (T,))
    if isinstance(hidden_size, int):
        return lambda T: torch.randn(T, hidden_size, dtype=dtype)
    raise ValueError("assert_equivalent: the module has neither vocab_size nor hidden_size; pass make_input")


def _sequences(
    module: nn.Module, make_input: Callable[[int], Tensor], lengths: list[int], kwargs: dict[str, Any]
) -> _Sequences:
    inputs = [make_input(T)[None] for T in lengths]
    states, out_cotangents, state_cotangents = [], [], []
    with torch.no_grad():
        for i, x in enumerate(inputs):
            start = None
            if _is_causal(module):
                _, start = module(make_input(4 + i)[None], **kwargs)  # a state that a sequence really leaves behind
                start = _with_tensors(start, [t.clone() for t in _tensors(start)])
            states.append(start)
            y, last = module(x, start, **kwargs)
            out_cotangents.append(torch.randn_like(y))
            state_cotangents.append(
                [
                    [torch.randn_like(t) if t.is_floating_point() else torch.zeros_like(t) for t in layer]
                    for layer in _layers(last)
                ]
            )
    return _Sequences(inputs, states, out_cotangents, state_cotangents)


def _measure(
    module: nn.Module, sequences: _Sequences, feed: Callable[..., Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    def leaf(x: Tensor) -> Tensor:
        return x.clone().requires_grad_() if x.is_floating_point() else x.clone()

    inputs = [leaf(x) for x in sequences.inputs]
    starts = [[leaf(t) for t in _tensors(state)] for state in sequences.states]
    outs, lasts = feed(module, inputs, [*map(_with_tensors, sequences.states, starts)], kwargs)
    for start, given in zip(starts, sequences.states, strict=True):
        if not all(torch.equal(a, b) for a, b in zip(start, _tensors(given), strict=True)):
            raise AssertionError("assert_equivalent: the module changed a state it was given")

    values: dict[str, Any] = {}
    loss = torch.zeros(())
    for i, (out, last) in enumerate(zip(outs, lasts, strict=True)):
        loss = loss + (out * sequences.out_cotangents[i]).sum()
        values[f"output of sequence {i}"] = out.detach()
        for n, (layer, cotangents) in enumerate(zip(_layers(last), sequences.state_cotangents[i], strict=True)):
            values[f"final state of sequence {i}, layer {n}"] = [t.detach() for t in layer]
            for tensor, cotangent in zip(*even_out([layer, cotangents]), strict=True):
                if tensor.is_floating_point():
                    loss = loss + (tensor * cotangent).sum()
    leaves = {f"parameter {name}": p for name, p in module.named_parameters() if p.requires_grad}
    leaves |= {name: x for name, x in kwargs.items() if isinstance(x, Tensor) and x.requires_grad}
    leaves |= {f"input {i}": x for i, x in enumerate(inputs) if x.requires_grad}
    for i, start in enumerate(starts):
        leaves |= {f"initial state {i}, tensor {j}": t for j, t in enumerate(start) if t.requires_grad}
    if loss.requires_grad and leaves:
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for (name, x), gradient in zip(leaves.items(), gradients, strict=True):
            values[f"gradient of {name}"] = torch.zeros_like(x) if gradient is None else gradient
    return values


def _compare(where: str, got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for name, value in got.items():
        if isinstance(value, list):  # a state, which may keep room for more than it holds
            for j, (one, reference) in enumerate(zip(*even_out([value, expected[name]]), strict=True)):
                _compare_one(f"{where}: {name}, tensor {j}", one, reference, tolerance)
        else:
            _compare_one(f"{where}: {name}", value, expected[name], tolerance)


def _compare_one(what: str, value: Tensor, reference: Tensor, tolerance: float) -> None:
    if value.shape != reference.shape:
        raise AssertionError(
            f"assert_equivalent: {what} must have shape {tuple(reference.shape)}, got {tuple(value.shape)}"
        )
    if not value.numel():
        return
    if not value.is_floating_point():
        tolerance = 0.0  # a count that is off by one is wrong, however large it is
    difference = (value.double() - reference.double()).abs().max()
    scale = reference.double().abs().max()
    if not difference <= tolerance * scale:
        raise AssertionError(
            f"assert_equivalent: {what} differs by {difference:.1e} from the sequence alone in one pass,"
            f" of a largest value {scale:.1e} (tolerance {tolerance:.0e} of it)"
        )


def _check_start(module: nn.Module, x: Tensor, kwargs: dict[str, Any], tolerance: float) -> None:
    """No state must mean the state that `forward` gives after no tokens."""
    with torch.no_grad():
        zero = module(x[:, :0], None, **kwargs)[1]
        outs = [{"output": module(x, state, **kwargs)[0]} for state in (None, zero)]
    _compare("from no state", outs[0], outs[1], tolerance)


def _layers(state: Any) -> list[Any]:
    """The tuples of tensors that a state is made of."""
    if state is None:
        return []
    return [state] if isinstance(state, tuple) else [*state.layers, (state.position,)]


def _tensors(state: Any) -> list[Tensor]:
    return [tensor for layer in _layers(state) for tensor in layer]


def _with_tensors(like: Any, tensors: list[Tensor]) -> Any:
    if like is None:
        return None
    return type(like)(*tensors) if isinstance(like, tuple) else like.with_tensors(tensors)


def _join(states: list[Any]) -> Any:
    """One state of several rows from states of one row."""
    if states[0] is None:
        return None
    return State.cat(states) if isinstance(states[0], State) else cat_states(states)


def _part(state: Any, rows: int) -> list[Any]:
    """States of one row from one of several."""
    return [_with_tensors(state, [t[row : row + 1] for t in _tensors(state)]) for row in range(rows)]
