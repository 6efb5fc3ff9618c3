"""The project's documents, and the blocks of code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHELLS = {"bash", "sh", "shell", "console"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(document: str) -> list[tuple[int, str, str]]:
    """(line number, language, text) of every fenced block; none when the document is missing, which a test reports."""
    if not (ROOT / document).exists():
        return []
    text = read(document)
    found = re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start()].count("\n") + 2, match[1], match[2]) for match in found]
