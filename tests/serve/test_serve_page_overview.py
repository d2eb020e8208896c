"""The overview, its job and the sheet of keys, by doing what a person does at a first visit."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import needs_chromium, playwright, quiet_page
from serving import COUNT, Client, Told, made_collection, served

from instdisc.progress import Bar

pytestmark = needs_chromium
expect = playwright.expect
COMMAND = re.compile(r"\binstdisc [a-z]+\b")
VISIBLE_KEYS = """() => [...new Set([...document.querySelectorAll('body > :not(dialog) [aria-keyshortcuts]')]
    .filter((one) => one.checkVisibility()).flatMap((one) => one.getAttribute('aria-keyshortcuts').split(' ')))]"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("overview"))


class Slow(Told):
    """Vectors and the map are there; the rest takes seconds, in steps that a person can watch."""

    def __init__(self, run: Path) -> None:
        self.begun: list[str] = []
        self.seconds = 4.0
        super().__init__(run)

    def has(self, what: Any) -> bool:
        return (
            what == "vectors"
            or (what == "outliers" and super().has(what))
            or (what == "graph" and "graph" in self.begun)
        )

    def _slowly(self, what: str) -> None:
        self.begun.append(what)
        with Bar(100, "Embedding", "pictures", enabled=False) as bar:
            for _ in range(100):
                time.sleep(self.seconds / 100)
                bar.advance()

    def make_graph(self) -> None:
        self._slowly("graph")

    def make_outliers(self) -> None:
        self._slowly("outliers")
        super().make_outliers()

    def copies(self) -> Any:
        self._slowly("copies")
        return super().copies()


@pytest.fixture
def opened(run: Path) -> Slow:
    return Slow(run)


@pytest.fixture
def client(opened: Slow) -> Iterator[Client]:
    with served(opened) as client:
        yield client


@pytest.fixture
def page(browser: playwright.Browser, client: Client) -> Iterator[playwright.Page]:
    with quiet_page(browser, client.address) as page:
        yield page


def row(page: playwright.Page, name: str) -> playwright.Locator:
    """What stands beside a name."""
    return page.locator("dt", has=page.get_by_text(name, exact=True)).locator("xpath=following-sibling::dd[1]")


def test_the_first_visit_begins_with_the_overview_and_no_later_one(page: playwright.Page) -> None:
    page.goto("/")
    page.wait_for_function("() => location.hash === '#/overview'")
    expect(row(page, "Pictures")).to_have_text(str(COUNT))
    expect(row(page, "Outlier scores")).to_contain_text("Missing")
    expect(row(page, "Map")).to_contain_text("Ready")
    assert page.locator("nav a[aria-current=page]").inner_text() == "Overview"
    assert page.locator(".strip .cell").count() == 8
    for name, view in (("Map", "map"), ("Copies", "review/copies"), ("Labels by you", "label"), ("Pictures", "")):
        link = page.get_by_role("link", name=name, exact=True).and_(page.locator("dt a"))
        assert link.get_attribute("href") == f"#/{view}"
    page.keyboard.press("Escape")  # up, to the grid
    page.wait_for_selector(".scroll .cell img")
    page.goto("about:blank")
    page.goto("/")
    page.wait_for_selector(".scroll .cell img")
    assert "overview" not in page.url
    page.get_by_role("link", name="Overview").click()
    expect(row(page, "Pictures")).to_have_text(str(COUNT))


def test_an_address_is_followed_at_the_first_visit_too(page: playwright.Page) -> None:
    page.goto("/#/picture/3")
    page.wait_for_selector(".few .score")
    assert re.search(r"#/p/\w+/\d+\.png$", page.url), "by its id from then on"


