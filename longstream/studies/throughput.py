"""Study `throughput`: from which length on attention costs more than what does without it. Nothing is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longstream.studies.language import BYTES, of_size
from longstream.studies.longer import (
    DECODING,
    STATE,
    at_lengths,
    decoding_figures,
    draw_decoding,
    new_models,
    read_alone,
)
from longstream.studies.measures import rounds
from longstream.studies.statistics import summarize
from longstream.studies.study import Metric, Plan, Published, Result, Run, Scale, Study

GROUP, ATTENTION = "models", "Llama"
MODELS: dict[str, dict[str, Any]] = {
    "HGRN2": {"model.name": "hgrn2"},
    "HGRN": {"model.name": "hgrn"},
    "Hyena": {"model.name": "hyena"},
    "hybrid": {"model.name": "hybrid", "model.attention_every": 3, "model.attention_window": 256},
    ATTENTION: {"model.name": "llama"},
    "Mamba": {"model.name": "mamba"},
    "Mamba2": {"model.name": "mamba2"},
    "GRU": {"model.name": "gru"},
}
TRAIN, FORWARD = "train_us=", "read_us="  # microseconds a token
# Parameters, shape, depths of Mamba; lengths of training and decoding; tokens of a pass, rounds, longest seconds.
SIZES: dict[Scale, dict[str, Any]] = {
    "small": {
        **{"parameters": 1_600_000, "width": 192, "layers": 3, "depths": (4, 5, 6, 7)},
        **{"trained": (256, 512, 1024, 2048, 4096, 8192), "decoded": (128, 512, 2048, 8192, 32_768)},
        **{"tokens": 4096, "rounds": 4, "longest": 8.0},
    },
    "medium": {
        **{"parameters": 24_000_000, "width": 512, "layers": 8, "depths": (12, 14, 16)},
        **{"trained": (512, 1024, 2048, 4096, 8192, 16_384, 32_768), "decoded": (128, 512, 2048, 8192, 32_768)},
        **{"tokens": 8192, "rounds": 6, "longest": 200.0},
    },
}


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """None: what a token costs does not depend on what a model has learned."""
    return []


def model_settings(scale: Scale) -> dict[str, dict[str, Any]]:
    """Flat settings of every model, of equal parameters."""
    size = SIZES[scale]
    shape = {"model.hidden_size": size["width"], "model.num_hidden_layers": size["layers"]}
    # The length decides how many positions Hyena's filters have, which are parameters, too.
    return {
        name: of_size(
            {**shape, **model}, size["parameters"], vocab_size=BYTES, seq_len=size["tokens"], depths=size["depths"]
        )
        for name, model in MODELS.items()
    }


def alone(plan: Plan, folder: Path) -> dict[tuple[str, str], Mapping[str, float]]:
    """Microseconds a token of training steps and of reading, and of one token more, against length."""
    size, settings = SIZES[plan.scale], model_settings(plan.scale)
    models = new_models(settings, max(size["trained"]))
    samples = training_times(models, size["trained"], size["tokens"], size["rounds"], size["longest"])
    decoding = decoding_figures(settings, size["decoded"])
    found = {}
    for name, model in models.items():
        figures = {**times_of(samples[name]), **decoding[name]}
        figures["parameters"] = sum(p.numel() for p in model.parameters())
        if name != ATTENTION:
            figures |= crossings(samples[name], samples[ATTENTION])
            figures |= decoding_crossing(decoding[name], decoding[ATTENTION])
        found[GROUP, name] = figures
    return found


Samples = dict[tuple[str, int], list[float]]  # of (what, length): microseconds a token, a round each


def training_times(
    models: Mapping[str, Any], lengths: Sequence[int], tokens: int, rounds: int, longest: float
) -> dict[str, Samples]:
    """Microseconds a token, of a forward and backward pass and of a forward pass alone, the models in turns.

    Args:
        tokens:  of a pass: so many sequences of a length as make as many, at least one.
        rounds:  after one that does not count.
        longest: seconds; a model that takes longer at a length is not asked for longer ones.
    """
    import torch

    found: dict[str, Samples] = {name: {} for name in models}
    able = dict.fromkeys(models, True)
    for length in lengths:
        random = torch.Generator().manual_seed(length)
        ids = torch.randint(BYTES, (max(1, tokens // length), length), generator=random)
        for turn in range(rounds + 1):
            for name, model in models.items():
                if not able[name]:
                    continue
                for what, run in ((TRAIN, _train), (FORWARD, _read)):
                    seconds = _seconds(run, model, ids)
                    if turn:
                        found[name].setdefault((what, length), []).append(1e6 * seconds / ids.numel())
                    elif what == TRAIN and seconds > longest:
                        able[name] = False
                        break
    return found


def _train(model: Any, ids: Any) -> None:
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)


def _read(model: Any, ids: Any) -> None:
    import torch

    with torch.no_grad():
        model(input_ids=ids, use_cache=False, logits_to_keep=1)


def _seconds(run: Callable[[Any, Any], None], model: Any, ids: Any) -> float:
    started = time.perf_counter()
    run(model, ids)
    return time.perf_counter() - started


def times_of(samples: Samples) -> dict[str, float]:
    """Means over the rounds, and half of their 95 % intervals."""
    return {k: v for (what, length), values in samples.items() for k, v in rounds(f"{what}{length}", values).items()}


def crossings(samples: Samples, attention: Samples) -> dict[str, float]:
    """From which length on attention costs more, by the paired 95 % interval over rounds, there and at all longer ones.

    Attention that was not asked for a length because it took too long costs more there.
    """
    found = {}
    for what in (TRAIN, FORWARD):
        lengths = sorted({length for kind, length in (*samples, *attention) if kind == what})
        first = None
        for length in reversed(lengths):
            if (what, length) not in samples:  # too slow itself to be asked
                break
            pairs = zip(attention.get((what, length), ()), samples[what, length], strict=False)
            summary = summarize([a - b for a, b in pairs])
            if summary.values and not summary.low > 0:
                break
            first = length
        if first is not None:
            found[f"{what.partition('_')[0]}_overtakes"] = float(first)
    return found


def decoding_crossing(figures: Mapping[str, float], attention: Mapping[str, float]) -> dict[str, float]:
    """From which length on one token more costs attention more, by means, there and at all longer lengths."""
    ours, theirs = (dict(at_lengths(of, DECODING)) for of in (figures, attention))
    first = None
    for length in sorted(ours, reverse=True):
        if theirs.get(length, float("inf")) <= ours[length]:
            break
        first = length
    return {} if first is None else {"decode_overtakes": first}


def draw(results: Sequence[Result], folder: Path) -> list[tuple[Path, str]]:
    """Time a token against length."""
    from longstream.train.curves import Line, Panel, draw_panels

    rows = read_alone(folder, GROUP)
    panels = [
        Panel(
            "tokens of a sequence",
            label,
            [Line(name, at_lengths(of, prefix)) for name, of in rows.items()],
            log_x=2,
            log_y=2,
        )
        for prefix, label in ((TRAIN, "training, \u00b5s a token"), (FORWARD, "reading, \u00b5s a token"))
    ]
    found, path = [], folder / "training.png"
    if draw_panels(path, "A token by the length of its sequence", panels, list(rows)):
        found.append((path, "Forward and backward pass, and forward pass alone, of as many tokens at every length."))
    path = folder / "decoding.png"
    if draw_decoding(path, folder, GROUP):
        found.append((path, "One token more behind a context, of one sequence: time and state."))
    return [(path, f"{words} {_sentence(rows)}" if not i else words) for i, (path, words) in enumerate(found)]


def _sentence(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Where attention is overtaken, in words."""
    parts = []
    for name, of in rows.items():
        if name != ATTENTION:
            at = of.get("train_overtakes")
            parts.append(f"{name} " + ("nowhere measured" if at is None else f"from {at:,.0f} tokens"))
    return f"{ATTENTION} takes longer to train than {', '.join(parts)} (95 % interval over rounds)."


