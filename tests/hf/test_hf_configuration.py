"""fla's configuration files of HGRN and HGRN2 are read and written; what cannot be computed is refused by name."""

import copy
import json
import logging
import pickle
from dataclasses import fields

import pytest
from transformers import AutoConfig, PretrainedConfig

from longstream.hf import HGRN2Config, HGRNConfig
from longstream.models import AttentionConfig, ModelConfig
from longstream.models import HGRN2Config as HGRN2MixerConfig
from longstream.models import HGRNConfig as HGRNMixerConfig

SHARED = {"mixer_norm": "layer", "use_bias": True, "conv_bias": True, "lower_bound_sum": "exclusive"}
OURS = {
    HGRN2Config: SHARED
    | {"query_activation": "sigmoid", "value_activation": "silu", "query_scale": 1.0, "g_norm_eps": 1e-6},
    HGRNConfig: SHARED | {"unit": "complex", "norm_first": False, "gate_activation": "sigmoid"},
}
BOTH = pytest.mark.parametrize("cls", OURS)

_FLA_SHARED = {  # flash-linear-attention 0.6.0
    **{"hidden_size": 2048, "num_hidden_layers": 24},
    **{"use_short_conv": False, "conv_size": 4, "use_lower_bound": True, "max_position_embeddings": 2048},
    **{"hidden_ratio": 4, "intermediate_size": None, "hidden_act": "swish", "elementwise_affine": True},
    **{"norm_eps": 1e-6, "attn": None, "use_cache": True, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2},
    **{"tie_word_embeddings": False, "initializer_range": 0.02, "fuse_norm": True, "fuse_swiglu": True},
    **{"fuse_cross_entropy": True, "fuse_linear_cross_entropy": False, "use_l2warp": False, "vocab_size": 32000},
    **{"attnres_block_size": None},
}
FLA_DEFAULTS = {
    HGRN2Config: _FLA_SHARED | {"attn_mode": "chunk", "num_heads": 16, "expand_ratio": 128},
    HGRNConfig: _FLA_SHARED | {"attn_mode": "fused_recurrent", "expand_ratio": 1},
}


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("longstream")]


def write(directory, model_type="hgrn2", **config):
    (directory / "config.json").write_text(json.dumps({"model_type": model_type} | config))
    return directory


@BOTH
def test_defaults_are_flas(cls):
    config = cls()
    assert {key: getattr(config, key) for key in FLA_DEFAULTS[cls]} == FLA_DEFAULTS[cls]
    ours = {field.name for field in fields(config)} - {field.name for field in fields(PretrainedConfig)}
    assert ours == set(FLA_DEFAULTS[cls]) | set(OURS[cls])


def test_model_config_computes_what_fla_does():
    config = HGRN2Config(hidden_size=64, num_hidden_layers=3, expand_ratio=16, norm_eps=1e-3, vocab_size=7)
    mixer = HGRN2MixerConfig(expand_ratio=16, query_scale=0.25, norm_eps=1e-5)
    assert config.to_model_config() == ModelConfig(
        hidden_size=64, num_layers=3, mixer=mixer, norm_eps=1e-3, vocab_size=7
    )
    config = HGRNConfig(hidden_size=64, num_hidden_layers=3, expand_ratio=2, norm_eps=1e-3, vocab_size=7)
    mixer = HGRNMixerConfig(expand_ratio=2, norm_eps=1e-3)
    assert config.to_model_config() == ModelConfig(
        hidden_size=64, num_layers=3, mixer=mixer, norm_eps=1e-3, vocab_size=7
    )


@pytest.mark.parametrize(
    ("cls", "mixer"),
    [
        (
            HGRN2Config,
            HGRN2MixerConfig(
                **{"expand_ratio": 2, "query_activation": "sigmoid", "value_activation": "silu", "query_scale": 1.0},
                **{"norm": "layer", "norm_eps": 1e-6, "bias": True, "conv_size": 3, "conv_bias": True},
            ),
        ),
        (
            HGRNConfig,
            HGRNMixerConfig(
                **{"expand_ratio": 2, "unit": "complex", "norm_first": False, "gate_activation": "sigmoid"},
                **{"norm": "layer", "norm_eps": 1e-4, "bias": True, "conv_size": 3, "conv_bias": True},
            ),
        ),
    ],
)
def test_model_config_of_every_choice(cls, mixer):
    config = cls(
        **{"hidden_size": 64, "num_hidden_layers": 3, "expand_ratio": 2, "use_short_conv": True, "conv_size": 3},
        **{"intermediate_size": 40, "use_lower_bound": True, "vocab_size": 7, "tie_word_embeddings": True},
        **{"norm_eps": 1e-4, "initializer_range": 0.1, "hidden_ratio": 3},
        **OURS[cls],
    )
    assert config.to_model_config() == ModelConfig(
        **{"hidden_size": 64, "num_layers": 3, "mixer": mixer, "intermediate_size": 40, "lower_bound": "exclusive"},
        **{"vocab_size": 7, "tie_embeddings": True, "norm_eps": 1e-4, "initializer_range": 0.1, "hidden_ratio": 3},
    )
    assert cls(use_lower_bound=False).to_model_config().lower_bound is None
    assert cls(elementwise_affine=False).to_model_config().mixer.norm == "rms_no_weight"


