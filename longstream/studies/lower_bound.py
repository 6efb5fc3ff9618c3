"""Study `lower-bound`: HGRN's bounds on the forget gates learned, left out, fixed and in reverse order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from longstream.studies.curves import CurvePanel, draw_curves
from longstream.studies.difficulty import Ladder, measure_ladder
from longstream.studies.language import SHORT_NOTE
from longstream.studies.measures import ACCURACY, BITS, LOSS, PARAMETERS
from longstream.studies.statistics import chosen_runs
from longstream.studies.study import Claim, Metric, Picture, Plan, Published, Result, Run, Scale, Study
from longstream.studies.sweep import TUNED
from longstream.studies.variants import CHOOSE, Variant, declare, on_text, on_tokens

TEXT, COPY = "language", "long copy"
BOUNDS = ("learned", "none", "fixed", "decreasing")
# Four symbols are said again after a pause, in their order; tested after shorter and longer pauses too.
COPYING: dict[Scale, Ladder] = {
    "small": Ladder("copying:vocabulary=10,num_tokens=4,delay=56", "delay", (14, 28, 56, 112)),
    "medium": Ladder("copying:vocabulary=10,num_tokens=8,delay=240", "delay", (60, 120, 240, 480)),
}
# Symbols and pause grow in training: without that a minute is not enough, whatever the bounds (17 % against 12.5 %).
CURRICULUM = {"data.generator_start": "num_tokens=1,delay=8", "data.ramp_ratio": 0.6}
# Rates; of text and copying: shape, steps, minutes of a run on one core.
SIZES: dict[Scale, dict[str, Any]] = {
    "small": {
        "rates": (2e-3, 6e-3),
        TEXT: ({"hidden_size": 80, "num_hidden_layers": 4}, 450, 0.8),
        COPY: ({"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 96}, 500, 0.6),
    },
    "medium": {
        "rates": (5e-4, 1e-3, 2e-3),
        TEXT: ({"hidden_size": 384, "num_hidden_layers": 8}, 20_000, 900.0),
        COPY: ({"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 384}, 20_000, 900.0),
    },
}


@lru_cache(maxsize=2)
def variants(scale: Scale) -> tuple[Variant, ...]:
    """Every kind of bound on text and on copying."""
    size = SIZES[scale]
    found = []
    for group in (TEXT, COPY):
        shape, steps, minutes = size[group]
        shape = {"model.name": "hgrn", **{f"model.{key}": value for key, value in shape.items()}}
        for bound in BOUNDS:
            kind = {**shape, "model.lower_bound": bound}
            if group == TEXT:
                settings = on_text("hgrn", scale, steps, kind)
            else:
                settings = {**on_tokens(COPYING[scale], steps, 32, kind), **CURRICULUM}
            found.append(Variant(group=group, name=bound, settings=settings, rates=size["rates"], minutes=minutes))
    return tuple(found)


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """The first seed at every rate, then the others at the best."""
    return declare(variants(plan.scale), plan, done)


def measure(run: Run, folder: Path) -> dict[str, float]:
    """Copying after shorter and longer pauses than in training."""
    asked = run.settings.get("data.generator")
    ladder = next((each for each in COPYING.values() if each.task == asked), None)
    return {} if ladder is None else measure_ladder(ladder, folder)


def draw(results: Sequence[Result], folder: Path) -> list[tuple[Path, str]]:
    """Copying by the length of the pause."""
    kept = [result for of in chosen_runs(results, *CHOOSE).values() for result in of]
    asked = [str(r.run.settings["data.generator"]) for r in kept if r.run.group == COPY]
    trained = float(asked[0].rpartition("delay=")[2]) if asked else None
    panel = CurvePanel(COPY, COPY, "delay=", "tokens of pause", "accuracy, %", scale=100.0, trained=trained)
    path = folder / "copy_by_delay.png"
    if not draw_curves(path, "Copying after shorter and longer pauses than in training (dotted)", [panel], kept):
        return []
    return [(path, "Test accuracy by the length of the pause, means and 95 % intervals over seeds.")]


SOURCE = "HGRN, arXiv:2311.04823, ablation of the lower bound"


def _claims() -> tuple[Claim, ...]:
    words = {"none": "no bound", "fixed": "bounds that are not trained", "decreasing": "bounds in reverse order"}
    return tuple(
        Claim(
            text=f"{task}: learned bounds are better than {words[other]}",
            source=SOURCE,
            group=group,
            metric=metric,
            better="learned",
            worse=other,
        )
        for task, group, metric in (("Text", TEXT, "bits_per_byte"), ("Long copy", COPY, "accuracy"))
        for other in BOUNDS[1:]
    )


STUDY = Study(
    name="lower-bound",
    title="Lower bounds of HGRN's forget gates",
    question="What are bounds on the forget gates worth, and must they be learned and grow with depth?",
    runs=make_runs,
    metrics=(
        BITS,
        ACCURACY,
        Metric(key="sequences", label="whole sequences, %", higher=True, digits=1, scale=100.0),
        *(
            Metric(key=f"delay={n}", label=f"pause {n}, %", higher=True, digits=1, scale=100.0)
            for n in sorted({n for ladder in COPYING.values() for n in ladder.values})
        ),
        LOSS,
        PARAMETERS,
    ),
    claims=_claims(),
    minutes={"small": 12.0, "medium": 20_000.0},
    pictures=(
        Picture(name="language", title="Text", metric="bits_per_byte", groups=(TEXT,)),
        Picture(name="copy", title="Long copy", metric="accuracy", groups=(COPY,)),
    ),
    published=(
        Published(
            what="WikiText-103, perplexity: learned; none; random; decreasing",
            value="24.14; 24.71; 24.60; 24.63",
            source="HGRN, arXiv:2311.04823, Table 10, as quoted by others",
            ours=tuple((TEXT, bound, "bits_per_byte") for bound in BOUNDS),
            note="words, another text, a hundred times our size; that table says not which split it is of",
        ),
        Published(
            what="Long Range Arena, mean of six tasks: with bounds; without",
            value="86.91; 51.53",
            source="HGRN, arXiv:2311.04823, as quoted by others",
            note="other tasks, of up to 16,384 tokens, where one fails without bounds",
        ),
    ),
    measure=measure,
    draw=draw,
    choose=CHOOSE,
    notes=(
        SHORT_NOTE,
        "learned: the bound grows with depth, by a softmax over the layers that is trained. none: the gate goes down "
        "to 0 in all layers. fixed: layer l of L has l / L, which is where learned begins. decreasing: learned, in "
        "reverse order, so that the first layer has the largest bound.",
        "Long copy: symbols, a pause, then the symbols again in their order; at small scale four of eight symbols "
        "after 56 blanks; chance is 12.5 %. Training goes there from one symbol after 8 blanks.",
        "Forget gates begin as the network draws them, with no bias that remembers: that is what bounds are for.",
        TUNED,
    ),
)
