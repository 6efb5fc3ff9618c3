"""What a study is: a question, its runs as data, and the claims that are tested, all said before anything is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Scale = Literal["small", "medium"]
SCALES: tuple[Scale, ...] = ("small", "medium")
LEAST_STEPS = 20  # of a run, however small the budget


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large a study is carried out.

    Attributes:
        scale:  "small" is for two cores and half an hour, "medium" for a night or a GPU.
        seeds:  of every variant.
        factor: on every run's steps, from the budget.
        data:   folder with data that does not come with Python or a package.
    """

    scale: Scale = "small"
    seeds: tuple[int, ...] = (0, 1, 2)
    factor: float = 1.0
    data: Path | None = None

    def steps(self, steps: int) -> int:
        """So many steps, or as many of them as the budget allows."""
        return max(LEAST_STEPS, round(steps * self.factor))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of a study.

    Attributes:
        group:    what is learned, as "language" or "recall"; runs are compared within it.
        variant:  what is compared, as "n=16".
        seed:     of weights and data; runs of one seed see the same data in the same order, and are paired.
        settings: of `longstream.train.settings`, flat, without train.seed and train.threads.
        choice:   a setting that is tuned, as "lr=0.003": of a variant's runs that differ in it, the report takes the
                  one with the best mean of the metric that chooses, and names it.
        x:        where the variant stands on the axis of a plot; None: it has a name only.
        minutes:  what the run takes on one core at factor 1, roughly; by it long runs begin first.
    """

    group: str
    variant: str
    seed: int
    settings: Mapping[str, Any]
    choice: str = ""
    x: float | None = None
    minutes: float = 1.0

    @property
    def name(self) -> str:
        """Unique in a study, and a folder's name."""
        parts = [self.group, self.variant, *filter(None, [self.choice]), f"seed{self.seed}"]
        return re.sub(r"[^A-Za-z0-9.=+_-]+", "_", "-".join(parts))


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        status:   "done", or "diverged": kept, counted, and never dropped from a mean in silence.
        measured: figures by name; of a diverged run those that there are.
        made:     with what: versions, kernels, and the checksum of its data where it learned from files.
    """

    run: Run
    status: Literal["done", "diverged"]
    measured: Mapping[str, float]
    made: Mapping[str, str] = field(default_factory=dict)


def half_of(key: str) -> str:
    """The key of half the 95 % interval, over rounds, of a figure that `Study.alone` measures."""
    return f"half:{key}"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of the table: its key in `Result.measured`, its heading and how it is written."""

    key: str
    label: str
    higher: bool  # is better
    digits: int = 3  # behind the point
    group: str = ""  # that has it; "": all
    scale: float = 1.0  # on the value, as 100 for percent


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper or a user says, and the paired test that answers it.

    With d the difference between ``better`` and ``worse`` in the claimed direction, seed by seed, and its 95 %
    t-interval over seeds: *supported* if the interval lies above ``least``, *contradicted* if it lies below, else *not
    resolved at this scale*. So it is too where ``above`` is given and the interval of ``worse`` does not lie above it:
    not to be far behind what has learned nothing says nothing.
    """

    text: str
    source: str  # as "HGRN2, arXiv:2404.07904"
    group: str
    metric: str  # its key
    better: str  # variant
    worse: str  # variant; "": there is none, the metric is a difference itself, and is tested against 0
    least: float = 0.0  # in the metric's own unit
    above: float | None = None  # in the metric's own unit, of one where higher is better: as good as chance


@dataclass(frozen=True, kw_only=True)
class Published:
    """A paper's own figure, to stand beside ours."""

    what: str
    value: str
    source: str
    comparable: bool = False  # same data, size and measure as ours
    note: str = ""  # why it is not
    ours: tuple[tuple[str, str, str], ...] = ()  # (group, variant, metric's key) of what stands beside it


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A plot of a metric with its intervals: over ``x`` where the runs have one, else a bar for each variant."""

    name: str  # of the file, without .png
    title: str
    metric: str
    groups: tuple[str, ...]  # a line, or a panel of bars, each
    x: str = ""  # the axis's label
    log_x: int = 0  # base of a logarithmic axis; 0 is linear


def pictures_over(x: str, *pictures: tuple[str, str, str, tuple[str, ...]]) -> tuple[Picture, ...]:
    """Several by (name, title, metric, groups), over the same axis of doublings."""
    return tuple(
        Picture(name=name, title=title, metric=metric, groups=groups, x=x, log_x=2)
        for name, title, metric, groups in pictures
    )


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and how it is answered.

    Attributes:
        runs:     ``runs(plan, done)``: all runs that can be declared now. It is asked again when they are done, until
                  it declares no new ones; what it says depends on its arguments alone.
        measure:  ``measure(run, folder)`` in the process that trained the run, whose run directory is ``folder``:
                  figures beside the held-out ones, which depend on the run alone and not on the machine's speed. The
                  last validation row of metrics.jsonl, ``parameters`` and ``minutes`` are there without it.
        alone:    ``alone(plan, folder)`` after all runs, with nothing else running: figures of speed and memory by
                  (group, variant), which are this machine's; those that vary with their intervals under `half_of`.
                  ``folder`` holds the run directories by `Run.name`.
        draw:     ``draw(results, folder)``: pictures of its own, written into the folder; their paths and captions.
        minutes:  that it takes on two cores by scale, measured; the budget is against it.
        fixed:    as many of them as stay however few the steps are: for what is measured of trained models.
        choose:   the key of the metric by which `Run.choice` is chosen, and whether higher is better.
        notes:    what a reader has to know of the reduced scale, the data and the models.
    """

    name: str
    title: str
    question: str
    runs: Callable[[Plan, Sequence[Result]], Sequence[Run]]
    metrics: tuple[Metric, ...]
    claims: tuple[Claim, ...]
    minutes: Mapping[str, float]
    fixed: Mapping[str, float] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    published: tuple[Published, ...] = ()
    measure: Callable[[Run, Path], Mapping[str, float]] | None = None
    alone: Callable[[Plan, Path], Mapping[tuple[str, str], Mapping[str, float]]] | None = None
    draw: Callable[[Sequence[Result], Path], Sequence[tuple[Path, str]]] | None = None
    choose: tuple[str, bool] = ("", True)
    notes: tuple[str, ...] = field(default=())