@BOTH
def test_file_at_flas_choices_holds_only_flas_keys(cls, tmp_path, caplog):
    cls(elementwise_affine=False).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert set(written) == set(FLA_DEFAULTS[cls]) | {"model_type", "transformers_version"}
    assert written["elementwise_affine"] is False
    assert messages(caplog) == []


@pytest.mark.parametrize(("cls", "key"), [(cls, key) for cls, choices in OURS.items() for key in choices])
def test_other_choices_are_written_read_and_announced(cls, key, tmp_path, caplog):
    config = cls(use_short_conv=True, **{key: OURS[cls][key]})
    config.save_pretrained(tmp_path)
    (message,) = messages(caplog)
    assert key in message
    assert "fla" in message
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_model_config() == config.to_model_config()
    assert again.to_diff_dict() == config.to_diff_dict()


@BOTH
def test_copies(cls):
    config = cls(hidden_size=64, expand_ratio=16, attn=ATTN, **OURS[cls])
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), cls.from_dict(config.to_dict())):
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


def test_legacy_keys_of_hgrn(tmp_path, caplog):
    """Those of the first checkpoints on the hub."""
    legacy = {"hidden_size": 64, "num_heads": 1, "share_conv_kernel": True, "rms_norm_eps": 1e-4}
    config = AutoConfig.from_pretrained(write(tmp_path, "hgrn", **legacy))
    mixer = HGRNMixerConfig(norm_eps=1e-4)
    assert config.to_model_config() == HGRNConfig(hidden_size=64, norm_eps=1e-4).to_model_config()
    assert config.to_model_config().mixer == mixer
    assert messages(caplog) == []
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert set(written) == set(FLA_DEFAULTS[HGRNConfig]) | {"model_type", "transformers_version"}


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
    assert config.to_model_config() == HGRN2Config(hidden_size=64, expand_ratio=16).to_model_config()


def test_unknown_keys_are_reported_once_and_kept(tmp_path, caplog):
    config = AutoConfig.from_pretrained(
        write(tmp_path, zeta=3, alpha={"a": 1}, torch_dtype="bfloat16", is_decoder=True)
    )
    (message,) = messages(caplog)
    assert "['alpha', 'zeta']" in message
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["zeta"], written["alpha"]) == (3, {"a": 1})


