"""The rows of `longstream bench step`: who is right is timed, who is not is not, and what is made of their times."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from longstream.bench import step_limits, step_memory, step_run, step_subject
from longstream.bench.measure import OURS, relative_error
from longstream.bench.step_clock import Turn
from longstream.bench.step_limits import measure_rates, show_bytes
from longstream.bench.step_ours import Contender, Ready, our_contenders, with_rounded_weights
from longstream.bench.step_peers import other_contenders
from longstream.bench.step_rollback import Cost, measure_rollback, snapshot_and_rollback
from longstream.bench.step_run import Effort, Limits, StepRow, make_row, measure_subject, ranks, tail
from longstream.bench.step_subject import TEXT, Subject, names, prepare, whole_pass
from longstream.ops import _native

TINY = Effort(steps=4, others=2, rate=0.0, rounds=2, limits=0.0)
SMALL = Subject("edifice-hgrn", embed_dim=5, hidden_size=8, layers=1, batch=2, window=6)
NATIVE = _native.MISSING is None and hasattr(torch.ops.longstream, "stream_step")


@pytest.fixture(autouse=True)
def short_filters(monkeypatch: pytest.MonkeyPatch):
    """Hyena's filters reach as far as the check goes."""
    monkeypatch.setattr(step_subject, "CONTEXT", 64)


def measure(subject: Subject, *contenders: Contender, effort: Effort = TINY) -> list[StepRow]:
    rows: list[StepRow] = []
    measure_subject(prepare(subject), contenders, effort, rows)
    return rows


def named(key: str) -> Contender:
    return next(one for one in [*our_contenders(), *other_contenders()] if one.key == key)


def subjects() -> list[Subject]:
    return [Subject(name, 5, 16, 2, batch=2, window=6, vocab_size=11) for name in names()]


@pytest.mark.parametrize("subject", subjects(), ids=lambda subject: subject.model)
def test_our_rows_of_every_model_pass_their_check(subject: Subject):
    rows = measure(subject, *(one for one in our_contenders() if one.key != "exported"))
    for row in rows:
        if row.note:
            assert row.p50 is None
            assert row.note.startswith("no window is run anew") or not NATIVE, row
            continue
        assert row.error is not None
        assert row.error < 1e-4
        assert row.steps == 4
        assert row.p50 is not None
        assert 0 < row.p50 <= (row.worst or 0)
    assert any(row.name == "eager step" and row.p50 for row in rows)


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(one, marks=[pytest.mark.slow] * (one.package == "transformers"), id=one.key)
        for one in other_contenders()
    ],
)
@pytest.mark.parametrize("subject", [SMALL, Subject("hgrn2-layer", hidden_size=16)], ids=lambda subject: subject.model)
def test_other_packages_pass_their_check_or_are_missing(one: Contender, subject: Subject):
    if one.package == "transformers":
        pytest.importorskip("transformers")
        subject = replace(subject, hidden_size=32)
    (row,) = measure(subject, one)
    assert row.note.startswith("not installed") or ((row.error or 0) < 1e-4 and row.p50), row


@pytest.mark.slow
def test_the_exported_step_passes_its_check_or_is_missing():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (row,) = measure(SMALL, named("exported"))
    assert row.p50, row.note
    assert (row.error or 0) < 1e-4


@pytest.mark.parametrize("key", ["eager", "window", "gru"])
def test_a_wrong_row_is_not_timed(key: str):
    right = named(key)

    def make(given, threads):
        ready = right.make(given, threads)
        return ready._replace(step=lambda frame: 1.01 * ready.step(frame))

    (row,) = measure(SMALL, Contender("wrong", "somewhere", make))
    assert row.p50 is None
    assert row.note.startswith("not timed: its output is wrong"), row.note
    assert (row.error or 0) > 1e-3


def test_a_state_that_is_forgotten_is_wrong():
    right = named("eager")

    def make(given, threads):
        ready = right.make(given, threads)

        def step(frame):
            ready.restart()
            return ready.step(frame)

        return ready._replace(step=step)

    (row,) = measure(SMALL, Contender("forgetful", "somewhere", make))
    assert row.note.startswith("not timed: its output is wrong"), row.note


def test_who_fails_or_is_missing_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch):
    def fail(given, threads):
        raise KeyError("no such\nthing")

    monkeypatch.setitem(sys.modules, "minGRU_pytorch", None)
    rows = measure(SMALL, Contender("broken", "somewhere", fail), named("mingru"), named("eager"))
    notes = {row.name: row.note for row in rows}
    assert notes["broken"] == "failed: KeyError: 'no such\\nthing'"
    assert notes["minGRU"].startswith("not installed")
    assert notes["eager step"] == ""


