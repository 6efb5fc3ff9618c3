"""What the runs of all studies on text have in common, and models of equal size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from longstream.studies.study import Scale

BYTES = 257  # tokens: the bytes, and what stands between documents

# Of every run on text; the figures are of the last step, on what is held out.
LANGUAGE: dict[str, Any] = {
    "data.files": ("builtin",),
    "data.seq_len": 256,
    "data.validation_bytes": 50_000,
    "train.batch_size": 8,
    "train.eval_every": 0,
    "train.save_every": 200,
    "train.keep": 1,
    "train.sample_tokens": 0,
}
# Runs of the small scale are short, so they make many small steps, from weights drawn about as 1 / sqrt(width): with
# the usual 0.02 hundreds of steps go by before heads of 32 and more tell their keys apart. HGRN2 of n = 32 after as
# many bytes: 3.04 bits per byte with batches of 8 and 0.02, 2.54 with 0.1, 2.37 with batches of 4, too.
SHORT: dict[Scale, dict[str, Any]] = {
    "small": {"train.batch_size": 4, "model.block_options": ("initializer_range=0.1",)},
    "medium": {"data.seq_len": 1024, "data.validation_bytes": 500_000},
}
SHORT_NOTE = (
    "Small runs on text are given what helps all models to learn in few steps: batches of four sequences or fewer, and "
    "weights drawn with about 1 / sqrt(width) in place of 0.02. They read less than a megabyte, which favors what "
    "learns quickly over what learns more in the end."
)
# The networks by scale: parameters that all of them have, and the shape of those that have an MLP.
SHAPES: dict[Scale, tuple[int, dict[str, Any]]] = {
    "small": (400_000, {"model.hidden_size": 96, "model.num_hidden_layers": 3}),
    "medium": (12_000_000, {"model.hidden_size": 384, "model.num_hidden_layers": 8}),
}
DEPTHS: dict[Scale, tuple[int, ...]] = {"small": (3, 4, 5, 6), "medium": (10, 12, 14, 16)}  # of Mamba and Mamba-2
NO_MLP = ("mamba", "mamba2")


def language_settings(
    model: str, scale: Scale, *, steps: int, learning_rate: float, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Settings of a run on text: ``model`` at the scale's number of parameters, and ``more``, which wins."""
    parameters, shape = SHAPES[scale]
    settings = {
        **LANGUAGE,
        "model.name": model,
        **shape,
        **SHORT[scale],
        "train.steps": steps,
        "train.learning_rate": learning_rate,
        **(more or {}),
    }
    return of_size(settings, parameters, depths=DEPTHS[scale])


def of_size(
    settings: Mapping[str, Any],
    parameters: int,
    *,
    vocab_size: int = BYTES,
    seq_len: int = 0,
    depths: tuple[int, ...] = (),
) -> dict[str, Any]:
    """The settings with that width of the MLP which comes nearest to so many parameters.

    Mamba and Mamba-2 have no MLP: of them width and depth are chosen.

    Args:
        settings: flat; those of the data and the training stay as they are.
        seq_len:  tokens of a training sequence, where "data.seq_len" does not say.
        depths:   of Mamba and Mamba-2, to choose from.
    Raises:
        ValueError: the mixers alone have more parameters, or nothing comes within 2 %.
    """
    shape = {key: value for key, value in settings.items() if key.startswith("model.")}
    seq_len = seq_len or int(settings["data.seq_len"])
    found = _size(tuple(sorted(shape.items())), parameters, vocab_size, seq_len, depths)
    return {**settings, **dict(found)}


def like_first(
    settings: Mapping[str, Any], first: Mapping[str, Any], *, vocab_size: int, seq_len: int
) -> dict[str, Any]:
    """``settings`` with as many parameters as a model of ``first`` has, by the width of the MLP."""
    parameters = _count(tuple(sorted(first.items())), vocab_size, seq_len)
    return of_size(settings, parameters, vocab_size=vocab_size, seq_len=seq_len)


@lru_cache(maxsize=4096)
def _count(shape: tuple[tuple[str, Any], ...], vocab_size: int, seq_len: int) -> int:
    from longstream.train.models import count
    from longstream.train.settings import build_settings

    return count(build_settings(dict(shape)).model, vocab_size, seq_len)


@lru_cache(maxsize=256)
def _size(
    shape: tuple[tuple[str, Any], ...], parameters: int, vocab_size: int, seq_len: int, depths: tuple[int, ...]
) -> tuple[tuple[str, int], ...]:
    """The keys of a shape that are to be set, and their values."""
    name = dict(shape)["model.name"]
    if name in NO_MLP:
        tried = [
            _nearest(shape, "model.hidden_size", 4, {"model.num_hidden_layers": n}, parameters, vocab_size, seq_len)
            for n in depths
        ]
        off, chosen = min(tried, key=lambda each: abs(each[0]))
    else:
        off, chosen = _nearest(shape, "model.intermediate_size", 1, {}, parameters, vocab_size, seq_len)
    if abs(off) > 0.02:
        raise ValueError(
            f"of_size: parameters must be what {name} can have here, got {parameters:,}: it is {off:+.0%} off"
        )
    return tuple(chosen.items())


def _nearest(
    shape: tuple[tuple[str, Any], ...],
    key: str,
    step: int,
    fixed: dict[str, int],
    parameters: int,
    vocab_size: int,
    seq_len: int,
) -> tuple[float, dict[str, int]]:
    """The multiple of ``step`` for ``key`` that comes nearest, and how far off that is, relative."""

    def size(steps: int) -> int:
        flat = {**dict(shape), **fixed, key: steps * step, "data.seq_len": seq_len}
        return _count(tuple(sorted(flat.items())), vocab_size, seq_len)

    low, high = 1, 1
    while size(high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < parameters else (low, middle)
    best = min((low, high), key=lambda steps: abs(size(steps) - parameters))
    return size(best) / parameters - 1, {**fixed, key: best * step}
