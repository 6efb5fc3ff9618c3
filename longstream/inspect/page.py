"""The page of `longstream inspect`: all that was measured, in pictures, tables and words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longstream.inspect import pictures
from longstream.inspect.cost import Cost
from longstream.inspect.filters import MOST_CHANNELS, LayerFilters
from longstream.inspect.gates import LayerGates, describe_gates
from longstream.inspect.reach import Reach
from longstream.inspect.signs import Sign
from longstream.inspect.states import ROWS, LayerRank
from longstream.inspect.subject import Subject
from longstream.train.page import Page
from longstream.train.rundir import write_text

FORMAT = 1  # of inspect.json
PAGE, NUMBERS = "inspect.html", "inspect.json"
PICTURES = ("gates.png", "saturation.png", "ranks.png", "reach.png", "training.png", "filters.png")


@dataclass(frozen=True)
class Inspection:
    """What `longstream.inspect.inspect_model` found; empty or None where there is nothing of the kind."""

    subject: Subject
    gates: list[LayerGates]
    ranks: list[LayerRank]
    reach: Reach | None
    filters: list[LayerFilters]
    cost: Cost
    signs: list[Sign]
    accuracy: float | None = None

    def as_json(self) -> dict[str, Any]:
        """All numbers, as inspect.json has them."""
        subject = self.subject
        return {
            "format": FORMAT,
            "model": subject.name,
            "data": subject.data,
            "unit": subject.unit,
            "inputs": list(subject.inputs.shape),
            "trained_length": subject.trained_length,
            "signs": [sign.as_json() for sign in self.signs],
            "accuracy": self.accuracy,
            "gates": [each.as_json() for each in self.gates],
            "ranks": [each.as_json() for each in self.ranks],
            "reach": None if self.reach is None else self.reach.as_json(),
            "filters": [each.as_json() for each in self.filters],
            "cost": self.cost.as_json(),
        }


def refuse_to_overwrite(folder: Path, overwrite: bool) -> None:
    """Raise unless an inspection may be written there; touches nothing."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"inspect: {folder} is a file, not a folder: choose another --out")
    taken = [name for name in (PAGE, NUMBERS, *PICTURES) if (folder / name).exists()]
    if taken and not overwrite:
        raise FileExistsError(
            f"inspect: {folder} already holds {taken[0]}: choose another --out, or replace it with --overwrite"
        )