def test_rounded_weights_of_the_oracle():
    torch.manual_seed(0)
    layer = nn.Linear(7, 3)
    int8, bf16 = (with_rounded_weights(layer, kind).weight for kind in ("int8", "bfloat16"))
    w = layer.weight.detach()
    steps = int8 / (w.abs().amax(1, keepdim=True) / 127)
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert float((int8 - w).abs().max()) <= float(w.abs().max()) / 254 * 1.001
    assert torch.equal(bf16, bf16.bfloat16().float())
    assert not torch.equal(bf16, w)
    tied = prepare(Subject(TEXT, hidden_size=8, layers=1, vocab_size=9)).module
    rounded = with_rounded_weights(tied, "int8")
    assert torch.equal(rounded.embeddings.weight, tied.embeddings.weight)
    assert not torch.equal(rounded.lm_head.weight, tied.lm_head.weight)


@pytest.mark.skipif(not NATIVE, reason="no native step")
def test_what_rounded_weights_lose_is_said():
    rows = {row.weights: row for row in measure(SMALL, *(one for one in our_contenders() if one.key == "stream"))}
    assert rows["float32"].lost is None
    for kind in ("bfloat16", "int8"):
        assert 1e-6 < (rows[kind].lost or 0) < 0.1
        assert rows[kind].oracle.endswith(f"rounded to {kind}")
    assert (rows["int8"].weight_bytes or 0) < (rows["float32"].weight_bytes or 0)


def test_the_oracle_covers_all_frames_whatever_comes_out():
    given = prepare(SMALL)
    with torch.inference_mode():
        whole, _ = given.module(torch.stack(given.frames[: given.checked], 1), outputs="all")
    assert given.exact.dtype == torch.float64
    assert relative_error([whole.transpose(0, 1)], [given.exact]) < 1e-5
    assert given.checked == 64
    assert prepare(replace(SMALL, model="edifice-hyena")).checked == SMALL.window
    assert whole_pass(given.module, given.frames[:3]).shape == (3, 2, 8)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "regress", "forecast"])
def test_a_run_of_sequences(task: str, tmp_path: Path):
    pytest.importorskip("transformers")
    from longstream.sequences import SequenceConfig, SequenceModel

    torch.manual_seed(0)
    answers: dict[str, Any] = {"classes": ["x", "y"]} if task == "classify" else {"target_names": ["a"]}
    more: dict[str, Any] = {"horizon": 2} if task == "forecast" else {}
    options = {"hidden_size": 16, "num_layers": 1}
    config = SequenceConfig(name="hgrn2", options=options, task=task, channels=["a", "b"], **answers, **more)
    SequenceModel(config).save_pretrained(tmp_path / "run")
    rows = measure(Subject(str(tmp_path / "run")), *(one for one in our_contenders() if one.key in ("stream", "eager")))
    for row in rows:
        assert (row.p50 and (row.error or 0) < 1e-4) or not NATIVE, row
    assert rows[0].group.startswith(str(tmp_path))


@pytest.mark.slow
def test_a_run_of_text(tmp_path: Path):
    pytest.importorskip("transformers")
    from longstream.hf import HGRN2Config, HGRN2ForCausalLM
    from longstream.train.tokenizer import ByteTokenizer

    tokenizer = ByteTokenizer()
    config = HGRN2Config(vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, expand_ratio=8)
    HGRN2ForCausalLM(config).save_pretrained(tmp_path / "run")
    tokenizer.save(tmp_path / "run")
    row, other = measure(Subject(str(tmp_path / "run")), named("eager"), named("gru"))
    assert row.p50
    assert (row.error or 0) < 1e-4
    assert other.note == "it takes frames of numbers, and this is text"


def test_all_paces_threads_and_pins_have_rows():
    effort = replace(TINY, steps=6, others=4, rate=5000.0, cpus=(0,), threads=(1,))
    rows = measure(SMALL, named("eager"), effort=effort)
    assert {(row.rate, row.pinned) for row in rows} == {(0.0, ""), (0.0, "0"), (5000.0, ""), (5000.0, "0")}
    for row in rows:
        assert row.steps == (4 if row.rate else 6)
        assert (row.misses is None) == (row.rate == 0)


def test_what_was_measured_before_ctrl_c_is_kept():
    right, turns = named("eager"), []

    def make(given, threads):
        ready = right.make(given, threads)

        def restart() -> None:
            turns.append(1)
            if len(turns) > 4:  # the check, two of warming up, a turn; in the next one
                raise KeyboardInterrupt
            ready.restart()

        return ready._replace(restart=restart)

    rows: list[StepRow] = []
    with pytest.raises(KeyboardInterrupt):
        measure_subject(prepare(SMALL), [Contender("eager", OURS, make)], TINY, rows)
    (row,) = rows
    assert 0 < row.steps < TINY.steps


