"""Golden checkpoints in each layout, converted there and back: their logits on both sides, and every byte."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

import longstream
from longstream.convert import checkpoint, convert, load_frames, prove
from longstream.edifice import load_axon
from longstream.sequences import SequenceConfig, SequenceModel
from tests import golden
from tests.convert import plain
from tests.hf.conftest import has_hyena, random_ids, tiny_model
from tests.numerics import assert_same


def logits(folder, ids, auto: Any = AutoModelForCausalLM):
    model = auto.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        out = model(ids, use_cache=False)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def same_files(one, other):
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["hgrn_lm", "hgrn2_lm"])
def test_golden_fla_there_and_back(name, tmp_path):
    source = plain.fla_folder(tmp_path / "fla", name)
    arrays = golden.load(name)
    said = []
    report = convert(source, tmp_path / "ours", to="longstream", tell=said.append)
    assert report.logits_difference is not None
    assert report.logits_difference < 1e-10
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "longstream"
    assert "bit for bit" in " ".join(said)
    convert(tmp_path / "ours", tmp_path / "again", to="fla")
    for folder in (tmp_path / "ours", tmp_path / "again"):
        assert_same(folder.name, logits(folder, torch.from_numpy(arrays["input_ids"])), arrays["logits"])
    assert same_files(source, tmp_path / "again")
    assert "backbone" in str(load_file(tmp_path / "ours" / "model.safetensors").keys())


@pytest.mark.parametrize("kind", ["hgrn2", "hgrn", "hgrn2 hybrid", "mixture", "hyena"])
def test_every_kind_of_model_becomes_ours_and_what_fla_knows_comes_back(kind, tmp_path):
    """Short convolutions, hybrids and mixtures; float32."""
    model = tiny_model(kind).float()
    model.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "ours", to="longstream")
    ids = random_ids(2, 9)
    assert_same("logits", logits(tmp_path / "ours", ids), logits(tmp_path / "source", ids).numpy())
    if kind in ("mixture", "hyena"):
        with pytest.raises(ValueError, match="--to fla needs layers of HGRN or HGRN2"):
            convert(tmp_path / "ours", tmp_path / "again", to="fla")
        assert has_hyena(model)
    else:
        convert(tmp_path / "ours", tmp_path / "again", to="fla", logits="never")
        assert same_files(tmp_path / "source", tmp_path / "again")
        assert_same("again", logits(tmp_path / "again", ids), logits(tmp_path / "source", ids).numpy())


def test_a_model_without_a_head_and_one_with_a_tied_head(tmp_path):
    model = tiny_model("hgrn2", tie_word_embeddings=True).float()
    model.model.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "tied")
    for name, auto in (("base", AutoModel), ("tied", AutoModelForCausalLM)):
        convert(tmp_path / name, tmp_path / f"{name} ours", to="longstream")
        convert(tmp_path / f"{name} ours", tmp_path / f"{name} fla", to="fla")
        assert same_files(tmp_path / name, tmp_path / f"{name} fla")
        ids = random_ids(2, 5)
        assert torch.equal(logits(tmp_path / f"{name} ours", ids, auto), logits(tmp_path / name, ids, auto))
        assert "lm_head.weight" not in load_file(tmp_path / f"{name} ours" / "model.safetensors")


def test_keys_of_old_checkpoints_are_understood(tmp_path):
    source = plain.fla_folder(tmp_path / "old", "hgrn_lm")
    values = json.loads((source / "config.json").read_text())
    values["rms_norm_eps"] = values.pop("norm_eps")
    (source / "config.json").write_text(json.dumps(values | {"num_heads": 1, "share_conv_kernel": False}))
    convert(source, tmp_path / "new", to="fla")
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written["norm_eps"] == 1e-6
    assert not {"rms_norm_eps", "num_heads", "share_conv_kernel"} & written.keys()
    assert same_files(source, tmp_path / "new")


@pytest.mark.parametrize("checkpointed", [False, True])
def test_golden_hyenadna_of_lightning(checkpointed, tmp_path):
    source = plain.lightning_folder(tmp_path / "light", checkpointed=checkpointed)
    _, _, ids, expected = plain.hyenadna_weights()
    convert(source, tmp_path / "port", to="hyenadna")
    convert(source / "weights.ckpt", tmp_path / "ours", to="longstream", logits="never")  # the file alone names it too
    convert(tmp_path / "ours", tmp_path / "again", to="hyenadna")
    for folder in ("port", "ours", "again"):
        assert_same(folder, logits(tmp_path / folder, ids), expected.numpy())
    assert same_files(tmp_path / "port", tmp_path / "again")
    names = load_file(tmp_path / "port" / "model.safetensors").keys()
    assert "hyena.backbone.layers.1.mixer.filter_fn.pos_emb.z" in names
    assert [name for name in names if name.endswith("freq")] == [
        f"hyena.backbone.layers.{i}.mixer.filter_fn.implicit_filter.1.freq" for i in range(2)
    ]


@pytest.mark.parametrize("kept", ["1.freq", "3.freq", "5.freq"])
def test_any_one_of_the_tied_frequencies_is_enough(kept, tmp_path):
    dropped = tuple(name for name in ("1.freq", "3.freq", "5.freq") if name != kept)
    source = plain.port_folder(tmp_path / "port", without=dropped)
    _, _, ids, expected = plain.hyenadna_weights()
    convert(source, tmp_path / "ours", to="longstream")
    assert_same("logits", logits(tmp_path / "ours", ids), expected.numpy())


def test_positions_that_are_missing_are_computed(tmp_path):
    """In float32, as upstream makes them: 9e-7 from the golden file's, which are widened float32."""
    source = plain.port_folder(tmp_path / "port", without=("pos_emb.z", "pos_emb.t", "deltas"))
    _, weights, ids, expected = plain.hyenadna_weights()
    convert(source, tmp_path / "ours", to="longstream")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    for name, theirs in {"positions": "pos_emb.z", "time": "pos_emb.t", "delta": "modulation.deltas"}.items():
        got = written[f"model.backbone.layers.1.mixer.filter.{name}"]
        exact = weights[f"backbone.layers.1.mixer.filter_fn.{theirs}"].reshape(got.shape)
        assert (got.double() - exact).abs().max() < 2e-6, name
    assert (logits(tmp_path / "ours", ids) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    "values",
    [
        plain.hgrn2_values(),
        plain.hgrn2_values(norm_type="layernorm", bias=True, in_act="silu", out_act="sigmoid", glu_act="silu"),
        plain.hgrn2_values(no_scale_embedding=False),
        plain.hgrn2_values(no_scale_embedding=False, tie_word_embeddings=True, decoder_embed_dim=12),
        plain.hgrn_values(),
        plain.hgrn_values(decoder_embed_dim=12, tie_word_embeddings=False),
    ],
    ids=["hgrn2", "hgrn2 layernorm", "hgrn2 scaled", "hgrn2 scaled tied", "hgrn", "hgrn untied"],
)
def test_the_authors_language_models(values, tmp_path):
    """Against their equations written out; hgrn's embeddings are multiplied by sqrt(D) and tied."""
    source = plain.opennlplab_folder(tmp_path / "theirs", values)
    convert(source, tmp_path / "ours", to="longstream")
    ids = random_ids(2, 11)
    expected = plain.opennlplab_logits(values, plain.opennlplab_weights(values), ids)
    assert_same("logits", logits(tmp_path / "ours", ids), expected.numpy())
    with pytest.raises(ValueError, match="--to fla"):
        convert(source, tmp_path / "fla", to="fla")
    with pytest.raises(ValueError, match="longstream convert SRC DST"):
        AutoModelForCausalLM.from_pretrained(source)


