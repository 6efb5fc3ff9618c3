"""A conversion from its command to its files: nothing half-written, and nothing unproved, ever stands in place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longstream.cli import main
from longstream.convert import convert, prove
from longstream.convert import run as run_module
from longstream.convert.tensors import Made
from tests.convert import plain

ROOT = Path(__file__).parents[2]


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
    plain.refused("outputs of source and target differ by", fla, tmp_path / "t")


@pytest.mark.parametrize("most", [prove.MOST_PARAMETERS, 0], ids=["whole", "layer by layer"])
def test_a_source_of_nan_is_not_said_to_differ(most, fla, tmp_path, monkeypatch):
    monkeypatch.setattr(prove, "MOST_PARAMETERS", most)

    def change(weights):
        weights["model.norm.weight"][0] = float("nan")
        return weights

    source = plain.copy_of(fla, tmp_path / "s", change)
    plain.refused("the source puts out NaN or infinity", source, tmp_path / "t")
    convert(source, tmp_path / "t", to="longstream", logits="never")


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


def test_a_source_in_the_target_is_not_deleted(fla, tmp_path):
    """--overwrite would replace the folder, and the source with it."""
    source = plain.copy_of(fla, tmp_path / "s")
    before = (source / "model.safetensors").read_bytes()
    for path, target in ((source / "model.safetensors", source), (source, tmp_path)):
        with pytest.raises(ValueError, match="another place than the source"):
            convert(path, target, to="longstream", overwrite=True)
        assert (source / "model.safetensors").read_bytes() == before


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
    plain.refused(shards[1], tmp_path / "sharded", tmp_path / "t", kind=FileNotFoundError)
    index.write_text(json.dumps({"weight_map": {"a": "../fla/model.safetensors"}}))
    plain.refused("other folders", tmp_path / "sharded", tmp_path / "t")
    index.write_text(json.dumps({"metadata": {}}))
    plain.refused("weight_map", tmp_path / "sharded", tmp_path / "t")


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
