"""A page is one file: it holds its pictures, shows text as it was given, and fits a narrow window."""

from pathlib import Path

import pytest

from longstream.train.page import Page
from tests.browser import open_page


def write_page(folder: Path, body: str = "") -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3))
    figure.subplots().plot([0, 1, 4, 9])
    figure.savefig(folder / "curve.png")
    page = Page("Bits & <bytes>").section("A table").table(["what", *"abcdefghijkl"], [["x < y", *["1.234"] * 12]])
    page.picture(folder / "curve.png", "a curve").text("supported", "verdict").code("longstream study list")
    path = page.write(folder / "page.html")
    (folder / "curve.png").unlink()
    path.write_text(path.read_text().replace("</body>", f"{body}</body>"))
    return path


def test_a_page_in_a_browser(tmp_path):
    path = write_page(tmp_path)
    with open_page(path, width=360, dark=True) as page:
        assert page.title() == "Bits & <bytes>"
        assert page.locator("td").first.inner_text() == "x < y"
        assert page.evaluate("document.images[0].naturalWidth") == 900
        assert page.evaluate("document.documentElement.scrollWidth") <= 360  # the table scrolls, not the page
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(255, 255, 255)"


def test_a_page_that_is_not_whole_is_found_out(tmp_path):
    image, script = '<img src="missing.png">', "<script>nothing.here()</script>"
    path = write_page(tmp_path, f'{image}{script}<link rel="stylesheet" href="other.css">')
    (tmp_path / "other.css").write_text("p { color: red }")
    with pytest.raises(pytest.fail.Exception) as failed, open_page(path):
        pass
    for complaint in ("ERR_FILE_NOT_FOUND", "nothing is not defined", "fetches file:", "other.css"):
        assert complaint in str(failed.value)
