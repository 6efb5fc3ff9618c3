"""The native step of a `SequenceModel`: normalization, network, pooling and head as one program."""

from __future__ import annotations

import torch

from longstream.sequences.model import PooledState, SequenceModel
from longstream.stream.layout import Fields
from longstream.stream.program import ACTIVATIONS, NONE, POOLS, Program
from longstream.stream.rules import ModelStep, apply_rule, join, model_rule, refuse

_SAME = ACTIVATIONS.index("none")


@model_rule(SequenceModel)
def sequence_model(program: Program, model: SequenceModel, path: str) -> ModelStep:
    """Frames in the units of the data in, the answer after each of them out, as `SequenceModel.step` gives it."""
    if model.why_no_state is not None:
        refuse(path, model, model.why_no_state)
    config, D = model.config, model.features.hidden_size
    C, indicators, is_forecast = len(config.channels), config.indicators, config.task == "forecast"
    allowed = torch.zeros(C, dtype=torch.bool)
    allowed[indicators] = True
    in_ = program.begin(C, allowed if indicators else None)
    z, hidden, raw, out = (program.scratch(n) for n in (config.inputs, D, config.outputs, config.outputs))
    program.add(
        "normalize",
        in_=in_,
        out=z,
        n=C,
        mean=program.constant(model.mean),
        std=program.constant(model.std),
        indicators=len(indicators),
        index=program.constant(torch.tensor(indicators)) if indicators else NONE,
    )
    is_residual = is_forecast and config.residual
    if is_residual:  # before the network, which may write over z
        _repeat_last(program, config.target_channels, config.horizon, z, raw)
    apply_rule(program, model.features, z, hidden, join(path, "features"))
    with program.part("head"):
        if is_forecast:
            program.linear(hidden, raw, model.head, add=is_residual)
        else:
            pooled, state = program.scratch(D), program.state(D)
            program.add("pool", in_=hidden, out=pooled, n=D, kind=POOLS.index(config.pooling), state=state)
            program.linear(pooled, raw, model.head)
            program.layers.append(Fields("pooling", PooledState, (state, (D,))))
    if config.task == "classify":
        return ModelStep(raw, (config.outputs,), model.fingerprint)
    horizon = config.horizon if is_forecast else 1
    program.add(
        "affine",
        in_=raw,
        out=out,
        n=config.outputs,
        weight=program.constant(model.target_std.repeat(horizon)),
        bias=program.constant(model.target_mean.repeat(horizon)),
    )
    shape = (horizon, len(config.target_names)) if is_forecast else (config.outputs,)
    return ModelStep(out, shape, model.fingerprint)


def _repeat_last(program: Program, channels: list[int], horizon: int, z: int, out: int) -> None:
    """The channels of the frame at z, once for each frame ahead, to out (horizon, channels)."""
    starts = [i for i, c in enumerate(channels) if i == 0 or c != channels[i - 1] + 1]  # of runs of neighbors
    for start, stop in zip(starts, [*starts[1:], len(channels)], strict=True):
        _copy(program, z + channels[start], out + start, stop - start)
    for frame in range(1, horizon):
        _copy(program, out, out + frame * len(channels), len(channels))


def _copy(program: Program, in_: int, out: int, n: int) -> None:
    program.add("multiply", a=in_, activation=_SAME, b=NONE, out=out, n=n)
