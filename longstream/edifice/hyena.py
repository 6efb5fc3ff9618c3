"""Edifice's Hyena (github.com/blasphemetheus/edifice, v0.2.0) with its function names, options and weights.

It is not the paper's, which is `longstream.layers.Hyena`: its filters are made from the bare time by sines of frequency
1, without window and skip, and its short convolution comes before the projection.
"""

from typing import Any

import torch

from longstream.edifice._hyena import HyenaBackbone as HyenaBackbone
from longstream.edifice._hyena import HyenaBlock as HyenaBlock
from longstream.edifice._hyena_state import EdificeHyenaState as EdificeHyenaState
from longstream.edifice._options import read_options
from longstream.edifice._parts import init_weights
from longstream.models import FeatureModel, State

_BACKBONE = {
    "hidden_size": 256,
    "order": 2,
    "filter_size": 64,
    "num_layers": 4,
    "dropout": 0.1,
    "window_size": 60,
    "seq_len": None,
    "init": "modern",
    "backend": "auto",
}
_BUILD = {"embed_dim": None, **_BACKBONE, "outputs": "last"}
_COUNT = {**_BUILD, "embed_dim": 287}


def build(**options: Any) -> FeatureModel:
    """Hyena on frames: (B, T, embed_dim) -> (B, hidden_size), the vector of the last frame, and a state.

    A linear projection, if embed_dim is not hidden_size; num_layers `HyenaBlock`s; a final norm. T is at most
    window_size: the filters end there. Edifice demands that it be window_size. The model is in training mode, as
    modules of torch are: call ``.eval()`` on it before use, or dropout is on.

    Args:
        embed_dim:         E, the size of a frame; required. Also as input_size, input_dim or obs_size.
        hidden_size:       D (256).
        order:             long convolutions in a block, 0 or more (2).
        filter_size:       width of the networks that make the filters (64).
        num_layers:        L (4).
        dropout:           after the two halves of a block, in training only (0.1).
        window_size:       the longest sequence, in frames (60). The filters of another window_size are these stretched.
        seq_len:           the same, and wins where both are given.
        outputs:           "last" ("last", "all" or "mean"); see `longstream.models.FeatureModel`.
        init:              "modern" ("modern" or "axon"); see `HyenaBlock`.
        backend:           of the convolutions ("auto").
    Raises:
        TypeError: an unknown option, or no embed_dim.    ValueError: an option out of range; two sizes of a frame.
    """
    read = read_options("edifice.hyena.build", _BUILD, options)
    embed_dim, outputs = read.pop("embed_dim"), read.pop("outputs")
    read.pop("window_size")
    model = FeatureModel(HyenaBackbone(**read), embed_dim, outputs=outputs)
    init_weights([model.input_projection] if model.input_projection else [], read["init"])
    return model


def build_hyena_block(**options: Any) -> HyenaBlock:
    """One block: options of `build` without embed_dim, num_layers and outputs, and name ("hyena_block").

    The parameters' Axon names begin with name.
    """
    defaults = {name: value for name, value in _BACKBONE.items() if name != "num_layers"} | {"name": "hyena_block"}
    read = read_options("edifice.hyena.build_hyena_block", defaults, options)
    read.pop("window_size")
    return HyenaBlock(**read)


def init_cache(batch_size: int = 1, **options: Any) -> State:
    """The state before the first frame of what `build` makes of the same options: ``model.init_state(batch_size)``.

    Edifice has no such function for Hyena, and no way to go from frame to frame.
    """
    read = read_options("edifice.hyena.init_cache", {**_COUNT, "batch_size": 1}, {**options, "batch_size": batch_size})
    sizes = {name: read[name] for name in ("hidden_size", "order", "filter_size", "num_layers", "seq_len")}
    with torch.device("meta"):
        backbone = HyenaBackbone(**sizes)
    return backbone.init_state(batch_size, device="cpu")


def output_size(**options: Any) -> int:
    """The size of an output vector: hidden_size."""
    return read_options("edifice.hyena.output_size", _COUNT, options)["hidden_size"]


def param_count(**options: Any) -> int:
    """How many parameters `build` makes of the same options (embed_dim: 287)."""
    read = read_options("edifice.hyena.param_count", _COUNT, options)
    E, D, order, W = (read[name] for name in ("embed_dim", "hidden_size", "order", "filter_size"))
    block = 2 * D + 4 * D + (order + 1) * (D * D + D)  # norm, short convolution, projection
    block += order * (2 * W + W * W + W + W * D + D) + (D * D + D)
    block += 2 * D + 12 * D * D + 9 * D
    return (E * D + D if E != D else 0) + read["num_layers"] * block + 2 * D


def edifice_param_count(**options: Any) -> int:
    """What Edifice's ``param_count`` answers: without biases and norms."""
    read = read_options("edifice.hyena.edifice_param_count", _COUNT, options)
    E, D, order, W = (read[name] for name in ("embed_dim", "hidden_size", "order", "filter_size"))
    block = (order + 1) * D * D + 3 * D + order * (W + W * W + W * D) + D * D + 12 * D * D
    return (E * D if E != D else 0) + read["num_layers"] * block


def recommended_defaults() -> dict[str, Any]:
    """Edifice's recommended options, which are its defaults."""
    names = ("hidden_size", "order", "filter_size", "num_layers", "window_size", "dropout")
    return {name: _BUILD[name] for name in names}
