"""Study `lm`: seven architectures as language models of equal size, on the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longstream.studies.curves import CurvePanel, draw_curves
from longstream.studies.language import SHAPES, SHORT_NOTE, language_settings
from longstream.studies.longer import decoding_figures, draw_decoding
from longstream.studies.measures import BITS, EQUAL_BITS, PARAMETERS, load, position_losses, speeds
from longstream.studies.statistics import chosen_runs
from longstream.studies.study import Claim, Metric, Picture, Plan, Published, Result, Run, Scale, Study
from longstream.studies.sweep import TUNED, rate_choice, swept

GROUP = "language"
MODELS = {
    "HGRN2": {"model.name": "hgrn2"},
    "HGRN": {"model.name": "hgrn"},
    "Hyena": {"model.name": "hyena"},
    "hybrid": {"model.name": "hybrid", "model.attention_every": 3, "model.attention_window": 64},
    "Llama": {"model.name": "llama"},
    "Mamba": {"model.name": "mamba"},
    "Mamba2": {"model.name": "mamba2"},
}
RATES: dict[Scale, tuple[float, ...]] = {"small": (3e-3, 8e-3), "medium": (5e-4, 1e-3, 2e-3)}
STEPS: dict[Scale, int] = {"small": 400, "medium": 20_000}
# Of a run, on one core: transformers' Mamba and Mamba-2 are slow there.
MINUTES: dict[Scale, dict[str, float]] = {
    "small": {"Llama": 1.25, "Mamba": 5.0, "Mamba2": 2.1},
    "medium": {"Mamba": 4000.0, "Mamba2": 4000.0},
}
USUAL: dict[Scale, float] = {"small": 1.0, "medium": 1500.0}
EDGES = (16, 64, 256, 512)  # tokens in front of a byte, up to
DECODED: dict[Scale, tuple[int, ...]] = {
    "small": (128, 512, 2048, 8192, 32_768),
    "medium": (128, 512, 2048, 8192, 32_768),
}
TRAINED = 256  # tokens of the passes whose time is taken


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """Every model at each rate with the first seed, then at its best one with the others.

    Raises:
        ValueError: the package mambapy is missing.
    """
    require_mambapy()

    def tuned(seed: int, rate: float) -> list[Run]:
        steps = plan.steps(STEPS[plan.scale])
        return [
            Run(
                group=GROUP,
                variant=variant,
                seed=seed,
                settings=language_settings(
                    model["model.name"], plan.scale, steps=steps, learning_rate=rate, more=model
                ),
                choice=rate_choice(rate),
                minutes=MINUTES[plan.scale].get(variant, USUAL[plan.scale]),
            )
            for variant, model in MODELS.items()
        ]

    return swept(plan, done, RATES[plan.scale], tuned, key="bits_per_byte", higher=False)


def require_mambapy() -> None:
    """Raise unless Mamba's scan is parallel: transformers' loop takes some ten seconds a step here, not one."""
    from longstream.baselines.configs import has_mambapy

    if not has_mambapy():
        raise ValueError("study lm: Mamba needs the package mambapy to train on a CPU: pip install 'longstream[mamba]'")


def measure(run: Run, folder: Path) -> dict[str, float]:
    """Bits per byte by position in the context."""
    return position_losses(folder, EDGES)


def alone(plan: Plan, folder: Path) -> dict[tuple[str, str], Mapping[str, float]]:
    """Training speed of the trained models, and decoding time and memory against length."""
    runs: dict[str, Run] = {}  # of the first seed, at any rate: what diverged may have left no model
    for run in sorted(make_runs(plan, ()), key=lambda run: not (folder / run.name / "model.safetensors").is_file()):
        runs.setdefault(run.variant, run)
    there = {variant: folder / run.name for variant, run in runs.items()}
    trained = {variant: load(path) for variant, path in there.items() if (path / "model.safetensors").is_file()}
    speed = speeds(trained, length=TRAINED, rows=4)
    settings = {variant: run.settings for variant, run in runs.items()}
    costs = decoding_figures(settings, DECODED[plan.scale])
    return {
        (GROUP, variant): {**({"training_us": speed[variant]["training_us"]} if variant in speed else {}), **of}
        for variant, of in costs.items()
    }


def draw(results: Sequence[Result], folder: Path) -> list[tuple[Path, str]]:
    """Loss by position, and what one token more costs behind a context."""
    kept = [result for of in chosen_runs(results, *STUDY.choose).values() for result in of]
    panel = CurvePanel(GROUP, "", "bits_to_", "tokens in front, up to", "bits per byte", trained=256)
    path, found = folder / "positions.png", []
    if draw_curves(path, "Bits per byte by position in the context", [panel], kept):
        found.append((path, "By how many tokens a byte has in front of it; dotted: the length in training."))
    path = folder / "decoding.png"
    if draw_decoding(path, folder, GROUP):
        found.append((path, "One token more behind a context, of one sequence, on all cores: time and state."))
    return found


def _claims() -> tuple[Claim, ...]:
    paper = "HGRN2, arXiv:2404.07904"
    sides = {
        "HGRN": ("HGRN2 is a better language model than HGRN", paper),
        "Mamba": ("HGRN2 is a better language model than Mamba (slightly, as the paper has it)", paper),
        "Llama": (
            "HGRN2 is a better language model than a LLaMA-style Transformer (slightly, as the paper has it)",
            paper,
        ),
        "Mamba2": ("HGRN2 is a better language model than Mamba-2", "a user's question"),
        "Hyena": ("HGRN2 is a better language model than Hyena", "a user's question"),
    }
    common: dict[str, Any] = {"group": GROUP, "metric": EQUAL_BITS.key}
    hybrid = Claim(
        text="Some sliding-window attention makes HGRN2 better",
        source="left open by HGRN2; Griffin, arXiv:2402.19427",
        better="hybrid",
        worse="HGRN2",
        **common,
    )
    others = (
        Claim(text=text, source=source, better="HGRN2", worse=worse, **common)
        for worse, (text, source) in sides.items()
    )
    return (*others, hybrid)


STUDY = Study(
    name="lm",
    title="Seven architectures as language models",
    question="Which is the better language model at equal parameters and tokens, and what does each cost?",
    runs=make_runs,
    metrics=(
        BITS,
        EQUAL_BITS,
        *(Metric(key=f"bits_to_{edge}", label=f"up to {edge} in front", higher=False, digits=3) for edge in EDGES),
        Metric(key="training_us", label="training, \u00b5s a token", higher=False, digits=0),
        *(
            Metric(key=f"decode_ms={n}", label=f"ms a token at {n:,}", higher=False, digits=2)
            for n in (128, 2048, 32_768)
        ),
        *(
            Metric(key=f"state_kib={n}", label=f"state at {n:,}, KiB", higher=False, digits=0)
            for n in (128, 2048, 32_768)
        ),
        PARAMETERS,
    ),
    claims=_claims(),
    minutes={"small": 27.0, "medium": 20_000.0},
    pictures=(Picture(name="bits", title="Bits per byte, held out", metric="bits_per_byte", groups=(GROUP,)),),
    published=(
        Published(
            what="WikiText-103, validation and test: HGRN 24.14 and 24.82, Transformer 24.40 and 24.78",
            value="perplexity of words",
            source="HGRN, arXiv:2311.04823",
            ours=tuple((GROUP, name, BITS.key) for name in ("HGRN", "Llama")),
            note="45 million parameters and 100,000 steps, another text, words and not bytes",
        ),
        Published(
            what="100 billion tokens: HGRN2 (1.0B parameters) 50.8, HGRN (1.0B) 47.6, GLA (1.3B) 50.1, Mamba 50.2",
            value="mean accuracy of six tasks, %",
            source="HGRN2, arXiv:2404.07904, the repository's figure",
            ours=tuple((GROUP, name, BITS.key) for name in ("HGRN2", "HGRN", "Mamba")),
            note="some thousand times the parameters and a hundred thousand times the text",
        ),
        Published(
            what="WikiText-103, 125 million parameters: Transformer 18.6, Hyena-3 18.6",
            value="perplexity",
            source="Hyena, arXiv:2302.10866",
            ours=tuple((GROUP, name, BITS.key) for name in ("Llama", "Hyena")),
            note="three hundred times the parameters, sub-words",
        ),
    ),
    measure=measure,
    alone=alone,
    draw=draw,
    choose=("bits_per_byte", False),
    notes=(
        SHORT_NOTE,
        f"All models have {SHAPES['small'][0]:,} parameters (medium: {SHAPES['medium'][0]:,}) within 2 % with their "
        "embeddings; Mamba and Mamba-2, which have no MLP, by width and depth, the others by the width of the MLP.",
        "Text: Python's language reference and docstrings as bytes; held out are whole documents from the end. Every "
        "model of a seed reads the same sequences in the same order.",
        TUNED,
        "The hybrid has one layer of attention over 64 tokens for two of HGRN2. Llama and Hyena, trained on 256 "
        "tokens, see 128 to 256 of them when held-out documents are read, and the others a whole document. Claims are "
        "therefore of bits per byte at equal context: all bytes with 1 to 256 tokens in front of them, in the same "
        "windows for all; past 256 are those models that take more, in windows of 512.",
        "Decoding is of new models with the same sizes, Hyena's filters made as long as the longest context: what a "
        "token costs does not depend on the weights. Times of decoding are wall time on all cores, models in turns; "
        "of training, one core's time.",
        "Mamba (with mambapy's scan) and Mamba-2 are transformers' own in plain PyTorch, slow on a CPU: their "
        "times say nothing of the architecture on a GPU.",
    ),
)
