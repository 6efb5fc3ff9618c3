"""Study `hybrid`: HGRN2 with a few layers of sliding-window attention, against pure HGRN2 and full attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from longstream.studies.curves import CurvePanel, draw_curves
from longstream.studies.language import SHORT_NOTE
from longstream.studies.measures import (
    ACCURACY,
    BITS,
    COSTS,
    COSTS_NOTE,
    EQUAL_BITS,
    LOSS,
    PARAMETERS,
    costs_of,
    position_losses,
)
from longstream.studies.statistics import chosen_runs
from longstream.studies.study import Claim, Metric, Picture, Plan, Published, Result, Run, Scale, Study
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
)

TEXT, REMEMBER = "language", "recall"
LENGTH = 1024  # tokens of the sequences that costs are measured on
HGRN2, FULL = "HGRN2", "Llama"
FEW, WIDER, HALF = "1 of 4 attention, window 16", "1 of 4 attention, window 64", "1 of 2 attention, window 16"
MODELS: dict[str, dict[str, Any]] = {
    HGRN2: {"model.name": "hgrn2", "model.expand_ratio": 32},
    FEW: {"model.name": "hybrid", "model.expand_ratio": 32, "model.attention_every": 4, "model.attention_window": 16},
    WIDER: {"model.name": "hybrid", "model.expand_ratio": 32, "model.attention_every": 4, "model.attention_window": 64},
    HALF: {"model.name": "hybrid", "model.expand_ratio": 32, "model.attention_every": 2, "model.attention_window": 16},
    FULL: {"model.name": "llama"},
}
# Rates; of text and recall: shape, steps, minutes of a run on one core; what positions in the context are told apart.
SIZES: dict[Scale, dict[str, Any]] = {
    "small": {
        "rates": {TEXT: (4e-3, 8e-3), REMEMBER: (5e-3, 1e-2)},
        TEXT: ({"hidden_size": 96, "num_hidden_layers": 4}, 450, 1.1),
        REMEMBER: ({"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128}, 600, 0.8),
        "edges": (16, 64, 256),
    },
    "medium": {
        "rates": dict.fromkeys((TEXT, REMEMBER), (5e-4, 1e-3, 2e-3)),
        TEXT: ({"hidden_size": 384, "num_hidden_layers": 8}, 20_000, 900.0),
        REMEMBER: ({"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384}, 20_000, 600.0),
        "edges": (16, 64, 256, 1024),
    },
}
EDGES = SIZES["medium"]["edges"]


@lru_cache(maxsize=2)
def variants(scale: Scale) -> tuple[Variant, ...]:
    """Every mixture on text and on recall."""
    size, found = SIZES[scale], []
    for group in (TEXT, REMEMBER):
        shape, steps, minutes = size[group]
        shape = {f"model.{key}": value for key, value in shape.items()}
        for name, kind in MODELS.items():
            if group == TEXT:
                settings = on_text(kind["model.name"], scale, steps, {**shape, **kind})
            else:
                settings = on_recall(scale, steps, {**shape, **kind}, {**shape, **MODELS[HGRN2]})
            found.append(
                Variant(group=group, name=name, settings=settings, rates=size["rates"][group], minutes=minutes)
            )
    return tuple(found)


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """The first seed at every rate, then the others at the best."""
    return declare(variants(plan.scale), plan, done)


def measure(run: Run, folder: Path) -> dict[str, float]:
    """Of text the loss by position in the context, of recall the accuracy with fewer and more pairs."""
    if run.group == REMEMBER:
        return measure_recall(run, folder)
    return position_losses(folder, [edge for edge in EDGES if edge <= run.settings["data.seq_len"]])


def alone(plan: Plan, folder: Path) -> dict[tuple[str, str], Mapping[str, float]]:
    """Time per token and memory of the language models, on longer sequences than in training."""
    models = [variant for variant in variants(plan.scale) if variant.group == TEXT]
    return costs_of(first_runs(models, plan), folder, length=LENGTH, rows=1)


def draw(results: Sequence[Result], folder: Path) -> list[tuple[Path, str]]:
    """Text by position in the context, and recall by the number of pairs."""
    kept = [result for of in chosen_runs(results, *CHOOSE).values() for result in of]
    panel = CurvePanel(TEXT, TEXT, "bits_to_", "tokens in front, at most", "bits per byte")
    path, found = folder / "position.png", []
    if draw_curves(path, "Text by position in the context", [panel], kept):
        found.append((path, "Bits per byte of bytes with so many tokens in front of them, down to the mark before."))
    return found + draw_recall(REMEMBER)(results, folder)


def _claim(
    text: str, source: str, group: str, better: str, worse: str, least: float = 0.0, above: float | None = None
) -> Claim:
    metric = EQUAL_BITS.key if group == TEXT else "accuracy"
    sides = {"better": better, "worse": worse}
    return Claim(text=text, source=source, group=group, metric=metric, least=least, above=above, **sides)


GUESSED = 0.2  # accuracy of recall, where one of the eight values that were seen is guessed and a little more


OPEN = "left open by HGRN2, arXiv:2404.07904"
STUDY = Study(
    name="hybrid",
    title="HGRN2 with a few layers of local attention",
    question="What do a few layers of local attention add to HGRN2, and what is missing to full attention?",
    runs=make_runs,
    metrics=(
        BITS,
        EQUAL_BITS,
        *(
            Metric(key=f"bits_to_{edge}", label=f"{before + 1} to {edge} tokens in front", higher=False, group=TEXT)
            for before, edge in zip((0, *EDGES), EDGES, strict=False)
        ),
        ACCURACY,
        *RECALL_METRICS,
        *COSTS,
        LOSS,
        PARAMETERS,
    ),
    claims=(
        _claim("One layer in four of local attention (window 16) helps HGRN2 to model text", OPEN, TEXT, FEW, HGRN2),
        _claim("One layer in four of local attention (window 64) helps HGRN2 to model text", OPEN, TEXT, WIDER, HGRN2),
        _claim(
            "A window of 16 tokens, which reaches few of the pairs, does not hurt recall: at most 5 points are lost",
            OPEN,
            REMEMBER,
            FEW,
            HGRN2,
            -0.05,
            GUESSED,
        ),
        _claim("A window of 64 tokens helps recall", OPEN, REMEMBER, WIDER, HGRN2),
        _claim(
            "The hybrid (window 64) is at least as good as full attention on text, within 0.01 bits per byte",
            "hybrids of recurrence and local attention, as Griffin, arXiv:2402.19427",
            TEXT,
            WIDER,
            FULL,
            -0.01,
        ),
        _claim(
            "In as many steps full attention recalls more than HGRN2 with short convolutions",
            "Zoology, arXiv:2312.04927, of models trained to the end",
            REMEMBER,
            FULL,
            HGRN2,
        ),
    ),
    minutes={"small": 20.0, "medium": 20_000.0},
    pictures=(
        Picture(name="language", title="Text", metric="bits_per_byte", groups=(TEXT,)),
        Picture(name="recall", title="Recall", metric="accuracy", groups=(REMEMBER,)),
        Picture(name="state", title="State after 1,024 tokens", metric="state_kib", groups=(TEXT,)),
    ),
    published=(
        Published(
            what="Gated DeltaNet of 1.3B, 100B tokens, mean of commonsense tasks: HGRN2",
            value="51.79",
            source="Gated DeltaNet, arXiv:2412.06464, Table 3",
            note="pure HGRN2, a thousand times our size; hybrids of HGRN2 were not published",
        ),
    ),
    measure=measure,
    alone=alone,
    draw=draw,
    choose=CHOOSE,
    notes=(
        SHORT_NOTE,
        "Four layers, of the same parameters within 2 % by the width of the MLP. Of every 4 (or 2) layers the last has "
        "attention over the window's tokens in place of HGRN2; Llama has full attention "
        "in all layers.",
        "Recall is of as many steps for all, and says what is learned in them: Llama, which has no short convolutions, "
        "stays where one of the values is guessed in four times as many steps too, at rates of 0.001 to 0.003 and "
        "weights drawn with 0.02 to 0.1.",
        "The state of pure HGRN2 has one size; that of attention grows to its window, or without end.",
        TUNED,
        RECALL_NOTE,
        COSTS_NOTE,
    ),
)
