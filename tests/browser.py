"""Pages opened in headless Chromium, through Playwright, as a reader's browser opens them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

REQUIRED = "LONGSTREAM_CHROMIUM"  # 1, as .ci/run sets it: where there is no Chromium, tests fail and are not skipped
PATIENCE = 300_000  # ms: a busy machine may take minutes to start a browser


@contextmanager
def open_page(path: Path, *, width: int = 1000, height: int = 800, dark: bool = False) -> Iterator["Page"]:
    """A file in a window of this size; at the end, whatever the page complained of or fetched fails the test.

    The test is skipped where there is no Chromium. A browser is started each time: Playwright's event loop, left
    running, would be in the way of other tests.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"no Chromium here, and {REQUIRED}=1 says that there has to be one")
        pytest.skip("no Chromium here, which opens the page: Debian has it in the package chromium")
    from playwright.sync_api import sync_playwright

    own = path.resolve().as_uri()
    complaints: list[str] = []
    fetched: list[str] = []
    with sync_playwright() as playwright:
        # Without its sandbox, which root and containers may not have: the pages are our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=PATIENCE)
        try:
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
            )
            page.set_default_timeout(PATIENCE)
            page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: fetched.append(request.url))
            page.goto(own)
            yield page
        finally:
            browser.close()
    complaints += [f"it fetches {url}" for url in sorted(set(fetched)) if not url.startswith((own, "data:"))]
    if complaints:
        pytest.fail(f"{path.name}: {'; '.join(complaints)}")
