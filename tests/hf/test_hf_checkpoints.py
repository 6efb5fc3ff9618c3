"""Checkpoints: every way of saving and loading keeps the numbers, and a bad one is an error with a reason."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from longstream.hf import HGRN2ForCausalLM, to_fla
from tests.hf.conftest import KINDS, VOCAB, load_with_info, random_ids, tiny_config, tiny_model, write_fla
from tests.numerics import assert_same

CHOICES = [
    *((kind, {}) for kind in KINDS),
    ("hgrn2", {"use_short_conv": False, "tie_word_embeddings": True}),
    ("hgrn2", {"conv_bias": True, "use_bias": True, "mixer_norm": "layer", "lower_bound_sum": "exclusive"}),
    ("hgrn2", {"use_lower_bound": False, "elementwise_affine": False}),
    ("hgrn", {"conv_bias": True, "use_bias": True, "mixer_norm": "layer", "unit": "complex", "norm_first": False}),
    ("hyena", {"tie_embeddings": True, "vocab_multiple": 5}),
]


@pytest.fixture
def model():
    """Of one kind: what may be in a directory does not depend on it."""
    return tiny_model()


class Trap:
    """Whoever unpickles it leaves a file behind."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def write_config(directory, config, **fields):
    fields = {"architectures": ["HGRN2ForCausalLM"]} | fields
    (directory / "config.json").write_text(json.dumps(config.to_diff_dict() | fields))
    return directory


@pytest.mark.parametrize(("kind", "fields"), CHOICES)
def test_save_and_load(kind, fields, tmp_path):
    model = tiny_model(kind, **fields)
    model.save_pretrained(tmp_path)
    expected = to_fla(model.state_dict(), model.config)
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(saved[name].equal(tensor) for name, tensor in expected.items())
    again, info = load_with_info(AutoModelForCausalLM, tmp_path, dtype=torch.float64)
    assert not any(info.values())
    assert again.config.to_model_config() == model.config.to_model_config()
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in again.state_dict().items())
    for parameter in again.parameters():
        parameter.data = parameter.data.clone()  # a file's memory is not aligned, which changes the order of sums
    ids = random_ids(2, 7)
    assert again(ids).logits.equal(model(ids).logits)
    again.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == expected.keys()


def test_tied_weights_stay_tied(tmp_path):
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embeddings.weight
    assert model.get_output_embeddings() is model.lm_head
    assert model.get_input_embeddings() is model.model.embeddings


@pytest.mark.parametrize("kind", KINDS)
def test_shards(tmp_path, kind):
    model = tiny_model(kind)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert index["weight_map"].keys() == to_fla(model.state_dict(), model.config).keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ids = random_ids(2, 7)
    assert_same("outputs", again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}, {"device_map": "cpu"}])
def test_bfloat16(tmp_path, kind, options):
    model = tiny_model(kind)
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, **options)
    for name, tensor in half.state_dict().items():
        dtype = torch.float32 if ".filter." in name else torch.bfloat16  # half precision would merge time steps
        assert tensor.equal(model.state_dict()[name].to(dtype)), name
    ids = random_ids(2, 7)
    out = half(ids)
    assert out.logits.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in out.past_key_values.state.tensors()} == {torch.float32, torch.int64}
    # bfloat16 keeps 8 bits, and the logits pass through a dozen rounded products: a wrong weight is off by O(1).
    exact = model(ids).logits
    assert (out.logits - exact).norm() < 0.1 * exact.norm()
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", KINDS)
def test_base_model_and_head(tmp_path, kind, caplog):
    model = tiny_model(kind)
    model.save_pretrained(tmp_path / "whole")
    base = AutoModel.from_pretrained(tmp_path / "whole", dtype=torch.float64)
    ids = random_ids(2, 7)
    assert_same("outputs", base(ids).last_hidden_state, model.model(ids).last_hidden_state)
    base.save_pretrained(tmp_path / "base")
    names = to_fla(base.state_dict(), base.config).keys()
    assert load_file(tmp_path / "base" / "model.safetensors").keys() == names
    caplog.clear()
    headed = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("longstream")]
    assert message.endswith("base is a base model: lm_head.weight is new and untrained")
    assert_same("outputs", headed.model(ids).last_hidden_state, model.model(ids).last_hidden_state)
    again = type(base).from_pretrained(tmp_path / "base", dtype=torch.float64)
    assert_same("outputs", again(ids).last_hidden_state, base(ids).last_hidden_state)


