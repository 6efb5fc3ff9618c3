"""Numbers made by safari, HyenaDNA and StripedHyena, with their names translated into ours.

See `tests.golden` for how the files are found, and when a test is skipped or fails without them.
"""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest

from tests import golden

STANDALONE = tuple(
    f"hyena_standalone_{name}"
    for name in (
        "o2_lmax64_L64",
        "o3_lmax64_L64",
        "o2_lmax64_L53",
        "o3_lmax64_L53",
        "o2_lmax53_L53",
        "o3_lmax53_L53",
        "defaults_o2_L64",
        "o2_shift005_L53",
        "o2_nomod_L53",
        "o4_emb9_inner1_L53",
        "o2_lrpos0_L53",
    )
)
SAFARI_FULL = tuple(
    f"hyena_safari_full_{name}" for name in ("o2_L53", "o2_L64", "o3_L53", "o3_L64", "o2_normalized_short5_gelu_L53")
)
OPERATORS = STANDALONE + SAFARI_FULL
LANGUAGE_MODELS = ("hyena_dna_lm_L53", "hyena_dna_lm_L64")
MODAL = ("hyena_modal_stripedhyena_L53", "hyena_modal_stripedhyena_L64")
NOT_SHIPPED = {
    "hyena_standalone_o4_emb9_inner1_L53",
    "hyena_safari_full_o3_L53",
    "hyena_dna_lm_L53",
    "hyena_modal_stripedhyena_L53",
}
OF_THE_OP = "hyena_fftconv_*"  # tested with long_conv

# The arguments of their operators and filters, and what they are where a file does not say.
ARGUMENTS = {
    "l_max": "max_seq_len",
    "order": "order",
    "filter_order": "filter_width",
    "num_inner_mlps": "filter_layers",
    "emb_dim": "positional_width",
    "w": "frequency",
    "modulate": "window",
    "target": "window_target",
    "fast_decay_pct": "window_fast",
    "slow_decay_pct": "window_slow",
    "shift": "window_shift",
    "normalized": "normalize_filter",
    "short_filter_order": "short_conv_size",
    "activation": "activation",
    "lr": "filter_lr",
    "wd": "filter_weight_decay",
    "lr_pos_emb": "positions_lr",
    "modulation_lr": "window_lr",
}
DEFAULTS = {"positional_width": 3, "frequency": 1.0, "filter_width": 64}

NAMES = {
    r"short_filter\.(weight|bias)": r"short_conv.\1",
    r"filter_fn\.bias": "filter.skip",
    r"filter_fn\.pos_emb\.z": "filter.positions",
    r"filter_fn\.pos_emb\.t": "filter.time",
    r"filter_fn\.modulation\.deltas": "filter.delta",
    r"filter_fn\.implicit_filter\.\d+\.freq": "filter.frequency",
    r"filter_fn\.implicit_filter\.(\d+)\.(weight|bias)": r"filter.linears.\1.\2",
}


def load(name):
    """The arrays of ``name``.npz."""
    if name in NOT_SHIPPED and not (golden.directory() / f"{name}.npz").exists():
        pytest.skip(f"golden file {name}.npz is not shipped, and is missing from LONGSTREAM_GOLDEN")
    return golden.load(name)


def params(w):
    """An operator's names (without a prefix) and shapes -> those of our layer."""
    renamed = {}
    for name, array in w.items():
        for theirs, ours in NAMES.items():
            if re.fullmatch(theirs, name):
                name = re.sub(theirs, ours, name)
                break
        shape = {
            "filter.positions": array.shape[1:],
            "filter.time": array.shape[1:2],
            "filter.delta": array.shape[2:],
            "filter.frequency": array.shape[1:],
            "short_conv.weight": (array.shape[0], array.shape[-1]),
        }.get(name, array.shape)
        array = array.reshape(shape)
        assert name not in renamed or (renamed[name] == array).all(), f"{name} is tied, and its copies differ"
        renamed[name] = array
    numbers = sorted({int(name.split(".")[2]) for name in renamed if name.startswith("filter.linears.")})
    for place, number in enumerate(numbers):  # sines lie between the linear layers
        ours = "filter.out_proj" if number == numbers[-1] else f"filter.hidden.{place}"
        for kind in ("weight", "bias"):
            if f"filter.linears.{number}.{kind}" in renamed:
                renamed[f"{ours}.{kind}"] = renamed.pop(f"filter.linears.{number}.{kind}")
    return renamed


