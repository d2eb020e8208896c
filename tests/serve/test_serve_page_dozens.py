"""Two hundred pictures labelled in few keys and clicks: as a person who knows them would, who looks at each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from browsing import needs_chromium, playwright, quiet_page
from labeller import NAMES, Person
from PIL import Image
from serving import served
from sklearn.datasets import load_digits
from tiny_runs import tiny

from instdisc.jobs.index import recompute
from instdisc.jobs.train import train
from instdisc.serve.opened import Opened

pytestmark = needs_chromium
WANTED, ONE_BY_ONE, ALLOWED = 200, 40, 150


def handwritten(folder: Path) -> dict[str, str]:
    """Six hundred digits in one folder, and what each is, by a letter: keys have digits."""
    digits = load_digits()
    folder.mkdir()
    for row, image in enumerate(digits.images[:600]):
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{row:04d}.png")
    return {f"{row:04d}.png": NAMES[digits.target[row]] for row in range(600)}


def test_two_hundred_pictures_in_a_hundred_and_fifty_keys_and_clicks(
    browser: playwright.Browser, tmp_path: Path
) -> None:
    truth = handwritten(tmp_path / "pictures")
    settings = tiny(size=16, epochs=3, backbone="conv6", width=8)
    run = train(tmp_path / "pictures", tmp_path / "run", settings, say=None).path
    recompute(run, say=None)
    with served(Opened(run, device="cpu")) as client, quiet_page(browser, client.address) as page:
        person = Person(page, truth, run)
        given = person.label(WANTED, ONE_BY_ONE)
        print(f"{len(given)} labels by {person.acts} keys and clicks")
        assert not [(name, label, truth[name]) for name, label in given.items() if truth[name] != label]
        assert person.acts <= ALLOWED
