"""One self-contained HTML page: text, tables and pictures in a single file that any browser opens."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from longstream.train.rundir import write_text

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #0072b2; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
p { max-width: 52rem; } .note { opacity: .75; font-size: .92rem; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
figcaption { font-size: .92rem; opacity: .8; max-width: 52rem; }
.table { overflow-x: auto; margin: 1.2rem 0; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
td.words { text-align: left; white-space: normal; min-width: 15rem; }
th:first-child, td:first-child { text-align: left; } tbody tr:hover { background: var(--soft); }
.verdict { border-left: 4px solid #8888; padding: .2rem .9rem; margin: .8rem 0; }
.supported { border-color: #009e73; } .contradicted { border-color: #d55e00; }
code { background: var(--soft); padding: .1rem .3rem; border-radius: 4px; }
"""


WORDS = 40  # letters; a table's cell with more is text, and has lines


class Page:
    """What a page shows, from top to bottom; everything that is given as text is escaped."""

    def __init__(self, title: str):
        self.title = title
        self._body = [f"<h1>{html.escape(title)}</h1>"]

    def section(self, title: str) -> Page:
        """A heading."""
        self._body.append(f"<h2>{html.escape(title)}</h2>")
        return self

    def text(self, text: str, kind: str = "", lead: str = "") -> Page:
        """A paragraph; ``kind`` is "", "note" or "verdict" and which, and ``lead`` stands in front of it in bold."""
        words = (f"<strong>{html.escape(lead)}</strong>" if lead else "") + html.escape(text)
        self._body.append(f'<p class="{kind}">{words}</p>' if kind else f"<p>{words}</p>")
        return self

    def code(self, text: str) -> Page:
        """A line to type."""
        self._body.append(f"<p><code>{html.escape(text)}</code></p>")
        return self

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Page:
        """A table; the first column is text, the others are numbers, or text where a cell is long."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
        lines = ("".join(map(_cell, row)) for row in rows)
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        self._body.append(
            f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
        return self

    def picture(self, path: Path, caption: str) -> Page:
        """A PNG file, taken into the page."""
        data = base64.b64encode(path.read_bytes()).decode()
        words = html.escape(caption)
        self._body.append(
            f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'
        )
        return self

    def write(self, path: Path) -> Path:
        """Write the page beside ``path`` and rename it."""
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        title = html.escape(self.title)
        body = "\n".join(self._body)
        write_text(
            path,
            f'<!doctype html>\n<html lang="en"><head>{head}<title>{title}</title><style>{STYLE}</style></head>\n'
            f"<body>\n{body}\n</body></html>\n",
        )
        return path


def _cell(text: str) -> str:
    kind = ' class="words"' if len(text) > WORDS else ""
    return f"<td{kind}>{html.escape(text)}</td>"
