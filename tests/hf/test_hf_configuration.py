"""fla's configuration files are read and written, and what cannot be computed is refused by name."""

import copy
import json
import logging
import pickle
from dataclasses import fields

import pytest
from transformers import AutoConfig, PretrainedConfig

from longstream.hf import HGRN2Config
from longstream.models import HGRN2Config as MixerConfig
from longstream.models import ModelConfig

OURS = {
    "query_activation": "sigmoid",
    "value_activation": "silu",
    "query_scale": 1.0,
    "mixer_norm": "layer",
    "g_norm_eps": 1e-6,
    "use_bias": True,
    "conv_bias": True,
    "lower_bound_sum": "exclusive",
}

FLA_DEFAULTS = {  # flash-linear-attention 0.6.0
    **{"hidden_size": 2048, "num_hidden_layers": 24, "attn_mode": "chunk", "num_heads": 16, "expand_ratio": 128},
    **{"use_short_conv": False, "conv_size": 4, "use_lower_bound": True, "max_position_embeddings": 2048},
    **{"hidden_ratio": 4, "intermediate_size": None, "hidden_act": "swish", "elementwise_affine": True},
    **{"norm_eps": 1e-6, "attn": None, "use_cache": True, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2},
    **{"tie_word_embeddings": False, "initializer_range": 0.02, "fuse_norm": True, "fuse_swiglu": True},
    **{"fuse_cross_entropy": True, "fuse_linear_cross_entropy": False, "use_l2warp": False, "vocab_size": 32000},
    **{"attnres_block_size": None},
}


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("longstream")]


def write(directory, **config):
    (directory / "config.json").write_text(json.dumps({"model_type": "hgrn2"} | config))
    return directory


def test_defaults_are_flas():
    config = HGRN2Config()
    assert {key: getattr(config, key) for key in FLA_DEFAULTS} == FLA_DEFAULTS
    ours = {field.name for field in fields(config)} - {field.name for field in fields(PretrainedConfig)}
    assert ours == set(FLA_DEFAULTS) | set(OURS)


def test_model_config_computes_what_fla_does():
    config = HGRN2Config(hidden_size=64, num_hidden_layers=3, expand_ratio=16, norm_eps=1e-3, vocab_size=7)
    mixer = MixerConfig(expand_ratio=16, query_scale=0.25, norm_eps=1e-5)
    assert config.to_model_config() == ModelConfig(
        hidden_size=64, num_layers=3, mixer=mixer, norm_eps=1e-3, vocab_size=7
    )


def test_model_config_of_every_choice():
    config = HGRN2Config(
        **{"hidden_size": 64, "num_hidden_layers": 3, "expand_ratio": 16, "use_short_conv": True, "conv_size": 3},
        **{"intermediate_size": 40, "use_lower_bound": True, "vocab_size": 7, "tie_word_embeddings": True},
        **OURS,
    )
    mixer = MixerConfig(
        **{"expand_ratio": 16, "query_activation": "sigmoid", "value_activation": "silu", "query_scale": 1.0},
        **{"norm": "layer", "norm_eps": 1e-6, "bias": True, "conv_size": 3, "conv_bias": True},
    )
    assert config.to_model_config() == ModelConfig(
        **{"hidden_size": 64, "num_layers": 3, "mixer": mixer, "intermediate_size": 40, "lower_bound": "exclusive"},
        **{"vocab_size": 7, "tie_embeddings": True},
    )
    assert HGRN2Config(use_lower_bound=False).to_model_config().lower_bound is None
    assert HGRN2Config(elementwise_affine=False).to_model_config().mixer.norm == "rms_no_weight"


def test_file_at_flas_choices_holds_only_flas_keys(tmp_path, caplog):
    HGRN2Config(elementwise_affine=False).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert set(written) == set(FLA_DEFAULTS) | {"model_type", "transformers_version"}
    assert written["elementwise_affine"] is False
    assert messages(caplog) == []


@pytest.mark.parametrize("key", OURS)
def test_other_choices_are_written_read_and_announced(key, tmp_path, caplog):
    config = HGRN2Config(use_short_conv=True, **{key: OURS[key]})
    config.save_pretrained(tmp_path)
    (message,) = messages(caplog)
    assert key in message
    assert "fla" in message
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_model_config() == config.to_model_config()
    assert again.to_diff_dict() == config.to_diff_dict()


