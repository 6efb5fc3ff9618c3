"""--lower-bound, --mlp, --mixer and --block: what is built, saved, loaded again, streamed and trained."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from longstream import build, hf
from longstream.models import HGRN2Config, HGRNConfig, HyenaConfig, ModelConfig
from longstream.models.backbone import fingerprint
from longstream.train.models import build_model, count, model_config
from longstream.train.network_options import block_fields, frame_options, mixer_fields
from longstream.train.run import train
from longstream.train.rundir import quiet_transformers
from longstream.train.sequence_models import choose_sequence_size, network_options
from longstream.train.settings import ModelSettings, build_settings
from tests.train.runs import small, write_text

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 32}


def settings(**changes: object) -> ModelSettings:
    flat = {f"model.{key}": value for key, value in (SMALL | changes).items()}
    return build_settings({"model.expand_ratio": 4}, flat).model


BUILT = [
    ({"name": "hgrn2", "lower_bound": "none"}, "hgrn2"),
    ({"name": "hgrn2", "lower_bound": "fixed"}, "longstream"),
    ({"name": "hgrn", "lower_bound": "decreasing"}, "longstream"),
    ({"name": "hgrn", "mixer_options": ["unit=complex", "norm_first=false"]}, "longstream"),
    ({"name": "hgrn2", "mixer_options": ["bias=true"], "block_options": ["memory=30", "norm=layer"]}, "longstream"),
    ({"name": "hgrn2", "mlp": "none"}, "longstream"),
    ({"name": "hybrid", "mlp": "gelu", "mixer_options": ["query_activation=sigmoid"]}, "longstream"),
    ({"name": "hyena", "mlp": "none", "mixer_options": ["window=false", "filter_lr=1e-3"]}, "longstream"),
    ({"name": "lstm", "mlp": "none"}, "longstream-lstm"),
]


@pytest.mark.parametrize(("changes", "kind"), BUILT, ids=[str(i) for i in range(len(BUILT))])
def test_what_is_built_is_saved_and_goes_from_token_to_token(tmp_path: Path, changes: dict, kind: str):
    asked = settings(**changes)
    torch.manual_seed(0)
    model = build_model(asked, vocab_size=50, boundary_id=49, seq_len=24).eval()
    assert model.config.model_type == kind
    assert model.config.eos_token_id == 49
    assert model.num_parameters() == count(asked, 50, 24)
    with quiet_transformers():
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.to_model_config() == model.config.to_model_config()
    ids = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids).logits
        assert torch.equal(again(ids).logits, whole)
        first = again(ids[:, :9])
        logits, cache = [first.logits], first.past_key_values
        logits += [again(ids[:, i : i + 1], past_key_values=cache).logits for i in range(9, 20)]
    torch.testing.assert_close(torch.cat(logits, 1), whole, atol=2e-6, rtol=1e-4)
    if kind != "longstream-lstm":
        assert again.decode_why_not is None  # so these were native steps


def test_the_default_is_what_it_was():
    assert isinstance(build_model(settings(), vocab_size=50, seq_len=24).config, hf.HGRN2Config)
    mixers = (HGRNConfig(), HGRN2Config(expand_ratio=16), HyenaConfig())
    # of version 0.6: states that were saved then are read now
    expected = ["9d95c0f1bb7f9850", "421d574a85934275", "8b23a955ce7d2fce"]
    assert [fingerprint(ModelConfig(hidden_size=32, num_layers=2, mixer=mixer)) for mixer in mixers] == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("learned", [None, 1 / 3, 2 / 3]),
        ("none", [None, None, None]),
        ("fixed", [None, 1 / 3, 2 / 3]),
        ("decreasing", [2 / 3, 1 / 3, None]),
    ],
)
@pytest.mark.parametrize("name", ["hgrn", "hgrn2"])
def test_lower_bounds_of_layers(name: str, mode: str, expected: list):
    backbone = build_model(settings(name=name, lower_bound=mode), vocab_size=50, seq_len=24).model.backbone
    bounds = backbone.bounds_of_layers()
    assert [bound is None for bound in bounds] == [value is None for value in expected]
    for bound, value in zip(bounds, expected, strict=True):
        if bound is not None:
            torch.testing.assert_close(bound[0], torch.full((16,), value))
            torch.testing.assert_close(bound[1], torch.full((16,), 1 - value))


@pytest.mark.parametrize("mode", ["learned", "fixed", "decreasing"])
def test_only_learned_bounds_move(tmp_path: Path, mode: str):
    text = write_text(tmp_path / "a.txt")
    quick = {"steps": 3, "eval_every": 0, "save_every": 0, "sample_tokens": 0, "num_hidden_layers": 3}
    train(small(text, lower_bound=mode, learning_rate=1e-2, **quick), tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    moved = model.model.backbone.lower_bounds.abs().max().item()
    assert (moved == 0) == (mode == "fixed")
    assert ("model.backbone.lower_bounds" in dict(model.named_parameters())) == (mode != "fixed")
    assert model.config.to_model_config().lower_bound_mode == mode


def test_a_state_of_decreasing_bounds_is_no_other_models():
    plain = ModelConfig(hidden_size=16, num_layers=2, mixer=HGRN2Config(expand_ratio=4))
    modes = {m: ModelConfig(**{**vars(plain), "lower_bound_mode": m}) for m in ("fixed", "decreasing")}
    assert fingerprint(modes["fixed"]) == fingerprint(plain) != fingerprint(modes["decreasing"])


def test_fields_are_read_by_their_types():
    asked = settings(mixer_options=["window=false", "filter_lr=1e-3", "positional_width=5", "activation=gelu"])
    assert mixer_fields(asked, HyenaConfig) == {
        "window": False,
        "filter_lr": 1e-3,
        "positional_width": 5,
        "activation": "gelu",
    }
    assert mixer_fields(settings(mixer_options=["filter_lr=none"]), HyenaConfig) == {"filter_lr": None}
    blocks = settings(block_options=["memory=none", "dropout=0.5", "rescale_residual=true", "norm_eps=1"])
    assert block_fields(blocks) == {"memory": None, "dropout": 0.5, "rescale_residual": True, "norm_eps": 1.0}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mixer_options": ["windw=false"], "name": "hyena"}, "unknown field 'windw'; did you mean 'window'"),
        ({"mixer_options": ["unit=complex"]}, "mixer_options: unknown field 'unit'"),
        ({"mixer_options": ["bias=perhaps"]}, "model.mixer_options: bias must be true or false, got 'perhaps'"),
        ({"mixer_options": ["bias"]}, "must be written as field=value, got 'bias'"),
        ({"mixer_options": ["bias=true", "bias=false"]}, "bias is given twice"),
        ({"mixer_options": ["expand_ratio=8"]}, "expand_ratio is said by --expand-ratio"),
        ({"mixer_options": ["norm=rsm"]}, "HGRN2Config: norm must be one of"),
        ({"block_options": ["mlp=none"]}, "mlp is said by --mlp"),
        ({"block_options": ["memory=8"]}, "ModelConfig.memory must be None unless the mixers have bias=True"),
        ({"block_options": ["hidden_size=8"]}, "block_options: unknown field 'hidden_size'"),
        ({"name": "llama", "mixer_options": ["bias=true"]}, "--mixer and --block must be left out for llama"),
    ],
)
def test_what_cannot_be_built(changes: dict, says: str):
    with pytest.raises(ValueError, match=says):
        model_config(settings(**changes), 50, 24)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "hyena", "lower_bound": "none"}, "lower_bound must be left out for hyena: it has none"),
        ({"name": "mamba", "mlp": "none"}, "mlp must be left out for mamba, which has its own"),
        ({"lower_bound": "rising"}, "lower_bound must be one of learned, none, fixed, decreasing"),
    ],
)
def test_settings_that_are_none(changes: dict, says: str):
    with pytest.raises(ValueError, match=says):
        settings(**changes)


def test_bounds_without_a_sum_have_no_mode():
    with pytest.raises(ValueError, match="lower_bound_mode must be 'learned' without a lower_bound, got 'fixed'"):
        ModelConfig(hidden_size=8, num_layers=1, lower_bound=None, lower_bound_mode="fixed")


def test_filters_of_a_language_models_first_weights_are_next_to_nothing():
    sizes = {}
    for std in ("none", "0.02"):
        options = ["positional_width=3", "frequency=1", f"filter_init_std={std}"]
        torch.manual_seed(0)
        model = build_model(settings(name="hyena", mixer_options=options), vocab_size=50, seq_len=256)
        sizes[std] = model.model.backbone.layers[0].mixer.filter(256).square().mean().sqrt().item()
    assert sizes["none"] > 300 * sizes["0.02"] > 0
    with pytest.raises(ValueError, match="filter_init_std must be None or a number > 0, got 0"):
        HyenaConfig(filter_init_std=0.0)


def test_models_of_frames_take_them_too():
    complex_unit = settings(name="hgrn", mixer_options=["unit=complex"], lower_bound="decreasing", mlp="none")
    options = network_options(complex_unit, 20)
    assert options["unit"] == "complex"
    sized = choose_sequence_size(settings(name="hgrn", mixer_options=["unit=complex"], params="20k"), 3, 20)
    assert not sized.params
    backbone = build("hgrn", embed_dim=3, **options).backbone
    assert backbone.config.lower_bound_mode == "decreasing"
    assert backbone.layers[0].mlp is None
    y, _ = backbone(torch.randn(2, 5, 16))
    assert y.shape == (2, 5, 16)
    assert frame_options(settings(lower_bound="none"))["lower_bound"] is None
    for changes in ({"name": "gru", "mixer_options": ["bias=true"]}, {"name": "gru", "mlp": "none"}):
        with pytest.raises(ValueError, match="must be left out for gru"):
            network_options(settings(**changes), 20)


@pytest.mark.parametrize("name", ["llama", "mamba", "mamba2"])
def test_weights_of_transformers_models_are_drawn_as_asked(name: str):
    asked = settings(name=name, block_options=["initializer_range=0.5"], hidden_size=32)
    torch.manual_seed(0)
    model = build_model(asked, vocab_size=50, seq_len=24)
    assert model.config.initializer_range == 0.5
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.5, rel=0.1)
    with pytest.raises(ValueError, match=r"except for --block initializer_range=..., got 'norm=layer'"):
        build_model(settings(name=name, block_options=["norm=layer"]), vocab_size=50, seq_len=24)
