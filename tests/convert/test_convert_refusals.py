"""What convert refuses, in one line and before or after it has read: nothing half-written ever stands in place."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from longstream.cli import main
from longstream.convert import convert, load_frames, prove
from longstream.convert import run as run_module
from longstream.convert.tensors import Made
from tests.convert import plain

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fla(tmp_path_factory):
    return plain.fla_folder(tmp_path_factory.mktemp("convert") / "fla", "hgrn2_lm")


def copy_of(folder, target, change=lambda weights: weights, **values):
    """The folder with other weights and other fields."""
    target.mkdir()
    config = json.loads((folder / "config.json").read_text()) | values
    (target / "config.json").write_text(json.dumps(config))
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return target


def refused(says, *args, kind: type[Exception] = ValueError, **options):
    with pytest.raises(kind, match=says) as caught:
        convert(*args, **({"to": "longstream"} | options))
    assert "\n" not in str(caught.value)
    assert not Path(args[1]).exists()
    assert not list(Path(args[1]).parent.glob(".writing-*"))
    return str(caught.value)


def test_everything_that_does_not_fit_is_named_at_once(fla, tmp_path):
    def change(weights):
        del weights["model.layers.0.attn.q_proj.weight"], weights["model.norm.weight"]
        weights["model.layers.7.attn.q_proj.weight"] = torch.zeros(2)
        weights["something.else"] = torch.zeros(2)
        weights["model.lower_bounds"] = torch.zeros(3, 64)
        weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].to(torch.int64)
        return weights

    said = refused("does not fit", copy_of(fla, tmp_path / "s", change), tmp_path / "t")
    for words in (
        "missing model.layers.0.attn.q_proj.weight, model.norm.weight",
        "not of this model model.layers.7.attn.q_proj.weight, something.else",
        "model.lower_bounds must have shape (2, 64), got (3, 64)",
        "model.layers.1.mlp.up_proj.weight must be floating point, got torch.int64",
    ):
        assert words in said, words


def test_a_head_that_is_tied_and_differs_is_refused(fla, tmp_path):
    source = copy_of(fla, tmp_path / "s", tie_word_embeddings=True)
    assert "lm_head.weight" in refused("must be equal to model.embeddings.weight", source, tmp_path / "t")


def test_frequencies_that_are_tied_and_differ_are_refused(tmp_path):
    source = plain.port_folder(tmp_path / "port")
    weights = load_file(source / "model.safetensors")
    weights["hyena.backbone.layers.1.mixer.filter_fn.implicit_filter.5.freq"] += 1
    save_file(weights, source / "model.safetensors")
    refused(r"5\.freq must be equal to .*1\.freq", source, tmp_path / "t")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_target_that_is_not_the_source_is_not_put_in_place(fla, tmp_path, monkeypatch, capfd, overwrite):
    """One bit of one tensor goes wrong on the way to the disk."""

    class Wrong(Made):
        def get(self, name):
            tensor = super().get(name)
            if name.endswith("layers.1.mlp.up_proj.weight"):
                tensor = tensor.clone()
                tensor.view(torch.int64).view(-1)[3] ^= 1
            return tensor

    monkeypatch.setattr(run_module, "Made", Wrong)
    target = tmp_path / "t"
    if overwrite:
        target.mkdir()
        (target / "mine").write_text("kept")
    code = main(["convert", str(fla), str(target), "--to", "longstream", *(["--overwrite"] if overwrite else [])])
    assert code == 2
    said = capfd.readouterr().err
    assert "1 tensors of the target are not the source's: model.layers.1.mlp.up_proj.weight" in said
    assert [file.name for file in target.glob("*")] == (["mine"] if overwrite else [])
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.parametrize("most", [prove.MOST_PARAMETERS, 0], ids=["whole", "layer by layer"])
def test_outputs_that_differ_are_refused(most, fla, tmp_path, monkeypatch):
    """The tensors are right, but the configuration of the target says something else of them."""
    monkeypatch.setattr(prove, "MOST_PARAMETERS", most)
    make_target = run_module.make_target

    def wrong(source, to):
        config, layout = make_target(source, to)
        config.model["mixer"]["query_activation"] = "sigmoid"
        return config, layout

    monkeypatch.setattr(run_module, "make_target", wrong)
    refused("outputs of source and target differ by", fla, tmp_path / "t")


def test_interrupted_half_way_nothing_stands_in_place(fla, tmp_path, monkeypatch):
    class Interrupted(Made):
        def get(self, name):
            if "layers.1" in name:
                raise KeyboardInterrupt
            return super().get(name)

    monkeypatch.setattr(run_module, "Made", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(fla, tmp_path / "t", to="longstream")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_killed_half_way_nothing_stands_in_place(fla, tmp_path):
    """SIGKILL, which no handler sees: what was begun has another name, and the next conversion clears it away."""
    code = (
        "import sys, time\n"
        "from longstream.convert import run\n"
        "class Slow(run.Made):\n"
        "    def get(self, name):\n"
        "        if 'layers.1' in name: print('half', flush=True); time.sleep(60)\n"
        "        return super().get(name)\n"
        "run.Made = Slow\n"
        f"run.convert({str(fla)!r}, {str(tmp_path / 't')!r}, to='longstream')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    assert [file.name for file in tmp_path.iterdir()] == [".writing-t"]
    convert(fla, tmp_path / "t", to="longstream", logits="never")
    assert [file.name for file in tmp_path.iterdir()] == ["t"]


def test_a_target_that_is_there_is_replaced_only_when_asked(fla, tmp_path):
    convert(fla, tmp_path / "t", to="longstream", logits="never")
    before = (tmp_path / "t" / "model.safetensors").stat().st_ino
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert(fla, tmp_path / "t", to="longstream")
    assert (tmp_path / "t" / "model.safetensors").stat().st_ino == before
    convert(fla, tmp_path / "t", to="fla", overwrite=True, logits="never")
    assert json.loads((tmp_path / "t" / "config.json").read_text())["model_type"] == "hgrn2"
    with pytest.raises(ValueError, match="another place than the source"):
        convert(tmp_path / "t", tmp_path / "t", to="longstream", overwrite=True)


class Evil:
    def __reduce__(self):
        return (print, ("this must not be run",))


@pytest.mark.parametrize("name", ["weights.ckpt", "pytorch_model.bin"])
def test_a_pickle_of_more_than_tensors_is_refused_and_not_run(name, tmp_path, capfd):
    source = plain.lightning_folder(tmp_path / "light")
    (source / "weights.ckpt").unlink()
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hyper_parameters": Evil()}, source / name)
    refused("holds more than tensors", source, tmp_path / "t", to="hyenadna")
    assert "this must not be run" not in capfd.readouterr().out


def test_an_npz_of_objects_is_refused(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, final_norm=np.array([Evil()], dtype=object))
    refused("not a NumPy file of plain arrays", path, tmp_path / "t.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "weights.ckpt"])
@pytest.mark.parametrize("content", [b"", b"not tensors", b"PK\x03\x04 and then nothing"])
def test_damaged_files_are_named(name, content, fla, tmp_path):
    source = tmp_path / "s"
    source.mkdir()
    (source / "config.json").write_bytes((fla / "config.json").read_bytes())
    (source / name).write_bytes(content)
    assert name in refused("damaged", source, tmp_path / "t")


def test_a_file_cut_short(fla, tmp_path):
    source = copy_of(fla, tmp_path / "s")
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused("cut short", source, tmp_path / "t")


def test_sources_that_are_not_there(fla, tmp_path):
    gone = FileNotFoundError
    refused("no file or folder", tmp_path / "none", tmp_path / "t", kind=gone)
    refused("no folder", fla, tmp_path / "none" / "t", kind=gone)
    (tmp_path / "empty").mkdir()
    refused("must have weights", tmp_path / "empty", tmp_path / "t", kind=gone)
    save_file({"a": torch.zeros(1)}, tmp_path / "empty" / "model.safetensors")
    refused("no .*config.json; --config", tmp_path / "empty", tmp_path / "t", kind=gone)
    (tmp_path / "empty" / "config.json").write_text("[1]")
    refused("must hold a JSON object", tmp_path / "empty", tmp_path / "t")
    (tmp_path / "empty" / "config.json").write_text("{nonsense")
    refused("must be JSON", tmp_path / "empty", tmp_path / "t")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "llama"}')
    refused("model_type 'llama'", tmp_path / "empty", tmp_path / "t")


def test_a_name_of_the_hub_without_a_network(tmp_path):
    said = refused("the hub cannot be reached", "fla-hub/no-such-model", tmp_path / "t", kind=FileNotFoundError)
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


def test_shards_and_their_index(fla, tmp_path):
    convert(fla, tmp_path / "sharded", to="fla", shard_gigabytes=4e-4)
    shards = sorted(file.name for file in (tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    convert(tmp_path / "sharded", tmp_path / "whole", to="fla")
    first, again = (load_file(folder / "model.safetensors") for folder in (fla, tmp_path / "whole"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first.keys() == again.keys()
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    (tmp_path / "sharded" / shards[1]).unlink()
    refused(shards[1], tmp_path / "sharded", tmp_path / "t", kind=FileNotFoundError)
    index.write_text(json.dumps({"weight_map": {"a": "../fla/model.safetensors"}}))
    refused("other folders", tmp_path / "sharded", tmp_path / "t")
    index.write_text(json.dumps({"metadata": {}}))
    refused("weight_map", tmp_path / "sharded", tmp_path / "t")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"to": "onnx"}, "to must be one of"),
        ({"source_format": "gguf"}, "from must be one of"),
        ({"source_format": "hyenadna"}, "hyenadna"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"logits": "maybe"}, "logits must be one of"),
        ({"shard_gigabytes": 0}, "shard_gigabytes must be > 0"),
        ({"to": "hyenadna"}, "--to hyenadna needs layers of Hyena"),
        ({"to": "axon"}, "--to axon is not for"),
    ],
)
def test_options_that_make_no_sense(options, says, fla, tmp_path):
    refused(says, fla, tmp_path / "t", **options)


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
    refused(says, copy_of(fla, tmp_path / "s", **changed), tmp_path / "t", to="fla")


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
    refused(says, source, tmp_path / "t")


@pytest.mark.parametrize("changed", [{"hidden_size": "wide"}, {"num_hidden_layers": None}, {"attn": 3}])
def test_a_configuration_that_makes_no_sense(changed, fla, tmp_path):
    refused("config|attn", copy_of(fla, tmp_path / "s", **changed), tmp_path / "t")


def test_options_of_edifices_models_that_make_no_sense(tmp_path):
    source = plain.savez(tmp_path / "w.npz", plain.axon_arrays("edifice_hgrn_small"))
    (tmp_path / "options.json").write_text('{"no_such_option": 1}')
    refused("no_such_option", source, tmp_path / "t.safetensors", config=tmp_path / "options.json")


def test_edifices_hyena_needs_its_length(tmp_path):
    source = plain.savez(tmp_path / "w.npz", plain.axon_arrays("edifice_hyena_small"))
    refused("--config FILE with", source, tmp_path / "t.safetensors")


def test_files_and_folders_are_not_confused(fla, tmp_path):
    source = plain.savez(tmp_path / "w.npz", plain.axon_arrays("edifice_hgrn_small"))
    refused("must end in .safetensors", source, tmp_path / "t")
    refused("must be a folder", fla, tmp_path / "t.safetensors")
    refused("is a model of frames|is not for", source, tmp_path / "t", to="fla")
    refused("bfloat16", source, tmp_path / "t.npz", to="axon", dtype="bfloat16")
    with pytest.raises(ValueError, match="longstream convert did not write"):
        load_frames(fla / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="load_frames: no file"):
        load_frames(tmp_path / "none")


def test_axon_weights_that_do_not_fit_are_named_at_once(tmp_path):
    arrays = plain.axon_arrays("edifice_hgrn_small")
    del arrays["hgrn_block_2_rnn_norm/gamma"]
    arrays["spare/kernel"] = np.zeros((2, 2), dtype=np.float32)
    arrays["hgrn_block_1_ffn_up/bias"] = np.zeros(3, dtype=np.float32)
    said = refused("does not fit", plain.savez(tmp_path / "w.npz", arrays), tmp_path / "t.safetensors")
    for words in ("missing hgrn_block_2_rnn_norm/gamma", "spare/kernel", "hgrn_block_1_ffn_up/bias must have shape"):
        assert words in said


def test_on_the_command_line(fla, tmp_path, capfd):
    assert main(["convert", str(fla), str(tmp_path / "t"), "--to", "longstream"]) == 0
    out = capfd.readouterr().out
    assert "24 of 24" in out
    assert "largest difference" in out
    assert str(tmp_path / "t" / "model.safetensors") in out
    assert main(["convert", str(fla), str(tmp_path / "t"), "--to", "longstream"]) == 2
    assert "longstream: error: convert:" in capfd.readouterr().err
    assert main(["convert", str(fla), str(tmp_path / "u"), "--to", "longstream", "--nonsense"]) == 2


def test_help_fits_a_screen_and_names_what_the_code_knows(capsys):
    from longstream.convert import checkpoint, command, targets

    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert command.FORMATS == checkpoint.FORMATS
    assert command.TARGETS == targets.TARGETS
    assert tuple(run_module.DTYPES) == command.DTYPES
    assert command.LOGITS == prove.LOGITS


_MEASURE = """
import json, resource, sys
from pathlib import Path
import torch
from longstream.convert import run
from longstream.convert.tensors import Held, write_file
from longstream.convert.layouts import fla_layout, skeleton
from longstream.convert.tensors import Made
from longstream.hf import HGRN2Config
folder = Path(sys.argv[1])
config = HGRN2Config(hidden_size=512, num_hidden_layers=40, intermediate_size=2048)
class Drawn(Held):
    def get(self, name):
        return torch.randn(self.meta(name).shape, dtype=torch.bfloat16)