def test_one_button_makes_what_is_missing_and_goes_on_where_it_was_stopped(page: playwright.Page, opened: Slow) -> None:
    page.goto("/#/overview")
    page.wait_for_selector("text=3 things missing")
    prepare, stop = (page.get_by_role("button", name=name) for name in ("Prepare", "Stop"))
    prepare.click()
    page.wait_for_selector("text=/^Neighbour graph: embedding, about [0-9]+ s left; then outlier scores, copies …/")
    left = int(re.findall(r"about (\d+) s", page.locator("main [role=status]").inner_text())[0])
    assert left <= opened.seconds
    first = page.locator("progress").evaluate("it => it.value")
    page.wait_for_function("first => document.querySelector('progress').value > first", arg=first)
    expect(row(page, "Neighbour graph")).to_contain_text("Ready")  # while the next is being made
    expect(row(page, "Outlier scores")).to_contain_text("Missing")
    page.get_by_role("link", name="Browse", exact=True).click()
    page.wait_for_selector(".scroll .cell img")
    page.go_back()
    page.wait_for_selector("text=/^Outlier scores: embedding/")
    stop.click()
    page.wait_for_selector("text=Stopped. What was done of it is kept")
    expect(page.get_by_text("2 things missing")).to_be_visible()
    assert opened.begun == ["graph", "outliers"]
    opened.seconds = 0.1
    prepare.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Everything is prepared.")
    assert opened.begun == ["graph", "outliers", "outliers", "copies"]
    for name in ("Neighbour graph", "Outlier scores", "Copies", "Map"):
        expect(row(page, name)).to_contain_text("Ready")
    assert prepare.count() == 0


@pytest.mark.fault("a command to type in the middle of a page for a photographer")
def test_outlier_scores_are_made_from_the_map_and_no_view_names_a_command(page: playwright.Page, opened: Slow) -> None:
    opened.seconds = 0.2
    for view in ("overview", "", "map", "map?by=outlier", "label", "dozen", "search", "review/outliers", "picture/1"):
        page.goto(f"/#/{view}")
        page.wait_for_selector("main .cell img, canvas.map, .large, .empty, .shot")
        page.wait_for_timeout(300)
        assert not COMMAND.search(page.locator("body").inner_text()), view
    page.goto("/#/review/outliers")
    page.wait_for_selector("text=Outlier scores tell better.")
    expect(page.get_by_role("button", name="Compute outlier scores")).to_be_visible()
    page.goto("/#/map?by=outlier")
    page.get_by_role("button", name="Compute outlier scores").click()
    page.wait_for_function("() => location.hash === '#/overview'")
    expect(row(page, "Outlier scores")).to_contain_text("Ready")
    assert opened.begun == ["outliers"], "nothing else was asked for"
    page.goto("/#/map?by=outlier")
    page.wait_for_selector(".legend a >> text=most unusual")
    page.goto("/#/review/outliers")
    page.wait_for_selector("text=The highest outlier score first.")
    assert page.get_by_role("button", name="Compute outlier scores").count() == 0


def test_the_sheet_lists_the_keys_that_the_view_declares(page: playwright.Page, client: Client) -> None:
    for number in range(12):
        client.json("/api/labels", {"rows": [number], "label": f"class {number % 2}"})
    for view, some in (
        ("label", {"1", "n", "s", "Enter", "u"}),
        ("picture/3", {"j", "k", "z"}),
        ("review/outliers", {"x", "Enter", "s", "+", "0"}),
        ("dozen", {"Enter"}),
        ("map", {"+", "-", "0"}),
        ("", set()),
    ):
        page.goto(f"/#/{view}")
        page.wait_for_selector("main .cell img, canvas.map, .large, .shot")
        # What was waited for may still be of the view before.
        page.wait_for_function(f"some => some.every((one) => ({VISIBLE_KEYS})().includes(one))", arg=sorted(some))
        page.wait_for_timeout(400)
        declared = set(page.evaluate(VISIBLE_KEYS))
        assert some | {"?"} <= declared, view
        address = page.url
        page.keyboard.press("?")
        listed = page.locator("dialog tbody td:first-child kbd").all_inner_texts()
        assert set(listed) == declared | {"u", "Escape"} and len(listed) == len(set(listed)), view
        assert all(text.strip() for text in page.locator("dialog tbody td:last-child").all_inner_texts()), view
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_have_count(0)
        assert page.url == address, "only the sheet was closed"


def test_the_sheet_gives_the_focus_back_and_is_not_opened_where_keys_are_off(page: playwright.Page) -> None:
    page.goto("/#/")
    cell = page.locator(".scroll .cell").nth(2)
    cell.focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys of this view")).to_contain_text("arrow keys move, x selects")
    page.keyboard.press("x")  # the view is not asked meanwhile
    page.keyboard.press("Escape")
    expect(cell).to_be_focused()
    assert page.locator(".cell.chosen").count() == 0
    page.get_by_role("button", name="Keys", exact=True).click()
    page.keyboard.press("?")
    page.wait_for_timeout(200)
    assert page.locator("dialog").count() == 0
    button = page.get_by_role("button", name="Keys of this view")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("single character are off")
    page.keyboard.press("Enter")  # Close has the focus
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(button).to_be_focused()
