"""Numbers made by the authors' code and by flash-linear-attention, and their names translated into ours.

The files are found through the environment variable LONGSTREAM_GOLDEN (the directory that holds the .npz files).
Without it these tests are skipped; with it a file that is missing is a failure, unless it is of NOT_SHIPPED.
"""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

FLA_LAYERS = (
    "hgrn2_layer",
    "hgrn2_layer_h0",
    "hgrn2_layer_nolb",
    "hgrn2_layer_varlen",
    "hgrn2_layer_leftpad",
    "hgrn2_layer_1head",
    "hgrn2_shortconv_layer",
    "hgrn2_shortconv_bias_layer",
)
OFFICIAL_LAYERS = (
    "hgrn2_official_hgru2_1d_er8",
    "hgrn2_official_hgru2_1d_er16",
    "hgrn2_official_hgru2_1d_er8_lmconfig",
)
LAYERS = FLA_LAYERS + OFFICIAL_LAYERS
DIRECTIONS = {  # of the layers that look other ways than back
    "hgrn2_official_bihgru2_1d_er8": "bidirectional",
    "hgrn2_official_bihgru2_1d_er16": "bidirectional",
    "hgrn2_official_2d_parallel_er4": "2d_parallel",
    "hgrn2_official_2d_series_er4": "2d_series",
}
HGRN_LAYERS = (  # see tests/golden_hgrn.py
    "hgrn1_layer",
    "hgrn1_layer_h0",
    "hgrn1_layer_nolb",
    "hgrn1_layer_varlen",
    "hgrn1_layer_leftpad",
    "hgrn1_shortconv_layer",
    "hgrn1_official_hgru1d_causal",
    "hgrn1_official_hgru1d_bidir_shared",
    "hgrn1_official_bihgru1d",
    "hgrn1_official_hgru2d",
    "hgrn1_official_bihgru2d",
    "hgrn1_official_real1d_causal",
    "hgrn1_official_real2d",
    "hgrn2_official_hgru1_real_er2",  # an ablation of HGRN2's authors
)
LANGUAGE_MODELS = ("hgrn2_lm", "hgrn2_lm_4layer_tied")
HGRN_LANGUAGE_MODELS = ("hgrn_lm", "hgrn_lm_4layer_tied")  # see tests/golden_lm.py
NAMES = (*LAYERS, *DIRECTIONS, *HGRN_LAYERS, *LANGUAGE_MODELS, *HGRN_LANGUAGE_MODELS)
NOT_SHIPPED = {
    "hgrn2_layer_1head",
    "hgrn2_shortconv_bias_layer",
    "hgrn2_official_bihgru2_1d_er16",
    "hgrn2_official_2d_series_er4",
    "hgrn2_lm_4layer_tied",
    "hgrn1_layer_varlen",
    "hgrn1_official_bihgru2d",
    "hgrn_lm_4layer_tied",
}

FLA_NAMES = {
    "q_proj": "q_proj",
    "f_proj": "forget_proj",
    "i_proj": "v_proj",
    "o_proj": "out_proj",
    "g_norm": "norm",
    "q_conv1d": "q_conv",
    "f_conv1d": "forget_conv",
    "i_conv1d": "v_conv",
}


def directory():
    """The directory of the golden files; skips the test, saying why, where none is named."""
    named = os.environ.get("LONGSTREAM_GOLDEN")
    if named is None:
        pytest.skip("LONGSTREAM_GOLDEN is not set: no golden files")
    if not named or not Path(named).is_dir():
        pytest.fail(f"LONGSTREAM_GOLDEN must name a directory of golden files, got {named!r}")
    return Path(named)


def load(name):
    """The arrays of ``name``.npz. See the top of this file for when the test is skipped, and when it fails."""
    path = directory() / f"{name}.npz"
    if not path.exists():
        if name in NOT_SHIPPED:
            pytest.skip(f"golden file {path.name} is not shipped, and is missing from LONGSTREAM_GOLDEN")
        pytest.fail(f"golden file {path.name} is missing from LONGSTREAM_GOLDEN, {path.parent}")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def fla_layer_params(w):
    """fla's ``attn.*`` names (without a prefix) -> ours. fla's taps are (D, 1, W), oldest first; ours (D, W)."""
    renamed = {}
    for name, array in w.items():
        module, kind = name.split(".")
        renamed[f"{FLA_NAMES[module]}.{kind}"] = array[:, 0] if array.ndim == 3 else array
    return renamed


def official_layer_params(w):
    """Hgru2_1d has one in_proj whose three chunks are V, Q and F, in this order."""
    renamed = {name: array for name, array in w.items() if not name.startswith("in_proj.")}
    for kind in ("weight", "bias"):
        if f"in_proj.{kind}" in w:
            chunks = np.split(w[f"in_proj.{kind}"], 3)
            renamed |= {
                f"{ours}.{kind}": c for ours, c in zip(("v_proj", "q_proj", "forget_proj"), chunks, strict=True)
            }
    return renamed


def official_layout(t):
    """The official modules' time-first (T, B, D) or (height, width, B, D) with the batch first."""
    return np.moveaxis(t, -2, 0)


