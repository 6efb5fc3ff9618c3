"""The papers' presets: each is built at its own size, and takes a step at a size that a test can carry."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longstream.cli import main
from longstream.models import ModelConfig
from longstream.models.presets import hyena_dna
from longstream.sequences.loading import build_features
from longstream.tasks import make_task
from longstream.train.models import build_model, model_config
from longstream.train.presets import PAPERS, USUAL, missing_data
from longstream.train.run import train
from longstream.train.sequence_models import network_options
from longstream.train.settings import Settings, build_settings
from tests.train.runs import metrics, write_text

# Parameters in millions where the paper states them, and how far ours may be off: it shows that the sizes are right.
PUBLISHED = {"paper-hgrn-wikitext103": (46.25, 0.01), "paper-hyena-wikitext103": (125, 0.07)}
SLOW = ("paper-lra-pathfinder",)
TEXT = ("paper-hgrn-wikitext103", "paper-hgrn2-wikitext103", "paper-hyena-wikitext103")
CUT = {  # what makes it small: rows alone, or of those too large also layers, width and length
    "paper-hyena-recall-131k": {
        "data.generator": "associative_recall:vocabulary=30,seq_len=130",
        "model.max_seq_len": 132,
    },
}
WIKITEXT = {
    "model.hidden_size": 32,
    "model.num_hidden_layers": 2,
    "model.intermediate_size": 64,
    "data.tokenizer": "bytes",
    "data.seq_len": 64,
}
CUT |= {name: WIKITEXT for name in TEXT}
CUT["paper-hgrn2-wikitext103"] = WIKITEXT | {"model.expand_ratio": 16}


def quick(name: str, folder: Path) -> Settings:
    """The preset, one step of two sequences."""
    few: dict[str, Any] = {"train.batch_size": 2, "train.steps": 1, "train.eval_every": 0, "train.save_every": 0}
    few |= {"train.sample_tokens": 0, "train.log_every": 1}
    preset = build_settings(PAPERS[name])
    if preset.data.task == "tokens":
        few |= {"data.train_examples": min(preset.data.train_examples, 4), "data.validation_examples": 2}
    elif name == "paper-hyenadna-tiny":
        bases = np.random.default_rng(0).choice(list("ACGT"), 4 * 1024)
        (folder / "dna.fa").write_text(">one\n" + "".join(bases) + "\n")
        few |= {"data.files": [str(folder / "dna.fa")], "data.validation_fraction": 0.25}
    elif preset.data.task == "classify":
        rng = np.random.default_rng(0)
        images, labels = rng.integers(256, size=(8, 32, 32), dtype=np.uint8), np.arange(8) % 2
        np.savez(folder / "images.npz", X=images, y=labels)
        few |= {"data.files": [str(folder / "images.npz")], "data.validation_fraction": 0.25}
    else:
        few |= {"data.files": [str(write_text(folder / "wiki.train.raw"))]}
    return build_settings(PAPERS[name], few, CUT.get(name, {}))


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_is_built_at_its_own_size(name: str):
    settings = build_settings(PAPERS[name])
    network, data = settings.model, settings.data
    with torch.device("meta"):
        if data.task == "classify":
            model: Any = build_features(network.name, 1, network_options(network, 32 * 32))
        elif data.task == "tokens":
            task = make_task(data.generator)
            model = build_model(network, vocab_size=task.vocab_size, seq_len=task.length)
        else:
            size = 12 if data.tokenizer == "dna" else int(data.tokenizer.removeprefix("bpe:"))
            model = build_model(network, vocab_size=size, boundary_id=1, seq_len=data.seq_len)
    assert all(p.device.type == "meta" for p in model.parameters())
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    if name in PUBLISHED:
        published, off = PUBLISHED[name]
        assert millions == pytest.approx(published, rel=off)
    assert millions > 0.05


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PAPERS]
)
def test_a_paper_takes_a_step(name: str, tmp_path: Path):
    result = train(quick(name, tmp_path), tmp_path / "run")
    assert result.step == 1
    (row,) = metrics(tmp_path / "run")
    assert np.isfinite(row["loss"])
    assert row["grad_norm"] > 0
    assert result.measured is not None
    if name == "paper-hyenadna-tiny":
        assert main(["convert", str(tmp_path / "run"), str(tmp_path / "hyenadna"), "--to", "hyenadna"]) == 0
        assert (tmp_path / "hyenadna" / "config.json").is_file()


def test_the_hyenadna_is_the_authors():
    network = build_settings(PAPERS["paper-hyenadna-tiny"]).model
    ours, authors = model_config(network, 12, 1024), hyena_dna("tiny-1k")
    assert ours == ModelConfig(**{**vars(authors), "intermediate_size": 512})


@pytest.mark.parametrize("name", [name for name in PAPERS if "data.generator" not in PAPERS[name]])
def test_a_paper_says_which_data_it_wants(name: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--preset", name, "--out", "nowhere"]) == 2
    assert re.search(rf"--preset {name} trains on .*: --data \S+", capsys.readouterr().err)


def test_other_presets_want_any_data():
    assert all(missing_data(name) == missing_data("") for name in USUAL)
    assert "give --data FILE" in missing_data("")
