"""The language models that HGRN's and HGRN2's authors published (OpenNLPLab), against ours."""

import math
import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from longstream.convert.layouts import Layout, Metas, same
from longstream.convert.tensors import Row
from longstream.hf import LongstreamConfig
from longstream.models import HGRN2Config, HGRNConfig, ModelConfig

# Ours and theirs. HGRN2's are those of Hgrn2Model in hgru2-pytorch. Of HGRN only the mixer is known, Hgru1d of
# hgru-pytorch; what is around it is taken to be the same.
_OPENNLPLAB_NAMES = {
    r"model\.backbone\.lower_bounds": "model.lower_bounds",
    r"model\.backbone\.norm\.(\w+)": r"model.final_norm.\1",
    r"model\.backbone\.layers\.(\d+)\.mixer_norm\.(\w+)": r"model.layers.\1.token_norm.\2",
    r"model\.backbone\.layers\.(\d+)\.mlp_norm\.(\w+)": r"model.layers.\1.channel_norm.\2",
    r"model\.backbone\.layers\.(\d+)\.mixer\.((?:norm|out_proj)\.\w+|theta)": r"model.layers.\1.token_mixer.\2",
    r"model\.backbone\.layers\.(\d+)\.mixer\.candidate_proj\.(\w+)": r"model.layers.\1.token_mixer.input_proj.\2",
    r"model\.backbone\.layers\.(\d+)\.mixer\.out_gate_proj\.(\w+)": r"model.layers.\1.token_mixer.gate.\2",
    r"model\.backbone\.layers\.(\d+)\.mlp\.gate_proj\.(\w+)": r"model.layers.\1.channel_mixer.l1.\2",
    r"model\.backbone\.layers\.(\d+)\.mlp\.up_proj\.(\w+)": r"model.layers.\1.channel_mixer.l2.\2",
    r"model\.backbone\.layers\.(\d+)\.mlp\.down_proj\.(\w+)": r"model.layers.\1.channel_mixer.l3.\2",
}
_THIRDS = ("v_proj", "q_proj", "forget_proj")  # of in_proj, in this order
_NORMS = {"simplermsnorm": ("rms_no_weight", 1e-6)}  # any other word is torch's LayerNorm there
_GLUS = {"silu": "swiglu"}  # any word that it does not know means no activation: "none", and "swish" too
_OTHER_ACTIVATIONS = ("gelu", "relu", "elu", "sigmoid", "exp", "leak", "1+elu", "2+elu")