ours = {name: tensor.to(torch.bfloat16) for name, tensor in skeleton(config, True).items()}
made = Made(Drawn(ours), fla_layout(config, ours).to_theirs)
folder.mkdir()
config.save_pretrained(folder)
write_file(folder / "model.safetensors", made, made.names(), {"format": "pt"})
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
report = run.convert(folder, sys.argv[2], to="longstream", shard_gigabytes=0.1)
size = (folder / "model.safetensors").stat().st_size
print(json.dumps({"before": before, "after": peak(), "size": size, "files": len(report.files),
                  "logits": report.logits_difference, "compared": report.compared, "tensors": report.tensors}))
"""


@pytest.mark.slow
def test_memory_is_that_of_a_tensor_not_of_the_model(tmp_path):
    """400 MB of bfloat16: what is read, written and compared never holds more than some of its tensors, 33 MB each."""
    output = subprocess.check_output(
        [sys.executable, "-c", _MEASURE, str(tmp_path / "s"), str(tmp_path / "t")], cwd=ROOT, text=True
    )
    found = json.loads(output.splitlines()[-1])
    assert found["size"] > 3.9e8
    assert found["files"] >= 3
    assert found["tensors"] == 404
    assert found["logits"] < 1e-4
    assert "layer by layer" in found["compared"]
    assert found["after"] - found["before"] < 0.6 * found["size"], found
