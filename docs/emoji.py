"""The map at the top of the README, and its page in docs/collection.md: 3,786 emoji, drawn in headless Chromium.

    python docs/emoji.py emoji/      # what is fetched and trained stays in emoji/, and is used again

npm fetches the package emoji-datasource-google 16.0.0 (74 MB); its pictures are Google's Noto emoji (Apache License
2.0). An encoder is trained on them for six minutes, without labels; the folders, one a category, give the colours.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
PACKAGE = "emoji-datasource-google"


def main() -> None:
    """Fetch, train, place, draw."""
    if len(sys.argv) != 2:
        sys.exit("Name a folder: python docs/emoji.py FOLDER")
    folder = Path(sys.argv[1])
    pictures, run = folder / "emoji", folder / "run"
    if not pictures.is_dir():
        fetch(folder, pictures)
    if not run.is_dir():
        subprocess.run(["instdisc", "train", str(pictures), "--out", str(run), "--minutes", "6"], check=True)
    if not (run / "map" / "map.safetensors").is_file():
        subprocess.run(["instdisc", "map", str(run)], check=True)
    draw(run)


def fetch(folder: Path, pictures: Path) -> None:
    """The pictures of 64 pixels, in a folder for each category."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", f"{PACKAGE}@16.0.0", "--silent"], cwd=folder, check=True)
    with tarfile.open(next(folder.glob(f"{PACKAGE}-*.tgz"))) as archive:
        wanted = [
            one for one in archive.getmembers() if "/img/google/64/" in one.name or one.name.endswith("/emoji.json")
        ]
        archive.extractall(folder, wanted, filter="data")
    package = folder / "package"
    for emoji in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        for one in (emoji, *emoji.get("skin_variations", {}).values()):
            file = package / "img" / "google" / "64" / one["image"]
            if file.is_file():
                (pictures / emoji["category"]).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, pictures / emoji["category"])
    shutil.rmtree(package)


def draw(run: Path) -> None:
    """Photograph the map alone, and the page."""
    command = ["instdisc", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as started:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, width, height, scheme in (("map", 1440, 820, "light"), ("page-map", 1000, 640, "dark")):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(f"{address}#/map?by=folder")
            page.wait_for_selector("canvas.map")
            page.wait_for_timeout(4000)
            if name == "map":
                page.evaluate("document.querySelector('.tools').hidden = true")
            shot = page.locator("canvas.map") if name == "map" else page
            shot.screenshot(path=HERE / f"{name}.jpg", type="jpeg", quality=82)
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
