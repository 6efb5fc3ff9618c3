"""Networks that differ in one thing, each on one or more tasks: their runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longstream.studies.curves import CurvePanel, draw_curves
from longstream.studies.difficulty import RECALL_START, Ladder, measure_ladder, tokens_settings
from longstream.studies.language import language_settings, like_first
from longstream.studies.statistics import chosen_runs
from longstream.studies.study import Metric, Plan, Result, Run, Scale
from longstream.studies.sweep import rate_choice, swept

# What the studies of variants call recall: smaller than in the study of that name, for there are many variants.
RECALL: dict[Scale, Ladder] = {
    "small": Ladder("mqar:vocabulary=64,seq_len=64,num_pairs=8", "num_pairs", (2, 4, 8, 16)),
    "medium": Ladder("mqar:vocabulary=8192,seq_len=256,num_pairs=32", "num_pairs", (8, 16, 32, 64)),
}
BATCH: dict[Scale, int] = {"small": 16, "medium": 32}  # sequences of a step on it
# What makes HGRN2 leave the plateau in 500 steps: 128 wide, n = 64 has all of 8 pairs, and n = 4 half of them.
CURRICULUM = {"data.generator_start": "num_pairs=1", "data.ramp_ratio": 0.6}
REMEMBERING: dict[str, Any] = {
    "model.use_short_conv": True,
    "model.mixer_options": ("bias=true",),
    "model.block_options": ("memory=128",),
}
RECALL_METRICS = tuple(
    Metric(key=f"num_pairs={n}", label=f"{n} pairs, %", higher=True, digits=1, scale=100.0)
    for n in sorted({n for ladder in RECALL.values() for n in ladder.values})
)
ONE_RATE = (
    "Learning rates: of each task the two variants at the ends of what is compared are trained at several with the "
    "first seed (see the runs), and all variants have the rate with the lowest mean loss of the two; a rate of its own "
    "for each might move single points."
)
RECALL_NOTE = (
    "Recall is MQAR (arXiv:2312.04927), smaller than in the study recall: at small scale 8 pairs in 64 tokens of a "
    "vocabulary of 64, and tested on 2 to 16 pairs. Pairs grow from one to all in training, embeddings are tied and "
    "weights drawn with standard deviation 0.06, for all models; forget gates begin with a memory of 128 tokens, and "
    "projections have short convolutions, for all recurrent models alike, which otherwise do not leave the plateau in "
    "minutes. Examples come fresh from the seed; models of one seed see the same."
)
CHOOSE = ("loss", False)  # the held-out one, which text and token tasks both have; for `Study.choose`


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A network on a task, for all seeds.

    Attributes:
        settings: of the run, without seed and learning rate; its steps are those of factor 1.
        rates:    learning rates; where there are several, they are swept with the first seed.
        minutes:  of a run on one core.
        x:        see `Run`.
    """

    group: str
    name: str
    settings: Mapping[str, Any]
    rates: tuple[float, ...]
    minutes: float
    x: float | None = None

    def run(self, plan: Plan, seed: int, rate: float) -> Run:
        """One of its runs."""
        steps = plan.steps(self.settings["train.steps"])
        device = {"train.device": "auto"} if plan.scale == "medium" else {}  # a GPU where there is one
        return Run(
            group=self.group,
            variant=self.name,
            seed=seed,
            settings={**self.settings, **device, "train.steps": steps, "train.learning_rate": rate},
            choice=rate_choice(rate) if len(self.rates) > 1 else "",
            x=self.x,
            minutes=self.minutes,
        )


def declare(variants: Sequence[Variant], plan: Plan, done: Sequence[Result]) -> list[Run]:
    """All runs of the variants that can be declared now; see `sweep.swept` for those with several rates."""
    runs = []
    for rates in dict.fromkeys(variant.rates for variant in variants):
        some = [variant for variant in variants if variant.rates == rates]
        if len(rates) == 1:
            runs += [variant.run(plan, seed, rates[0]) for seed in plan.seeds for variant in some]
        else:
            runs += swept(plan, done, rates, _runs_at(some, plan), key=CHOOSE[0], higher=CHOOSE[1])
    return runs


