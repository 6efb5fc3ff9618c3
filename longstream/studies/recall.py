"""Study `recall`: what each model remembers of its context, and where that ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longstream.studies.curves import CurvePanel, draw_curves
from longstream.studies.difficulty import RECALL_START, Ladder, measure_ladder, tokens_settings
from longstream.studies.language import like_first
from longstream.studies.statistics import chosen_runs
from longstream.studies.study import Claim, Metric, Plan, Published, Result, Run, Scale, Study
from longstream.studies.sweep import TUNED, rate_choice, swept

MODELS = {
    "HGRN2": {"model.name": "hgrn2"},
    "HGRN2 + conv": {"model.name": "hgrn2", "model.use_short_conv": True},
    "HGRN": {"model.name": "hgrn"},
    # Smooth filters: with the usual 33 features at frequency 14 it learns nothing here in as many steps.
    "Hyena": {"model.name": "hyena", "model.mixer_options": ("positional_width=5", "frequency=1.0")},
    "Llama": {"model.name": "llama"},
}
ON_OTHERS = ("HGRN2", "HGRN", "Hyena", "Llama")

MQAR = "MQAR"
# Training goes from this to all pairs over the first 70 % of the steps: without it no model with a state of fixed size
# leaves the plateau of guessing among the values that were there in a thousand steps.
MQAR_START = "num_pairs=1,seq_len=16"
LADDERS: dict[str, Ladder] = {
    MQAR: Ladder("mqar:vocabulary=8192,seq_len=128,num_pairs=8", "num_pairs", (2, 4, 8, 16, 32)),
    "associative recall": Ladder("associative_recall:vocabulary=20,seq_len=64", "seq_len", (32, 64, 128, 256, 512)),
    "induction heads": Ladder(
        "induction_heads:vocabulary=16,seq_len=256", "seq_len", (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    ),
    "selective copying": Ladder(
        "selective_copying:vocabulary=16,seq_len=64,num_tokens=8", "seq_len", (32, 64, 128, 256, 512)
    ),
    "MAD in-context recall": Ladder("in_context_recall:vocabulary=16,seq_len=128", "seq_len", (64, 128, 256, 512)),
    "MAD fuzzy recall": Ladder("fuzzy_recall:vocabulary=16,seq_len=128", "seq_len", (64, 128, 256, 512)),
    "MAD noisy recall": Ladder("noisy_recall:vocabulary=32,seq_len=128,noise=0.2", "noise", (0, 0.2, 0.4, 0.6, 0.8)),
    "MAD selective copying": Ladder("selective_copying:vocabulary=16,seq_len=256,num_tokens=16", "seq_len", (256, 512)),
    "MAD compression": Ladder("compression:vocabulary=16,num_tokens=31"),
    "MAD memorization": Ladder("memorization:vocabulary=256,seq_len=32"),
}
# Of MQAR: width, batch, steps, rates. Of the others: width, tokens a step, steps. Minutes are of a run, on one core.
SIZES: dict[Scale, dict[str, Any]] = {
    "small": {
        "mqar": {"width": 128, "mlp": 128, "batch": 32, "steps": 900, "rates": (4e-3, 8e-3), "minutes": 1.7},
        "others": {"width": 64, "mlp": 256, "tokens": 2048, "steps": 200, "rate": 8e-3, "minutes": 0.22},
    },
    "medium": {
        "mqar": {
            "width": 128,
            "mlp": 256,
            "batch": 128,
            "steps": 25_000,
            "rates": (1e-3, 3e-3, 1e-2),
            "minutes": 400.0,
        },
        "others": {"width": 128, "mlp": 512, "tokens": 16_384, "steps": 20_000, "rate": 2e-3, "minutes": 240.0},
    },
}


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """MQAR with its learning rates tuned, then all other tasks at one rate."""
    size = SIZES[plan.scale]
    mqar = size["mqar"]

    def tuned(seed: int, rate: float) -> list[Run]:
        return [_run(plan, MQAR, variant, seed, mqar["batch"], mqar, rate, rate_choice(rate)) for variant in MODELS]

    runs = swept(plan, done, mqar["rates"], tuned, key="accuracy")
    other = size["others"]
    for group, ladder in LADDERS.items():
        if group != MQAR:
            batch = max(4, other["tokens"] // _length(ladder))
            runs += [
                _run(plan, group, variant, seed, batch, other, other["rate"])
                for seed in plan.seeds
                for variant in ON_OTHERS
            ]
    return runs


def _run(
    plan: Plan, group: str, variant: str, seed: int, batch: int, size: Mapping[str, Any], rate: float, choice: str = ""
) -> Run:
    from longstream.tasks import make_task

    ladder = LADDERS[group]
    shape = {"model.hidden_size": size["width"], "model.num_hidden_layers": 2, "model.expand_ratio": 64}
    first = {"model.name": "hgrn2", **shape, "model.intermediate_size": size["mlp"], "model.tie_word_embeddings": True}
    settings = tokens_settings(
        ladder,
        train__steps=plan.steps(size["steps"]),
        train__batch_size=batch,
        train__learning_rate=rate,
        train__warmup_ratio=0.1,
    )
    if group == MQAR:
        settings |= {"data.generator_start": MQAR_START, "data.ramp_ratio": 0.7}
    if group == "MAD memorization":
        settings["data.validation_examples"] = 500
    task = make_task(ladder.task)
    model = {**shape, **RECALL_START, **MODELS[variant]}
    settings |= like_first(model, first, vocab_size=task.vocab_size, seq_len=task.length)
    return Run(group=group, variant=variant, seed=seed, settings=settings, choice=choice, minutes=size["minutes"])


def _length(ladder: Ladder) -> int:
    from longstream.tasks import make_task

    return make_task(ladder.task).length


def measure(run: Run, folder: Path) -> dict[str, float]:
    """The accuracy at every difficulty of the run's task."""
    return measure_ladder(LADDERS[run.group], folder)


