"""The study throughput: what is measured at each length, and from where on attention is overtaken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longstream.studies import language, throughput
from longstream.train.models import count
from longstream.train.settings import build_settings


def test_models_of_throughput_have_equal_parameters():
    found = throughput.model_settings("small")
    tokens = throughput.SIZES["small"]["tokens"]
    sizes = {name: count(build_settings(each).model, language.BYTES, tokens) for name, each in found.items()}
    assert max(sizes.values()) <= 1.02 * min(sizes.values()), sizes


def test_attention_is_overtaken_where_it_stays_slower():
    def samples(*means: float, spread: float = 0.0) -> throughput.Samples:
        rounds = (-spread, 0.0, spread, 0.0)
        return {(throughput.TRAIN, 2**k): [m + r for r in rounds] for k, m in enumerate(means)}

    ours = samples(1.0, 1.0, 1.0, 1.0)
    assert throughput.crossings(ours, samples(0.5, 2.0, 3.0, 4.0)) == {"train_overtakes": 2.0}
    assert throughput.crossings(ours, samples(2.0, 0.5, 3.0, 4.0)) == {"train_overtakes": 4.0}
    assert throughput.crossings(ours, samples(2.0, 2.0, 2.0, 1.1, spread=2.0)) == {}  # not told apart at the end
    assert throughput.crossings(ours, samples(0.5, 2.0)) == {"train_overtakes": 2.0}  # too slow to be asked
    assert throughput.crossings(samples(1.0, 1.0), samples(2.0, 2.0, 3.0)) == {}  # which ours was at 4
    figures = throughput.times_of(samples(1.0, spread=0.5))
    assert figures["train_us=1"] == 1.0
    assert figures["half:train_us=1"] == pytest.approx(3.182 * 0.40825 / 2, abs=1e-3)
    assert throughput.decoding_crossing(
        {"decode_ms=128": 1.0, "decode_ms=512": 1.0}, {"decode_ms=128": 0.5, "decode_ms=512": 1.5}
    ) == {"decode_overtakes": 512.0}


def test_throughput_is_measured_and_drawn(tmp_path: Path):
    shape = {"model.hidden_size": 16, "model.num_hidden_layers": 1, "model.intermediate_size": 16}
    settings: dict[str, dict[str, Any]] = {n: {**shape, "model.name": n} for n in ("hgrn2", "hyena", "llama")}
    models = throughput.new_models(settings, 64)
    samples = throughput.training_times(models, (16, 64), 64, 2, 60.0)
    assert all(len(values) == 2 and min(values) > 0 for of in samples.values() for values in of.values())
    assert {key for of in samples.values() for key in of} == {
        (what, n) for what in (throughput.TRAIN, throughput.FORWARD) for n in (16, 64)
    }
    slow = throughput.training_times({"llama": models["llama"]}, (16, 64), 64, 1, 0.0)
    assert slow == {"llama": {}}
    costs = throughput.decoding_figures(settings, (32, 64))
    assert costs["llama"]["state_kib=64"] > costs["llama"]["state_kib=32"]
    assert costs["hgrn2"]["state_kib=64"] == costs["hgrn2"]["state_kib=32"]
    rows = [
        {"group": throughput.GROUP, "variant": n, "measured": {**throughput.times_of(samples[k]), **costs[k]}}
        for n, k in (("HGRN2", "hgrn2"), ("Hyena", "hyena"), (throughput.ATTENTION, "llama"))
    ]
    (tmp_path / "alone.json").write_text(json.dumps({"rows": rows}))
    drawn = throughput.draw((), tmp_path)
    assert [path.name for path, _ in drawn] == ["training.png", "decoding.png"]
    assert "HGRN2 nowhere" in drawn[0][1]
    assert all(path.stat().st_size > 10_000 for path, _ in drawn)
