"""Sources and options that convert refuses, in one line, before it has written anything."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from longstream.convert import convert, load_frames
from tests.convert import plain


def test_everything_that_does_not_fit_is_named_at_once(fla, tmp_path):
    def change(weights):
        del weights["model.layers.0.attn.q_proj.weight"], weights["model.norm.weight"]
        weights["model.layers.7.attn.q_proj.weight"] = torch.zeros(2)
        weights["something.else"] = torch.zeros(2)
        weights["model.lower_bounds"] = torch.zeros(3, 64)
        weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].to(torch.int64)
        return weights

    said = plain.refused("does not fit", plain.copy_of(fla, tmp_path / "s", change), tmp_path / "t")
    for words in (
        "2 missing: model.layers.0.attn.q_proj.weight, model.norm.weight",
        "2 spare: model.layers.7.attn.q_proj.weight, something.else",
        "model.lower_bounds must have shape (2, 64), got (3, 64)",
        "model.layers.1.mlp.up_proj.weight must be floating point, got torch.int64",
    ):
        assert words in said, words


def test_what_every_layer_lacks_is_named_once(fla, tmp_path):
    source = plain.copy_of(fla, tmp_path / "s", num_hidden_layers=500)
    said = plain.refused("does not fit", source, tmp_path / "t")
    assert "model.layers.{2-499}.attn.q_proj.weight" in said
    assert len(said) < 1000


def test_a_head_that_is_tied_and_differs_is_refused(fla, tmp_path):
    source = plain.copy_of(fla, tmp_path / "s", tie_word_embeddings=True)
    assert "lm_head.weight" in plain.refused("must be equal to model.embeddings.weight", source, tmp_path / "t")


def test_frequencies_that_are_tied_and_differ_are_refused(tmp_path):
    source = plain.port_folder(tmp_path / "port")
    weights = load_file(source / "model.safetensors")
    weights["hyena.backbone.layers.1.mixer.filter_fn.implicit_filter.5.freq"] += 1
    save_file(weights, source / "model.safetensors")
    plain.refused(r"5\.freq must be equal to .*1\.freq", source, tmp_path / "t")


class Evil:
    def __reduce__(self):
        return (print, ("this must not be run",))


@pytest.mark.parametrize("name", ["weights.ckpt", "pytorch_model.bin"])
def test_a_pickle_of_more_than_tensors_is_refused_and_not_run(name, tmp_path, capfd):
    source = plain.lightning_folder(tmp_path / "light")
    (source / "weights.ckpt").unlink()
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hyper_parameters": Evil()}, source / name)
    said = plain.refused("holds more than tensors", source, tmp_path / "t", to="hyenadna")
    assert "print" in said  # what was in it
    assert "will likely succeed" not in said  # torch's advice: to run it
    assert "this must not be run" not in capfd.readouterr().out


def test_a_bare_pickle_is_refused_without_a_warning(fla, tmp_path):
    source = tmp_path / "s"
    source.mkdir()
    (source / "config.json").write_bytes((fla / "config.json").read_bytes())
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(), protocol=4))
    plain.refused("holds more than tensors", source, tmp_path / "t")


def test_an_npz_of_objects_is_refused(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, final_norm=np.array([Evil()], dtype=object))
    plain.refused("not a NumPy file of plain arrays", path, tmp_path / "t.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "weights.ckpt"])
@pytest.mark.parametrize("content", [b"", b"not tensors", b"PK\x03\x04 and then nothing"])
def test_damaged_files_are_named(name, content, fla, tmp_path):
    source = tmp_path / "s"
    source.mkdir()
    (source / "config.json").write_bytes((fla / "config.json").read_bytes())
    (source / name).write_bytes(content)
    assert name in plain.refused("damaged", source, tmp_path / "t")


def test_a_file_cut_short(fla, tmp_path):
    source = plain.copy_of(fla, tmp_path / "s")
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    plain.refused("cut short", source, tmp_path / "t")


def test_sources_that_are_not_there(fla, tmp_path):
    gone = FileNotFoundError
    plain.refused("no file or folder", tmp_path / "none", tmp_path / "t", kind=gone)
    plain.refused("no folder", fla, tmp_path / "none" / "t", kind=gone)
    plain.refused("no file or folder ''", "", tmp_path / "t", kind=gone)
    (tmp_path / "empty").mkdir()
    plain.refused("must have weights", tmp_path / "empty", tmp_path / "t", kind=gone)
    save_file({"a": torch.zeros(1)}, tmp_path / "empty" / "model.safetensors")
    plain.refused("no .*config.json; --config", tmp_path / "empty", tmp_path / "t", kind=gone)
    (tmp_path / "empty" / "config.json").write_text("[1]")
    plain.refused("must hold a JSON object", tmp_path / "empty", tmp_path / "t")
    (tmp_path / "empty" / "config.json").write_text("{nonsense")
    plain.refused("must be JSON", tmp_path / "empty", tmp_path / "t")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "llama"}')
    plain.refused("model_type 'llama'", tmp_path / "empty", tmp_path / "t")


def test_a_name_of_the_hub_without_a_network(tmp_path):
    said = plain.refused("the hub cannot be reached", "fla-hub/no-such-model", tmp_path / "t", kind=FileNotFoundError)
    assert "fla-hub/no-such-model" in said
    assert "give a folder with config.json and weights" in said


def test_a_name_of_the_hub_that_was_fetched_before(fla, tmp_path, monkeypatch):
    cached = tmp_path / "cache" / "models--someone--tiny"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    for file in fla.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    convert("someone/tiny", tmp_path / "t", to="longstream", logits="never")
    assert (tmp_path / "t" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"to": "onnx"}, "to must be one of"),
        ({"source_format": "gguf"}, "from must be one of"),
        ({"source_format": "hyenadna"}, "hyenadna"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"logits": "maybe"}, "logits must be one of"),
        ({"shard_gigabytes": 0}, "shard_gigabytes must be > 0"),
        ({"shard_gigabytes": float("inf")}, "shard_gigabytes must be > 0 and finite"),
        ({"to": "hyenadna"}, "--to hyenadna needs layers of Hyena"),
        ({"to": "axon"}, "--to axon is not for"),
    ],
)
def test_options_that_make_no_sense(options, says, fla, tmp_path):
    plain.refused(says, fla, tmp_path / "t", **options)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"use_bias": True}, "missing"),
        ({"query_activation": "sigmoid"}, "does not know query_activation"),
        ({"g_norm_eps": 1e-6}, "does not know g_norm_eps"),
        ({"lower_bound_sum": "exclusive"}, "does not know lower_bound_sum"),
        ({"expand_ratio": 7}, "expand_ratio must divide"),
        ({"attnres_block_size": 2}, "attention residuals"),
    ],
)
def test_what_flash_linear_attention_would_compute_otherwise(changed, says, fla, tmp_path):
    plain.refused(says, plain.copy_of(fla, tmp_path / "s", **changed), tmp_path / "t", to="fla")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"glu_act": "gelu"}, "glu_act must be"),
        ({"causal": False}, "looks both ways"),
        ({"out_act": "gelu"}, "query_activation"),
        ({"glu_dim": None}, "must have"),
    ],
)
def test_what_is_not_computed_of_the_authors_models(changed, says, tmp_path):
    source = plain.opennlplab_folder(tmp_path / "s", plain.hgrn2_values())
    values = {key: value for key, value in plain.hgrn2_values(**changed).items() if value is not None}
    (source / "config.json").write_text(json.dumps(values))
    plain.refused(says, source, tmp_path / "t")


@pytest.mark.parametrize("changed", [{"hidden_size": "wide"}, {"num_hidden_layers": None}, {"attn": 3}])
def test_a_configuration_that_makes_no_sense(changed, fla, tmp_path):
    plain.refused("config|attn", plain.copy_of(fla, tmp_path / "s", **changed), tmp_path / "t")


def test_options_of_edifices_models_that_make_no_sense(tmp_path):
    source = plain.savez(tmp_path / "w.npz", plain.axon_arrays("edifice_hgrn_small"))
    (tmp_path / "options.json").write_text('{"no_such_option": 1}')
    plain.refused("no_such_option", source, tmp_path / "t.safetensors", config=tmp_path / "options.json")


def test_edifices_hyena_needs_its_length(tmp_path):
    source = plain.savez(tmp_path / "w.npz", plain.axon_arrays("edifice_hyena_small"))
    plain.refused("--config FILE with", source, tmp_path / "t.safetensors")


def test_files_and_folders_are_not_confused(fla, tmp_path):
    source = plain.savez(tmp_path / "w.npz", plain.axon_arrays("edifice_hgrn_small"))
    plain.refused("must end in .safetensors", source, tmp_path / "t")
    plain.refused("must be a folder", fla, tmp_path / "t.safetensors")
    plain.refused("is a model of frames|is not for", source, tmp_path / "t", to="fla")
    plain.refused("bfloat16", source, tmp_path / "t.npz", to="axon", dtype="bfloat16")
    with pytest.raises(ValueError, match="longstream convert did not write"):
        load_frames(fla / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="load_frames: no file"):
        load_frames(tmp_path / "none")


def test_axon_weights_that_do_not_fit_are_named_at_once(tmp_path):
    arrays = plain.axon_arrays("edifice_hgrn_small")
    del arrays["hgrn_block_2_rnn_norm/gamma"]
    arrays["spare/kernel"] = np.zeros((2, 2), dtype=np.float32)
    arrays["hgrn_block_1_ffn_up/bias"] = np.zeros(3, dtype=np.float32)
    said = plain.refused("does not fit", plain.savez(tmp_path / "w.npz", arrays), tmp_path / "t.safetensors")
    for words in ("missing: hgrn_block_2_rnn_norm/gamma", "spare/kernel", "hgrn_block_1_ffn_up/bias must have shape"):
        assert words in said