def test_a_row_from_turns():
    turns = [
        Turn(*(np.array(values) / 1e6 for values in three)) for three in ((*[[10, 30]] * 2, [0, 4]), (*[[20]] * 2, [9]))
    ]
    about = {"group": "g", "name": "n", "package": "p", "version": "1", "threads": 1, "batch": 1}
    row = make_row(about, turns, 40000.0, "0,1")
    assert (row.steps, row.misses, row.pinned) == (3, 1, "0,1")
    assert (row.p50, row.worst, row.mean, row.late) == pytest.approx((20, 30, 20, 9))
    np.testing.assert_allclose(row.answers * 1e6, [10, 20, 30])


def test_of_many_answers_the_slow_ones_are_kept():
    answers = np.random.default_rng(0).permutation(np.arange(1, 20001).astype(float))
    kept = tail(answers)
    assert len(kept) == len(ranks(20000)) <= 400
    assert kept[-30:].tolist() == [*range(19971, 20001)]
    assert kept[0] == 1
    assert (np.diff(kept) > 0).all()
    assert ranks(3).tolist() == [1, 2, 3]


def test_rates_of_memory():
    rates = measure_rates(2**16, 1, 0.0)
    assert rates.nbytes == 2**16
    assert min(rates.read, rates.read_median, rates.copy) > 0
    with pytest.raises(ValueError, match="nbytes must be at least 4, got 3"):
        measure_rates(3, 1)
    assert [show_bytes(n) for n in (512, 2**20 * 8, 3 * 2**30)] == ["0.5 KiB", "8 MiB", "3 GiB"]


@pytest.mark.skipif(not hasattr(torch.ops.longstream, "read_numbers"), reason="no native kernels")
def test_the_reading_kernel_reads_everything_once_a_time():
    for n in (0, 1, 127, 128, 1003):
        numbers, sums = (torch.arange(n) % 7).float(), torch.empty(3)
        torch.ops.longstream.read_numbers(numbers, sums, 2)
        assert float(sums.sum()) == 2 * float(numbers.sum())
    with pytest.raises(RuntimeError, match="sums must be a contiguous row"):
        torch.ops.longstream.read_numbers(torch.ones(4), torch.empty(0), 1)


def test_without_the_kernel_torch_reads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step_limits._native, "MISSING", "not compiled")
    assert measure_rates(2**12, 1, 0.0).how == "torch.sum"


def test_limits_take_the_higher_rates(monkeypatch: pytest.MonkeyPatch):
    given = [step_limits.Rates(100, 1, read, read, copy, "") for read, copy in ((1e9, 2e9), (4e9, 1e9))]
    monkeypatch.setattr(step_run, "measure_rates", lambda *a: given.pop(0))
    contender = Contender("Stream, float32", OURS, lambda given, threads: ready)
    ready = Ready(lambda frame: frame, lambda: None, torch.empty(0), "", 1, weight_bytes=100)
    entry = step_run.Entry(contender, 1, ready, {})
    limits = Limits(0.0)
    limits.look_at([entry])
    limits.look_at([entry])
    about = {"group": "g", "package": OURS, "version": "", "rate": 0.0, "pinned": "", "threads": 1, "batch": 1}
    row = StepRow(name="Stream, float32", p50=50.0, weight_bytes=100, **about)
    limits.apply(row)
    assert row.limit == pytest.approx(100 / 4e9 * 1e6)
    assert row.over_limit == pytest.approx(50 / 0.025)


@pytest.mark.skipif(not NATIVE, reason="no native step")
def test_costs_of_going_back():
    costs = measure_rollback(prepare(SMALL), 1, 20)
    assert all(cost.p50 > 0 for cost in costs if "difference" not in cost.what)
    assert snapshot_and_rollback(costs) > 0


def test_snapshot_and_rollback_is_their_sum():
    costs = [Cost("the state of one frame kept: x", 3.0, 3.0), Cost("rollback(10)", 4.0, 9.0)]
    assert snapshot_and_rollback(costs) == 7.0
    assert snapshot_and_rollback([costs[0]._replace(p50=-5.0), costs[1]]) == 4.0


@pytest.mark.slow
@pytest.mark.skipif(step_memory.why_not() is not None, reason=str(step_memory.why_not()))
def test_a_step_allocates_no_tensors(capfd: pytest.CaptureFixture[str]):
    found = step_memory.measure_allocations(SMALL, ("float32",), ["Stream, float32", "eager step"], None)
    assert found["eager step"].tensors >= 1
    assert found["eager step"].mallocs > found["eager step"].tensors
    if NATIVE:
        assert found["Stream, float32"].tensors == 0
