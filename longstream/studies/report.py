"""What a study found, as results.md, results.csv, pictures and report.html: verdicts first, then what they rest on."""

from __future__ import annotations

import csv
import io
import logging
import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from longstream.studies.machine import machine_texts
from longstream.studies.pictures import Runs, draw_picture, figure_of
from longstream.studies.results import Outcome
from longstream.studies.sections import Section, Table, make_page, markdown_text
from longstream.studies.statistics import (
    LEVEL,
    NOT_RESOLVED,
    Answer,
    Summary,
    answer,
    choose,
    chosen_runs,
    summarize_results,
)
from longstream.studies.study import Metric, Result
from longstream.train.rundir import write_text

logger = logging.getLogger("longstream")

MINUS, PLUS_MINUS = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"


def answers(outcome: Outcome) -> list[Answer]:
    """The verdicts on the study's claims: none of them before all its runs are there."""
    study = outcome.study
    higher = {metric.key: metric.higher for metric in study.metrics}
    runs = chosen_runs(outcome.results, *study.choose)
    found = [answer(claim, higher[claim.metric], runs) for claim in study.claims]
    if not outcome.left:
        return found
    left = f"{outcome.left} runs are left"
    return [each._replace(verdict=NOT_RESOLVED, why=each.why or left) for each in found]


def write_report(outcome: Outcome) -> list[str]:
    """Write all files and return the names of the pictures."""
    folder, study = outcome.folder.path, outcome.study
    title = f"{study.title} (reduced scale: {outcome.plan.scale})"
    sections = _sections(outcome)
    write_text(folder / "results.csv", _csv(outcome))
    write_text(folder / "results.md", markdown_text(title, study.question, sections))
    make_page(title, study.question, sections).write(folder / "report.html")
    return [path.name for section in sections for path, _ in section.pictures]


def _sections(outcome: Outcome) -> list[Section]:
    return [
        section
        for section in (
            _verdicts(outcome),
            _pictures(outcome),
            _figures(outcome),
            _published(outcome),
            _reading(outcome),
            _choices(outcome),
            _runs(outcome),
            _made(outcome),
        )
        if section.verdicts or section.texts or section.pictures or section.tables or section.notes
    ]


def _verdicts(outcome: Outcome) -> Section:
    section = Section("Verdicts", verdicts=[verdict_text(each, outcome.study.metrics) for each in answers(outcome)])
    if section.verdicts:
        section.notes.append(
            f"Each claim was declared with its test before anything ran: the paired differences of seeds, their"
            f" {LEVEL:.0%} t-interval against the least difference claimed. Each is tested alone, at {LEVEL:.0%}."
        )
    if outcome.left:
        section.texts.append(f"Unfinished: {outcome.left} runs are left ({outcome.why}); what follows is without them.")
    return section


def verdict_text(found: Answer, metrics: Sequence[Metric]) -> str:
    """A claim with its verdict and what it rests on, in a sentence or two."""
    claim = found.claim
    metric = _metric_of(found, metrics)
    against = f" against {claim.worse}" if claim.worse else ""
    parts = [f"{claim.better}{against}, {metric.label}"]
    if found.difference.values:
        parts.append(f"{difference_text(found, metrics)} in the claimed direction")
    if claim.least:
        parts.append(f"at least {claim.least * metric.scale:g} is claimed")
    seeds = len(found.difference.values)
    parts.append(f"{seeds} paired seed{'' if seeds == 1 else 's'}")
    if found.p is not None:
        parts.append(f"p = {found.p:.2g}")
    why = f" ({found.why})" if found.why else ""
    return f"{found.verdict.capitalize()}{why}: {claim.text} [{claim.source}]. {'; '.join(parts)}."


def difference_text(found: Answer, metrics: Sequence[Metric]) -> str:
    """``+0.031 +- 0.012``: positive is as claimed."""
    metric = _metric_of(found, metrics)
    scaled = _scaled(found.difference, metric.scale)
    if not scaled.values:
        return "-"
    digits = _digits(scaled.half, metric.digits + 1)
    sign = MINUS if scaled.mean < 0 else "+"
    half = "" if scaled.half is None else f" {PLUS_MINUS} {scaled.half:.{digits}f}"
    return f"{sign}{abs(scaled.mean):.{digits}f}{half}"


def _metric_of(found: Answer, metrics: Sequence[Metric]) -> Metric:
    return next(metric for metric in metrics if metric.key == found.claim.metric)


