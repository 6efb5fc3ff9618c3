"""The golden layers that `longstream.layers.HGRN` reproduces, in its names and layouts; the files are golden.py's."""

import json
from dataclasses import dataclass

import numpy as np

from tests.golden import below, load, official_layout

FLA_NAMES = {
    "i_proj": "candidate_proj",
    "f_proj": "forget_proj",
    "g_proj": "out_gate_proj",
    "o_proj": "out_proj",
    "g_norm": "norm",
    "i_conv1d": "candidate_conv",
    "f_conv1d": "forget_conv",
}
OFFICIAL_NAMES = {  # of hgru-pytorch, then of the ablation in hgru2-pytorch
    "input_proj": "candidate_proj",
    "lambda_proj": "forget_proj",
    "gate": "out_gate_proj",
    "forget_gate": "forget_proj",
    "output_gate": "out_gate_proj",
    "out_proj": "out_proj",
    "norm": "norm",
}
THETAS = {"theta": "theta", "theta_forward": "theta", "theta_reverse": "theta_reverse"}

AUTHORS = {"norm": "layer", "norm_eps": 1e-5, "bias": True}
COMPLEX = {**AUTHORS, "unit": "complex"}
OFFICIAL_CONFIGS = {
    "hgrn1_official_hgru1d_causal": COMPLEX,
    "hgrn1_official_hgru1d_bidir_shared": {**COMPLEX, "direction": "bidirectional"},
    "hgrn1_official_bihgru1d": {**COMPLEX, "direction": "bidirectional", "shared_theta": False},
    "hgrn1_official_hgru2d": {**COMPLEX, "direction": "2d"},
    "hgrn1_official_bihgru2d": {**COMPLEX, "direction": "2d", "shared_theta": False},
    "hgrn1_official_real1d_causal": AUTHORS,
    "hgrn1_official_real2d": {**AUTHORS, "direction": "2d"},
    "hgrn2_official_hgru1_real_er2": {
        **AUTHORS,
        "expand_ratio": 2,
        "norm_first": False,
        "gate_activation": "sigmoid",
    },
}


@dataclass
class HGRNCase:
    """One golden layer, batch first."""

    config: dict
    params: dict
    x: np.ndarray  # (B, T, D) or (B, height, width, D)
    y: np.ndarray
    d_y: np.ndarray
    grads: dict  # parameters by name, "x", and "bound" and "h" where the file has them
    bound: np.ndarray | None
    mask: np.ndarray | None
    cu_seqlens: np.ndarray | None
    h_in: np.ndarray | None
    h_out: np.ndarray | None
    d_h: np.ndarray | None
    conv_out: np.ndarray | None  # the last W - 1 inputs, candidate | forget

    @property
    def hidden_size(self):
        return self.x.shape[-1]

    @property
    def num_sequences(self):
        return len(self.x) if self.cu_seqlens is None else len(self.cu_seqlens) - 1


def params(w):
    """Either source's names -> ours. fla's taps are (E, 1, W), oldest first; the authors' theta is (1, 1, E)."""
    renamed = {}
    for name, array in w.items():
        if name in THETAS:
            renamed[THETAS[name]] = array.reshape(-1)
            continue
        module, kind = name.split(".")
        ours = (FLA_NAMES | OFFICIAL_NAMES)[module]
        renamed[f"{ours}.{kind}"] = array[:, 0] if array.ndim == 3 else array
    return renamed


def layer_case(name):
    """The golden layer ``name`` as an HGRNCase."""
    a = load(name)
    meta = json.loads(str(a["meta"]))
    official = name in OFFICIAL_CONFIGS
    batch_first = official_layout if official else (lambda t: t)
    if official:
        config = OFFICIAL_CONFIGS[name]
    else:
        config = {"norm_eps": meta["effective_g_norm_eps"]}
        if meta.get("use_short_conv"):
            config |= {"conv_size": meta["conv_size"], "conv_bias": meta["conv_bias"]}
    grads = params(below(a, "grad.w.")) | {"x": batch_first(a["grad.x"])}
    grads |= {ours: a[f"grad.{theirs}"] for theirs, ours in (("lower_bound", "bound"), ("h0", "h")) if theirs in a}
    conv_out = None
    if "conv_state.i" in a:  # (N, E, W): the last W inputs
        conv_out = np.concatenate([a[f"conv_state.{c}"][:, :, 1:].swapaxes(1, 2) for c in ("i", "f")], -1)
    return HGRNCase(
        config=config,
        params=params(below(a, "w.")),
        x=batch_first(a["x"]),
        y=batch_first(a["o"]),
        d_y=batch_first(a["do"]),
        grads=grads,
        bound=a.get("lower_bound"),
        mask=a.get("attention_mask"),
        cu_seqlens=a.get("cu_seqlens"),
        h_in=a.get("h0"),
        h_out=a.get("ht"),
        d_h=a.get("dht"),
        conv_out=conv_out,
    )
