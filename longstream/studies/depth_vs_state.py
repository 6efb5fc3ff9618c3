"""Study `depth-vs-state`: one budget of parameters or of time, spent on layers or on state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from longstream.studies.curves import CurvePanel, draw_curves
from longstream.studies.language import SHORT_NOTE
from longstream.studies.measures import ACCURACY, BITS, COSTS, COSTS_NOTE, LOSS, PARAMETERS, costs_of
from longstream.studies.statistics import chosen_runs
from longstream.studies.study import Claim, Plan, Published, Result, Run, Scale, Study
from longstream.studies.variants import (
    CHOOSE,
    ONE_RATE,
    RECALL_METRICS,
    RECALL_NOTE,
    Variant,
    declare_at_one_rate,
    draw_recall,
    first_runs,
    measure_recall,
    on_recall,
    on_text,
)

TEXT, TIMED, REMEMBER = "language, equal parameters", "language, equal time", "recall, equal parameters"
LENGTH = 256  # tokens of the sequences that costs are measured on
LOW, HIGH = 2, 32  # states at the corners of the grid
# Layers and the width that, with MLPs about twice as wide, gives all grids' corners the parameters of other studies.
WIDTHS: dict[Scale, dict[int, int]] = {"small": {2: 128, 4: 96, 8: 64}, "medium": {4: 512, 8: 384, 16: 256}}
STATES: dict[Scale, tuple[int, ...]] = {"small": (2, 8, 32), "medium": (2, 16, 128)}
# What a step of text costs, relative: forward and backward pass, measured on one core of an x86 server. Equal time is
# by this, not by the clock of the machine that a study runs on, so that runs are the same everywhere.
COST: dict[Scale, dict[tuple[int, int], float]] = {
    "small": {(2, 2): 1.0, (2, 32): 0.8, (8, 2): 1.6, (8, 32): 1.1},
    "medium": {(4, 2): 1.0, (4, 128): 0.87, (16, 2): 1.34, (16, 128): 1.13},
}
# Of text at equal parameters, and of what COST calls 1; of recall; rates; minutes of a run on one core.
SIZES: dict[Scale, dict[str, Any]] = {
    "small": {"steps": 400, "minutes": 0.8, "rates": (4e-3, 8e-3), "recall": 500, "short": 1.1},
    "medium": {"steps": 20_000, "minutes": 900.0, "rates": (5e-4, 2e-3), "recall": 20_000, "short": 400.0},
}


RECALL_RATES: dict[Scale, tuple[float, ...]] = {"small": (5e-3, 1e-2), "medium": (1e-3, 3e-3)}


def name_of(layers: int, n: int) -> str:
    """Of a variant."""
    return f"{layers} layers, n={n}"


@lru_cache(maxsize=2)
def variants(scale: Scale) -> tuple[Variant, ...]:
    """The grid on text at equal parameters, and its corners on recall and at equal time."""
    size, found = SIZES[scale], []
    for layers, width in WIDTHS[scale].items():
        for n in STATES[scale]:
            shape = {"model.name": "hgrn2", "model.hidden_size": width, "model.num_hidden_layers": layers}
            shape["model.expand_ratio"] = n
            text = on_text("hgrn2", scale, size["steps"], shape)
            minutes = size["minutes"] * COST[scale].get((layers, n), 1.0)
            found.append(_variant(TEXT, layers, n, text, size["rates"], minutes))
            if cost := COST[scale].get((layers, n)):
                timed = {**text, "train.steps": round(size["steps"] / cost)}
                found.append(_variant(TIMED, layers, n, timed, size["rates"], size["minutes"]))
            if (layers, n) in COST[scale]:  # the corners
                task = on_recall(scale, size["recall"], shape, _first(scale))
                found.append(_variant(REMEMBER, layers, n, task, RECALL_RATES[scale], size["short"]))
    return tuple(found)


def _first(scale: Scale) -> dict[str, Any]:
    """The network that says how large those of recall are."""
    layers, width = next(iter(WIDTHS[scale].items()))
    shape = {"model.hidden_size": width, "model.num_hidden_layers": layers, "model.intermediate_size": 2 * width}
    return {"model.name": "hgrn2", "model.expand_ratio": STATES[scale][-1], **shape}


def _variant(
    group: str, layers: int, n: int, settings: Mapping[str, Any], rates: tuple[float, ...], minutes: float
) -> Variant:
    return Variant(group=group, name=name_of(layers, n), settings=settings, rates=rates, minutes=minutes)


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """The pilots at every rate, then the whole grid at the best."""
    layers, states = sorted(WIDTHS[plan.scale]), STATES[plan.scale]
    ends = name_of(layers[0], states[-1]), name_of(layers[-1], states[0])  # of the budget: on state, on layers
    pilots: dict[str, tuple[str, ...]] = {TEXT: ends, TIMED: ends, REMEMBER: ends}
    return declare_at_one_rate(variants(plan.scale), plan, done, pilots)


def alone(plan: Plan, folder: Path) -> dict[tuple[str, str], Mapping[str, float]]:
    """Time per token and memory of the language models."""
    models = [variant for variant in variants(plan.scale) if variant.group == TEXT]
    return costs_of(first_runs(models, plan), folder, length=LENGTH)


def draw(results: Sequence[Result], folder: Path) -> list[tuple[Path, str]]:
    """The grid: a line for each depth over the state, and recall by the number of pairs."""
    panels = [
        CurvePanel(TEXT, TEXT, "n=", "n, numbers of state a channel", "bits per byte"),
        CurvePanel(TIMED, TIMED, "n=", "n, numbers of state a channel", "bits per byte"),
        CurvePanel(REMEMBER, REMEMBER, "n=", "n, numbers of state a channel", "accuracy, %", scale=100.0),
    ]
    kept = [result for of in chosen_runs(results, *CHOOSE).values() for result in of]
    path, found = folder / "grid.png", []
    if draw_curves(path, "Layers against state", panels, [_by_depth(result) for result in kept]):
        found.append((path, "By state, a line for each depth; means and 95 % intervals over seeds."))
    return found + draw_recall(REMEMBER)(results, folder)


def _by_depth(result: Result) -> Result:
    """The result as a point of a line: the variant is the depth, and the figure's key the state."""
    depth, n = result.run.variant.split(", ")
    key = ACCURACY.key if result.run.group == REMEMBER else BITS.key
    figures = {n: result.measured[key]} if key in result.measured else {}
    return Result(replace(result.run, variant=depth), result.status, figures)