@pytest.mark.parametrize("kind", ["hgrn2", "hgrn", "hgrn2 hybrid", "hgrn hybrid"])
def test_names_are_flas_whatever_was_loaded(tmp_path, kind):
    """A file in our names is read too, and is fla's after saving."""
    model = tiny_model(kind)
    directory = write_fla(tmp_path / "ours", model.config.to_diff_dict(), model.state_dict())
    again = type(model).from_pretrained(directory, dtype=torch.float64)
    again.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == to_fla(model.state_dict(), model.config).keys()


def test_initialization_keeps_what_was_loaded_and_fills_by_the_rule():
    model = HGRN2ForCausalLM(tiny_config(hidden_size=96, vocab_size=500, initializer_range=0.1, use_bias=True))
    mixer = "model.backbone.layers.0.mixer."
    for name in ("model.embeddings.weight", "lm_head.weight", mixer + "q_proj.weight"):
        assert 0.095 < model.get_parameter(name).std() < 0.105
    taps = model.get_parameter(mixer + "q_conv.weight")
    assert taps.abs().max() <= 3**-0.5
    assert taps.std() > 0.2
    assert (model.get_parameter(mixer + "norm.weight") == 1).all()
    assert (model.get_parameter(mixer + "q_proj.bias") == 0).all()
    assert (model.get_parameter("model.backbone.lower_bounds") == 0).all()


def test_hyenas_filters_begin_as_they_make_themselves():
    torch.manual_seed(0)
    filter = AutoModelForCausalLM.from_config(tiny_config("hyena")).model.backbone.layers[0].mixer.filter
    assert (filter.frequency == 14).all()
    assert filter.positions[0].tolist() == [0, 1, 1, 0, 0]
    assert filter(64).abs().max() > 0.05  # with the small weights of a language model it would be next to nothing


def test_what_a_file_lacks_is_made_and_the_rest_is_left(tmp_path):
    """transformers fills in what has another shape, if it is told to: in a filter too, and there alone."""
    model = tiny_model("hyena")
    model.save_pretrained(tmp_path)
    name = "model.backbone.layers.0.mixer.filter.frequency"
    weights = load_file(tmp_path / "model.safetensors") | {name: torch.ones(3)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, ignore_mismatched_sizes=True)
    for key, tensor in again.state_dict().items():
        assert tensor.equal(torch.full((8,), 14.0).double() if key == name else model.state_dict()[key]), key


@pytest.mark.parametrize("kind", KINDS)
def test_resized_embeddings(kind, tmp_path):
    model = tiny_model(kind)
    ids = random_ids(2, 5)
    before = model(ids).logits
    model.resize_token_embeddings(31)
    assert model.config.vocab_size == 31
    after = model(ids).logits
    assert after.shape[-1] == (32 if kind == "hyena" else 31)  # its vocabulary is padded to eights
    assert_same("logits of the old tokens", after[..., :VOCAB], before[..., :VOCAB])
    model(torch.full((1, 1), 30))
    with pytest.raises(ValueError, match=r"in \[0, 31\), got 31"):
        model(torch.full((1, 1), 31))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert_same("logits after loading", again(ids).logits, after)


def test_resized_to_another_multiple(tmp_path):
    for kind, vocab_size in (("hgrn2", 30), ("hyena", 25)):  # in fla's format the padding is part of the vocabulary
        model = tiny_model(kind)
        model.resize_token_embeddings(25, pad_to_multiple_of=10)
        assert (model.config.vocab_size, model(random_ids(1, 3)).logits.shape[-1]) == (vocab_size, 30)
        model.save_pretrained(tmp_path)
        assert AutoModelForCausalLM.from_pretrained(tmp_path)(random_ids(1, 3)).logits.shape[-1] == 30
        assert model.resize_token_embeddings() is model.get_input_embeddings()
        assert model.config.vocab_size == vocab_size


@pytest.mark.parametrize("architectures", [["HGRN2ForCausalLM"], None])
def test_a_missing_head_is_an_error(tmp_path, model, architectures):
    weights = to_fla(model.state_dict(), model.config)
    del weights["lm_head.weight"]
    directory = write_fla(tmp_path / "cut", model.config.to_diff_dict(), weights)
    write_config(directory, model.config, architectures=architectures)
    with pytest.raises(ValueError, match=r"expected a whole HGRN2ForCausalLM, got .*, 1 missing: lm_head.weight$"):
        AutoModelForCausalLM.from_pretrained(directory)
    write_config(directory, model.config, tie_word_embeddings=True)
    tied = AutoModelForCausalLM.from_pretrained(directory)
    assert tied.lm_head.weight is tied.model.embeddings.weight