def opennlplab_config(values: Mapping[str, Any], names: Collection[str]) -> LongstreamConfig:
    """Ours of the authors' config.json; of HGRN or HGRN2, as the names of the tensors say.

    Raises:
        ValueError: it asks for what longstream does not compute, or what is not known of these models.
    """
    is_hgrn2 = any(name.endswith("token_mixer.in_proj.weight") for name in names)
    known = {"decoder_embed_dim", "decoder_layers", "glu_dim", "vocab_size"} | ({"expand_ratio"} if is_hgrn2 else set())
    if lacking := sorted(known - values.keys()):
        raise ValueError(f"convert: the config.json of OpenNLPLab's model must have {lacking}")
    if any(".channel_mixer." in name and name.endswith(".bias") for name in names):
        raise ValueError("convert: OpenNLPLab's GLU has biases here, which those of longstream do not have")
    if not values.get("causal", True):
        raise ValueError("convert: OpenNLPLab's model looks both ways (causal is false); a language model must not")
    glu = str(values.get("glu_act", "none"))
    if glu in _OTHER_ACTIVATIONS:
        raise ValueError(f"convert: glu_act must be 'silu', or 'none', which is the identity, got {glu!r}")
    norm_type = values.get("norm_type", "simplermsnorm" if is_hgrn2 else "layernorm")
    norm, norm_eps = _NORMS.get(str(norm_type), ("layer", 1e-5))
    if is_hgrn2:
        mixer: Any = HGRN2Config(
            expand_ratio=values["expand_ratio"],
            query_activation=values.get("out_act", "silu"),
            value_activation=values.get("in_act", "none"),
            norm=norm,
            norm_eps=norm_eps,
            bias=any(name.endswith("token_mixer.in_proj.bias") for name in names),
        )
    else:
        if (activation := values.get("act_fun", "silu")) != "silu":
            raise ValueError(f"convert: act_fun of OpenNLPLab's HGRN must be 'silu', got {activation!r}")
        biased = any(name.endswith("token_mixer.input_proj.bias") for name in names)
        mixer = HGRNConfig(unit="complex", norm="layer", norm_eps=1e-5, bias=biased)
    tied = values.get("tie_word_embeddings", True)  # transformers' default, which their files leave out
    config = ModelConfig(
        hidden_size=values["decoder_embed_dim"],
        num_layers=values["decoder_layers"],
        mixer=mixer,
        intermediate_size=values["glu_dim"],
        mlp=_GLUS.get(glu, "bilinear"),
        norm=norm,
        norm_eps=norm_eps,
        vocab_size=values["vocab_size"],
        tie_embeddings=tied and embedding_scale(values, is_hgrn2) == 1,
        initializer_range=values.get("init_std", 0.02),
    )
    tokens = {key: values[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id") if key in values}
    return LongstreamConfig.from_model_config(config, **tokens)


def embedding_scale(values: Mapping[str, Any], is_hgrn2: bool) -> float:
    """What the authors multiply the embeddings by; longstream has it in the embeddings."""
    return 1.0 if values.get("no_scale_embedding", is_hgrn2) else math.sqrt(values["decoder_embed_dim"])


def opennlplab_layout(values: Mapping[str, Any], ours: Metas) -> Layout:
    """The authors' own. Embeddings that they multiply by a number are stored multiplied here, and then have a head."""
    to_ours: dict[str, Row] = {}
    to_theirs: dict[str, Row] = {}
    for name in ours:
        match = re.fullmatch(r"model\.backbone\.layers\.(\d+)\.mixer\.(\w+)\.(\w+)", name)
        is_hgrn2 = match is not None and f"model.backbone.layers.{match[1]}.mixer.v_proj.weight" in ours
        if match and is_hgrn2 and match[2] in _THIRDS:
            theirs = f"model.layers.{match[1]}.token_mixer.in_proj.{match[3]}"
            thirds = tuple(name.replace(f".{match[2]}.", f".{third}.") for third in _THIRDS)
            to_ours[name] = Row((theirs,), partial(_third, _THIRDS.index(match[2])))
            to_theirs[theirs] = Row(thirds, lambda *parts: torch.cat(parts))
        elif match and match[2] == "forget_proj":
            theirs = f"model.layers.{match[1]}.token_mixer.lambda_proj.{match[3]}"
            to_ours[name], to_theirs[theirs] = Row((theirs,), same), Row((name,), same)
        else:
            theirs = next((re.sub(a, b, name) for a, b in _OPENNLPLAB_NAMES.items() if re.fullmatch(a, name)), name)
            is_theta = name.endswith(".theta")  # (1, 1, E) there
            to_ours[name] = Row((theirs,), torch.flatten if is_theta else same)
            to_theirs[theirs] = Row((name,), (lambda theta: theta[None, None]) if is_theta else same)
    return _with_embeddings(to_ours, to_theirs, values, ours)


def _with_embeddings(
    to_ours: dict[str, Row], to_theirs: dict[str, Row], values: Mapping[str, Any], ours: Metas
) -> Layout:
    embeddings, theirs, head = "model.embeddings.weight", "model.embed_tokens.weight", "lm_head.weight"
    is_hgrn2 = any(name.endswith("mixer.v_proj.weight") for name in ours)
    scale = embedding_scale(values, is_hgrn2)
    tied = values.get("tie_word_embeddings", True)
    del to_theirs[embeddings]
    to_ours[embeddings] = Row((theirs,), partial(torch.mul, other=scale) if scale != 1 else same)
    rounds = frozenset({theirs}) if scale != 1 and not tied else frozenset()
    if tied:
        to_theirs[theirs] = Row((head if scale != 1 else embeddings,), same)
        to_theirs.pop(head, None)
        if scale != 1:
            to_ours[head] = Row((theirs,), same)
    else:
        to_theirs[theirs] = Row((embeddings,), partial(torch.div, other=scale) if scale != 1 else same)
    return Layout(to_ours, to_theirs, {head: theirs} if tied else {}, rounds)


def _third(i: int, tensor: Tensor) -> Tensor:
    return tensor.chunk(3)[i]