def _pictures(outcome: Outcome) -> Section:
    study, folder = outcome.study, outcome.folder.path
    runs = chosen_runs(outcome.results, *study.choose)
    section = Section("Pictures")
    for picture in study.pictures:
        metric = next(metric for metric in study.metrics if metric.key == picture.metric)
        path = folder / f"{picture.name}.png"
        if draw_picture(picture, metric, runs, outcome.alone, path):
            over = "rounds" if any(metric.key in of for of in outcome.alone.values()) else "seeds"
            section.pictures.append(
                (path, f"{picture.title}: {metric.label}, mean and {LEVEL:.0%} interval over {over}")
            )
    if study.draw is not None and not outcome.left:
        try:
            section.pictures += study.draw(outcome.results, folder)
        except FileNotFoundError as error:  # of run directories that were deleted, or not committed
            logger.warning("study %s: its own pictures are left out: %s", study.name, error)
            section.notes.append(
                f"Pictures that need the run directories are left out: {Path(str(error.filename)).name} is gone."
            )
    return section


def _figures(outcome: Outcome) -> Section:
    """A table for each group: a row a variant, a column a metric."""
    study = outcome.study
    runs = chosen_runs(outcome.results, *study.choose)
    section = Section("Figures")
    for group in _groups(outcome):
        keys = _in_order([key for key in dict.fromkeys([*runs, *outcome.alone]) if key[0] == group], runs)
        metrics = [
            metric
            for metric in study.metrics
            if metric.group in ("", group) and any(figure_of(key, metric, runs, outcome.alone) for key in keys)
        ]
        rows = []
        for key in keys:
            cells = [cell(figure_of(key, metric, runs, outcome.alone), metric) for metric in metrics]
            rows.append([key[1], *cells])
        section.tables.append(Table([group, *(metric.label for metric in metrics)], rows, group))
    if section.tables:
        section.notes.append(
            f"Mean {PLUS_MINUS} half of the {LEVEL:.0%} t-interval over {len(outcome.plan.seeds)} seeds, of times over"
            f" rounds; without {PLUS_MINUS}, one value or equal ones. Runs that diverged are counted, not averaged."
        )
    return section


def _in_order(keys: list[tuple[str, str]], runs: Runs) -> list[tuple[str, str]]:
    """Variants by their place on a plot's axis where all have one, else as they were declared."""
    places = [runs[key][0].run.x if runs.get(key) else None for key in keys]
    if any(place is None for place in places):
        return keys
    return [key for _, key in sorted(zip(places, keys, strict=True), key=lambda each: each[0] or 0.0)]


def cell(found: Summary | None, metric: Metric) -> str:
    """``0.912 +- 0.014``, at digits that fit the interval; of runs that diverged, how many."""
    if found is None:
        return "-"
    lost = f"{found.diverged} diverged" if found.diverged else ""
    if not found.values:
        return lost
    digits = _digits(found.half, metric.digits)
    equal = not found.half or found.half < 1e-9 * abs(found.mean)  # but for rounding
    half = "" if equal else f" {PLUS_MINUS} {found.half:.{digits}f}"  # of equal values there is none to show
    text = f"{found.mean:,.{digits}f}{half}".replace("-", MINUS)
    return f"{text} ({len(found.values)} of {found.runs}; {lost})" if lost else text


def _published(outcome: Outcome) -> Section:
    runs = chosen_runs(outcome.results, *outcome.study.choose)
    metrics = {metric.key: metric for metric in outcome.study.metrics}
    rows = []
    for each in outcome.study.published:
        ours = []
        for group, variant, key in each.ours:
            found = cell(figure_of((group, variant), metrics[key], runs, outcome.alone), metrics[key])
            ours.append(f"{variant} ({group}), {metrics[key].label}: {found}")
        beside = "comparable" if each.comparable else f"not comparable: {each.note}"
        rows.append([each.what, each.value, each.source, "; ".join(ours) or "-", beside])
    heads = ["figure", "value", "source", "ours", "beside ours"]
    return Section("Published", tables=[Table(heads, rows)] if rows else [])


def _reading(outcome: Outcome) -> Section:
    return Section("How to read this", texts=list(outcome.study.notes))


def _choices(outcome: Outcome) -> Section:
    """What was tuned: every choice that was tried, and which one counts."""
    key, higher = outcome.study.choose
    chosen = choose(outcome.results, key, higher)
    metric = next((metric for metric in outcome.study.metrics if metric.key == key), None)
    rows = []
    for group, variant in chosen:
        of = [r for r in outcome.results if (r.run.group, r.run.variant) == (group, variant)]
        tried = list(dict.fromkeys(result.run.choice for result in of))
        for choice in tried if len(tried) > 1 else []:
            summary = _scaled(
                summarize_results([r for r in of if r.run.choice == choice], metric or _plain(key)),
                metric.scale if metric else 1.0,
            )
            taken = "chosen" if choice == chosen[group, variant] else ""
            rows.append([f"{group}, {variant}", choice, str(summary.runs), cell(summary, metric or _plain(key)), taken])
    label = metric.label if metric else key
    heads = ["variant", "tried", "runs", label, ""]
    section = Section("How tuned values were chosen", tables=[Table(heads, rows)] if rows else [])
    if rows:
        best = "highest" if higher else "lowest"
        section.notes.append(
            f"Of the values tried on most seeds, the one with the {best} mean of {label}; it and other figures of the"
            " same held-out data are therefore a little better than on data that nothing was chosen by."
        )
    return section


