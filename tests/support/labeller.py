"""A person who labels on the page: looks at each picture, knows what it is, and counts keys and clicks."""

from __future__ import annotations

from pathlib import Path

from browsing import playwright

from instdisc.jobs.label import hand_labels

NAMES = "ABCDEFGHIJ"  # of one letter: digits are keys
_SHOWN = "() => [...document.querySelectorAll('.dozen .cell img')].map((one) => one.alt)"
_OTHERS = f"shown => ({_SHOWN})().join() !== shown"


class Person:
    """Labels one by one, then by the dozen; leaves a class once most of what is suggested for it is wrong."""

    def __init__(self, page: playwright.Page, truth: dict[str, str], run: Path) -> None:
        """truth: the class of each picture, by the name of its file."""
        self.page, self.truth, self.run = page, truth, run
        self.acts = 0
        self.left: set[str] = set()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.acts += len(keys)

    def click(self, element: playwright.Locator) -> None:
        element.click()
        self.acts += 1

    def label(self, wanted: int, one_by_one: int) -> dict[str, str]:
        """So many pictures, of these so many one by one first; the labels given, by the names of files."""
        self.page.goto("/#/label")
        self.page.wait_for_selector("section.subject input:focus")
        for _ in range(one_by_one):
            self.one_by_one()
        while len(given := self.labelled()) < wanted:
            self.click(self.page.get_by_role("link", name="By the dozen"))
            while len(self.labelled()) < wanted and (self.a_dozen() or self.another_class()):
                pass
            if len(self.labelled()) < wanted:
                self.left.clear()
                self.click(self.page.get_by_role("link", name="One by one"))
                for _ in range(10):
                    self.one_by_one()
        return given

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
        """What is suggested for a class: the wrong ones clicked out, the rest confirmed; whether to stay."""
        page = self.page
        page.wait_for_selector(".dozen .cell, .dozen .quiet")
        cells = page.locator(".dozen .cell")
        label = self.shown_class()
        shown = [file.split(",")[0] for file in page.evaluate(_SHOWN)]
        wrong = [place for place, file in enumerate(shown) if self.truth[file] != label]
        if not shown or 2 * len(wrong) > len(shown):  # one by one is faster
            self.left.add(label)
            return False
        before = ",".join(page.evaluate(_SHOWN))
        for place in wrong:
            self.click(cells.nth(place))
        cells.first.focus()
        self.press("Enter")
        page.wait_for_function(_OTHERS, arg=before)
        return True

    def another_class(self) -> bool:
        """The next class in the list that was not left; False where there is none."""
        choice = self.page.get_by_label("class")
        for label in choice.locator("option").evaluate_all("all => all.map((one) => one.value)"):
            if label not in self.left:
                choice.select_option(label)
                self.acts += 2  # opened, chosen
                self.page.wait_for_function(
                    "name => document.querySelector('h1').textContent.includes(name)", arg=f"“{label}”"
                )
                return True
        return False

    def shown_class(self) -> str:
        return self.page.locator("h1").inner_text().split("“")[1].split("”")[0]

    def labelled(self) -> dict[str, str]:
        return {Path(name).name: label for name, label in hand_labels(self.run).items()}
