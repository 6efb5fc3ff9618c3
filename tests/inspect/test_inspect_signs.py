"""The three signs of failure: provoked, and absent, each by its stated rule."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longstream import AttentionConfig, HGRN2Config, HyenaConfig
from longstream.inspect import signs
from longstream.inspect.cost import Cost, count_cost
from longstream.inspect.filters import measure_filters
from longstream.inspect.gates import measure_gates
from longstream.inspect.reach import measure_reach
from longstream.inspect.signs import Sign, cost_sign, instability_sign, recall_sign
from longstream.inspect.states import measure_ranks
from longstream.inspect.subject import Subject
from longstream.train.flags import _flag
from longstream.train.settings import setting_fields
from longstream.train.trainer import Diverged
from tests.inspect.subjects import language_subject
from tests.train.runs import metrics, small, write_text


def recall_of(subject: Subject, **more: Any) -> Sign:
    return recall_sign(
        measure_reach(subject),
        subject.trained_length,
        gates=measure_gates(subject),
        ranks=measure_ranks(subject),
        filters=measure_filters(subject),
        kinds=[type(mixer).__name__ for mixer in subject.mixers],
        **more,
    )


def forgetful(gate: float) -> Subject:
    return language_subject(HGRN2Config(expand_ratio=4, bias=True), T=256, gate=gate, lower_bound=None)


def test_gates_that_forget_lose_recall():
    sign = recall_of(forgetful(0.2))
    assert sign.found
    assert sign.verdict == "found"
    assert "32 tokens" in sign.rule
    assert "of 256" in sign.measured
    assert "The gates forget" in sign.advice[0]
    assert "--num-hidden-layers" in sign.advice[0]
    assert "--model hybrid" in sign.advice[-1]


def test_gates_that_remember_keep_it():
    sign = recall_of(forgetful(0.99))
    assert sign.found is False
    assert not sign.advice


def test_a_short_window_is_named():
    subject = language_subject(HyenaConfig(max_seq_len=256, window_fast=0.002, window_slow=0.01, filter_width=8), T=256)
    sign = recall_of(subject)
    assert sign.found
    assert "window" in sign.advice[0]
    assert "--mixer window=false" in sign.advice[0]
    without = language_subject(HyenaConfig(max_seq_len=256, window=False, filter_width=8), T=256)
    assert recall_of(without).found is False


def test_a_token_task_asks_for_recall_itself():
    far = forgetful(0.99)
    assert recall_of(far, accuracy=0.4, chance=0.125).found
    assert recall_of(far, accuracy=0.6, chance=0.125).found is False
    near = recall_of(forgetful(0.2), accuracy=0.9, chance=0.125)
    assert near.found is False
    assert "0.900" in near.measured


def test_recall_that_cannot_be_told():
    assert recall_sign(None, 64).found is None
    reach = measure_reach(language_subject(HGRN2Config(expand_ratio=4), T=32))
    sign = recall_sign(reach, 1024)
    assert sign.found is None
    assert "24 tokens" in sign.measured
    assert sign.verdict == "cannot be told"


def test_a_state_too_dear():
    dear = language_subject(HGRN2Config(expand_ratio=16), intermediate_size=4)
    sign = cost_sign(count_cost(dear), measure_ranks(dear))
    assert sign.found
    assert "--expand-ratio" in sign.advice[0]
    assert "of 16 its effective rank uses" in sign.advice[0]
    usual = language_subject(HGRN2Config(expand_ratio=4))
    assert cost_sign(count_cost(usual), measure_ranks(usual)).found is False


def test_attention_too_dear():
    dear = language_subject(AttentionConfig(num_heads=2, window_size=512), T=512)
    sign = cost_sign(count_cost(dear))
    assert sign.found
    assert "--attention-window" in sign.advice[0]
    assert not cost_sign(count_cost(language_subject(AttentionConfig(num_heads=2, window_size=8), T=512))).found


def test_filters_too_dear():
    subject = language_subject(HyenaConfig(max_seq_len=64, filter_width=64))
    assert "--mixer filter_width" in cost_sign(count_cost(subject)).advice[0]


def test_time_that_grows_with_the_length():
    def timed(growth: float) -> Cost:
        return Cost((100.0,), (10.0,), ("HGRN",), {64: 1e-6, 256: growth * 1e-6})

    assert cost_sign(timed(1.6)).found
    assert cost_sign(timed(1.4)).found is False
    assert "1.60" in cost_sign(timed(1.6)).measured


def logged(losses: np.ndarray, norms: np.ndarray | None = None) -> list[dict]:
    norms = np.ones(len(losses)) if norms is None else norms
    rows = zip(losses.tolist(), norms.tolist(), strict=True)
    return [{"kind": "train", "step": i, "loss": loss, "grad_norm": norm} for i, (loss, norm) in enumerate(rows)]


def calm() -> np.ndarray:
    return 3 * np.exp(-np.arange(100) / 30) + 2 + np.random.default_rng(0).normal(size=100) * 0.05


def test_a_calm_training():
    sign = instability_sign(logged(calm()))
    assert sign.found is False
    assert sign.measured.startswith("0 jumps")


def test_a_loss_that_jumps():
    losses = calm()
    losses[60] += 1.5
    sign = instability_sign(logged(losses))
    assert sign.found
    assert sign.measured.startswith("1 jumps")
    assert "--learning-rate" in sign.advice[0]
    early = calm()
    early[8] += 0.9  # in the first tenth, and below the first loss, nothing is held against it
    assert instability_sign(logged(early)).found is False


def test_a_loss_that_starts_by_rising():
    losses = calm()
    losses[3] = losses[0] + 1  # a fifth above the first
    sign = instability_sign(logged(losses))
    assert sign.found
    assert "the highest is 1.000 above the first" in sign.measured


def test_a_gradient_that_surges():
    norms = np.ones(100)
    norms[70] = 12
    assert instability_sign(logged(calm(), norms)).found
    norms[70] = 8
    assert instability_sign(logged(calm(), norms)).found is False


def test_a_loss_that_never_comes_back():
    losses = calm()
    losses[50:] = losses[49] + np.linspace(0, 1.5, 50)
    assert instability_sign(logged(losses)).found


def test_what_is_not_a_number():
    losses = calm()
    losses[-1] = math.nan
    sign = instability_sign(logged(losses))
    assert sign.found
    assert "not finite" in sign.measured


def test_training_that_cannot_be_judged():
    assert instability_sign([]).found is None
    assert instability_sign(logged(calm()[:10])).found is None


@pytest.mark.slow
def test_a_training_that_is_unstable(tmp_path: Path):
    from longstream.train.run import train

    text = write_text(tmp_path / "text.txt")
    for name, rate in (("calm", 3e-3), ("wild", 1.0)):
        settings = small(text, steps=60, learning_rate=rate, eval_every=0, save_every=0, sample_tokens=0)
        try:
            train(settings, tmp_path / name)
        except Diverged:
            assert name == "wild"
    assert instability_sign(metrics(tmp_path / "calm")).found is False
    assert instability_sign(metrics(tmp_path / "wild")).found


def test_every_flag_that_is_advised_exists():
    known = {_flag(key, field) for key, (field, _) in setting_fields().items()} | {"--data", "--out"}
    advised = set(re.findall(r"--[a-z][a-z0-9-]+", Path(signs.__file__).read_text()))
    assert len(advised) > 10
    assert advised <= known
