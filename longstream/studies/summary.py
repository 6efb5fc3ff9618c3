"""All studies on one page: every claim with its verdict, and the way to what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from longstream.bench.report import markdown_table
from longstream.studies.report import answers, difference_text
from longstream.studies.results import Outcome
from longstream.train.rundir import write_text

NAME = "summary.md"


def write_summary(outcomes: Sequence[Outcome], refused: Mapping[str, str], folder: Path) -> Path:
    """Write summary.md into ``folder``, which holds the studies' folders; ``refused`` says why others are not there."""
    rows, counts = [], dict.fromkeys(("supported", "contradicted", "not resolved at this scale"), 0)
    for outcome in outcomes:
        name = f"[{outcome.study.name}]({outcome.folder.path.name}/results.md)"
        if outcome.left:
            rows.append([name, f"unfinished: {outcome.left} runs are left", "-", "-"])
        for found in answers(outcome):
            counts[found.verdict] += 1
            rows.append([name, found.claim.text, found.verdict, difference_text(found, outcome.study.metrics)])
    rows += [[name, why, "not carried out", "-"] for name, why in refused.items()]
    words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    scales = sorted({outcome.plan.scale for outcome in outcomes})
    lines = [f"# Studies (reduced scale: {', '.join(scales) or 'none'})", "", f"Claims: {words}.", ""]
    lines += markdown_table(["study", "claim", "verdict", "in the claimed direction"], rows)
    lines += ["", f"{sum(_minutes(outcome) for outcome in outcomes):.0f} minutes in all."]
    write_text(folder / NAME, "\n".join(lines) + "\n")
    return folder / NAME


def _minutes(outcome: Outcome) -> float:
    return sum(session["minutes"] for session in outcome.asked.sessions)
