"""The report on what a run of sequences held out, as files of the run directory."""

from __future__ import annotations

import tempfile
from pathlib import Path

from longstream.sequences import Report
from longstream.train.rundir import PICTURES, RunDirectory, remove, replace, write_text


def write_report(report: Report, run: RunDirectory) -> list[Path]:
    """Write report.json, report.md and the pictures of a `longstream.sequences.Report`; earlier ones are replaced.

    Returns:
        The files, the pictures last.
    """
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".writing-") as folder:
        drawn = report.draw(Path(folder))
        for name in PICTURES:
            if not (Path(folder) / name).exists():
                remove(run.path / name)
        pictures = [run.path / path.name for path in drawn]
        for path, target in zip(drawn, pictures, strict=True):
            replace(path, target)
    write_text(run.report, report.to_json())
    words = run.report.with_suffix(".md")
    write_text(words, report.to_markdown())
    return [run.report, words, *pictures]
