"""The report: what its tables, verdicts and pictures say of results that are made up, and that a browser opens it."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from longstream.studies.machine import machine
from longstream.studies.pictures import possible
from longstream.studies.report import cell, write_report
from longstream.studies.results import Asked, Outcome, StudyFolder
from longstream.studies.statistics import Summary, summarize
from longstream.studies.study import Metric, Plan, Result, Run, half_of
from longstream.studies.summary import write_summary
from tests.browser import open_page
from tests.studies.tiny_study import STUDY

LOSS = Metric(key="bits_per_byte", label="bits per byte", higher=False, digits=4)


def result(variant: str, seed: int, value: float | None, choice: str = "") -> Result:
    """With None, a run that diverged."""
    run = Run(group="language", variant=variant, seed=seed, settings={"train.steps": 20}, choice=choice)
    measured = {} if value is None else {"bits_per_byte": value, "loss": value, "minutes": 0.5, "parameters": 10.0}
    return Result(run, "diverged" if value is None else "done", measured)


def outcome(folder: Path, results: Sequence[Result], **kwargs) -> Outcome:
    """Of the tiny study, with these results."""
    asked = Asked(
        "tiny", "small", 1.0, 4.0, [0, 1, 2], [{**machine(), "began": "then", "jobs": 2, "runs": 6, "minutes": 1.5}], []
    )
    study = replace(STUDY, draw=None)
    return Outcome(study, Plan(), asked, StudyFolder(folder), list(results), kwargs.pop("alone", {}), **kwargs)


def usual() -> list[Result]:
    """n=16 is better by 0.5 on every seed."""
    return [result(v, seed, value - 0.01 * seed) for v, value in (("n=2", 2.0), ("n=16", 1.5)) for seed in range(3)]


@pytest.mark.parametrize(
    ("values", "lost", "text"),
    [
        ([1.0, 2.0, 4.0], 0, "2.3 ± 3.8"),
        ([0.50003, 0.50001, 0.49999], 0, "0.5000 ± 0.0000"),  # no more digits than the metric's
        ([1.234567], 0, "1.2346"),
        ([2.0, 2.0], 0, "2.0000"),
        ([3.056, 3.056, math.nextafter(3.056, 4)], 0, "3.0560"),
        ([-1.5], 0, "−1.5000"),
        ([1000.0, 1400.0], 1, "1,200 ± 2541 (2 of 3; 1 diverged)"),
        ([], 2, "2 diverged"),
    ],
)
def test_numbers_have_the_digits_that_their_interval_allows(values: list[float], lost: int, text: str):
    assert cell(summarize(values, lost), LOSS) == text


def test_the_tables_say_what_was_measured(tmp_path: Path):
    write_report(outcome(tmp_path, [*usual(), result("n=2", 3, None)], alone={("language", "n=2"): {"size": 123.0}}))
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# Does a bigger state help? (reduced scale: small)\n\nWhether n = 16 is better")
    assert "| n=2 | 1.990 ± 0.025 (3 of 4; 1 diverged) | 123 |" in text
    assert "| n=16 | 1.490 ± 0.025 | - |" in text
    assert "not comparable: other data" in text
    assert "**Not resolved at this scale (1 of its 7 runs diverged)**: a bigger state is better [nobody]" in text
    assert "longstream study tiny --scale small --seeds 3 --budget 4" in text
    assert "then, 2 jobs, 6 runs in 1.5 minutes: " in text
    assert text.index("## Verdicts") < text.index("## Pictures") < text.index("## Figures") < text.index("## Runs")
    (bad, good) = csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text()))
    assert (bad["variant"], bad["n"], bad["diverged"], bad["size mean"]) == ("n=2", "3", "1", "123.0")
    found = summarize([1.5, 1.49, 1.48])
    low, mean, high = (float(good[f"bits_per_byte {part}"]) for part in ("low", "mean", "high"))
    assert (low, mean, high) == pytest.approx((found.low, found.mean, found.high))
    assert good["size mean"] == ""


def test_figures_of_their_own_kind(tmp_path: Path):
    """Times with their interval over rounds, what is published with ours beside it, and what runs were made with."""
    alone = {("language", "n=2"): {"size": 123.0, half_of("size"): 4.0}, ("language", "n=16"): {"size": 100.0}}
    made = [replace(r, made={"torch": f"2.{r.run.seed // 2}", "sha256": str(r.run.seed)}) for r in usual()]
    found = outcome(tmp_path, made, alone=alone)
    found.folder.write_alone([], alone, {**machine(), "processor": "a quick one"})
    beside = replace(STUDY.published[0], ours=(("language", "n=2", "size"), ("language", "n=16", "bits_per_byte")))
    found.study = replace(found.study, published=(beside,))
    write_report(found)
    text = (tmp_path / "results.md").read_text()
    assert "| n=2 | 1.990 ± 0.025 | 123 ± 4 |" in text
    assert "| a book | n=2 (language), bytes: 123 ± 4; n=16 (language), bits per byte: 1.490 ± 0.025 |" in text
    assert "Speed and memory were measured on: a quick one" in text
    assert "more than one version, which may differ in their digits: torch 2.0; torch 2.1." in text
    row = next(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert (row["size low"], row["size high"]) == ("119.0", "127.0")


def test_verdicts_stand_first_with_difference_interval_and_n(tmp_path: Path):
    write_report(outcome(tmp_path, usual()))
    text = (tmp_path / "results.md").read_text()
    assert (
        "**Supported**: a bigger state is better [nobody]. n=16 against n=2, bits per byte;"
        " +0.50000 ± 0.00000 in the claimed direction; 3 paired seeds" in text
    )
    write_report(outcome(tmp_path, [r for r in usual() if r.run.seed == 0]))
    text = (tmp_path / "results.md").read_text()
    assert "**Not resolved at this scale (one seed has no interval)**" in text
    assert "1 paired seed." in text


def test_what_was_tuned_is_shown(tmp_path: Path):
    tried = [result("n=16", 0, 1.0, "lr=1"), *(result("n=16", seed, 1.5, "lr=2") for seed in range(3))]
    write_report(outcome(tmp_path, [*usual()[:3], *tried]))
    text = (tmp_path / "results.md").read_text()
    assert "| language, n=16 | lr=1 | 1 | 1.000 |  |" in text
    assert "| language, n=16 | lr=2 | 3 | 1.500 | chosen |" in text
    assert "language, n=2 |" not in text  # nothing was tuned there


def test_an_unfinished_study_says_so(tmp_path: Path):
    write_report(outcome(tmp_path, usual()[:1], left=5, why="interrupted"))
    assert "Unfinished: 5 runs are left (interrupted)" in (tmp_path / "results.md").read_text()
    write_report(outcome(tmp_path, [], left=6, why="interrupted"))
    assert "no seed has both sides" in (tmp_path / "results.md").read_text()


def test_pictures_that_need_deleted_runs_are_left_out_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def draw(results: Sequence[Result], folder: Path):
        (folder / "runs" / "a" / "model.safetensors").read_bytes()
        return []

    found = outcome(tmp_path, usual())
    found.study = replace(found.study, draw=draw)
    assert write_report(found) == ["state.png"]
    assert "model.safetensors is gone" in (tmp_path / "results.md").read_text()
    assert "its own pictures are left out" in caplog.text


def test_the_summary_of_all_studies(tmp_path: Path):
    done = outcome(tmp_path / "tiny", usual())
    text = write_summary([done], {"other": "data are missing"}, tmp_path).read_text()
    assert "Claims: 1 supported, 0 contradicted, 0 not resolved at this scale." in text
    assert "| [tiny](tiny/results.md) | a bigger state is better | supported | +0.50000 ± 0.00000 |" in text
    assert "| other | data are missing | not carried out | - |" in text


def test_an_interval_of_nothing_is_no_number():
    assert cell(Summary((), 0, math.nan, None), LOSS) == ""
    assert cell(None, LOSS) == "-"


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_everything(whole: Path):
    text = (whole / "report.html").read_text()
    tags = _Tags()
    tags.feed(text)
    assert tags.seen.count("table") >= 3
    assert tags.seen.count("img") == 1
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)
    assert "Supported" in text
    assert "AMD" in text or "Intel" in text or "CPUs" in text


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_a_browser_opens_the_page(whole: Path, width: int, dark: bool):
    with open_page(whole / "report.html", width=width, dark=dark) as page:
        assert page.title() == "Does a bigger state help? (reduced scale: small)"
        assert page.locator("p.verdict").inner_text().startswith("Supported: a bigger state is better")
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 300)")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # tables scroll on their own


def test_intervals_of_percentages_do_not_stretch_the_axis():
    assert possible("accuracy, %", (-20.0, 150.0)) == (-3.0, 103.0)
    assert possible("accuracy, %", (40.0, 60.0)) == (40.0, 60.0)
    assert possible("bits per byte", (-20.0, 150.0)) == (-20.0, 150.0)