@pytest.mark.parametrize(("architecture", "prefix"), [("HGRN2Model", "model."), ("HGRN2ForCausalLM", "")])
def test_a_base_model_is_known_by_its_architecture_or_its_names(tmp_path, model, architecture, prefix, caplog):
    weights = {prefix + name: tensor for name, tensor in to_fla(model.model.state_dict(), model.config).items()}
    directory = write_fla(tmp_path / "base", model.config.to_diff_dict(), weights)
    write_config(directory, model.config, architectures=[architecture])
    headed = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    assert "lm_head.weight is new and untrained" in caplog.text
    ids = random_ids(2, 7)
    assert_same("outputs", headed.model(ids).last_hidden_state, model.model(ids).last_hidden_state)


@pytest.fixture
def no_unpickling(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)


@pytest.mark.parametrize("cls", [AutoModel, AutoModelForCausalLM])
@pytest.mark.parametrize("options", [{}, {"use_safetensors": None}, {"use_safetensors": True}])
def test_pickles_are_not_read(tmp_path, model, cls, options, no_unpickling):
    write_config(tmp_path, model.config)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    words = r"the directory .*got \['pytorch_model.bin'\]: only safetensors are read"
    with pytest.raises(FileNotFoundError, match=words) as caught:
        cls.from_pretrained(tmp_path, **options)
    assert str(tmp_path) in str(caught.value)


def test_pickles_are_not_run(tmp_path, model):
    write_config(tmp_path, model.config)
    torch.save({"lm_head.weight": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    for options in ({}, {"use_safetensors": False}, {"transformers_weights": "adapter_model.bin"}):
        with pytest.raises((OSError, ValueError), match="safetensors"):
            AutoModelForCausalLM.from_pretrained(tmp_path, weights_only=False, **options)
    assert not (tmp_path / "sprung").exists()


def test_pickles_are_not_asked_for(tmp_path, model):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_safetensors must be True, got False: only safetensors are read"):
        AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=False)
    with pytest.raises(ValueError, match=r"gguf_file must be None, got 'a\.gguf': only safetensors are read"):
        HGRN2ForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf")


@pytest.mark.parametrize("index", ["pytorch_model.bin.index.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("variant", [None, "half"])
def test_an_index_of_pickles_is_not_followed(tmp_path, model, index, variant, no_unpickling):
    write_config(tmp_path, model.config)
    torch.save(model.state_dict(), tmp_path / "shard.bin")
    content = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), "shard.bin")}
    name = index if variant is None else index.replace(".json", f".{variant}.json")
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises((OSError, ValueError), match="only safetensors are read"):
        AutoModelForCausalLM.from_pretrained(tmp_path, variant=variant)


def test_a_pickle_named_by_the_caller_or_the_config_is_not_read(tmp_path, model, no_unpickling):
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"got \['.*adapter_model.bin'\]: only safetensors are read"):
        HGRN2ForCausalLM.from_pretrained(tmp_path / "adapter_model.bin", config=model.config)
    config = tiny_config()
    config.transformers_weights = "adapter_model.bin"
    with pytest.raises(ValueError, match=r"transformers_weights: .* got \['adapter_model.bin'\]"):
        HGRN2ForCausalLM.from_pretrained(tmp_path, config=config)
    with pytest.raises(ValueError, match=r"transformers_weights: .* got \['adapter_model.bin'\]"):
        HGRN2ForCausalLM.from_pretrained(tmp_path, transformers_weights="adapter_model.bin")
    write_config(tmp_path, model.config, transformers_weights="adapter_model.bin")
    with pytest.raises(ValueError, match="transformers_weights must name a file of safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_pickles_beside_safetensors_are_passed_over(tmp_path, model, no_unpickling):
    model.save_pretrained(tmp_path / "sub")
    (tmp_path / "sub" / "pytorch_model.bin").write_bytes(b"")
    again = HGRN2ForCausalLM.from_pretrained(tmp_path, subfolder="sub", dtype=torch.float64)
    ids = random_ids(2, 7)
    assert_same("outputs", again(ids).logits, model(ids).logits)
