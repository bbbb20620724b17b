"""A page as a reader's browser shows it: Chromium, if one is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass
class Opened:
    """What a page did while it was opened."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow_px(self) -> float:
        """By how much the page is wider than its window."""
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return float(self.page.evaluate(script))


@contextmanager
def opened(path: Path, width: int) -> Iterator[Opened]:
    """Open a file in a window ``width`` pixels wide; skips the test without a browser."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((found for n in _NAMES if (found := shutil.which(n))), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"], timeout=300_000
        )
        try:
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.set_default_timeout(300_000)
            seen = Opened(page)
            page.on("pageerror", lambda e: seen.errors.append(str(e)))
            page.on("console", lambda m: seen.errors.append(m.text) if m.type == "error" else None)
            page.on("request", lambda r: seen.requests.append(r.url))
            page.goto(path.resolve().as_uri())
            yield seen
        finally:
            browser.close()
