"""Three signs of a model that fails, each by a rule that is stated beforehand, with the setting to change.

The rules are pure functions of measured figures: what they were given decides, and no clock but that of `Cost`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from longstream.inspect.cost import Cost
from longstream.inspect.filters import LayerFilters
from longstream.inspect.gates import LayerGates
from longstream.inspect.reach import STILL, Reach
from longstream.inspect.states import LayerRank

RECALL = 1 / 8  # of the sequences it was trained on: a change that is not felt as far away as that is lost
FULL = 0.8  # of the largest rank: a state that has no room left
SHARE = 0.5  # of the matrices' multiply-adds: what the memory may cost
GROWTH = 1.5  # of the time a token, from a quarter of a sequence to the whole
EARLY = 0.1  # of the logged steps, where losses and gradients still fall from the start
BEFORE = 10  # logged losses that one is held against
JUMP = 6.0  # robust standard deviations above their median, and at least LEVEL of the first loss
LEVEL = 0.1
SURGE = 10.0  # times the median gradient norm
FEWEST = 20  # logged steps from which a training can be judged
ROBUST = 1.4826  # standard deviation over median absolute deviation, of a normal distribution


@dataclass(frozen=True)
class Sign:
    """A sign of failure.

    Attributes:
        name:     of the sign.
        found:    whether it is there; None where it cannot be told.
        rule:     when it is there.
        measured: what was found, in words.
        advice:   where it is there, what to change, the first thing first.
    """

    name: str
    found: bool | None
    rule: str
    measured: str
    advice: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> str:
        """In a word or three."""
        return {True: "found", False: "not found", None: "cannot be told"}[self.found]

    def as_json(self) -> dict[str, Any]:
        """Plain."""
        return asdict(self)


def recall_sign(
    reach: Reach | None,
    length: int,
    unit: str = "tokens",
    *,
    gates: Sequence[LayerGates] = (),
    ranks: Sequence[LayerRank] = (),
    filters: Sequence[LayerFilters] = (),
    kinds: Sequence[str] = (),
    accuracy: float | None = None,
    chance: float = 0.0,
) -> Sign:
    """Lost long-range recall.

    Args:
        reach:    None for a model that looks both ways.
        length:   of the sequences it was trained on.
        gates, ranks, filters: by layer, to tell what loses it.
        kinds:    the names of the mixers.
        accuracy: of a token task, which asks for recall itself; then it decides.
        chance:   the accuracy of guessing.
    """
    name = "lost long-range recall"
    if accuracy is not None:
        rule = "The accuracy is nearer to guessing than to 1."
        lost = accuracy < (1 + chance) / 2
        measured = f"An accuracy of {accuracy:.3f} on the test examples looked at; guessing has {chance:.3f}."
        advice = _recall_advice(length, unit, gates, ranks, filters, kinds) if lost else ()
        return Sign(name, lost, rule, measured, advice)
    wanted = max(1, int(RECALL * length))
    rule = (
        f"A changed {unit[:-1]} moves no output {wanted:,} {unit} on, an eighth of a sequence, or farther by"
        f" {STILL:.0%} of what it moves where it stands (the median of the changes)."
    )
    if reach is None:
        return Sign(name, None, rule, "The model looks both ways, and so there is no way back to measure.")
    if reach.farthest < wanted:
        return Sign(
            name, None, rule, f"The sequences looked at let changes be followed over {reach.farthest:,} {unit}."
        )
    distance = reach.distance()
    at_least = "at least " if distance >= reach.farthest else ""
    measured = f"Changes are felt over {at_least}{distance:,} {unit} of {length:,}."
    lost = distance < wanted
    return Sign(name, lost, rule, measured, _recall_advice(length, unit, gates, ranks, filters, kinds) if lost else ())


def _recall_advice(
    length: int,
    unit: str,
    gates: Sequence[LayerGates],
    ranks: Sequence[LayerRank],
    filters: Sequence[LayerFilters],
    kinds: Sequence[str],
) -> tuple[str, ...]:
    """What loses it, and the setting to change."""
    advice = []
    if gates:
        slowest = max(gates, key=lambda each: each.quantile(0.9))
        times = slowest.quantile(0.9)
        full = max((each.used for each in ranks if kinds[each.layer] == "HGRN2"), default=0.0)
        kept = times * math.log(1 / STILL)  # until a hundredth is left
        if kept < RECALL * length:
            advice.append(
                f"The gates forget: a tenth of the channels of layer {slowest.layer} lasts longer than {times:,.1f}"
                f" {unit}, and no layer has more. More layers (--num-hidden-layers) force the last ones to remember"
                " longer, where the lower bounds are learned (--lower-bound learned); longer sequences (--seq-len)"
                " and more steps (--steps) teach them to."
            )
        elif full > FULL:
            advice.append(
                f"The states are full: {full:.0%} of the largest rank. Larger ones have room: --expand-ratio."
            )
        else:
            advice.append(
                f"The gates would keep {STILL:.0%} over {kept:,.0f} {unit} (layer {slowest.layer}), but it is"
                " not read: more steps (--steps), another --learning-rate, or --use-short-conv, by which a layer"
                " compares neighbors."
            )
    for each in filters:
        span = each.window_span()
        if span is not None and span < RECALL * length:
            advice.append(
                f"The window of layer {each.layer} lets nothing through after {span:,.0f} {unit}: a larger"
                " --max-seq-len spreads it over more, or none (--mixer window=false)."
            )
            break
    if filters and not advice:
        advice.append("The filters reach that far, but what they carry is not used: more --steps, or --hyena-order 3.")
    if "SlidingWindowAttention" not in kinds:
        advice.append("A few layers of attention look things up exactly: --model hybrid.")
    return tuple(advice)


def cost_sign(cost: Cost, ranks: Sequence[LayerRank] = ()) -> Sign:
    """Cost out of proportion."""
    rule = (
        f"What brings the past to a token (recurrence, long convolutions, attention) takes more than {SHARE:g} of the"
        f" multiply-adds of the matrices, or the CPU time of a token in a whole sequence is more than {GROWTH:g} times"
        " that in a quarter of one."
    )
    growth = cost.growth
    grown = "" if growth is None else f" Time a token, of the whole over that of a quarter: {growth:.2f}."
    measured = f"The memory takes {cost.share:.2f} of the matrices' multiply-adds.{grown}"
    found = cost.share > SHARE or (growth is not None and growth > GROWTH)
    if not found:
        return Sign("cost out of proportion", False, rule, measured)
    by_kind: dict[str, float] = {}
    for kind, work in zip(cost.kinds, cost.memory, strict=True):
        by_kind[kind] = by_kind.get(kind, 0.0) + work
    dearest = max(by_kind, key=lambda kind: by_kind[kind])
    advice = {
        "HGRN2": "HGRN2's state: a smaller --expand-ratio (more heads) costs less in proportion",
        "HGRN": "HGRN's recurrence: --recurrence-ratio 1",
        "SlidingWindowAttention": "Attention: a smaller --attention-window, or more layers to each of it"
        " (--attention-every)",
        "Hyena": "Hyena's convolutions and the network of its filters: fewer stages (--hyena-order 2), a narrower"
        " network (--mixer filter_width=16), or larger batches (--batch-size), which share it",
    }[dearest]
    if dearest == "HGRN2" and ranks:
        used = statistics.median(float(each.ranks[-1].median()) for each in ranks)
        advice += f"; of {ranks[0].most} its effective rank uses {used:.1f}"
    return Sign("cost out of proportion", True, rule, measured, (advice + ".",))


def instability_sign(rows: Sequence[Mapping[str, Any]]) -> Sign:
    """Instability in training.

    Args:
        rows: of metrics.jsonl.
    """
    name = "instability"
    rule = (
        f"After the first {EARLY:.0%} of the logged steps a loss jumps above the median of the {BEFORE} before it by"
        f" more than {JUMP:g} robust standard deviations and {LEVEL:.0%} of the first loss; any loss is as far above"
        f" the first; a gradient norm is more than {SURGE:g} times the median; the last losses are above the lowest"
        f" by {LEVEL:.0%} of the first; or a number is not finite."
    )
    train = [row for row in rows if row.get("kind") == "train"]
    losses = [float(row["loss"]) for row in train]
    norms = [float(row["grad_norm"]) for row in train if row.get("grad_norm") is not None]
    if not all(map(math.isfinite, losses + norms)):
        return Sign(name, True, rule, "A logged loss or gradient norm is not finite.", _CALMER)
    if len(losses) < FEWEST:
        logged = f"{len(losses)} logged steps are too few to judge by; {FEWEST} would do (--log-every)."
        return Sign(name, None, rule, logged if rows else "There is no metrics.jsonl that tells of its training.")
    early = max(BEFORE, int(EARLY * len(losses)))
    level = LEVEL * abs(losses[0])
    jumps = 0
    for i in range(early, len(losses)):
        before = losses[i - BEFORE : i]
        middle = statistics.median(before)
        spread = ROBUST * statistics.median(abs(loss - middle) for loss in before)
        jumps += losses[i] - middle > max(JUMP * spread, level)
    noise = ROBUST * statistics.median(abs(after - before) for before, after in pairwise(losses)) / math.sqrt(2)
    above = max(losses) - losses[0]
    late = norms[max(BEFORE, int(EARLY * len(norms))) :]
    surge = max(late) / statistics.median(late) if late and statistics.median(late) > 0 else 1.0
    width = max(3, len(losses) // 10)
    means = [statistics.fmean(losses[i : i + width]) for i in range(len(losses) - width + 1)]
    lost = means[-1] - min(means)
    measured = (
        f"{jumps} jumps of the loss in {len(losses) - early} logged steps; the highest is {max(above, 0.0):.3f} above"
        f" the first, {losses[0]:.3f}; the largest gradient norm is {surge:.1f} times the median; the last losses are"
        f" {lost:.3f} above the lowest."
    )
    found = jumps > 0 or above > max(JUMP * noise, level) or surge > SURGE or lost > level
    return Sign(name, found, rule, measured, _CALMER if found else ())


_CALMER = (
    "A lower --learning-rate, by a factor of 3.",
    "More warming up: --warmup-ratio 0.1.",
    "Clipping, where it is off or loose: --max-grad-norm 1; --adam-beta2 0.95 forgets a surge sooner than 0.999.",
)
