"""Every case of the benchmark: its check passes what is right and stops what is wrong, before any clock."""

import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from longstream import Hyena
from longstream.bench import decoding, layers, measure, ops, peers, registry, training
from longstream.bench.measure import OURS, Case, Contestant, Effort, Entry, History, Row, Skip, run_case

ONCE = Effort(rounds=1, turn=0.0, limit=600.0)
MODES = {"train": ("train",), "hyena_decoding": ("token",), "long_conv_decoding": ("token",)}


def small_cases() -> list[Case]:
    found = []
    for group in registry.GROUPS:
        for mode in MODES.get(group, ("fwd", "fwd+bwd", "step")):
            if mode == "step" and group.startswith("long_conv"):
                continue
            if mode == "fwd+bwd" and group == "long_conv_two_sided":
                continue
            B = 1 if mode == "token" else 2
            found.append(Case(group, mode, B, 1 if mode == "step" and group != "layer" else 9))
    return found


def run(case: Case, *contestants: Contestant) -> list[Row]:
    return run_case(case, contestants, 1, ONCE, History())


@pytest.mark.parametrize("case", small_cases(), ids=str)
def test_what_is_here_passes_its_check_and_is_timed(case: Case):
    rows = run(case, *registry.contestants(case))
    assert rows[0].package == OURS
    for row in rows:
        assert (row.median_ms is None) == bool(row.note), row
        if row.median_ms is None:
            known = ("not installed", "backend", "left out", "needs 2048 tokens")
            assert row.note.startswith(known), row
            continue
        assert row.error is not None
        assert row.error <= 1e-4
        assert row.oracle
        assert row.min_ms is not None
        assert 0 < row.min_ms <= row.median_ms
        assert row.ratio is not None
        assert row.ratio > 0
    assert any(row.median_ms for row in rows if row.package == OURS)


