"""Study `heads`: one width cut into 1, 2, 4 or 8 heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from longstream.studies.language import SHORT_NOTE, of_size
from longstream.studies.measures import ACCURACY, BITS, COSTS, COSTS_NOTE, LOSS, PARAMETERS, costs_of
from longstream.studies.study import Claim, Plan, Published, Result, Run, Scale, Study, pictures_over
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

TEXT, REMEMBER = "language", "recall"
HEADS = (1, 2, 4, 8)
LENGTH = 1024  # tokens of the sequences that costs are measured on
PILOTS = ("H=1", "H=8")  # both ends
# Text: width, layers, parameters, steps, rates, minutes; recall: width, steps, rates, minutes. A run is on one core.
SIZES = {
    "small": ((192, 2, 500_000, 500, (4e-3, 8e-3), 1.1), (96, 500, (5e-3, 1e-2), 0.5)),
    "medium": ((512, 8, 17_000_000, 20_000, (5e-4, 2e-3), 1200.0), (256, 20_000, (1e-3, 3e-3), 400.0)),
}


@lru_cache(maxsize=2)
def variants(scale: Scale) -> tuple[Variant, ...]:
    """Every number of heads on text and on recall."""
    (width, layers, size, steps, rates, minutes), (small, few, others, short) = SIZES[scale]
    found = []
    for heads in HEADS:
        shape = {"model.name": "hgrn2", "model.num_hidden_layers": layers, "model.hidden_size": width}
        text = on_text("hgrn2", scale, steps, {**shape, "model.expand_ratio": width // heads})
        text = of_size(text, size)
        found.append(Variant(group=TEXT, name=f"H={heads}", settings=text, rates=rates, minutes=minutes, x=heads))
    for heads in HEADS:
        shape = {"model.name": "hgrn2", "model.num_hidden_layers": 2, "model.hidden_size": small}
        shape |= {"model.expand_ratio": small // heads, "model.intermediate_size": small}
        task = on_recall(scale, few, shape)
        found.append(Variant(group=REMEMBER, name=f"H={heads}", settings=task, rates=others, minutes=short, x=heads))
    return tuple(found)


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """The pilots at every rate, then all numbers of heads at the best."""
    return declare_at_one_rate(variants(plan.scale), plan, done, {TEXT: PILOTS, REMEMBER: PILOTS})


def alone(plan: Plan, folder: Path) -> dict[tuple[str, str], Mapping[str, float]]:
    """Time per token and memory of every number of heads."""
    return costs_of(first_runs(variants(plan.scale), plan), folder, length=LENGTH, rows=1)


SOURCE = "HGRN2, arXiv:2404.07904"
STUDY = Study(
    name="heads",
    title="Heads of HGRN2 against expressiveness",
    question="What do more heads cost in quality, and what do they save?",
    runs=make_runs,
    metrics=(BITS, ACCURACY, *RECALL_METRICS, *COSTS, LOSS, PARAMETERS),
    claims=(
        Claim(
            text="One head models text better than eight, which have an eighth of its state",
            source=SOURCE,
            group=TEXT,
            metric="bits_per_byte",
            better="H=1",
            worse="H=8",
        ),
        Claim(
            text="Four heads cost at most 0.01 bits per byte against one",
            source=SOURCE,
            group=TEXT,
            metric="bits_per_byte",
            better="H=4",
            worse="H=1",
            least=-0.01,
        ),
        Claim(
            text="One head recalls more than eight",
            source=SOURCE,
            group=REMEMBER,
            metric="accuracy",
            better="H=1",
            worse="H=8",
        ),
        Claim(
            text="One head recalls more than eight, of twice as many pairs as in training",
            source=SOURCE,
            group=REMEMBER,
            metric="num_pairs=16",
            better="H=1",
            worse="H=8",
        ),
    ),
    minutes={"small": 12.0, "medium": 10_000.0},
    pictures=pictures_over(
        "heads H",
        ("language", "Text by heads", "bits_per_byte", (TEXT,)),
        ("recall", "Recall by heads", "accuracy", (REMEMBER,)),
        ("training_time", "What heads save in training", "training_us", (TEXT, REMEMBER)),
        ("state", "What heads save in memory", "state_kib", (TEXT, REMEMBER)),
    ),
    published=(
        Published(
            what="Head size that HGRN2 has by default in flash-linear-attention",
            value="128",
            source=SOURCE,
            note="a rule of thumb from far larger models; the paper has no table of quality by heads",
        ),
    ),
    measure=measure_recall,
    alone=alone,
    draw=draw_recall(REMEMBER),
    choose=CHOOSE,
    notes=(
        SHORT_NOTE,
        "A model of width d with H heads has heads of n = d / H and a state of d n = d d / H numbers a layer: at one "
        "width, more heads are a smaller state, of the same parameters. There is no way to have one without the other "
        "in HGRN2, whose heads are square.",
        ONE_RATE,
        RECALL_NOTE,
        COSTS_NOTE,
    ),
)
