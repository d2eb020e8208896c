"""The review in headless Chromium: sixty planted copies in few keys, decisions that stay, and the way back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browsing import needs_chromium, playwright, quiet_page
from planted import planted
from serving import Client, served

from instdisc.jobs import review
from instdisc.jobs.label import hand_labels
from instdisc.runs import RunFolder

pytestmark = needs_chromium
COPIES = 4  # but for the one test of sixty
COUNTED = """left => Number(document.querySelector('.facet[aria-current] .quiet').textContent) !== left"""
FIRST = """[...document.querySelectorAll('.shot')].find((one) => one.checkVisibility()).querySelector('img')
    .getBoundingClientRect().toJSON()"""
SHOWN = "[...document.querySelectorAll('.shot')].filter((one) => one.checkVisibility()).length"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    _, run, names = planted(tmp_path_factory.mktemp("review"), 24, COPIES)
    return names, run


@pytest.fixture
def client(run: Path) -> Iterator[Client]:
    with served(run) as client:
        yield client


@contextmanager
def review_page(browser: playwright.Browser, client: Client) -> Iterator[playwright.Page]:
    """The review of copies, which must not complain in the console."""
    with quiet_page(browser, client.address, " 404 ") as page:
        page.goto("/#/review")
        page.wait_for_selector(".shot img")
        yield page


@pytest.fixture
def page(browser: playwright.Browser, client: Client) -> Iterator[playwright.Page]:
    with review_page(browser, client) as page:
        yield page


def number_of(page: playwright.Page, kind: str) -> str:
    return page.locator(".facet", has_text=kind).first.inner_text().removeprefix(kind).strip()


def downloaded(page: playwright.Page, button: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_text()


@pytest.mark.fault("decisions on copies die with the tab")
@pytest.mark.fault("the saved list of copies holds only the groups on the screen")
def test_sixty_planted_copies_in_ten_keys_and_they_stay_after_a_reload(
    browser: playwright.Browser, tmp_path: Path
) -> None:
    _, run, names = planted(tmp_path, 70, 60)
    with served(run) as client, review_page(browser, client) as page:
        assert number_of(page, "Copies") == "60"
        keys = ["A", "Enter"]  # look over what is certain, accept it
        for key in keys:
            page.wait_for_selector("dialog .sheet figure" if key == "Enter" else ".shot.gone")
            page.keyboard.press(key)
        page.wait_for_selector("#message >> text=/Accepted .* certain groups of copies/")
        page.wait_for_selector("dialog", state="detached")
        while left := int(number_of(page, "Copies")):
            page.wait_for_selector(".shot.gone")
            page.keyboard.press("Enter")
            keys.append("Enter")
            page.wait_for_function(COUNTED, arg=left)
        assert len(keys) <= 10
        page.reload()
        page.wait_for_selector("text=That was the last one")
        lines = set(downloaded(page, "Download list").splitlines())
    assert len(lines) == 60 and set(review.going(RunFolder(run))) == lines
    for copy, original in names.items():
        assert (copy in lines) != (original in lines), "one of both stays"


def test_the_one_to_keep_is_chosen_and_undo_works_after_a_reload(page: playwright.Page, run: Path) -> None:
    first = page.locator(".shot .fact").first.inner_text()
    names = page.locator(".shot b").all_inner_texts()
    assert any("day" in one or "night" in one for one in names), "what differs is bold: the folder among it"
    assert page.locator(".shot.kept").count() == page.locator(".shot.gone").count() == 1
    page.keyboard.press("2")
    assert page.locator(".shot").nth(1).get_attribute("class") == "shot kept"
    page.keyboard.press("a")
    assert page.locator(".shot.gone").count() == 0
    page.keyboard.press("1")
    page.keyboard.press("x")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"text={COPIES - 1} groups to decide on")
    page.locator(".chip").nth(0).click()
    assert page.locator(".shot.gone").count() == 2 or page.locator("#message.bad").count() == 1
    (gone,) = review.going(RunFolder(run))
    assert Path(gone).name in first
    page.reload()
    page.wait_for_selector(f"text={COPIES - 1} groups to decide on")
    page.get_by_role("link", name="Decided (1)").click()
    page.wait_for_selector("text=1 decided")
    assert page.locator(".shot").nth(1).get_attribute("class") == "shot kept"
    page.keyboard.press("u")
    page.wait_for_selector("#message >> text=Undone: Marked 1 of 2 pictures for removal.")
    assert review.going(RunFolder(run)) == {}
    page.goto("/#/review/copies")
    page.wait_for_selector(f"text={COPIES} groups to decide on")


def test_at_least_one_of_a_group_stays(page: playwright.Page) -> None:
    page.locator(".chip").first.click()
    page.wait_for_selector("#message.bad >> text=Keep at least one of them.")
    assert page.locator(".shot.kept").count() == 1


def test_skipped_cases_come_back(page: playwright.Page) -> None:
    first, second = page.locator(".fact").first.inner_text(), None
    page.keyboard.press("s")
    page.wait_for_function("first => document.querySelector('.fact').innerText !== first", arg=first)
    second = page.locator(".fact").first.inner_text()
    page.keyboard.press("u")  # a skip is taken back as well
    page.wait_for_function("first => document.querySelector('.fact').innerText === first", arg=first)
    page.keyboard.press("j")
    page.wait_for_function("second => document.querySelector('.fact').innerText === second", arg=second)
    page.keyboard.press("k")
    page.wait_for_function("first => document.querySelector('.fact').innerText === first", arg=first)


def test_flicker_shows_one_at_the_place_of_the_other_and_zoom_is_common(page: playwright.Page) -> None:
    box = page.locator(".box").first.bounding_box()
    assert box is not None and page.evaluate(SHOWN) == 2
    page.keyboard.press("Space")
    assert page.evaluate(SHOWN) == 1
    one, source = page.evaluate(FIRST), page.locator(".shot.shown img").get_attribute("src")
    page.keyboard.press("Space")
    assert page.evaluate(FIRST) == one and page.locator(".shot.shown img").get_attribute("src") != source
    address = page.url
    page.keyboard.press("Escape")  # side by side again, and not out of the view
    assert page.evaluate(SHOWN) == 2 and page.url == address
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.mouse.wheel(0, -400)
    page.keyboard.press("+")
    shifts = page.evaluate("[...document.querySelectorAll('.box img')].map((one) => getComputedStyle(one).transform)")
    scale = float(shifts[0].removeprefix("matrix(").split(",")[0])
    assert shifts[0] == shifts[1] and 2.5 < scale < 5
    before = page.locator(".box img").nth(1).bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4 + 40, box["y"] + box["height"] / 4 + 25, steps=3)
    page.mouse.up()
    after = page.locator(".box img").nth(1).bounding_box()
    assert before is not None and after is not None
    assert after["x"] - before["x"] == pytest.approx(40, abs=2) and after["y"] - before["y"] == pytest.approx(25, abs=2)
    page.keyboard.press("0")
    assert page.locator(".box img").first.evaluate("it => getComputedStyle(it).transform") == "matrix(1, 0, 0, 1, 0, 0)"


def test_hide_is_followed_at_once_and_undone_from_any_view(page: playwright.Page, client: Client) -> None:
    everything = client.json("/api/collection")["pictures"]
    page.keyboard.press("Enter")
    page.wait_for_selector(f"text={COPIES - 1} groups to decide on")
    script = downloaded(page, "Download script")
    assert script.startswith("#!/bin/sh") and script.count("\nmove '") == 1
    page.get_by_role("button", name="Hide from the collection").click()
    page.wait_for_selector("#message >> text=Hid 1 picture from the collection.")
    page.wait_for_selector("text=1 hidden already")
    assert page.get_by_role("button", name="Hide from the collection").count() == 0
    page.get_by_role("link", name="Browse").click()
    page.wait_for_selector(f"h1 >> text={everything - 1} pictures")
    page.keyboard.press("u")
    page.wait_for_selector(f"h1 >> text={everything} pictures")
    assert "Undone: Hid 1 picture" in page.locator("#message").inner_text()


def test_doubtful_labels_are_kept_or_changed_by_a_key(page: playwright.Page, run: Path) -> None:
    page.goto("/#/review/labels")
    page.wait_for_selector("button >> text=/^2Change to/")
    words = page.locator(".stack > p").first.inner_text()
    voted = page.locator(".stack > p strong").inner_text()
    page.keyboard.press("2")
    page.wait_for_selector(f"#message >> text=Labelled 1 picture “{voted}”.")
    assert list(hand_labels(run).values()) == [voted]
    page.wait_for_function("words => document.querySelector('.stack > p').innerText !== words", arg=words)
    path = page.locator(".fact").first.inner_text()
    page.keyboard.press("1")
    page.wait_for_selector("#message >> text=Kept 1 doubtful label.")
    assert len(hand_labels(run)) == 1 and Path(next(iter(review.decided(RunFolder(run))["labels"]))).name in path
    page.keyboard.press("u")
    page.wait_for_selector("#message >> text=Undone: Kept 1 doubtful label.")
    page.keyboard.press("u")
    page.wait_for_selector("#message >> text=Undone: Labelled 1 picture")
    assert hand_labels(run) == {} and "labels" not in review.decided(RunFolder(run))


def test_outliers_and_unreadable_files_by_keys(page: playwright.Page, run: Path) -> None:
    page.goto("/#/outliers")  # a former address
    page.wait_for_selector(".facet[aria-current] >> text=Outliers")
    page.wait_for_selector(".shot img")
    assert page.locator("nav [aria-current=page]").inner_text() == "Review"
    assert page.locator(".shot.gone").count() == 0, "nothing is marked for anybody"
    assert number_of(page, "Outliers") == "1"  # of 28 pictures
    page.keyboard.press("x")
    assert page.locator(".shot.gone").count() == 1
    page.keyboard.press("Enter")
    page.wait_for_selector("text=That was the last one")
    assert len(review.going(RunFolder(run))) == len(review.decided(RunFolder(run))["outliers"]) == 1
    page.goto("/#/review/unreadable")
    page.wait_for_selector("text=/^Why: /")
    assert number_of(page, "Unreadable") == "2" and page.locator(".box img").count() == 0
    page.keyboard.press("x")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=1 file to decide on")
    assert sum(review.going(RunFolder(run)).values()) == 1


@pytest.mark.fault("a list of copies holds pictures that were never proven to be any")
def test_look_alikes_are_apart_and_nothing_is_chosen_for_anybody(page: playwright.Page, run: Path) -> None:
    page.goto("/#/look-alikes?threshold=0.6")
    page.wait_for_selector(".facet[aria-current] >> text=Look-alikes")
    page.wait_for_selector(".shot img")
    assert page.locator(".shot.gone").count() == 0
    page.keyboard.press("Enter")
    page.wait_for_selector("#message >> text=/^Kept [0-9]+ pictures/")
    assert review.going(RunFolder(run)) == {}
    page.locator("input[type=number]").fill("0.7")
    page.keyboard.press("Tab")
    page.wait_for_function("() => location.hash === '#/review/look-alikes?threshold=0.7'")


def test_another_tab_sees_what_was_decided(page: playwright.Page) -> None:
    other = page.context.new_page()
    other.goto("/#/review/copies")
    other.wait_for_selector(f"text={COPIES} groups to decide on")
    page.keyboard.press("Enter")
    other.wait_for_selector(f"text={COPIES - 1} groups to decide on", timeout=60_000)


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_all_of_it_without_a_sideways_scroll(
    browser: playwright.Browser, client: Client, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 740}, has_touch=True, base_url=client.address)
    page = context.new_page()
    page.set_default_timeout(60_000)
    for kind in ("copies", "labels", "outliers", "unreadable"):
        page.goto(f"/#/review/{kind}")
        page.reload()
        page.wait_for_selector(".shot")
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), kind
        assert page.evaluate("document.querySelector('main').scrollWidth <= innerWidth"), kind
        low = page.locator(".box").first.bounding_box()
        assert low is not None and low["y"] + low["height"] < 740, "the picture stands on the first screen"
    page.goto("/#/review/copies")
    page.wait_for_selector(".shot.gone")
    page.get_by_role("button", name="Accept all").click()
    page.wait_for_selector("dialog figure img")
    assert page.evaluate("document.querySelector('dialog').scrollWidth <= innerWidth")
    context.close()


def test_a_file_that_has_gone_does_not_stop_the_review(
    browser: playwright.Browser, client: Client, tmp_path: Path
) -> None:
    path = client.json("/api/review/copies")["cases"][0]["pictures"][1]["path"]
    shutil.move(path, tmp_path / "elsewhere")
    try:
        with review_page(browser, client) as page:
            page.wait_for_selector(".shot .broken")
            page.keyboard.press("Enter")
            page.wait_for_selector(f"text={COPIES - 1} groups to decide on")
    finally:
        shutil.move(tmp_path / "elsewhere", path)
