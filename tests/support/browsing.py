"""Headless Chromium, for the tests of the page; without it they are skipped."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")


@contextmanager
def chromium(*words: str) -> Iterator[playwright.Browser]:
    """A browser that has seen nothing yet. words: more options of its command."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *words])
        yield browser
        browser.close()


@contextmanager
def quiet_page(browser: playwright.Browser, address: str, expected: str = "$^") -> Iterator[playwright.Page]:
    """A new window on a server, which must not complain in the console of anything but what a pattern expects."""
    context = browser.new_context(
        viewport={"width": 1100, "height": 800}, base_url=address, ignore_https_errors=address.startswith("https:")
    )
    page = context.new_page()
    page.set_default_timeout(120_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert not [one for one in complaints if not re.search(expected, one)]