def test_copies(tmp_path):
    config = HGRN2Config(hidden_size=64, expand_ratio=16, **OURS)
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), HGRN2Config.from_dict(config.to_dict())):
        assert other.to_dict() == config.to_dict()


def test_legacy_keys(tmp_path, caplog):
    legacy = {"hidden_size": 64, "expand_ratio": 16, "num_heads": 1, "share_conv_kernel": True, "rms_norm_eps": 1e-4}
    config = AutoConfig.from_pretrained(write(tmp_path, **legacy))
    assert (config.norm_eps, config.num_heads) == (1e-4, 4)
    (message,) = messages(caplog)
    assert "num_heads 1" in message
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["norm_eps"], written["num_heads"]) == (1e-4, 4)
    assert not {"rms_norm_eps", "share_conv_kernel"} & set(written)


@pytest.mark.parametrize(("norm_eps", "rms_norm_eps"), [(1e-3, 1e-6), (1e-6, 1e-3), (1e-3, 1e-4)])
def test_an_old_name_that_contradicts_the_new_one_is_refused(norm_eps, rms_norm_eps, tmp_path):
    words = f"rms_norm_eps .*must agree .*got {rms_norm_eps} and {norm_eps}"
    with pytest.raises(ValueError, match=words):
        HGRN2Config(**{"norm_eps": norm_eps, "rms_norm_eps": rms_norm_eps})
    with pytest.raises(ValueError, match=words):
        AutoConfig.from_pretrained(write(tmp_path, norm_eps=norm_eps, rms_norm_eps=rms_norm_eps))
    assert HGRN2Config(**{"norm_eps": norm_eps, "rms_norm_eps": norm_eps}).norm_eps == norm_eps


def test_heads_from_num_heads():
    config = HGRN2Config(hidden_size=64, expand_ratio=None, num_heads=4)
    assert config.to_model_config().mixer.expand_ratio == 16


def test_unknown_keys_are_reported_once_and_kept(tmp_path, caplog):
    config = AutoConfig.from_pretrained(
        write(tmp_path, zeta=3, alpha={"a": 1}, torch_dtype="bfloat16", is_decoder=True)
    )
    (message,) = messages(caplog)
    assert "['alpha', 'zeta']" in message
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["zeta"], written["alpha"]) == (3, {"a": 1})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"attn": {"layers": [0], "num_heads": 4}}, "attn must be None"),
        ({"attnres_block_size": 4}, "attnres_block_size must be None"),
        ({"use_l2warp": True}, "use_l2warp must be False"),
        ({"hidden_act": "gelu"}, "hidden_act must be one of"),
        ({"hidden_size": 64, "expand_ratio": 24}, "expand_ratio must divide hidden_size 64, got 24"),
        ({"hidden_size": 64, "expand_ratio": 128}, "expand_ratio must divide hidden_size 64, got 128"),
        ({"hidden_size": 64, "expand_ratio": None, "num_heads": 5}, "expand_ratio must divide hidden_size 64"),
        ({"expand_ratio": None}, "expand_ratio is None, so num_heads must be >= 1, got None"),
        ({"query_activation": "relu"}, "query_activation must be one of"),
        ({"value_activation": "sigmoid"}, "value_activation must be one of"),
        ({"mixer_norm": "group"}, "mixer_norm must be one of"),
        ({"lower_bound_sum": "both"}, "lower_bound_sum must be one of"),
        ({"mixer_norm": "layer", "elementwise_affine": False}, "mixer_norm"),
    ],
)
def test_refusals(given, words):
    with pytest.raises(ValueError, match="HGRN2Config: .*" + words.replace("(", r"\(")):
        HGRN2Config(**given)


def test_wrong_types_are_refused_by_name():
    with pytest.raises(Exception, match=r"hidden_size.*expected int, got str"):
        HGRN2Config(hidden_size="64")  # type: ignore[arg-type]


def test_a_field_set_later_is_checked_before_it_is_used():
    config = HGRN2Config(hidden_size=64, expand_ratio=16)
    config.expand_ratio = 24
    with pytest.raises(ValueError, match="expand_ratio must divide"):
        config.to_model_config()


def test_no_message_without_a_reason(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="longstream"):
        HGRN2Config(hidden_size=64, expand_ratio=16, num_heads=4).save_pretrained(tmp_path)
        AutoConfig.from_pretrained(tmp_path)
    assert messages(caplog) == []