def declare_at_one_rate(
    variants: Sequence[Variant], plan: Plan, done: Sequence[Result], pilots: Mapping[str, tuple[str, ...]]
) -> list[Run]:
    """All runs that can be declared now, where the variants of a group differ too little for rates of their own.

    A group's pilots are trained with the first seed at all its rates; when that is done, all variants with all seeds at
    the rate with the lowest mean loss of the pilots. Where one diverged at all rates, at the lowest.

    Args:
        pilots: the variants that are, by group: of both sides of what is compared, so that no side is favored.
    """
    first, known, runs = plan.seeds[0], {result.run.name: result for result in done}, []
    for group in dict.fromkeys(variant.group for variant in variants):
        some = [variant for variant in variants if variant.group == group]
        rates = sorted(some[0].rates)
        tried = [v.run(plan, first, rate) for v in some if v.name in pilots[group] for rate in rates]
        runs += tried
        if all(run.name in known for run in tried):
            rate = min(rates, key=lambda rate: _mean_loss([known[run.name] for run in tried], rate))
            names = {run.name for run in tried}
            everything = [variant.run(plan, seed, rate) for seed in plan.seeds for variant in some]
            runs += [run for run in everything if run.name not in names]
    return runs


def _mean_loss(results: Sequence[Result], rate: float) -> float:
    """Of the pilots at a rate; infinite where one diverged."""
    some = [result for result in results if result.run.choice == rate_choice(rate)]
    losses = [r.measured.get(CHOOSE[0], math.inf) if r.status == "done" else math.inf for r in some]
    return math.fsum(losses) / len(losses)


def first_runs(variants: Sequence[Variant], plan: Plan) -> list[Run]:
    """The runs of the first seed at every rate, whether they are trained or not."""
    return [variant.run(plan, plan.seeds[0], rate) for variant in variants for rate in variant.rates]


def _runs_at(variants: Sequence[Variant], plan: Plan) -> Callable[[int, float], list[Run]]:
    return lambda seed, rate: [variant.run(plan, seed, rate) for variant in variants]


def on_text(name: str, scale: Scale, steps: int, shape: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run on text, its parameters those of all such runs; see `language.language_settings`."""
    return language_settings(name, scale, steps=steps, learning_rate=0.0, more=shape)  # `Variant.run` has the rate


def on_recall(
    scale: Scale, steps: int, shape: Mapping[str, Any], first: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Settings of a run on RECALL, with as many parameters as the network ``first`` has there."""
    started = merged(shape, RECALL_START)
    if shape["model.name"] in ("hgrn", "hgrn2", "hybrid"):
        started = merged(started, REMEMBERING)
    return {
        **on_tokens(RECALL[scale], steps, BATCH[scale], started, first and on_recall(scale, steps, first)),
        **CURRICULUM,
    }


def on_tokens(
    ladder: Ladder, steps: int, batch_size: int, shape: Mapping[str, Any], first: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Settings of a run on a token task, with as many parameters as the network ``first`` has there."""
    from longstream.tasks import make_task

    task = make_task(ladder.task)
    of_task = tokens_settings(ladder, train__steps=steps, train__batch_size=batch_size, train__warmup_ratio=0.1)
    if first is None:
        return {**of_task, **shape}
    return {**of_task, **like_first(shape, first, vocab_size=task.vocab_size, seq_len=task.length)}


def merged(shape: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Both; lists of options, as of the mixer, one behind the other."""
    both = {key: (*shape[key], *more[key]) for key in shape.keys() & more.keys() if isinstance(more[key], tuple)}
    return {**shape, **more, **both}


def measure_recall(run: Run, folder: Path) -> dict[str, float]:
    """Of a run on RECALL the accuracy with fewer and more pairs than in training; of others nothing."""
    asked = run.settings.get("data.generator")
    ladder = next((each for each in RECALL.values() if each.task == asked), None)
    return {} if ladder is None else measure_ladder(ladder, folder)


def draw_recall(group: str) -> Callable[[Sequence[Result], Path], list[tuple[Path, str]]]:
    """What draws the accuracies of `measure_recall` of a group, a line for each variant."""

    def draw(results: Sequence[Result], folder: Path) -> list[tuple[Path, str]]:
        kept = [result for of in chosen_runs(results, *CHOOSE).values() for result in of]
        asked = [str(r.run.settings["data.generator"]) for r in kept if r.run.group == group]
        trained = float(asked[0].rpartition("num_pairs=")[2]) if asked else None
        panel = CurvePanel(group, group, "num_pairs=", "pairs", "accuracy, %", scale=100.0, trained=trained)
        path = folder / "recall_by_pairs.png"
        if not draw_curves(path, "Recall of fewer and more pairs than in training (dotted)", [panel], kept):
            return []
        return [(path, "Test accuracy by number of pairs, means and 95 % intervals over seeds.")]

    return draw