class WrongGradient(torch.autograd.Function):
    """The identity with a gradient that is one percent too large."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, *d: Tensor) -> Tensor:
        return 1.01 * d[0]


def stopped(case: Case, make) -> None:
    (row,) = run(case, Contestant("wrong", "somewhere", make))
    assert row.median_ms is None
    assert row.note.startswith("not timed: its output is wrong"), row.note
    assert row.error is not None
    assert row.error > measure.TOLERANCE


@pytest.mark.parametrize("case", [case for case in small_cases() if case.group in ops.OPS], ids=str)
def test_a_wrong_op_is_not_timed(case: Case):
    right = ops.of_ours(case.group)("torch")
    stopped(case, lambda case: ops.entry(case, lambda *given: 1.01 * right(*given)))
    if case.mode == "fwd+bwd":
        stopped(case, lambda case: ops.entry(case, lambda *given: WrongGradient.apply(right(*given))))


@pytest.mark.parametrize("mode", ["fwd", "fwd+bwd", "step"])
def test_a_wrong_layer_is_not_timed(mode: str):
    def wrong(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else 1.01 * x

    def make(case: Case) -> layers.Mixer:
        return layers.Mixer(
            nn.Linear(256, 256), lambda m, x: wrong(m(x)), lambda m, x: None, lambda m, x, s: wrong(m(x))
        )

    stopped(Case("layer", mode, 2, 9), lambda case: layers.entry(case, make))


def test_a_layer_without_float64_is_held_to_finite_outputs():
    def make(factor: float):
        return lambda case: layers.entry(
            case, lambda case: layers.Mixer(nn.Linear(256, 256), lambda m, x: m(x) * factor, has_float64=False)
        )

    case = Case("layer", "fwd", 2, 9)
    (row,) = run(case, Contestant("finite", "somewhere", make(1.0)))
    assert row.median_ms
    assert "finite outputs only" in row.oracle
    stopped(case, make(math.inf))


def test_wrong_decoding_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    right = decoding.long_conv

    def wrong(*args, **kwargs):
        out, state = right(*args, **kwargs)
        return 1.01 * out, state

    monkeypatch.setattr(decoding, "long_conv", wrong)
    (tiled,) = (one for one in decoding.conv_contestants() if one.name == "tiled torch")
    stopped(Case("long_conv_decoding", "token", 1, 9), tiled.make)
    step = Hyena.step
    monkeypatch.setattr(Hyena, "step", lambda *given: (1.01 * step(*given)[0], step(*given)[1]))
    stopped(Case("hyena_decoding", "token", 1, 9), decoding.layer_contestants()[0].make)


def test_wrong_training_is_not_timed():
    def make(case: Case) -> Entry:
        model = training.our_model("torch")
        return training.entry(
            case, model, lambda m, ids: m(ids)[0] * (1 if next(m.parameters()).dtype == torch.float64 else 2)
        )

    stopped(Case("train", "train", 1, 9), make)


def test_errors_are_relative_to_each_tensor_and_nan_is_wrong():
    exact = [torch.tensor([100.0, 1.0]), torch.tensor([1e-3])]
    assert measure.relative_error([torch.tensor([101.0, 1.0]), torch.tensor([1e-3])], exact) == pytest.approx(0.01)
    assert measure.relative_error([exact[0], torch.tensor([1.1e-3])], exact) == pytest.approx(0.1, rel=1e-4)
    assert measure.relative_error([exact[0], torch.tensor([math.nan])], exact) == math.inf
    assert measure.relative_error([exact[0], torch.zeros(2)], exact) == math.inf


def fixed(run) -> Contestant:
    return Contestant("one", "somewhere", lambda case: Entry(run, lambda: 0.0, "nothing"))


def test_who_is_too_slow_says_so():
    history, case = History(), Case("gla", "fwd", 1, 100)
    effort = Effort(rounds=1, turn=0.0, limit=1e-12)
    (row,) = run_case(case, [fixed(lambda: None)], 1, effort, history)
    assert row.note.startswith("not timed: a call takes")
    history.add(case, "one", 2.0)
    started = []
    effort = Effort(rounds=1, turn=0.0, limit=3.0)
    (row,) = run_case(case._replace(T=400), [fixed(lambda: started.append(1))], 1, effort, history)
    assert not started
    assert row.note == "not timed: a call takes 6.4 s or more by its time at fewer tokens; the limit is 3 s"
    (row,) = run_case(case._replace(T=400, B=8), [fixed(lambda: started.append(1))], 1, effort, history)
    assert started  # another batch size is another row of lengths


def test_who_fails_loses_its_row_only():
    def fails(case: Case) -> Entry:
        raise RuntimeError("0 active drivers ([]).\nThere should only be one.")

    rows = run(Case("gla", "fwd", 1, 1), Contestant("broken", "somewhere", fails), fixed(lambda: None))
    assert rows[0].note == "failed: RuntimeError: 0 active drivers ([]). There should only be one."
    assert rows[1].median_ms


def test_own_clock_and_ratio():
    ours = fixed(lambda: 0.5)._replace(package=OURS)
    rows = run(Case("gla", "token", 1, 1), fixed(lambda: 2.0), ours)
    assert [row.median_ms for row in rows] == [2000.0, 500.0]
    assert [row.ratio for row in rows] == [4.0, 1.0]


def test_peak_memory_is_what_a_call_adds():
    peak = measure.peak_mib(lambda: torch.ones(2**24).sum().item())
    if peak is None:
        pytest.skip("this system does not tell")
    assert 60 < peak < 80


def test_a_package_that_is_missing_or_broken_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Skip, match=r"not installed: pip install 'longstream\[bench\]'"):
        peers.load("there_is_no_such_package.part")
    (tmp_path / "wants_a_gpu.py").write_text("raise RuntimeError('no CUDA driver')")
    with pytest.raises(Skip, match="wants_a_gpu does not import here: RuntimeError: no CUDA driver"):
        peers.load("wants_a_gpu")
    (tmp_path / "wants_triton.py").write_text("import there_is_no_such_package")
    with pytest.raises(Skip, match="does not import here: No module named"):
        peers.load("wants_triton")
    assert peers.version("there-is-no-such-package") == ""


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_peer_is_called_and_checked(factor: float, monkeypatch: pytest.MonkeyPatch):
    """A module in the place of mambapy, whose scan is right or not."""

    def pscan(A: Tensor, X: Tensor) -> Tensor:
        h, out = torch.zeros_like(X[:, 0]), []
        for a, x in zip(A.unbind(1), X.unbind(1), strict=True):
            h = a * h + x
            out.append(h)
        return factor * torch.stack(out, 1)

    module = ModuleType("mambapy.pscan")
    module.pscan = pscan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mambapy", ModuleType("mambapy"))
    monkeypatch.setitem(sys.modules, "mambapy.pscan", module)
    case = Case("gated_scan", "fwd+bwd", 2, 9)
    (row,) = run(case, *(one for one in registry.contestants(case) if one.package == "mambapy"))
    assert (row.median_ms is not None) == (factor == 1.0), row


def test_backends_choose_our_rows_only():
    case = Case("gla", "step", 1, 1)
    names = [one.name for one in registry.contestants(case, ["reference"])]
    assert names == ["reference", "torch by hand"]
    assert [one.name for one in registry.contestants(case, ["reference"], ours_only=True)] == ["reference"]


def test_cases_are_in_order_once_and_not_too_large():
    cases = registry.op_cases(registry.LENGTHS, registry.BATCHES) + registry.layer_cases(registry.LENGTHS, (1, 8))
    assert len(set(cases)) == len(cases)
    assert max(case.B * case.T for case in cases) <= registry.MOST_TOKENS
    assert {case.group for case in cases} | {"train"} == set(registry.GROUPS)
    lengths = [case.T for case in registry.in_order(cases)]
    assert lengths == sorted(lengths)
