"""The figures that streaming is required to reach, and the subjects that have to be measured for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from longstream.bench.figures import Figure
from longstream.bench.step_rollback import DEPTH, Cost, snapshot_and_rollback
from longstream.bench.step_run import StepRow, fastest
from longstream.bench.step_subject import TEXT, Subject

EDIFICE = Subject()
DEEP = Subject(layers=6)
LAYER = Subject("hgrn2-layer")
WHOLE = {(name, width): Subject(name, hidden_size=width) for width in (256, 64) for name in ("edifice-hgrn", "hgrn2")}
DECODED = Subject(TEXT, hidden_size=768, layers=12)  # 109 million parameters, the embeddings included
STREAM = "Stream, float32"
LEAST_GAIN = {256: 2.5, 64: 8.0}  # over the eager step, by width
MOST_WORST = 2.0  # ms, of all frames
NEVER = "not measured"


def figure_subjects() -> list[tuple[Subject, tuple[str, ...]]]:
    """What to measure, and with which rows: empty for all of them."""
    alone = ("eager",)
    found = [(EDIFICE, ()), (DEEP, alone), (LAYER, ("eager", "gru", "lstm", "mingru"))]
    return [*found, *((subject, alone) for subject in WHOLE.values() if subject != EDIFICE), (DECODED, alone)]


def step_figures(rows: Sequence[StepRow], costs: Mapping[str, Sequence[Cost]], rate: float = 60.0) -> list[Figure]:
    """All of them; those whose rows are not there are not measured."""
    best = {(row.group, row.name): row for row in fastest(rows)}
    return [
        *_absolute(best),
        *_bandwidth(best),
        *_layer(best),
        *_against_eager(best),
        *_at_a_rate([row for row in rows if row.group == EDIFICE.title and row.name == STREAM], rate),
        *_decoding(best),
        _going_back(costs.get(EDIFICE.title)),
    ]


Best = Mapping[tuple[str, str], StepRow]


def _most(what: str, shape: str, most: float, value: float | None, unit: str = "ms", scale: float = 1e-3) -> Figure:
    """That a time, in microseconds times ``scale``, is at most so much."""
    if value is None:
        return Figure(what, shape, f"<= {most:g} {unit}", NEVER, None)
    return Figure(what, shape, f"<= {most:g} {unit}", f"{value * scale:.3g} {unit}", value * scale <= most)


def _ratio(what: str, shape: str, asked: str, value: float | None, reached: bool | None) -> Figure:
    return Figure(what, shape, asked, NEVER if value is None else f"{value:.3g}x", None if value is None else reached)


def _shape(row: StepRow | None) -> str:
    """With what the figure was reached."""
    if row is None:
        return ""
    return f"{row.threads} thread{'s' * (row.threads > 1)}{', pinned' * bool(row.pinned)}"


def _absolute(best: Best) -> Iterator[Figure]:
    what, row = EDIFICE.title.removesuffix(", B = 1"), best.get((EDIFICE.title, STREAM))
    yield _most(f"{what}: float32, p50", _shape(row), 0.10, row and row.p50)
    yield _most(f"{what}: float32, p99", _shape(row), 0.20, row and row.p99)
    row = best.get((EDIFICE.title, "Stream, int8"))
    yield _most(f"{what}: int8, p50", _shape(row), 0.05, row and row.p50)


def _bandwidth(best: Best) -> Iterator[Figure]:
    row = best.get((DEEP.title, STREAM))
    over = row and row.over_limit
    what = f"{DEEP.title.removesuffix(', B = 1')}: over reading its weights once"
    yield _ratio(what, _shape(row), "<= 1.3x", over, over is not None and over <= 1.3)


def _layer(best: Best) -> Iterator[Figure]:
    row = best.get((LAYER.title, STREAM))
    yield _most("HGRN2 layer, 256 wide, p50", _shape(row), 0.05, row and row.p50)
    for name in ("minGRU", "nn.GRU"):
        other = best.get((LAYER.title, name))
        share = row.p50 / other.p50 if row and other and row.p50 and other.p50 else None
        yield _ratio(f"HGRN2 layer, of the time of {name}", _shape(row), "<= 0.5x", share, (share or 1) <= 0.5)


def _against_eager(best: Best) -> Iterator[Figure]:
    for (name, width), subject in WHOLE.items():
        row, eager = best.get((subject.title, STREAM)), best.get((subject.title, "eager step"))
        gain = eager.p50 / row.p50 if row and eager and row.p50 and eager.p50 else None
        least = LEAST_GAIN[width]
        what = f"{name}, {width} x 2 layers: times as fast as its eager step"
        yield _ratio(what, _shape(row), f">= {least:g}x", gain, (gain or 0) >= least)


def _at_a_rate(rows: Sequence[StepRow], rate: float) -> Iterator[Figure]:
    timed = [row for row in rows if row.rate == rate]
    for pinned in (False, True):
        row = next((row for row in timed if bool(row.pinned) == pinned), None)
        frames = f"{row.steps:,} frames" if row else "frames"
        what = f"{frames} at {rate:g} a second{', pinned' * pinned}: the worst answer"
        if row or not pinned:
            yield _most(what, _shape(row), MOST_WORST, row and row.worst)
    counted = next((row for row in rows if row.allocations is not None), None)
    said = NEVER if counted is None else f"{counted.allocations:g} ({counted.mallocs:g} small ones in torch's call)"
    reached = None if counted is None else counted.allocations == 0
    yield Figure("memory asked for in a step: tensors", "", "0", said, reached)


def _decoding(best: Best) -> Iterator[Figure]:
    what = f"HGRN2 of {DECODED.hidden_size} x {DECODED.layers} layers, a token"
    for kind in ("float32", "bfloat16"):
        row = best.get((DECODED.title, f"Stream, {kind}"))
        share = 1 / row.over_limit if row and row.over_limit else None
        text = NEVER if share is None else f"{share:.0%}"
        yield Figure(
            f"{what}: {kind}, of the limit by bandwidth",
            _shape(row),
            ">= 75%",
            text,
            None if share is None else share >= 0.75,
        )
    slow, fast = (best.get((DECODED.title, f"Stream, {kind}")) for kind in ("float32", "int8"))
    gain = slow.p50 / fast.p50 if slow and fast and slow.p50 and fast.p50 else None
    yield _ratio(f"{what}: int8, times as fast as float32", _shape(fast), ">= 2.5x", gain, (gain or 0) >= 2.5)


def _going_back(costs: Sequence[Cost] | None) -> Figure:
    what = f"a state kept, and {DEPTH} frames taken back"
    return _most(what, "2 layers", 20, None if not costs else snapshot_and_rollback(costs), "us", 1.0)