STUDY = Study(
    name="throughput",
    title="Time per token against length",
    question="From which length on does attention cost more, in training and in decoding?",
    runs=make_runs,
    metrics=(
        *(
            Metric(key=f"{TRAIN}{n}", label=f"training at {n:,}, \u00b5s", higher=False, digits=0)
            for n in sorted({*SIZES["small"]["trained"], *SIZES["medium"]["trained"]})
        ),
        *(
            Metric(key=f"{DECODING}{n}", label=f"decoding at {n:,}, ms", higher=False, digits=2)
            for n in SIZES["small"]["decoded"]
        ),
        Metric(key=f"{STATE}32768", label="state at 32,768, KiB", higher=False, digits=0),
        Metric(key="train_overtakes", label="Llama slower to train from", higher=False, digits=0),
        Metric(key="read_overtakes", label="Llama slower to read from", higher=False, digits=0),
        Metric(key="decode_overtakes", label="Llama slower to decode from", higher=False, digits=0),
        Metric(key="parameters", label="parameters", higher=False, digits=0),
    ),
    claims=(),
    minutes={"small": 9.0, "medium": 120.0},
    published=(
        Published(
            what="Hyena overtakes plain attention, and FlashAttention",
            value="at 2,048 tokens, and between 4,096 and 8,192",
            source="Hyena, arXiv:2302.10866",
            note="one operator on an A100 with a fused kernel; ours are whole models on a CPU",
        ),
    ),
    alone=alone,
    draw=draw,
    notes=(
        f"Language models of {SIZES['small']['parameters']:,} parameters, 192 wide in three layers where they have an "
        "MLP, on all cores, in turns. A pass reads 4,096 tokens, in sequences of the length that stands above (8,192: "
        "one sequence). Without the optimizer.",
        "Attention counts as overtaken from a length when the 95 % interval of its time less the other's, round by "
        "round, lies above 0 there and at all greater lengths. Decoding goes by means.",
        "Llama, Mamba, Mamba-2 are transformers' in PyTorch's own operations, attention by its fused CPU kernel; GRU "
        "is torch's. A model that took longer than 8 seconds for a pass is not asked for longer sequences.",
        "Times are this machine's.",
    ),
)
