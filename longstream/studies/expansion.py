"""Study `expansion`: HGRN2's state size n at equal parameters, from 1 to 512."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from longstream.studies.language import LANGUAGE, SHORT_NOTE
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

LANGUAGE_128, LANGUAGE_512, RECALL_128 = "language, 128 wide", "language, 512 wide", "recall, 128 wide"
LENGTH = 256  # tokens of the sequences that costs are measured on

# Two widths, since a head is at most as wide as the model: at 128 long enough to learn something in minutes, at 512 to
# see past 128. Equal parameters come by themselves: n moves none.
NARROW, WIDE = (1, 2, 4, 8, 16, 32, 64, 128), (8, 128, 256, 512)
ALL = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# Both ends of what the claims compare, so that the rate favors neither.
PILOTS = {LANGUAGE_128: ("n=1", "n=128"), LANGUAGE_512: ("n=8", "n=512"), RECALL_128: ("n=4", "n=64")}
MINUTES = {1: 1.35, 2: 1.15, 4: 1.05}  # of one core beside those of larger states: many heads of little work


def _shape(width: int, layers: int, n: int, **more: Any) -> dict[str, Any]:
    shape = {"model.hidden_size": width, "model.num_hidden_layers": layers, "model.expand_ratio": n}
    return {"model.name": "hgrn2", **shape, **{f"model.{key}": value for key, value in more.items()}}


@lru_cache(maxsize=2)
def variants(scale: Scale) -> tuple[Variant, ...]:
    """All networks on all tasks."""
    return tuple(_small() if scale == "small" else _medium())


def _small() -> list[Variant]:
    found = []
    for n in NARROW:
        text = on_text("hgrn2", "small", 400, _shape(128, 2, n))
        found.append(_variant(LANGUAGE_128, n, text, (4e-3, 8e-3), 0.7 * MINUTES.get(n, 1.0)))
    for n in WIDE:  # one layer: the same cost as eight of 128
        text = {**LANGUAGE, **_shape(512, 1, n, intermediate_size=256), "train.steps": 400, "train.batch_size": 2}
        text["model.block_options"] = ("initializer_range=0.05",)
        found.append(_variant(LANGUAGE_512, n, text, (5e-4, 1e-3, 2e-3), 1.25))
    for n in NARROW:
        task = on_recall("small", 500, _shape(128, 2, n, intermediate_size=128))
        found.append(_variant(RECALL_128, n, task, (5e-3, 1e-2), 0.63 * MINUTES.get(n, 1.0)))
    return found


def _medium() -> list[Variant]:
    found = []
    for n in ALL:
        text = {**LANGUAGE, **_shape(512, 8, n, intermediate_size=1024), "train.steps": 20_000}
        text |= {"data.seq_len": 1024, "data.validation_bytes": 500_000}
        found.append(_variant(LANGUAGE_512, n, text, (5e-4, 1e-3, 2e-3), 1200.0))
    for n in NARROW:
        task = on_recall("medium", 20_000, _shape(128, 2, n, intermediate_size=128))
        found.append(_variant(RECALL_128, n, task, (1e-3, 2e-3, 5e-3), 400.0))
    return found


def _variant(group: str, n: int, settings: Mapping[str, Any], rates: tuple[float, ...], minutes: float) -> Variant:
    return Variant(group=group, name=f"n={n}", settings=settings, rates=rates, minutes=minutes, x=n)


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """The pilots at every rate, then all states at the best."""
    return declare_at_one_rate(variants(plan.scale), plan, done, PILOTS)


def alone(plan: Plan, folder: Path) -> dict[tuple[str, str], Mapping[str, float]]:
    """Time per token and memory of every n; on recall they are those of the language models of 128."""
    models = [variant for variant in variants(plan.scale) if variant.group != RECALL_128]
    return costs_of(first_runs(models, plan), folder, length=LENGTH)


SOURCE = "HGRN2, arXiv:2404.07904"
STUDY = Study(
    name="expansion",
    title="State size n of HGRN2 at equal parameters",
    question="Does a larger state help, and where does it stop helping?",
    runs=make_runs,
    metrics=(
        BITS,
        ACCURACY,
        *RECALL_METRICS,
        *COSTS,
        LOSS,
        PARAMETERS,
    ),
    claims=(
        Claim(
            text="A state of n = 128 numbers a channel models text better than one number, at equal parameters",
            source=f"{SOURCE}, abstract: the larger state is why",
            group=LANGUAGE_128,
            metric="bits_per_byte",
            better="n=128",
            worse="n=1",
        ),
        Claim(
            text="A state of 16 is already better than one of 1",
            source=SOURCE,
            group=LANGUAGE_128,
            metric="bits_per_byte",
            better="n=16",
            worse="n=1",
        ),
        Claim(
            text="A state of 128 is better than one of 16",
            source=SOURCE,
            group=LANGUAGE_128,
            metric="bits_per_byte",
            better="n=128",
            worse="n=16",
        ),
        Claim(
            text="Beyond 128 there is little to gain: n = 128 is at most 0.01 bits per byte worse than n = 512",
            source=f"{SOURCE}: head size 128 is chosen for it",
            group=LANGUAGE_512,
            metric="bits_per_byte",
            better="n=128",
            worse="n=512",
            least=-0.01,
        ),
        Claim(
            text="Beyond 128 a larger state still helps: n = 512 is better than n = 128",
            source="left open by HGRN2",
            group=LANGUAGE_512,
            metric="bits_per_byte",
            better="n=512",
            worse="n=128",
        ),
        Claim(
            text="A larger state recalls more: n = 64 against n = 4",
            source=f"{SOURCE}, abstract",
            group=RECALL_128,
            metric="accuracy",
            better="n=64",
            worse="n=4",
        ),
        Claim(
            text="And so n = 128 against n = 1",
            source=f"{SOURCE}, abstract",
            group=RECALL_128,
            metric="accuracy",
            better="n=128",
            worse="n=1",
        ),
    ),
    minutes={"small": 29.0, "medium": 30_000.0},
    pictures=pictures_over(
        "n, numbers of state a channel",
        ("language", "Text by state size", "bits_per_byte", (LANGUAGE_128, LANGUAGE_512)),
        ("recall", "Recall by state size", "accuracy", (RECALL_128,)),
        ("training_time", "What it costs to train", "training_us", (LANGUAGE_128, LANGUAGE_512)),
        ("decoding_time", "What it costs to decode", "decoding_us", (LANGUAGE_128, LANGUAGE_512)),
    ),
    published=(
        Published(
            what="Head size of the published HGRN2 models",
            value="128",
            source=SOURCE,
            note="chosen from a curve of perplexity against n on far larger models; its numbers are not published",
        ),
    ),
    measure=measure_recall,
    alone=alone,
    draw=draw_recall(RECALL_128),
    choose=CHOOSE,
    notes=(
        SHORT_NOTE,
        "n is expand_ratio, the width of a head; a model of width d has d / n heads and a state of d n numbers a layer,"
        " and n changes no parameter. n = 1 is HGRN2 without expansion.",
        "Widths: 128 in two layers, where n ends at 128, and 512 in one layer, to look past it. The two are trained on"
        " different numbers of bytes and are not to be compared with each other.",
        ONE_RATE,
        RECALL_NOTE,
        COSTS_NOTE,
    ),
)