def below(arrays, prefix):
    """The arrays whose names begin with the prefix, without it and without the empty ones."""
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix) and array.size}


def config(given):
    """Their constructor's arguments -> ours."""
    return DEFAULTS | {ARGUMENTS[name]: value for name, value in given.items() if name != "d_model"}


@dataclass
class OperatorCase:
    """One golden operator in our names; ``mid`` as in the file."""

    config: dict
    params: dict  # buffers too
    x: np.ndarray
    y: np.ndarray
    d_y: np.ndarray
    grads: dict  # parameters by name, and "x"
    mid: dict

    @property
    def hidden_size(self):
        return self.x.shape[-1]


def operator_case(name):
    """The golden operator ``name`` as an OperatorCase."""
    a = load(name)
    layout = {"filter_layout": "channel"} if name in SAFARI_FULL else {}
    case = OperatorCase(
        config=config(json.loads(str(a["_meta"]))["ctor"]) | layout,
        params=params(below(a, "w.")),
        x=a["in.u"],
        y=a["out.y"],
        d_y=a["in.grad_y"],
        grads=params(below(a, "grad.w.")) | {"x": a["grad.u"]},
        mid=below(a, "mid."),
    )
    if not case.config.get("window", True):
        del case.params["filter.delta"]  # theirs has one that it does not use
    return case


@dataclass
class MixerCase:
    """One mixer of a golden language model: what it gets and gives."""

    config: dict
    params: dict
    x: np.ndarray
    y: np.ndarray


def mixer_cases(name):
    """The mixers of the golden HyenaDNA ``name``, one MixerCase a layer."""
    a = load(name)
    meta = json.loads(str(a["_meta"]))["cfg"]
    residual, cases = a["mid.embed"], []
    for n in range(meta["n_layer"]):
        w = below(a, f"w.backbone.layers.{n}.")
        centered = residual - residual.mean(-1, keepdims=True)
        normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
        cases.append(
            MixerCase(
                config=config({"shift": 0.05} | meta["layer"]),
                params=params(below(w, "mixer.")),
                x=normed * w["norm1.weight"] + w["norm1.bias"],
                y=a[f"mid.block{n}.residual"] - residual,
            )
        )
        residual = a[f"mid.block{n}.residual"] + a[f"mid.block{n}.hidden"]
    return cases


@dataclass
class ModalCase:
    """StripedHyena's recurrence in our layouts: batch and time first, complex numbers as pairs."""

    projected: np.ndarray  # (B, T + 16, 3 D)
    short_weight: np.ndarray
    short_bias: np.ndarray
    poles: np.ndarray  # (1, D, M, 2)
    residues: np.ndarray
    skip: np.ndarray
    y: np.ndarray  # (B, T + 16, D), in one pass
    y_prefill: np.ndarray
    y_decode: np.ndarray
    conv: np.ndarray  # (B, 2, 3 D), after the prompt
    modes: np.ndarray  # (B, 1, D, M, 2), after the prompt


def modal_case(name):
    """The golden recurrence ``name`` as a ModalCase."""
    a = load(name)
    iir = a["mid.iir_state_after_prefill"]
    return ModalCase(
        projected=a["in.u"],
        short_weight=a["w.short_filter_weight"][:, 0],
        short_bias=a["w.short_filter_bias"],
        poles=a["w.poles"][None, :, :, 0],
        residues=a["w.residues"][None, :, :, 0],
        skip=a["w.D"],
        y=a["out.y_parallel_full"],
        y_prefill=a["out.y_prefill"],
        y_decode=a["out.y_decode"],
        conv=a["mid.fir_state_after_prefill"].swapaxes(1, 2),
        modes=np.stack([iir.real, iir.imag], -1)[:, None],
    )
