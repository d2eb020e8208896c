"""The picture of docs/collection.md that shows a picture: the page around the digits of `instdisc demo`, in Chromium.

instdisc demo && python docs/screenshots.py runs/demo
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent


def main() -> None:
    """Serve the run, visit, photograph."""
    run = sys.argv[1] if len(sys.argv) > 1 else "runs/demo"
    command = ["instdisc", "serve", run, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as started:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 640})
        page.goto(f"{address}#/picture/12")
        page.wait_for_selector(".few .cell img")
        page.wait_for_timeout(1500)
        page.screenshot(path=HERE / "page-picture.png")
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