def draw(results: Sequence[Result], folder: Path) -> list[tuple[Path, str]]:
    """Accuracy against difficulty, a panel for each task."""
    words = {"seq_len": "tokens", "num_pairs": "pairs", "noise": "share of noise"}
    panels = []
    for group, ladder in LADDERS.items():
        if ladder.field:
            trained = float(dict(part.split("=") for part in ladder.task.split(":")[1].split(","))[ladder.field])
            log = 0 if ladder.field == "noise" else 2
            x = words[ladder.field]
            panels.append(CurvePanel(group, group, ladder.prefix, x, "accuracy, %", log, 0, 100.0, trained))
    path = folder / "difficulty.png"
    kept = [result for of in chosen_runs(results, *STUDY.choose).values() for result in of]
    if not draw_curves(path, "Accuracy against difficulty; dotted: what the models were trained on", panels, kept):
        return []
    return [
        (path, "Test accuracy by difficulty, means and 95 % intervals over seeds; Hyena ends where its filters do.")
    ]


def _difficulties() -> list[Metric]:
    """The figures of all ladders, each once."""
    words = {"num_pairs": "{:g} pairs, %", "seq_len": "at {:,.0f}, %", "noise": "noise {:g}, %"}
    found = dict.fromkeys(
        (field, value)
        for field in words
        for ladder in LADDERS.values()
        if ladder.field == field
        for value in ladder.values
    )
    return [
        Metric(key=f"{field}={value:g}", label=words[field].format(value), higher=True, digits=1, scale=100.0)
        for field, value in sorted(found, key=lambda each: (list(words).index(each[0]), each[1]))
    ]