def _claims() -> tuple[Claim, ...]:
    """Of the corners of the small grid; the medium one has others, and no claims."""
    deep, wide = name_of(8, LOW), name_of(2, HIGH)
    opened = "left open by HGRN2, arXiv:2404.07904"
    return (
        Claim(
            text="At equal parameters state is worth more than depth for text: 2 layers of n = 32 against 8 of n = 2",
            source=opened,
            group=TEXT,
            metric="bits_per_byte",
            better=wide,
            worse=deep,
        ),
        Claim(text="And at equal time", source=opened, group=TIMED, metric="bits_per_byte", better=wide, worse=deep),
        Claim(
            text="At equal parameters state is worth more than depth for recall",
            source=opened,
            group=REMEMBER,
            metric="accuracy",
            better=wide,
            worse=deep,
        ),
        Claim(
            text="Depth does not replace state: 8 layers gain from n = 32 against n = 2, on text",
            source="HGRN2, arXiv:2404.07904, abstract: the larger state is why",
            group=TEXT,
            metric="bits_per_byte",
            better=name_of(8, HIGH),
            worse=deep,
        ),
        Claim(
            text="Nor for recall",
            source="HGRN2, arXiv:2404.07904, abstract: the larger state is why",
            group=REMEMBER,
            metric="accuracy",
            better=name_of(8, HIGH),
            worse=deep,
        ),
        Claim(
            text="State does not replace depth: of n = 32, 8 layers are better than 2 on text, at equal parameters",
            source=opened,
            group=TEXT,
            metric="bits_per_byte",
            better=name_of(8, HIGH),
            worse=wide,
        ),
    )


STUDY = Study(
    name="depth-vs-state",
    title="Layers of HGRN2 against its state",
    question="Of one budget of parameters or of time, what should go to layers, and what to state?",
    runs=make_runs,
    metrics=(BITS, ACCURACY, *RECALL_METRICS, *COSTS, LOSS, PARAMETERS),
    claims=_claims(),
    minutes={"small": 27.0, "medium": 20_000.0},
    published=(
        Published(
            what="Layers and head size that HGRN2 has by default in flash-linear-attention",
            value="24; 128",
            source="flash-linear-attention, its HGRN2Config",
            note="a choice, not a comparison: no published grid was found",
        ),
    ),
    measure=measure_recall,
    alone=alone,
    draw=draw,
    choose=CHOOSE,
    notes=(
        SHORT_NOTE,
        "Equal parameters: deeper models are narrower, and the width of the MLP makes up the rest, within 2 %. State "
        "takes no parameters.",
        "The claims are of the corners of the small grid; at medium scale there are others, and they stay open.",
        "Equal time: the corners of the grid, with as many steps as the same time allows by what a step of each costs. "
        "That cost was measured once and is written down in the study, so that runs do not depend on the machine; the "
        "table has what this machine measured.",
        ONE_RATE,
        RECALL_NOTE,
        COSTS_NOTE,
    ),
)