def _runs(outcome: Outcome) -> Section:
    rows = [
        [
            r.run.name,
            str(r.run.settings.get("train.steps", "")),
            f"{r.measured['parameters']:,.0f}" if "parameters" in r.measured else "-",
            f"{r.measured['minutes']:.1f}" if "minutes" in r.measured else "-",
            r.status,
        ]
        for r in outcome.results
    ]
    heads = ["run", "steps", "parameters", "minutes, one core", "status"]
    return Section("Runs", tables=[Table(heads, rows)] if rows else [])


def _made(outcome: Outcome) -> Section:
    """Machine, versions and the command."""
    plan, asked = outcome.plan, outcome.asked
    words = ["longstream", "study", outcome.study.name, "--scale", plan.scale, "--seeds", str(len(plan.seeds))]
    words += ["--budget", f"{asked.budget:g}"] if asked.budget else []
    sessions: dict[str, list[str]] = {}  # by machine
    for here in asked.sessions:
        began = f"{here['began']}, {here['jobs']} jobs, {here['runs']} runs in {here['minutes']:g} minutes"
        sessions.setdefault(" ".join(machine_texts(here)), []).append(began)
    texts = [f"{'; '.join(began)}: {where}" for where, began in sessions.items()]
    if (measured_on := outcome.folder.read_alone_machine()) is not None:
        texts.append("Speed and memory were measured on: " + " ".join(machine_texts(measured_on)))
    if len(made := {tuple(sorted(_versions(r).items())) for r in outcome.results}) > 1:
        texts.append("Runs are of more than one version, which may differ in their digits: " + _enumerate(made))
    if kernels := {here["trained with"] for here in asked.sessions if here.get("trained with")}:
        texts.append(
            f"Runs are trained with one thread each and code for {' or '.join(sorted(kernels))} only, whatever the"
            " processor has, so that seeds give the same digits on another machine with the same versions."
        )
    return Section("How this was made", texts=list(dict.fromkeys(texts)), code=shlex.join(words))


def _versions(result: Result) -> dict[str, str]:
    return {key: value for key, value in result.made.items() if "sha256" not in key}


def _enumerate(made: Iterable[Iterable[tuple[str, str]]]) -> str:
    return "; ".join(sorted(", ".join(f"{key} {value}" for key, value in each) for each in made)) + "."


def _csv(outcome: Outcome) -> str:
    """A row for each (group, variant), and of each metric n, diverged, mean, low and high."""
    study = outcome.study
    runs = chosen_runs(outcome.results, *study.choose)
    chosen = choose(outcome.results, *study.choose)
    heads = ["group", "variant", "choice", "n", "diverged"]
    heads += [f"{metric.key} {part}" for metric in study.metrics for part in ("n", "mean", "low", "high")]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(heads)
    for key in dict.fromkeys([*runs, *outcome.alone]):
        results: list[Result] = list(runs.get(key, ()))
        done = sum(result.status == "done" for result in results)
        row: list[Any] = [*key, chosen.get(key, ""), done, len(results) - done]
        for metric in study.metrics:
            found = figure_of(key, metric, runs, outcome.alone)
            found = _scaled(found, 1 / metric.scale) if found else Summary((), 0, math.nan, None)
            numbers = (found.mean, found.low, found.high)
            row += [len(found.values), *("" if math.isnan(number) else repr(number) for number in numbers)]
        writer.writerow(row)
    return text.getvalue()


def _groups(outcome: Outcome) -> list[str]:
    groups = [result.run.group for result in outcome.results] + [group for group, _ in outcome.alone]
    return list(dict.fromkeys(groups))


def _scaled(found: Summary, scale: float) -> Summary:
    half = None if found.half is None else found.half * scale
    return Summary(tuple(value * scale for value in found.values), found.diverged, found.mean * scale, half)


def _digits(half: float | None, most: int) -> int:
    """Digits behind the point that show two of an interval, but not more than ``most``."""
    if not half or not math.isfinite(half):
        return most
    return max(0, min(most, 1 - math.floor(math.log10(half))))


def _plain(key: str) -> Metric:
    return Metric(key=key, label=key, higher=True)