ATTN = {"layers": [1, 5], "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "window_size": 7, "rope_theta": 500.0}


@BOTH
def test_attention_layers(cls, tmp_path, caplog):
    config = cls(hidden_size=64, num_hidden_layers=6, expand_ratio=4, attn=ATTN)
    attention = AttentionConfig(num_heads=4, num_kv_heads=2, window_size=7, rope_theta=500.0, qkv_bias=True)
    mixer = cls(hidden_size=64, expand_ratio=4).to_model_config().mixer
    assert config.to_model_config().mixers == (mixer, attention, mixer, mixer, mixer, attention)
    assert config.to_model_config().mixer == mixer
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attn"] == ATTN
    assert AutoConfig.from_pretrained(tmp_path).to_model_config() == config.to_model_config()
    assert messages(caplog) == []


@BOTH
def test_attention_without_a_window_ends_somewhere_and_says_so(cls, tmp_path, caplog):
    given = {"layers": [1], "num_heads": 4}
    config = cls(hidden_size=64, expand_ratio=4, max_position_embeddings=300, attn=given)
    (message,) = messages(caplog)
    assert "full attention in fla" in message
    assert "300 tokens" in message
    assert given == {"layers": [1], "num_heads": 4}  # what is the caller's is left alone
    mixer = config.to_model_config().mixers[1]
    assert mixer == AttentionConfig(num_heads=4, num_kv_heads=4, window_size=300, rope_theta=10000.0)
    config.save_pretrained(tmp_path)
    whole = given | {"num_kv_heads": 4, "qkv_bias": False, "window_size": None, "rope_theta": 10000.0}
    assert json.loads((tmp_path / "config.json").read_text())["attn"] == whole


@BOTH
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"attn": {"num_heads": 4}}, "attn must have 'layers'"),
        ({"attn": {"layers": [1]}}, "attn must have 'num_heads'"),
        ({"attn": ATTN | {"qk_norm": True, "heads": 3}}, r"attn has unknown keys \['heads', 'qk_norm'\]"),
        ({"attn": ATTN | {"layers": [6]}}, r"attn\['layers'\] must be .* from 0 to 5.* got \[6\]"),
        ({"attn": ATTN | {"layers": [-1]}}, r"attn\['layers'\] must be .*got \[-1\]"),
        ({"attn": ATTN | {"layers": [True]}}, r"attn\['layers'\] must be .*got \[True\]"),
        ({"attn": ATTN | {"layers": 1}}, r"attn\['layers'\] must be .*got 1"),
        ({"attn": ATTN | {"layers": []}}, r"attn\['layers'\] must be .*one layer or more.*got \[\]"),
        ({"attn": ATTN | {"layers": list(range(6))}}, r"attn\['layers'\] must be .*not all"),
        ({"attn": ATTN | {"num_heads": 5}}, r"attn\['num_heads'\] must divide hidden_size 64 .*got 5"),
        ({"attn": ATTN | {"num_heads": 0}}, r"attn\['num_heads'\] must divide hidden_size 64 .*got 0"),
        ({"attn": ATTN | {"num_heads": 64}}, r"attn\['num_heads'\] must divide hidden_size 64 into .*even.*got 64"),
        ({"attn": ATTN | {"num_kv_heads": 3}}, r"attn\['num_kv_heads'\] must divide num_heads 4, got 3"),
        (
            {"attn": ATTN | {"window_size": None}, "max_position_embeddings": None},
            r"attn\['window_size'\] must be given",
        ),
        ({"attn": ATTN | {"window_size": 0}}, "window_size must be .*got 0"),
        ({"attnres_block_size": 4}, "attnres_block_size must be None"),
        ({"use_l2warp": True}, "use_l2warp must be False"),
        ({"hidden_act": "gelu"}, "hidden_act must be one of"),
        ({"mixer_norm": "group"}, "mixer_norm must be one of"),
        ({"lower_bound_sum": "both"}, "lower_bound_sum must be one of"),
        ({"mixer_norm": "layer", "elementwise_affine": False}, "mixer_norm"),
    ],
)
def test_refusals(cls, given, words):
    with pytest.raises(ValueError, match=rf"(?s)({cls.__name__}|AttentionConfig): .*{words}"):
        cls(hidden_size=64, num_hidden_layers=6, expand_ratio=4, **given)


@pytest.mark.parametrize(
    ("cls", "given", "words"),
    [
        (HGRN2Config, {"hidden_size": 64, "expand_ratio": 24}, "expand_ratio must divide hidden_size 64, got 24"),
        (HGRN2Config, {"hidden_size": 64, "expand_ratio": 128}, "expand_ratio must divide hidden_size 64, got 128"),
        (HGRN2Config, {"hidden_size": 64, "expand_ratio": None, "num_heads": 5}, "must divide hidden_size 64"),
        (HGRN2Config, {"expand_ratio": None}, "expand_ratio is None, so num_heads must be >= 1, got None"),
        (HGRN2Config, {"query_activation": "relu"}, "query_activation must be one of"),
        (HGRN2Config, {"value_activation": "sigmoid"}, "value_activation must be one of"),
        (HGRNConfig, {"expand_ratio": 0}, "expand_ratio must be >= 1, got 0"),
        (HGRNConfig, {"expand_ratio": None}, "expand_ratio must be >= 1, got None"),
        (HGRNConfig, {"unit": "quaternion"}, "unit must be one of"),
        (HGRNConfig, {"gate_activation": "relu"}, "gate_activation must be one of"),
    ],
)
def test_refusals_of_one_type(cls, given, words):
    with pytest.raises(ValueError, match=f"{cls.__name__}: .*{words}"):
        cls(**given)


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
        HGRNConfig(hidden_size=64).save_pretrained(tmp_path)
        AutoConfig.from_pretrained(tmp_path)
        HGRN2Config(hidden_size=64, expand_ratio=16, num_heads=4).save_pretrained(tmp_path)
        AutoConfig.from_pretrained(tmp_path)
    assert messages(caplog) == []