def write_inspection(found: Inspection, folder: Path) -> list[Path]:
    """Write page, numbers and pictures; pictures of an earlier inspection that this one lacks are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = (folder / PAGE).exists()
    made = _draw(found, folder)
    for name in PICTURES if earlier else ():
        if name not in made:
            (folder / name).unlink(missing_ok=True)
    numbers = folder / NUMBERS
    write_text(numbers, json.dumps(found.as_json(), indent=1) + "\n")
    page = _page(found, made)
    return [page.write(folder / PAGE), numbers, *made.values()]


def _draw(found: Inspection, folder: Path) -> dict[str, Path]:
    """The pictures by name."""
    subject, made = found.subject, {}
    length = subject.trained_length or subject.length
    if found.gates:
        made["gates.png"] = pictures.draw_gates(folder / "gates.png", found.gates, length, subject.unit)
        made["saturation.png"] = pictures.draw_saturation(folder / "saturation.png", found.gates)
    if found.ranks:
        made["ranks.png"] = pictures.draw_ranks(folder / "ranks.png", found.ranks, subject.unit)
    if found.reach is not None:
        made["reach.png"] = pictures.draw_reach(folder / "reach.png", found.reach, subject.trained_length, subject.unit)
    if (training := pictures.draw_training(folder / "training.png", subject.metrics)) is not None:
        made["training.png"] = training
    if found.filters:
        made["filters.png"] = pictures.draw_filters(folder / "filters.png", found.filters, subject.unit)
    return made


def _page(found: Inspection, made: Mapping[str, Path]) -> Page:
    subject, unit = found.subject, found.subject.unit
    sizes = " x ".join(f"{size:,}" for size in subject.inputs.shape)
    page = Page(f"Why {subject.name} behaves as it does")
    page.text(
        f"{_kinds(found)}, {subject.model.num_parameters():,} parameters, looked at on {sizes} {unit}: {subject.data}."
    )
    for note in subject.notes:
        page.text(note, "note")

    page.section("Signs of failure")
    for sign in found.signs:
        page.text(f"{sign.name}: {sign.verdict}. {sign.measured}", "verdict")
        for advice in sign.advice:
            page.text(advice)
        page.text(f"Rule: {sign.rule}", "note")

    if found.gates:
        page.section("How long the gates remember")
        page.text(
            f"A forget gate f keeps f of a channel with each of the {unit}; 1 / (1 - f) is how many of them its memory"
            " lasts. The lower bound of a layer forces f to be at least as large as it is. Over many, what is left is"
            " the product of the gates, so the lasting time scale is that of their geometric mean: one forgetful gate"
            " undoes many that remember."
        )
        page.picture(made["gates.png"], "Time scales of each channel on this data, and what the lower bound forces.")
        heads = ("", "forced (median)", "lasting, 10 %", "median", "90 %", "next to 1", "next to the bound")
        page.table(heads, describe_gates(found.gates, unit))
        page.picture(
            made["saturation.png"],
            "Gate saturation: gates within 0.001 of 1 take in nothing and forget nothing; within 0.001 of the bound (of"
            " 0 in layers without one) they forget all they can. Neither answers to its input any more.",
        )
    if found.ranks:
        page.section("How much of the state is used")
        page.text(
            "The effective rank is exp of the entropy of the singular values of a head's state: 1 if it holds one"
            " thing, its largest if it holds as many different ones as it can. HGRN's state is a vector, taken for the"
            f" diagonal matrix it is in the recurrence. The median of {min(ROWS, len(subject.inputs))} sequences."
        )
        page.picture(made["ranks.png"], f"Effective rank of the recurrent state, by the {unit} read.")
    if found.reach is not None:
        _add_reach(page, found.reach, made, unit)
    if found.filters:
        _add_filters(page, found.filters, made, unit)
    _add_cost(page, found.cost, unit)
    page.section("Training")
    if "training.png" in made:
        page.picture(made["training.png"], "Loss and gradient norms over training, and what was logged of each layer.")
    else:
        page.text("There is no metrics.jsonl that tells of its training.", "note")
    if left_out := _left_out(found):
        page.section("What is not shown")
        for words in left_out:
            page.text(words, "note")
    return page


def _add_reach(page: Page, reach: Reach, made: Mapping[str, Path], unit: str) -> None:
    one = unit[:-1]
    page.section(f"How far back a changed {one} still moves the output")
    what = (
        "The output is the distribution of the next token; a change is half the sum of absolute differences, 0 to 1."
        if unit == "tokens"
        else "The output is the network's vector of a frame; a change is relative to its size."
    )
    page.text(
        f"One {one} in the first quarter of a sequence is replaced by another, {len(reach.moved)} times, and the"
        f" outputs behind it are compared with what they were. {what} Of each range of distances the largest counts."
    )
    page.picture(made["reach.png"], f"Change of the output by the distance from the changed {one}.")
    rows = []
    for part in (0.5, 0.1, 0.01, 0.001):
        distance = reach.distance(part)
        at_least = "at least " if distance >= reach.farthest else ""
        rows.append((f"{100 * part:g} %", f"{at_least}{distance:,} {unit}"))
    page.table(("of the first change is left", "up to"), rows)


def _add_filters(page: Page, filters: list[LayerFilters], made: Mapping[str, Path], unit: str) -> None:
    page.section("Hyena's filters")
    page.text(
        "Left to right: the filters themselves, from lag 0; the windows that are multiplied into them, of the fastest"
        " and the slowest channel; how strongly they pass each frequency; and the singular values of their Hankel"
        " matrices, of which a filter of M modes (complex exponentials, as a recurrence has them) has 2 M that are not"
        " 0, so that the fall says how many modes stand in for a filter."
    )
    page.picture(made["filters.png"], "Filters, windows, spectra and Hankel singular values by layer.")
    heads = (
        "",
        "taps",
        "99 % of the energy within (median)",
        "slowest window gone after",
        "modes for 1 % (median, most)",
    )
    rows = []
    for each in filters:
        modes, window = each.modes().double(), each.window_span()
        gone = "no window" if each.window is None else "never" if window is None else f"{window:,.0f} {unit}"
        rows.append(
            (
                f"layer {each.layer}",
                f"{each.length:,}",
                f"{float(each.span.double().median()):,.0f} {unit}",
                gone,
                f"{float(modes.median()):,.0f}, {float(modes.max()):,.0f}",
            )
        )
    page.table(heads, rows)
    if any(len(each.taps) > MOST_CHANNELS for each in filters):
        page.text(f"Hankel matrices of {MOST_CHANNELS} evenly chosen filters a layer.", "note")


def _add_cost(page: Page, cost: Cost, unit: str) -> None:
    page.section("What the memory costs")
    page.text(f"Multiply-adds for each of the {unit}: matrices of weights, and what brings the past there.")
    layers = zip(cost.kinds, cost.weights, cost.memory, strict=True)
    rows = [
        (f"layer {i}, {kind}", f"{weights:,.0f}", f"{memory:,.0f}", f"{memory / max(weights, 1):.2f}")
        for i, (kind, weights, memory) in enumerate(layers)
    ]
    page.table(("", "matrices", "memory", "memory over matrices"), rows)
    if cost.seconds:
        times = "; ".join(f"{1e6 * value:,.1f} us in a pass of {T:,}" for T, value in sorted(cost.seconds.items()))
        page.text(f"CPU time for each, measured on one sequence: {times}.", "note")


def _left_out(found: Inspection) -> list[str]:
    """What this kind of model does not have."""
    kinds, words = found.cost.kinds, []
    for kind, what in (
        ("SlidingWindowAttention", "Attention has no gates, no state of a fixed rank and no filters"),
        ("Hyena", "Hyena has no forget gates, and its state is the past itself"),
    ):
        layers = [str(i) for i, each in enumerate(kinds) if each == kind]
        if layers:
            words.append(f"{what}: layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}.")
    if not found.subject.causal:
        words.append("It looks both ways: there is no state after so many, and no way back to follow a change along.")
    return words


def _kinds(found: Inspection) -> str:
    """ "4 layers of HGRN2", or of each kind how many."""
    counts: dict[str, int] = {}
    for kind in found.cost.kinds:
        counts[kind] = counts.get(kind, 0) + 1
    told = [f"{count} layer{'s' if count > 1 else ''} of {kind}" for kind, count in counts.items()]
    return " and ".join(told)
