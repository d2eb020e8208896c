"""The report of a run: seconds to make it, its size, and seconds until a browser shows it.

    python benchmarks/report.py RUN [--train-source SOURCE]        # a minute; needs Chromium

Headless Chromium opens the file with the network cut, and says when it was loaded and laid out. Results go to
results/report.json.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from record import record

from instdisc.jobs.report import report
from instdisc.jobs.run import Run

OPENINGS = 5
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def main() -> None:
    """Make it, open it, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--train-source")
    parser.add_argument("--screenshots", type=Path, help="a folder for what was shown")
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        started = time.perf_counter()
        out = report([settings.run], Path(folder, "report.html"), train_source=settings.train_source, say=None)
        making, size = time.perf_counter() - started, out.stat().st_size
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        seconds: dict[str, list[float]] = {}
        overflow: dict[str, int] = {}
        asked: list[str] = []
        for name, (width, height) in SIZES.items():
            for opening in range(OPENINGS):
                context = browser.new_context(offline=True, viewport={"width": width, "height": height})
                page = context.new_page()
                page.on("request", lambda request: asked.append(request.url))
                started = time.perf_counter()
                page.goto(out.as_uri(), wait_until="load")
                page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
                seconds.setdefault(name, []).append(round(time.perf_counter() - started, 3))
                overflow[name] = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                if settings.screenshots is not None and not opening:
                    settings.screenshots.mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=settings.screenshots / f"report-{name}.png", full_page=True)
                context.close()
        browser.close()
    record(
        settings.results / "report.json",
        name="report",
        command="python benchmarks/report.py RUN",
        unit="seconds until headless Chromium shows the report, at desktop width",
        values=seconds["desktop"],
        seeds=list(range(OPENINGS)),
        pictures=len(Run(settings.run).rows),
        seconds_to_make=round(making, 1),
        megabytes=round(size / 1e6, 2),
        median_seconds_to_open={name: statistics.median(found) for name, found in seconds.items()},
        pixels_too_wide=overflow,
        requests_to_other_places=[url for url in asked if not url.startswith(("file:", "data:", "blob:"))],
    )


if __name__ == "__main__":
    main()
