"""The parts of a report, written as Markdown and as a page from one content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longstream.bench.report import markdown_table
from longstream.train.page import Page


@dataclass
class Table:
    """Heads and rows, and a title where there are several."""

    heads: list[str]
    rows: list[list[str]]
    title: str = ""


@dataclass
class Section:
    """A part of the report, written to Markdown and to the page alike."""

    title: str
    verdicts: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    pictures: list[tuple[Path, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    code: str = ""


def markdown_text(title: str, question: str, sections: Sequence[Section]) -> str:
    """The report as Markdown."""
    lines = [f"# {title}", "", question]
    for section in sections:
        lines += ["", f"## {section.title}"]
        for text in section.texts:
            lines += ["", text]
        for verdict in section.verdicts:
            word, mark, rest = verdict.partition(":")
            lines += ["", f"- **{word}**{mark}{rest}"]
        for path, caption in section.pictures:
            lines += ["", f"![{caption}]({path.name})"]
        for table in section.tables:
            lines += ["", *markdown_table(table.heads, table.rows)]
        for note in section.notes:
            lines += ["", note]
        if section.code:
            lines += ["", f"    {section.code}"]
    return "\n".join(lines) + "\n"


def make_page(title: str, question: str, sections: Sequence[Section]) -> Page:
    """The report as a page."""
    page = Page(title).text(question)
    for section in sections:
        page.section(section.title)
        for text in section.texts:
            page.text(text)
        for verdict in section.verdicts:
            word, mark, rest = verdict.partition(":")
            kind = word.split()[0].lower()  # supported, contradicted, or not
            page.text(mark + rest, f"verdict {kind}", lead=word)
        for path, caption in section.pictures:
            page.picture(path, caption)
        for table in section.tables:
            page.table(table.heads, table.rows)
        for note in section.notes:
            page.text(note, "note")
        if section.code:
            page.code(section.code)
    return page
