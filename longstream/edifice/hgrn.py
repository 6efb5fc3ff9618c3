"""Edifice's HGRN (github.com/blasphemetheus/edifice, v0.2.0) with its function names, options and weights, made exact.

It is neither HGRN nor HGRN2 of the papers, which are `longstream.layers.HGRN` and `HGRN2`: its forget and input gates
are independent, have no lower bound, and are shared by more neighboring channels the deeper the layer.
"""

from typing import Any

import torch

from longstream.edifice._hgrn import EdificeHGRNState as EdificeHGRNState
from longstream.edifice._hgrn import HGRNBackbone as HGRNBackbone
from longstream.edifice._hgrn import HGRNBlock as HGRNBlock
from longstream.edifice._hgrn import HGRNLayer as HGRNLayer
from longstream.edifice._hgrn import check_gates, gate_width
from longstream.edifice._options import read_options
from longstream.edifice._parts import init_weights
from longstream.models import FeatureModel, State

_BACKBONE = {
    "hidden_size": 256,
    "num_layers": 6,
    "state_expansion": 2,
    "dropout": 0.1,
    "window_size": 60,
    "seq_len": None,
    "scan": "exact",
    "init": "modern",
    "backend": "auto",
}
_BUILD = {"embed_dim": None, **_BACKBONE, "outputs": "last"}
_COUNT = {**_BUILD, "embed_dim": 287}


def build(**options: Any) -> FeatureModel:
    """HGRN on frames: (B, T, embed_dim) -> (B, hidden_size), the vector of the last frame, and a state.

    A linear projection, if embed_dim is not hidden_size; num_layers blocks of `HGRNLayer` and a feed-forward network;
    a final norm. Edifice says that T should be window_size; here and there any T works. The model is in training mode,
    as modules of torch are: call ``.eval()`` on it before use, or dropout is on.

    Args:
        embed_dim:         E, the size of a frame; required. Also as input_size, input_dim or obs_size.
        hidden_size:       D (256).
        num_layers:        L (6).
        state_expansion:   the state of a layer has N = D * state_expansion channels (2).
        dropout:           after the two halves of a block, in training only (0.1).
        window_size:       frames that the gates of init "modern" remember (60).
        seq_len:           the same, and wins where both are given.
        scan:              "exact" ("exact" or "edifice"); see `HGRNLayer`.
        outputs:           "last" ("last", "all" or "mean"); see `longstream.models.FeatureModel`.
        init:              "modern" ("modern" or "axon"); see `HGRNLayer`.
        backend:           of the scan ("auto").
    Raises:
        TypeError: an unknown option, or no embed_dim.
        ValueError: an option out of range; channels that a layer's gates do not divide; two sizes of a frame.
    """
    read = read_options("edifice.hgrn.build", _BUILD, options)
    embed_dim, outputs = read.pop("embed_dim"), read.pop("outputs")
    read.pop("window_size")
    model = FeatureModel(HGRNBackbone(**read), embed_dim, outputs=outputs)
    init_weights([model.input_projection] if model.input_projection else [], read["init"])
    return model


def build_hgrn_block(**options: Any) -> HGRNBlock:
    """One block: options of `build` without embed_dim and outputs, and layer_idx (1) and name ("hgrn_block").

    layer_idx, from 1, decides how many channels share a gate; the parameters' Axon names begin with name.
    """
    who = "edifice.hgrn.build_hgrn_block"
    return HGRNBlock(**_block_options(who, {**_BACKBONE, "layer_idx": 1, "name": "hgrn_block"}, options))


def build_hgrn_layer(**options: Any) -> HGRNLayer:
    """The half of a block that looks back: options as of `build_hgrn_block`, name "hgrn"."""
    return HGRNLayer(
        **_block_options("edifice.hgrn.build_hgrn_layer", {**_BACKBONE, "layer_idx": 1, "name": "hgrn"}, options)
    )


def init_cache(batch_size: int = 1, **options: Any) -> State:
    """The state before the first frame of what `build` makes of the same options: ``model.init_state(batch_size)``.

    Edifice's function of this name returns a map of zeros, layers.layer_1.h of shape (B, N) and so on, with step and
    config beside it, that nothing in Edifice reads. Here h is ``state.layers[0].h``, step is ``state.position``, and
    ``state.fingerprint`` is there for config.
    """
    read = read_options("edifice.hgrn.init_cache", {**_COUNT, "batch_size": 1}, {**options, "batch_size": batch_size})
    sizes = {name: read[name] for name in ("hidden_size", "num_layers", "state_expansion", "scan")}
    with torch.device("meta"):
        backbone = HGRNBackbone(**sizes)
    return backbone.init_state(batch_size, device="cpu")


def output_size(**options: Any) -> int:
    """The size of an output vector: hidden_size."""
    return read_options("edifice.hgrn.output_size", _COUNT, options)["hidden_size"]


def param_count(**options: Any) -> int:
    """How many parameters `build` makes of the same options (embed_dim: 287)."""
    read = read_options("edifice.hgrn.param_count", _COUNT, options)
    E, D = read["embed_dim"], read["hidden_size"]
    check_gates("edifice.hgrn.param_count", D, read["state_expansion"], range(1, read["num_layers"] + 1))
    N = D * read["state_expansion"]
    total = 2 * D + (E * D + D if E != D else 0)  # the final norm and the projection
    for layer in range(1, read["num_layers"] + 1):
        G = gate_width(N, layer)
        total += 2 * D + 2 * (D * G + G) + (D * N + N) + (N * D + D)
        total += 2 * D + (4 * D * D + 4 * D) + (4 * D * D + D)
    return total


def edifice_param_count(**options: Any) -> int:
    """What Edifice's ``param_count`` answers: no biases, no norms, and all gates as wide as in layer 1."""
    read = read_options("edifice.hgrn.edifice_param_count", _COUNT, options)
    E, D = read["embed_dim"], read["hidden_size"]
    N = D * read["state_expansion"]
    return (E * D if E != D else 0) + read["num_layers"] * (3 * D * N + N * D + 8 * D * D)


def recommended_defaults() -> dict[str, Any]:
    """Edifice's recommended options, which are its defaults."""
    return {name: _BUILD[name] for name in ("hidden_size", "num_layers", "state_expansion", "window_size", "dropout")}


def _block_options(who: str, defaults: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    read = read_options(who, defaults, options)
    for name in ("window_size", "num_layers"):  # Edifice, too, takes num_layers here and does not use it
        read.pop(name)
    return read