def fla_lm_params(w):
    """fla's causal language model -> our LanguageModel."""
    renamed = {}
    for name, array in w.items():
        if match := re.fullmatch(r"model\.layers\.(\d+)\.attn\.(.+)", name):
            ((ours, array),) = fla_layer_params({match[2]: array}).items()
            renamed[f"backbone.layers.{match[1]}.mixer.{ours}"] = array
        elif match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
            renamed[f"backbone.layers.{match[1]}.{match[2].replace('attn_norm', 'mixer_norm')}"] = array
        elif name in ("model.norm.weight", "model.lower_bounds"):
            renamed[name.replace("model.", "backbone.")] = array
        else:
            renamed[name.removeprefix("model.")] = array  # embeddings, lm_head
    return renamed


def below(arrays, prefix):
    """The arrays whose names begin with ``prefix``, by the rest of their names."""
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


@dataclass
class LayerCase:
    """One golden layer in our names and layouts: batch first, states key first, the last W-1 convolution inputs."""

    config: dict
    params: dict
    x: np.ndarray
    y: np.ndarray
    d_y: np.ndarray
    grads: dict  # parameters by name, and "x", "bound", "S" where the file has them
    bound: np.ndarray | None = None
    mask: np.ndarray | None = None
    cu_seqlens: np.ndarray | None = None
    S_in: np.ndarray | None = None
    S_out: np.ndarray | None = None
    d_S: np.ndarray | None = None
    conv_out: np.ndarray | None = None
    meta: dict = field(default_factory=dict)

    @property
    def hidden_size(self):
        return self.x.shape[-1]

    @property
    def num_sequences(self):
        return len(self.x) if self.cu_seqlens is None else len(self.cu_seqlens) - 1


def layer_case(name):
    """The golden layer ``name`` as a LayerCase."""
    a = load(name)
    meta = json.loads(str(a["meta"]))
    official = name in OFFICIAL_LAYERS or name in DIRECTIONS
    rename = official_layer_params if official else fla_layer_params
    grads = rename(below(a, "grad.w."))
    batch_first = official_layout if official else (lambda t: t)
    grads["x"] = batch_first(a["grad.x"])
    if "lower_bound" in a:
        grads["bound"] = a["grad.lower_bound"]
    key_first = {key: a[key].swapaxes(-1, -2) for key in ("h0", "ht", "dht", "grad.h0") if key in a}
    if "h0" in a:
        grads["S"] = key_first["grad.h0"]
    if official:
        config = _official_config(name)
    else:
        config = {"expand_ratio": meta["expand_ratio"], "query_scale": meta["expand_ratio"] ** -0.5, "norm_eps": 1e-5}
        if meta.get("use_short_conv"):
            config |= {"conv_size": meta["conv_size"], "conv_bias": meta["conv_bias"]}
    conv_out = None
    if "conv_state.q" in a:  # (N, D, W): the last W inputs
        conv_out = np.concatenate([a[f"conv_state.{c}"][:, :, 1:].swapaxes(1, 2) for c in ("q", "f", "i")], -1)
    return LayerCase(
        config=config,
        params=rename(below(a, "w.")),
        x=batch_first(a["x"]),
        y=batch_first(a["o"]),
        d_y=batch_first(a["do"]),
        grads=grads,
        bound=a.get("lower_bound"),
        mask=a.get("attention_mask"),
        cu_seqlens=a.get("cu_seqlens"),
        S_in=key_first.get("h0"),
        S_out=key_first.get("ht"),
        d_S=key_first.get("dht"),
        conv_out=conv_out,
        meta=meta,
    )


def _official_config(name):
    config = {"expand_ratio": int(re.findall(r"_er(\d+)", name)[0])}
    if name.endswith("lmconfig"):
        return config | {"norm": "rms_no_weight", "norm_eps": 1e-6}
    return config | {
        "query_activation": "sigmoid",
        "value_activation": "silu",
        "norm": "layer",
        "norm_eps": 1e-5,
        "bias": True,
        **({"direction": DIRECTIONS[name]} if name in DIRECTIONS else {}),
    }


@dataclass
class LanguageModelCase:
    """One golden language model in our names and layouts."""

    config: dict  # as fla writes it
    params: dict
    grads: dict
    ids: np.ndarray
    logits: np.ndarray
    loss: float
    hidden: list  # inputs of the blocks, then the output of the final norm
    states: list  # S (B, H, K, V) of every layer
    mask: np.ndarray
    logits_leftpad: np.ndarray
    generated: np.ndarray  # 12 tokens of each row, then 16 greedy ones

    @property
    def num_layers(self):
        return self.config["num_hidden_layers"]

    @property
    def mixer(self):
        """fla scales the query by K ** -0.5 and norms with 1e-5 whatever its config says."""
        K = self.config["expand_ratio"]
        return {"expand_ratio": K, "query_scale": K**-0.5, "norm_eps": 1e-5}


def language_model_case(name):
    """The golden language model ``name`` as a LanguageModelCase."""
    a = load(name)
    config = json.loads(str(a["config_json"]))
    layers = config["num_hidden_layers"]
    return LanguageModelCase(
        config=config,
        params=fla_lm_params(below(a, "w.")),
        grads=fla_lm_params(below(a, "grad.w.")),
        ids=a["input_ids"],
        logits=a["logits"],
        loss=float(a["loss"]),
        hidden=[a[f"hidden.{n}"] for n in range(layers + 1)],
        states=[a[f"state.{n}"].swapaxes(-1, -2) for n in range(layers)],
        mask=a["attention_mask_leftpad"],
        logits_leftpad=a["logits_leftpad"],
        generated=a["generated_greedy_from12"],
    )
