"""Two hundred pictures labelled in few keys and clicks: as a person who knows them would, who looks at each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from browsing import needs_chromium, playwright, quiet_page
from PIL import Image
from serving import served
from sklearn.datasets import load_digits
from tiny_runs import tiny

from instdisc.jobs.index import recompute
from instdisc.jobs.label import hand_labels
from instdisc.jobs.train import train
from instdisc.serve.opened import Opened

pytestmark = needs_chromium
WANTED, ONE_BY_ONE, ALLOWED = 200, 40, 150
NAMES = "ABCDEFGHIJ"


def handwritten(folder: Path) -> dict[str, str]:
    """Six hundred digits in one folder, and what each is, by a letter: keys have digits."""
    digits = load_digits()
    folder.mkdir()
    for row, image in enumerate(digits.images[:600]):
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{row:04d}.png")
    return {f"{row:04d}.png": NAMES[digits.target[row]] for row in range(600)}


class Person:
    """Counts keys and clicks."""

    def __init__(self, page: playwright.Page, truth: dict[str, str], run: Path) -> None:
        self.page, self.truth, self.run = page, truth, run
        self.acts = 0

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.acts += len(keys)

    def click(self, element: playwright.Locator) -> None:
        element.click()
        self.acts += 1

    def one_by_one(self) -> None:
        """The picture that is proposed: a right suggestion by Enter, a class by its key, a new one by its name."""
        subject = self.page.locator("section[aria-label='What is it?']")
        file = subject.locator("img").get_attribute("alt")
        label = self.truth[str(file)]
        if subject.locator(".chip").count() and subject.locator(".chip").inner_text() == label:
            self.press("Enter")
        elif (of_class := subject.locator(".classes button", has_text=label)).count():
            self.press(str(of_class.first.locator("kbd").inner_text()))
        else:
            if not self.page.evaluate("() => document.activeElement.matches('input')"):  # at first it has the focus
                self.press("n")
            self.press(label, "Enter")
        self.page.wait_for_function("file => document.querySelector('section.subject img')?.alt !== file", arg=file)

    def a_dozen(self) -> bool:
        """What is suggested for a class: the wrong ones clicked out, the rest confirmed; whether there was any."""
        page = self.page
        page.wait_for_selector(".dozen .cell, .dozen .quiet")
        cells = page.locator(".dozen .cell")
        if not cells.count():
            return False
        label = page.locator("h1").inner_text().split("“")[1].split("”")[0]
        shown = page.evaluate("() => [...document.querySelectorAll('.dozen .cell img')].map((one) => one.alt)")
        for place, file in enumerate(shown):
            if self.truth[file.split(",")[0]] != label:
                self.click(cells.nth(place))
        before = page.evaluate("() => document.querySelector('.dozen').textContent + location.href")
        cells.first.focus()
        self.press("Enter")
        page.wait_for_function(
            "([shown, before]) => [...document.querySelectorAll('.dozen .cell img')].map((one) => one.alt).join()"
            " !== shown",
            arg=[",".join(shown), before],
        )
        return True

    def labelled(self) -> dict[str, str]:
        return {Path(name).name: label for name, label in hand_labels(self.run).items()}


def test_two_hundred_pictures_in_a_hundred_and_fifty_keys_and_clicks(
    browser: playwright.Browser, tmp_path: Path
) -> None:
    truth = handwritten(tmp_path / "pictures")
    settings = tiny(size=16, epochs=3, backbone="conv6", width=8)
    run = train(tmp_path / "pictures", tmp_path / "run", settings, say=None).path
    recompute(run, say=None)
    with served(Opened(run, device="cpu")) as client, quiet_page(browser, client.address) as page:
        person = Person(page, truth, run)
        page.goto("/#/label")
        page.wait_for_selector("section.subject input:focus")
        for _ in range(ONE_BY_ONE):
            person.one_by_one()
        while len(person.labelled()) < WANTED:
            person.click(page.get_by_role("link", name="By the dozen" if "label" in page.url else "One by one"))
            if "dozen" in page.url:
                while len(person.labelled()) < WANTED and person.a_dozen():
                    pass
            else:
                person.one_by_one()
        given = person.labelled()
        print(f"{len(given)} labels by {person.acts} keys and clicks")
        assert not [(name, label, truth[name]) for name, label in given.items() if truth[name] != label]
        assert person.acts <= ALLOWED