def _claims() -> tuple[Claim, ...]:
    mqar: dict[str, Any] = {"group": MQAR, "metric": "accuracy"}
    source = "a larger state remembers more, HGRN2, arXiv:2404.07904; no figure of HGRN2 on MQAR was found"
    return (
        Claim(
            text="HGRN2 recalls at least 20 points more of MQAR than HGRN, as the larger state says",
            source=source,
            better="HGRN2",
            worse="HGRN",
            least=0.2,
            **mqar,
        ),
        Claim(
            text="HGRN2 recalls more of MQAR than Hyena",
            source=source,
            better="HGRN2",
            worse="Hyena",
            **mqar,
        ),
        Claim(
            text="Short convolutions help HGRN2 to recall",
            source="a user's question; common practice since H3",
            better="HGRN2 + conv",
            worse="HGRN2",
            **mqar,
        ),
        *(
            Claim(
                text=f"HGRN2 is better than HGRN at {group}",
                source="HGRN2, arXiv:2404.07904: a larger state remembers more; no figure on this task",
                group=group,
                metric="accuracy",
                better="HGRN2",
                worse="HGRN",
            )
            for group in LADDERS
            if group != MQAR
        ),
    )


STUDY = Study(
    name="recall",
    title="What is remembered of the context",
    question="How much of its context does each model recall, and how does that fall with difficulty?",
    runs=make_runs,
    metrics=(
        Metric(key="accuracy", label="accuracy, %", higher=True, digits=1, scale=100.0),
        Metric(key="sequences", label="whole sequences, %", higher=True, digits=1, scale=100.0),
        Metric(key="loss", label="loss, nats", higher=False),
        *_difficulties(),
        Metric(key="parameters", label="parameters", higher=False, digits=0),
    ),
    claims=_claims(),
    minutes={"small": 29.5, "medium": 20_000.0},
    choose=("accuracy", True),
    measure=measure,
    draw=draw,
    published=(
        Published(
            what="MQAR, 128 tokens, 8 pairs, width 128: attention 1.0, Hyena 0.64",
            value="accuracy 1.0; 0.64",
            source="Zoology, arXiv:2312.04927, Figure 2, read off the plot",
            note="no MLP, 100,000 examples 64 times over; ours has one, a curriculum, and a hundredth of the examples",
            ours=tuple((MQAR, variant, "accuracy") for variant in MODELS),
        ),
        Published(
            what="Induction heads at 8,192 tokens, trained at 256: Mamba 100, Hyena (filters of the test's length) 5.1",
            value="accuracy, %",
            source="Mamba, arXiv:2312.00752, Table 11",
            note="width 128 and 64; ours is trained for seconds",
            ours=(("induction heads", "HGRN2", "seq_len=8192"), ("induction heads", "Llama", "seq_len=8192")),
        ),
        Published(
            what="MAD, mean of six tasks: Transformer 74.5, Hyena 66.0, Mamba 69.3, GLA 60.0",
            value="score, %",
            source="DeltaNet, arXiv:2406.06484, quoting MAD, arXiv:2403.17844",
            note="mean over harder forms that are each trained; ours is the baseline alone, trained for seconds",
        ),
        Published(
            what="Selective copying, 4,096 tokens: Mamba 99.8, Hyena 30.1",
            value="accuracy, %",
            source="Mamba, arXiv:2312.00752, Table 1",
            note="400,000 steps, other sizes",
        ),
    ),
    notes=(
        "Examples are made from the seed as training goes, so that none comes twice; models of one seed see the same.",
        "MQAR: " + TUNED + " The other tasks have one rate for all models. Training on MQAR goes from one pair in 16 "
        "tokens to 8 in 128 over the first 70 % of the steps, for all models: without that no model with a state of "
        "fixed size leaves the plateau of guessing among the values in so few steps.",
        "Harder and easier forms are tested with the model that was trained at one of them (dotted in the picture), "
        f"on {LADDERS['induction heads'].values[0]:,} to {LADDERS['induction heads'].values[-1]:,} tokens with fewer "
        "examples the longer they are. Two layers of each mixer with an MLP; the MLP's width makes parameters equal.",
        "Hyena's filters are as long as the training examples, so it has no figure beyond them. Its filters begin "
        "alive and smooth: torch's initialization, 5 positional features, frequency 1; with the usual 33 features and "
        "frequency 14 it learns nothing of MQAR in so many steps (study filters says what that does elsewhere).",
        "Llama has no short convolutions, with which attention learns recall in far fewer steps: what stands here is "
        "what it learns in as many steps as the others, not what it can hold.",
        "Compression is asked in the form of a causal language model, where attention can look every token up.",
    ),
)