def test_the_authors_pickles_of_tensors_are_read_too(tmp_path):
    values = plain.hgrn2_values()
    source = plain.opennlplab_folder(tmp_path / "theirs", values, as_pickle=True)
    convert(source, tmp_path / "ours", to="longstream")
    expected = plain.opennlplab_logits(values, plain.opennlplab_weights(values), random_ids(1, 4))
    assert_same("logits", logits(tmp_path / "ours", random_ids(1, 4)), expected.numpy())


@pytest.mark.parametrize("name", ["edifice_hgrn_small", "edifice_hyena_small"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_golden_edifice_there_and_back(name, suffix, tmp_path):
    source = plain.savez(tmp_path / "source.npz", plain.axon_arrays(name))
    options = {"seq_len": 12, "scan": "edifice"} if "hgrn" in name else {"seq_len": 12}
    (tmp_path / "options.json").write_text(json.dumps(options))
    report = convert(source, tmp_path / "ours.safetensors", to="longstream", config=tmp_path / "options.json")
    assert report.files == (tmp_path / "ours.safetensors",)
    arrays = golden.load(name)
    with torch.no_grad():
        y, _ = load_frames(tmp_path / "ours.safetensors")(torch.from_numpy(arrays["__x"]))
    assert np.abs(y.numpy() - arrays["__y"]).max() < 1e-5
    back = tmp_path / f"again{suffix}"
    convert(tmp_path / "ours.safetensors", back, to="axon")
    if suffix == ".npz":
        with np.load(back, allow_pickle=False) as file:
            written = {key: file[key] for key in file.files}
    else:
        written = {key: tensor.numpy() for key, tensor in load_file(back).items()}
    expected = plain.axon_arrays(name)
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[key], expected[key]) for key in written)


