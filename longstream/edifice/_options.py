"""Options by keyword, as Edifice's functions take them, with what Edifice ignores refused."""

import difflib
from collections.abc import Mapping
from typing import Any

from longstream.layers._options import check_integers, check_one_of

INITS = ("modern", "axon")
FRAME_SIZES = ("embed_dim", "input_size", "input_dim", "obs_size")  # names of one option
_LEAST = {
    "batch_size": 0,
    "embed_dim": 1,
    "hidden_size": 1,
    "num_layers": 1,
    "layer_idx": 1,
    "state_expansion": 1,
    "order": 0,
    "filter_size": 1,
    "window_size": 1,
    "seq_len": 1,
}


def read_options(who: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` over ``defaults``, each checked; seq_len, where it is None, is window_size.

    The size of a frame, if the function takes it, has the names FRAME_SIZES and comes back as embed_dim.

    Raises:
        TypeError: an option that ``defaults`` does not name.    ValueError: a value out of range; two names that
            disagree on the size of a frame.
    """
    known = [*defaults, *(FRAME_SIZES[1:] if "embed_dim" in defaults else ())]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise TypeError(f"{who}: unknown option {name!r}; the nearest known one is {near[0]!r}, all are {known}")
    read = {**defaults, **{name: value for name, value in options.items() if name not in FRAME_SIZES}}
    if "embed_dim" in defaults:
        sizes = {name: options[name] for name in FRAME_SIZES if options.get(name) is not None}
        if any(size != next(iter(sizes.values())) for size in sizes.values()):
            raise ValueError(f"{who}: {' and '.join(sizes)} are names of one option, got {[*sizes.values()]}")
        read["embed_dim"] = next(iter(sizes.values()), defaults["embed_dim"])
        if read["embed_dim"] is None:
            raise TypeError(f"{who}: embed_dim, the size of a frame, is required (or as {', '.join(FRAME_SIZES[1:])})")
    check_options(who, **{name: value for name, value in read.items() if name != "seq_len" or value is not None})
    if "seq_len" in read and read["seq_len"] is None:
        read["seq_len"] = read["window_size"]
    return read


def check_options(who: str, **options: Any) -> None:
    """Refuse sizes that are too small, rates that are none, and an unknown init."""
    check_integers(who, **{name: (value, _LEAST[name]) for name, value in options.items() if name in _LEAST})
    if "dropout" in options:
        rate = options["dropout"]
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < 1:
            raise ValueError(f"{who}: dropout must be a number from 0 to below 1, got {rate!r}")
    if "init" in options:
        check_one_of(who, init=(options["init"], INITS))
