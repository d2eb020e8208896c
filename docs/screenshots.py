"""The pictures of docs/collection.md that show the page, in Chromium, around photographs that scikit-image ships.

pip download --no-deps scikit-image==0.22.0 && python docs/screenshots.py scikit_image-0.22.0-*.whl      # two minutes

The photographs are in the public domain or given to it (CC0); each is cut into twelve, and four stand there once more.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
FILES = {
    "astronaut": "astronaut.png",
    "bricks": "brick.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "galaxies": "hubble_deep_field.jpg",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "moon": "moon.png",
    "photographer": "camera.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
AGAIN = ("cat", "coffee", "moon", "rocket")


def photographs(wheel: Path, folder: Path) -> None:
    """Cuts of 256 pixels, in a folder for each photograph."""
    random = np.random.default_rng(0)
    with zipfile.ZipFile(wheel) as packed:
        for name, file in FILES.items():
            whole = Image.open(io.BytesIO(packed.read(f"skimage/data/{file}"))).convert("RGB")
            place = folder / name
            place.mkdir(parents=True)
            for number in range(12):
                side = int(min(whole.size) * random.uniform(0.45, 0.75))
                left, top = (int(random.integers(0, length - side + 1)) for length in whole.size)
                cut = whole.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.BICUBIC)
                cut.save(place / f"{name}-{number:02d}.jpg", quality=90)
            if name in AGAIN:
                with Image.open(place / f"{name}-00.jpg") as first:
                    first.resize((180, 180)).save(place / f"{name}-00 (1).jpg", quality=70)


def shown(page: Page, name: str, view: str, ready: str) -> None:
    """Visit a view, wait until it is there, and keep what is seen."""
    page.goto(f"/#/{view}")
    page.wait_for_selector(ready)
    page.wait_for_timeout(2_000)
    page.screenshot(path=HERE / f"page-{name}.jpg", type="jpeg", quality=80)


def main() -> None:
    """Make the collection, train on it, visit."""
    folder = Path(tempfile.gettempdir()) / "photos"
    shutil.rmtree(folder, ignore_errors=True)
    photographs(Path(sys.argv[1]), folder / "pictures")
    instdisc = [sys.executable, "-m", "instdisc"]
    subprocess.run([*instdisc, "train", "pictures", "--out", "run", "--epochs", "12"], cwd=folder, check=True)
    command = [*instdisc, "serve", "run", "--port", "0"]
    with (
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as started,
    ):
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 640}, base_url=address)
        page.set_default_timeout(300_000)
        page.goto("/#/overview")
        page.get_by_role("button", name=re.compile("Prepare")).click()
        page.wait_for_selector("text=Everything is prepared")
        shown(page, "overview", "overview", ".cell img")
        shown(page, "picture", "p/cat/cat-03.jpg", ".few .cell img")
        shown(page, "review", "review", "text=Accept")
        browser.close()
        server.terminate()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
