"""Two runs side by side on the page: by doing what a person does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import needs_chromium, playwright, quiet_page
from serving import COUNT, Client, Other, Told, beside, made_collection, served

pytestmark = needs_chromium
expect = playwright.expect


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("compare"))


@pytest.fixture
def client(run: Path) -> Iterator[Client]:
    with served(beside(run)) as client:
        yield client


@pytest.fixture
def page(browser: playwright.Browser, client: Client) -> Iterator[playwright.Page]:
    with quiet_page(browser, client.address, " 400 ") as page:
        yield page


def test_the_view_counts_measures_and_lists_what_changed_most(page: playwright.Page, client: Client) -> None:
    page.goto("/#/")
    page.get_by_role("link", name="Compare").click()
    expect(page.locator("h1")).to_have_text("first and second")
    page.wait_for_selector(f"text={COUNT - 2} pictures in both")
    page.wait_for_selector(f"text=embedding vectors, 6 dimensions, {COUNT - 2} pictures")
    page.wait_for_selector("text=Neither run was evaluated.")
    found = client.json("/api/compare/changed?count=12")["pictures"]
    expect(page.locator(".changed")).to_have_count(6)
    first = page.locator(".changed").first
    assert first.locator(".cell").first.get_attribute("data-row") == str(found[0]["picture"]["row"])
    for place, side in enumerate(("first", "second")):
        rows = (
            first.locator(".few").nth(place).locator(".cell").evaluate_all("all => all.map((one) => +one.dataset.row)")
        )
        assert rows == [one["row"] for one in found[0][side]]
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".changed")).to_have_count(12)
    counts = client.json("/api/compare/agreement")
    page.get_by_role("link", name=str(counts["first"]), exact=True).click()
    expect(page.locator("h1")).to_have_text(f"{counts['first']} pictures")
    assert "verdict=first" in page.url
    expect(page.get_by_label("verdict")).to_have_value("first")
    page.get_by_label("verdict").select_option("both")
    expect(page.locator("h1")).to_have_text(f"{counts['both']} pictures")


def test_a_picture_has_two_strips_and_shows_what_they_share(page: playwright.Page, client: Client) -> None:
    row = client.json("/api/compare/changed?count=50")["pictures"][20]["picture"]["row"]
    two = client.json(f"/api/compare/{row}?count=12")
    own = client.json(f"/api/neighbours/{row}?count=12")["results"]
    page.goto(f"/#/picture/{row}?sort=changed")
    strip = page.locator("[role=group][aria-label=second]")
    expect(strip.locator(".cell")).to_have_count(12)
    theirs = {one["row"] for one in two["second"]}
    shared = sum(one["row"] in theirs for one in own)
    expect(page.locator("ul.few .both")).to_have_count(shared)
    first = {one["row"] for one in two["first"]}
    inside = [one for one in two["second"] if one["row"] in first]
    expect(strip.locator(".both")).to_have_count(len(inside))
    right = sum(one["label"] == two["picture"]["label"] for one in two["second"])
    expect(strip).to_contain_text(f"{right} of 12 with a label agree, {len(inside)} of 12 in both")
    expect(strip.locator(".true")).to_have_count(right)
    alts = strip.locator(".cell img").evaluate_all("all => all.map((one) => one.alt)")
    assert sum("in both runs" in alt for alt in alts) == len(inside)
    page.wait_for_selector(f"text=21 of {COUNT}")  # the set goes by what changed most
    page.goto(f"/#/picture/{Other.gone[0]}")
    page.wait_for_selector("text=This picture is not in second.")


def test_the_map_is_coloured_by_the_right_run_and_opens_a_verdict(page: playwright.Page, client: Client) -> None:
    page.goto("/#/map")
    page.get_by_label("colour by").select_option("compare")
    entry = page.locator(".legend a", has_text="only first right")
    entry.click()
    page.wait_for_function("() => location.hash.includes('by=compare') && location.hash.includes('only=')")
    entry.dblclick()
    page.wait_for_function("() => location.hash === '#/?verdict=first'")
    expect(page.locator("h1")).to_have_text(f"{client.json('/api/compare/agreement')['first']} pictures")


def test_one_run_alone_offers_nothing_to_compare(browser: playwright.Browser, run: Path) -> None:
    with served(Told(run)) as client, quiet_page(browser, client.address, " 404 ") as page:
        page.goto("/#/map")
        page.wait_for_selector("canvas.map")
        expect(page.get_by_role("link", name="Compare")).to_have_count(0)
        options = page.get_by_label("colour by").locator("option").all_inner_texts()
        assert "right run" not in options and "outlier score" in options
        page.goto("/#/")
        page.wait_for_selector(".scroll .cell img")
        assert "Most changed first" not in page.get_by_label("sort").locator("option").all_inner_texts()
        assert page.get_by_label("verdict").count() == 0
        page.goto("/#/compare")
        page.wait_for_selector(".empty >> text=instdisc serve A B")