@pytest.mark.parametrize("name", ["edifice-hgrn", "edifice-hyena"])
def test_a_trained_model_of_sequences_gives_its_edifice_network(name, tmp_path):
    torch.manual_seed(0)
    options = {"hidden_size": 8, "num_layers": 2, "seq_len": 9, "dropout": 0.0}
    config = SequenceConfig(
        name=name, options=options, task="classify", channels=["a", "b", "c"], indicators=[1], classes=["x", "y"]
    )
    model = SequenceModel(config).eval()
    model.save_pretrained(tmp_path / "run")
    said = []
    convert(tmp_path / "run", tmp_path / "w.npz", to="axon", tell=said.append)
    assert "without its head and its normalization" in said[0]
    other = longstream.build(name, embed_dim=4, outputs="all", **options).eval()
    load_axon(other, tmp_path / "w.npz")
    x = torch.randn(2, 9, 4)
    with torch.no_grad():
        assert torch.equal(other(x)[0], model.features(x)[0])


def test_other_networks_of_sequences_have_no_other_format(tmp_path):
    config = SequenceConfig(
        name="hgrn2", options={"hidden_size": 8, "num_layers": 1}, channels=["a"], classes=["x", "y"]
    )
    SequenceModel(config).save_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="with the network hgrn2; only Edifice's"):
        convert(tmp_path / "run", tmp_path / "w.npz", to="axon")


def test_rounding_to_another_dtype_leaves_filters_alone(tmp_path):
    source = plain.port_folder(tmp_path / "port")
    report = convert(source, tmp_path / "half", to="hyenadna", dtype="bfloat16")
    assert 0 < report.rounding < 0.05
    assert report.logits_difference is not None
    written = load_file(tmp_path / "half" / "model.safetensors")
    kinds = {("filter_fn" in name, tensor.dtype) for name, tensor in written.items()}
    assert kinds == {(True, torch.float64), (False, torch.bfloat16)}  # of this file, whose filters are so wide
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", ["hgrn2 hybrid", "mixture", "hgrn2 without a head", "tied"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_large_model_is_compared_layer_by_layer(kind, dtype, tmp_path, monkeypatch):
    fields = {"tie_word_embeddings": True} if kind == "tied" else {}
    model = tiny_model(kind.split(" without")[0].replace("tied", "hgrn"), **fields).float()
    (model.model if "without" in kind else model).save_pretrained(tmp_path / "source")
    whole = convert(tmp_path / "source", tmp_path / "whole", to="longstream", dtype=dtype)
    monkeypatch.setattr(prove, "MOST_PARAMETERS", 0)
    report = convert(tmp_path / "source", tmp_path / "t", to="longstream", dtype=dtype)
    assert "layer by layer" in report.compared
    assert "layer by layer" not in whole.compared
    assert report.logits_difference == 0
    given, _ = prove._input(checkpoint.open_checkpoint(tmp_path / "t"), torch.float32)
    got = prove._output_by_layers(checkpoint.open_checkpoint(tmp_path / "t"), given, torch.float32, None, bool)
    loaded = (AutoModel if "without" in kind else AutoModelForCausalLM).from_pretrained(
        tmp_path / "t", dtype=torch.float32
    )
    with torch.no_grad():
        out = loaded.eval()(given, use_cache=False)
    expected = out.logits if "logits" in out else out.last_hidden_state
    assert (got - expected).abs().max() < 1e-4


def test_what_belongs_to_a_model_comes_along(tmp_path):
    source = plain.fla_folder(tmp_path / "fla", "hgrn2_lm")
    for name in ("tokenizer.json", "generation_config.json", "optimizer.pt"):
        (source / name).write_text("{}")
    convert(source, tmp_path / "ours", to="longstream", logits="never")
    assert {file.name for file in (tmp_path / "ours").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
    }


def test_an_mlp_that_fla_does_not_have_is_named(tmp_path):
    from longstream import hf
    from longstream.models import HGRN2Config, ModelConfig

    before = ModelConfig(hidden_size=8, num_layers=1, mixer=HGRN2Config(expand_ratio=4), mlp="none", vocab_size=16)
    config = hf.LongstreamConfig.from_model_config(before)
    hf.LongstreamForCausalLM(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"--to fla needs the MLP 'swiglu', .* got 'none'"):
        convert(tmp_path / "ours", tmp_path / "again", to="fla")
