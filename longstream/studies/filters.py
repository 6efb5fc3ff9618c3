"""Study `filters`: what Hyena's filters begin with, what training makes of them, and how many modes they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longstream.studies.curves import CurvePanel, draw_curves
from longstream.studies.difficulty import RECALL_START, tokens_settings
from longstream.studies.language import LANGUAGE, SHORT, SHORT_NOTE
from longstream.studies.measures import ACCURACY, BITS, PARAMETERS, load
from longstream.studies.study import Claim, Metric, Plan, Published, Result, Run, Scale, Study, pictures_over
from longstream.studies.variants import CURRICULUM, RECALL

TEXT, RECALLED = "language", "recall"
WIDTHS = (3, 5, 9, 17, 33, 65)  # positional features
USUAL = "33 features"
# Fields of the mixer, beside the usual ones: 33 features, frequency 14, a window, torch's initialization of layers.
VARIANTS: dict[str, tuple[str, ...]] = {
    **{f"{width} features": (f"positional_width={width}",) for width in WIDTHS},
    "frequency 1": ("frequency=1.0",),
    "authors' start": ("filter_init_std=0.02",),
    "dead: 3 features, frequency 1": ("positional_width=3", "frequency=1.0", "filter_init_std=0.02"),
    "no window": ("window=false",),
    "window with a floor": ("window_shift=0.05",),
}
ORDERS = (4, 8, 16, 32)  # modes
VALUES = (1, 2, 4, 8, 16, 32, 64)  # singular values that are kept
ENOUGH = 0.01  # of the largest one: what stands behind may be left out
SIZES: dict[Scale, dict[str, Any]] = {
    "small": {"width": 64, "layers": 2, "mlp": 160, "steps": 300, "rate": 5e-3, "minutes": 0.28},
    "medium": {"width": 256, "layers": 6, "mlp": 512, "steps": 10_000, "rate": 1e-3, "minutes": 700.0},
}


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """Every filter on text and on recall."""
    return [
        Run(
            group=group,
            variant=variant,
            seed=seed,
            settings=_settings(plan, group, mixer),
            x=_width(mixer) if len(mixer) == 1 else None,
            minutes=SIZES[plan.scale]["minutes"],
        )
        for seed in plan.seeds
        for group in (TEXT, RECALLED)
        for variant, mixer in VARIANTS.items()
    ]


def _width(mixer: Sequence[str]) -> float | None:
    name, _, value = mixer[0].partition("=")
    return float(value) if name == "positional_width" else None


def _settings(plan: Plan, group: str, mixer: tuple[str, ...]) -> dict[str, Any]:
    size = SIZES[plan.scale]
    recall = {**tokens_settings(RECALL[plan.scale], train__batch_size=32), **RECALL_START, **CURRICULUM}
    task = {**LANGUAGE, **SHORT[plan.scale]} if group == TEXT else recall
    return {
        **task,
        "model.name": "hyena",
        "model.hidden_size": size["width"],
        "model.num_hidden_layers": size["layers"],
        "model.intermediate_size": size["mlp"],
        "model.mixer_options": mixer,
        "train.steps": plan.steps(size["steps"]),
        "train.learning_rate": size["rate"],
        "train.warmup_ratio": 0.1,
    }


def measure(run: Run, folder: Path) -> dict[str, float]:
    """Of the trained filters: how large they are, their Hankel singular values, and what modes leave over."""
    import torch

    model = load(folder)
    with torch.no_grad():
        filters = [_taps(layer) for layer in _hyena_layers(model)]
    return describe(torch.cat(filters, dim=1))


def describe(filters: Any) -> dict[str, float]:
    """Figures of filters (S, D, T), each the median over channels.

    Returns:
        ``rms``: of the taps. ``hankel=k``: the k-th Hankel singular value over the first. ``modes``: that a filter
        needs, two singular values each, until the next is under a hundredth of the first. ``distilled=M``: relative l2
        error of M modes in a filter's place.
    """
    import torch

    from longstream.layers.modal import distill_filters, hankel_singular_values

    values = hankel_singular_values(filters).flatten(0, 1)  # (channels, C)
    shares = values / values[:, :1].clamp(min=1e-300)
    needed = (shares > ENOUGH).sum(1)
    found = {
        "rms": float(filters.double().square().mean(-1).sqrt().median()),
        "modes": float(torch.ceil(needed / 2).median()),
        **{f"hankel={k}": float(shares[:, k - 1].median()) for k in VALUES if k <= shares.shape[1]},
    }
    for order in ORDERS:
        if order <= filters.shape[-1] // 2:
            found[f"distilled={order}"] = float(distill_filters(filters, order)[1].errors.median())
    return found


def _taps(layer: Any) -> Any:
    return layer.filter(layer.filter.max_seq_len)


def _hyena_layers(model: Any) -> list[Any]:
    from longstream.layers import Hyena

    return [module for module in model.modules() if isinstance(module, Hyena)]


def draw(results: Sequence[Result], folder: Path) -> list[tuple[Path, str]]:
    """Singular values, and the errors of distillation."""
    panels = [
        CurvePanel(group, f"{title}: {group}", prefix, x, y, log_x=2, log_y=10)
        for group in (TEXT, RECALLED)
        for prefix, title, x, y in (
            ("hankel=", "Hankel singular values", "number", "over the first"),
            ("distilled=", "distillation", "modes", "relative error"),
        )
    ]
    shown = (USUAL, "3 features", "authors' start", "dead: 3 features, frequency 1", "no window", "window with a floor")
    kept = [result for result in results if result.run.variant in shown]
    path = folder / "modes.png"
    if not draw_curves(path, "How many modes trained filters need", panels, kept):
        return []
    return [(path, "Medians over all channels of all layers; means and 95 % intervals over seeds.")]


def _claim(text: str, better: str, worse: str, source: str, group: str, metric: str, least: float = 0.0) -> Claim:
    return Claim(text=text, source=source, group=group, metric=metric, better=better, worse=worse, least=least)


def _claims() -> tuple[Claim, ...]:
    paper, dead = "Hyena, arXiv:2302.10866, appendix D", "dead: 3 features, frequency 1"
    found = []
    for group, metric in ((TEXT, "bits_per_byte"), (RECALLED, "accuracy")):
        on = "text" if group == TEXT else "recall"
        found += [
            _claim(f"Filters that begin alive are better than dead ones, on {on}", USUAL, dead, paper, group, metric),
            _claim(f"33 features are better than 3, on {on}", USUAL, "3 features", paper, group, metric),
            _claim(f"A high frequency is better than a low one, on {on}", USUAL, "frequency 1", paper, group, metric),
            _claim(f"The window helps, on {on}", USUAL, "no window", paper, group, metric),
            _claim(
                f"A floor under the window helps, on {on}",
                "window with a floor",
                USUAL,
                "HyenaDNA, arXiv:2306.15794, its configuration",
                group,
                metric,
            ),
        ]
    few = "Laughing Hyena, arXiv:2310.18780: trained filters are distilled well with few modes"
    text = "Filters trained without a window need more modes than those with one"
    return (*found, _claim(text, USUAL, "no window", few, TEXT, "modes"))


STUDY = Study(
    name="filters",
    title="Hyena's filters: start, window, positions, modes",
    question="What do initialization, window and positional features do, and how many modes do trained filters need?",
    runs=make_runs,
    metrics=(
        BITS,
        ACCURACY,
        Metric(key="loss", label="loss, nats", higher=False),
        Metric(key="modes", label="modes needed", higher=False, digits=1),
        *(Metric(key=f"distilled={n}", label=f"error of {n} modes", higher=False, digits=4) for n in ORDERS),
        Metric(key="rms", label="rms of taps", higher=True, digits=4),
        PARAMETERS,
    ),
    claims=_claims(),
    minutes={"small": 10.0, "medium": 30_000.0},
    pictures=pictures_over(
        "features",
        ("width", "Positional features, on text", "bits_per_byte", (TEXT,)),
        ("recall", "Recall", "accuracy", (RECALLED,)),
        ("needed", "Modes needed", "modes", (TEXT,)),
    ),
    published=(
        Published(
            what="Perplexity lost by a filter that begins too smooth",
            value="up to 5 %",
            source="Hyena, arXiv:2302.10866, appendix D.2 and D.3",
            note="on The Pile, with 125 million parameters and more",
        ),
        Published(
            what="Modes after which Laughing Hyena's distilled models lose nothing",
            value="8 to 16 of each filter (order 16 to 32)",
            source="Laughing Hyena, arXiv:2310.18780",
            ours=((TEXT, USUAL, "modes"), (TEXT, USUAL, "distilled=16")),
            note="filters of 2,048 taps, trained for billions of tokens",
        ),
    ),
    measure=measure,
    draw=draw,
    notes=(
        SHORT_NOTE,
        f"Usual is: 33 positional features, frequency 14, a window, layers that begin as torch has them ({USUAL}). "
        "Each other variant changes what it is named for. The authors' start is their language models': weights of "
        "standard deviation 0.02, biases 0. One learning rate for all.",
        "Filters have 256 taps on text and 64 on recall. Parameters differ by the filter networks' input alone.",
        "Recall is MQAR (arXiv:2312.04927), at small scale 8 pairs in 64 tokens of a vocabulary of 64. Pairs grow from "
        "one to all in training, embeddings are tied and weights of layers (not those of the filters' networks) drawn "
        "with standard deviation 0.06, as in the other studies. Examples come fresh from the seed.",
    ),
)
