"""Pictures by their ids, sets by name, links to give to others, neighbours marked: by doing what a person does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from browsing import needs_chromium, playwright, quiet_page
from serving import COUNT, Client, Told, made_collection, served

pytestmark = needs_chromium
expect = playwright.expect


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("cite"))


@pytest.fixture
def client(run: Path) -> Iterator[Client]:
    with served(Told(run)) as client:
        yield client


@pytest.fixture
def page(browser: playwright.Browser, client: Client) -> Iterator[playwright.Page]:
    with quiet_page(browser, client.address, " 40[09] ") as page:
        page.goto("/#/")
        page.wait_for_selector(".scroll .cell img")
        yield page


def address(page: playwright.Page) -> str:
    return unquote(page.url.partition("#")[2])


def test_a_picture_has_the_address_of_its_id(page: playwright.Page, client: Client) -> None:
    name = client.json("/api/pictures/3")["id"]
    page.locator(".scroll .cell[data-row='3']").click()
    page.wait_for_selector(".few .score")
    assert address(page) == f"/p/{name}"
    assert page.title().startswith(name)
    page.keyboard.press("j")
    after = client.json("/api/pictures/4")["id"]
    page.wait_for_function("name => decodeURIComponent(location.hash) === `#/p/${name}`", arg=after)
    page.go_back()
    page.wait_for_function("name => decodeURIComponent(location.hash) === `#/p/${name}`", arg=name)
    page.keyboard.press("Escape")
    page.wait_for_selector(".scroll .cell img")
    assert page.evaluate("document.activeElement.dataset.row") == "3", "where the reader came from"
    page.goto(f"/#/p/{name}?label=x")
    page.reload()
    expect(page.locator("h1")).to_have_text(name)
    page.goto("/#/p/none/at%20all.png")
    page.wait_for_selector(".empty >> text=No picture of the collection has the id none/at all.png")
    page.goto("/#/p/%FF")
    page.wait_for_selector(".empty >> text=Could not load this view")


def test_neighbours_are_marked_right_or_wrong_and_counted(page: playwright.Page, client: Client) -> None:
    one = client.json("/api/pictures/2")
    page.goto("/#/picture/2")
    page.wait_for_selector(".few .score")
    found = client.json("/api/neighbours/2?count=48")["results"]
    right = sum(other["label"] == one["label"] for other in found)
    assert 0 < right < len(found)
    expect(page.locator(".few .score.true")).to_have_count(right)
    expect(page.locator(".few .score.false")).to_have_count(len(found) - right)
    page.wait_for_selector(f"text={right} of {len(found)} with a label agree")
    alts = page.locator(".few .cell img").evaluate_all("all => all.map((one) => one.alt)")
    assert sum("same label" in alt for alt in alts) == right and sum("other label" in alt for alt in alts) > 0
    page.get_by_label("Label by hand").fill("nothing else has this")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"text=0 of {len(found)} with a label agree")
    expect(page.locator(".few .score.true")).to_have_count(0)


def test_a_set_is_saved_from_the_tray_has_an_address_and_is_deleted(page: playwright.Page, client: Client) -> None:
    for row in (2, 5, 9):
        page.locator(f".scroll .cell[data-row='{row}']").focus()
        page.keyboard.press("x")
    page.get_by_role("button", name="Save as a set").click()
    dialog = page.get_by_role("dialog", name="Save 3 pictures as a set")
    page.keyboard.type("no good name")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("at most 60 letters")
    dialog.get_by_label("Name of the set").fill("parachutes")
    dialog.get_by_role("button", name="Save").click()
    page.wait_for_function("() => location.hash === '#/set/parachutes'")
    expect(page.locator("h1")).to_have_text("parachutes · 3 pictures")
    assert page.title().startswith("parachutes · 3 pictures")
    expect(page.locator(".scroll .cell")).to_have_count(3)
    page.wait_for_selector(f"text=from “{COUNT} pictures”")
    page.locator(".scroll .cell[data-row='5']").click()
    page.wait_for_selector("text=2 of 3")  # of the set
    page.go_back()
    page.get_by_label("label", exact=True).select_option(client.json("/api/pictures/5")["label"])
    page.wait_for_function("() => /^#.set.parachutes[?]label=/.test(location.hash)")
    page.reload()
    page.wait_for_selector(".scroll .cell[data-row='5']")
    page.get_by_label("set", exact=True).select_option("")
    page.wait_for_function("() => !location.hash.includes('parachutes')")
    page.get_by_role("button", name="Save as a set").click()  # the same name again
    page.get_by_label("Name of the set").fill("parachutes")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").last).to_contain_text("already, of 3 pictures")
    page.keyboard.press("Enter")
    page.wait_for_function("() => location.hash === '#/set/parachutes'")
    page.get_by_role("button", name="Delete set").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("h1")).to_have_text(f"{COUNT} pictures")
    assert client.json("/api/sets") == {"names": []}
    page.goto("/#/set/parachutes")
    page.wait_for_selector(".empty >> text=There is no set “parachutes”")


def test_a_link_is_copied_and_says_that_it_opens_on_this_computer_only(page: playwright.Page, client: Client) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto("/#/picture/3")
    page.get_by_role("button", name="Copy link").click()
    page.wait_for_selector("#message >> text=Link copied. It opens on this computer only.")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.url and re.search(r"#/p/\w+/\d+\.png$", copied)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as over plain http
    page.get_by_role("button", name="Copy link").click()
    field = page.get_by_role("dialog", name="Copy this link").get_by_label("Link")
    expect(field).to_have_value(copied)
    expect(field).to_be_focused()
    assert page.evaluate("getSelection().toString() || document.activeElement.selectionEnd") in (copied, len(copied))
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
