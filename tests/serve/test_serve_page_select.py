"""One selection over all views, one undo for all deeds, suggestions to confirm: by doing what a person does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import needs_chromium, playwright, quiet_page
from serving import Told, served
from tiny_runs import picture_folder, tiny

from instdisc.jobs.label import hand_labels
from instdisc.jobs.train import train

pytestmark = needs_chromium
COUNT = 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("select")
    pictures = picture_folder(folder / "pictures", COUNT)
    return pictures, train(pictures, folder / "run", tiny(epochs=2), say=None).path


@pytest.fixture
def page(browser: playwright.Browser, run: Path) -> Iterator[playwright.Page]:
    with served(Told(run)) as client, quiet_page(browser, client.address, " 400 |ERR_") as page:
        page.goto("/#/")
        page.wait_for_selector(".scroll .cell img")
        yield page


def cell(page: playwright.Page, row: int) -> playwright.Locator:
    return page.locator(f".scroll .cell[data-row='{row}']")


def selected(page: playwright.Page, count: int) -> None:
    page.wait_for_selector(f"#tray >> text=/^{count} selected$/")


def told(page: playwright.Page, words: str) -> None:
    page.wait_for_selector(f"#message >> text={words}")


def file_of(run: Path) -> bytes | None:
    file = run / "labels" / "hand.csv"
    return file.read_bytes() if file.exists() else None


@pytest.mark.fault("no way to pick several pictures, and nothing can be got out")
def test_pick_by_tick_key_range_and_drag_and_get_the_list(page: playwright.Page, trained: tuple[Path, Path]) -> None:
    cell(page, 2).hover()
    cell(page, 2).locator(".tick").click()
    selected(page, 1)
    assert "#/p" not in page.url, "a tick opens nothing"
    cell(page, 5).click(modifiers=["Shift"])  # from the second to the fifth
    selected(page, 4)
    cell(page, 4).focus()
    page.keyboard.press("x")
    selected(page, 3)
    assert "selected" in (cell(page, 5).locator("img").get_attribute("alt") or "")  # which is the tile's name
    assert "selected" not in (cell(page, 4).locator("img").get_attribute("alt") or "")
    first, last = cell(page, 10).bounding_box(), cell(page, 13).bounding_box()
    assert first is not None and last is not None
    page.mouse.move(first["x"] + 60, first["y"] + 60)
    page.mouse.down()
    page.mouse.move(last["x"] + 50, last["y"] + 60, steps=9)
    page.mouse.up()
    selected(page, 7)
    assert "#/p" not in page.url
    page.reload()  # it outlives that
    selected(page, 7)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download list").click()
    lines = Path(download.value.path()).read_text().splitlines()
    files = sorted(trained[0].glob("*/*.png"))
    rows = [2, 3, 5, 10, 11, 12, 13]
    assert lines == [str(files[row]) for row in rows]
    page.get_by_role("button", name="Similar").click()
    page.wait_for_selector("h1 >> text=Similar to 7 pictures")
    page.locator(".few .cell").nth(1).hover()
    page.locator(".few .cell .tick").nth(1).click()  # the same selection over another view
    selected(page, 8)
    page.keyboard.press("Escape")
    page.wait_for_selector("#tray", state="hidden")


def test_all_that_match_are_selected_and_the_list_is_whole(page: playwright.Page, trained: tuple[Path, Path]) -> None:
    page.set_viewport_size({"width": 400, "height": 420})  # few are on the screen
    page.goto("/#/?label=red&sort=name")
    page.wait_for_selector(".scroll .cell img")
    page.get_by_role("button", name=f"Select all {COUNT // 3}").click()
    selected(page, COUNT // 3)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download list").click()
    assert Path(download.value.path()).read_text().splitlines() == sorted(map(str, trained[0].glob("red/*.png")))


@pytest.mark.fault("a label for many pictures overwrites others and can't be taken back")
def test_labels_for_a_selection_say_what_they_overwrite_and_are_undone(page: playwright.Page, run: Path) -> None:
    def label(name: str) -> None:
        page.keyboard.press("l")
        page.keyboard.type(name)
        page.keyboard.press("Enter")

    cell(page, 0).focus()
    page.keyboard.press("x")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.activeElement.dataset.row === '1'")
    page.keyboard.press("x")
    selected(page, 2)
    label("cat")
    told(page, "Labelled 2 pictures “cat”.")
    page.wait_for_function("() => document.querySelector('.cell[data-row=\"1\"] .given')?.textContent === 'cat'")
    one = file_of(run)
    cell(page, 8).click(modifiers=["Shift"])
    selected(page, 9)
    page.locator("#tray input").fill("dog")
    page.get_by_role("button", name="Label", exact=True).click()
    page.wait_for_selector("#tray >> text=2 of 9 have another label by you.")
    assert file_of(run) == one, "nothing is done before that is decided"
    page.get_by_role("button", name="Label the other 7").click()
    told(page, "Labelled 7 pictures “dog”.")
    two = file_of(run)
    assert Counter(hand_labels(run).values()) == {"cat": 2, "dog": 7}
    label("dog")
    page.get_by_role("button", name="Overwrite 2").click()
    told(page, "Labelled 2 pictures “dog”.")
    page.get_by_role("button", name="Undo").first.click()
    told(page, "Undone: Labelled 2 pictures “dog”.")
    assert file_of(run) == two
    page.goto("/#/map")  # another view, and a reload
    page.reload()
    page.wait_for_selector("canvas.map")
    page.locator("canvas.map").focus()
    page.keyboard.press("Control+z")
    told(page, "Undone: Labelled 7 pictures “dog”.")
    assert file_of(run) == one
    page.keyboard.press("u")
    told(page, "Undone: Labelled 2 pictures “cat”.")
    assert file_of(run) is None
    page.keyboard.press("u")
    told(page, "There is nothing to undo.")


def test_from_a_lasso_to_a_list_in_three_acts(page: playwright.Page, trained: tuple[Path, Path]) -> None:
    page.goto("/#/map")
    page.wait_for_selector("canvas.map")
    box = page.locator("canvas.map").bounding_box()
    assert box is not None
    x, y, width, height = box["x"], box["y"], box["width"], box["height"]
    page.keyboard.down("Shift")
    page.mouse.move(x + 3, y + 8)
    page.mouse.down()
    for dx, dy in ((1, 0), (1, 0.5), (0, 0.5), (0, 0)):  # the upper half
        page.mouse.move(x + 3 + dx * (width - 6), y + 8 + dy * (height - 16), steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")
    selected(page, COUNT // 2)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download list").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == COUNT // 2
    page.locator("section[aria-label=Selected] .cell img").first.wait_for()
    page.keyboard.press("Escape")  # lets go of the selection, and stays
    page.wait_for_selector("#tray", state="hidden")
    assert "#/map" in page.url
    page.locator("canvas.map").focus()
    page.keyboard.press("X")  # by keyboard: all in sight
    selected(page, COUNT)


@pytest.mark.fault("a key of the page leads out of it")
def test_escape_never_leaves_the_page(page: playwright.Page) -> None:
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector(".scroll .cell img")
    cell(page, 3).click()
    page.wait_for_selector(".few .cell img")
    first = page.url
    page.locator(".few .cell").first.click()
    page.wait_for_function("address => location.href !== address", arg=first)
    for _ in range(6):
        page.keyboard.press("Escape")
        page.wait_for_timeout(150)
    page.wait_for_selector(".scroll .cell img")
    assert page.url.startswith(address)


def test_suggestions_are_seen_filtered_and_confirmed_by_the_dozen(
    page: playwright.Page, run: Path, trained: tuple[Path, Path]
) -> None:
    files = sorted(trained[0].glob("*/*.png"))
    for row in (0, 1, 2, 20, 21, 22, 40, 41, 42):
        page.evaluate(
            """([row, label]) => fetch('api/labels', {method: 'POST', headers: {'content-type': 'application/json'},
                body: JSON.stringify({rows: [row], label})}).then((answer) => answer.json())""",
            [row, f"{files[row].parent.name}ish"],
        )
    page.reload()
    page.wait_for_selector(".cell .guessed")
    guessed = page.locator(".cell .guessed")
    page.wait_for_function("() => document.querySelectorAll('.cell .guessed').length > 12")
    right = [
        files[int(row)].parent.name
        for row in guessed.evaluate_all("all => all.map((one) => one.parentElement.dataset.row)")
    ]
    assert [one.split()[1] for one in guessed.all_inner_texts()] == [f"{name}ish" for name in right]
    shown = guessed.first.inner_text()
    assert re.fullmatch(r"Suggested: \w+ish \(\d+ %\)", " ".join(shown.split()))
    facet = page.get_by_role("link", name=re.compile("^suggested"))
    count = int(facet.inner_text().split()[-1])
    facet.click()
    page.wait_for_function(f"() => document.querySelector('h1')?.textContent === '{count} pictures'")
    page.get_by_role("link", name="by you 9").click()
    page.wait_for_function("() => document.querySelector('h1')?.textContent === '9 pictures'")
    page.goto("/#/dozen")
    page.wait_for_selector(".dozen .cell img")
    title = page.locator("h1").inner_text()
    label = title.split("“")[1].split("”")[0]
    rows = [int(one) for one in page.locator(".dozen .cell").evaluate_all("all => all.map((one) => one.dataset.row)")]
    before = file_of(run)
    page.locator(".dozen .cell").nth(1).click()  # that is none
    page.locator(".dozen .cell").nth(0).focus()
    page.keyboard.press("Enter")
    told(page, f"Labelled {len(rows) - 1} picture")
    assert set(Counter(hand_labels(run).values())) == {"redish", "greenish", "blueish"}
    assert list(hand_labels(run).values())[9:] == [label] * (len(rows) - 1)
    page.wait_for_function("row => !document.querySelector(`.dozen .cell[data-row='${row}']`)", arg=str(rows[1]))
    page.keyboard.press("u")
    told(page, "Undone:")
    assert file_of(run) == before


def test_classes_have_keys_and_other_names_the_same_in_all_tabs(page: playwright.Page, run: Path) -> None:
    def keys(tab: playwright.Page) -> dict[str, str | None]:
        tab.wait_for_selector(".classes button")
        shown = tab.locator(".classes button")
        name = "one => one.lastChild.textContent"  # the key in front of it is no part of the button's name
        assert shown.first.locator("kbd").get_attribute("aria-hidden") == "true"
        return {one.evaluate(name): one.get_attribute("aria-keyshortcuts") for one in shown.all()}

    page.goto("/#/label")
    assert keys(page) == {"blue": "1", "green": "2", "red": "3"}  # the folders' own are offered
    for number, name in enumerate(["tench", "Church", "church", *"abcdef"], 1):
        page.keyboard.press("n")
        page.keyboard.type(name)
        page.keyboard.press("Enter")
        page.wait_for_function(f"() => document.querySelectorAll('.side tbody tr').length === {number}")
    other = page.context.new_page()
    other.goto("/#/label")
    found = keys(other)
    assert found == keys(page)
    assert (found["tench"], found["d"], found["e"], found["f"]) == ("4", "0", "a", "b"), "beyond ten: letters"
    page.locator(".renaming select").select_option("Church")
    page.locator(".renaming input").fill("church")
    page.keyboard.press("Enter")
    told(page, "Merged “Church” into “church” (1 picture).")
    page.wait_for_function("() => document.querySelectorAll('.side tbody tr').length === 8")
    assert Counter(hand_labels(run).values())["church"] == 2
    other.wait_for_function("() => document.querySelectorAll('.side tbody tr').length === 8")  # the other tab hears it
    assert keys(other) == keys(page)
    page.keyboard.press("u")
    told(page, "Undone: Merged")
    assert Counter(hand_labels(run).values())["Church"] == 1
    page.wait_for_function("() => document.querySelectorAll('.side tbody tr').length === 9")
    skipped = page.locator(".subject .quiet").inner_text()
    page.keyboard.press("s")
    page.wait_for_function("before => document.querySelector('.subject .quiet').textContent !== before", arg=skipped)
    page.keyboard.press("u")
    page.wait_for_function("before => document.querySelector('.subject .quiet').textContent === before", arg=skipped)


def test_a_picture_shows_its_file_and_leads_to_the_next_of_its_set(
    page: playwright.Page, trained: tuple[Path, Path]
) -> None:
    page.goto("/#/?label=green&sort=name")
    page.wait_for_selector("text=/20 pictures/")
    page.wait_for_selector(".scroll .cell img")
    page.locator(".scroll .cell").nth(1).click()
    page.wait_for_selector("text=/2 of 20/")
    files = sorted(trained[0].glob("green/*.png"))
    facts = page.locator("dl").inner_text()
    assert files[1].name in facts and str(files[1].parent) in facts and "16 × 16 PNG" in facts
    page.keyboard.press("j")
    page.wait_for_selector("text=/3 of 20/")
    assert files[2].name in page.locator("dl").inner_text()
    page.keyboard.press("z")
    assert page.locator(".stage.zoomed").count() == 1
    page.keyboard.press("k")
    page.wait_for_selector("text=/2 of 20/")
    page.get_by_label("Label by hand").fill("leaf")
    page.keyboard.press("Enter")
    page.wait_for_selector("dd >> text=leaf (by you)")
    page.get_by_role("button", name="Remove label").click()
    told(page, "Removed the label of 1 picture.")


def test_a_choice_by_arrow_keys_waits_for_enter_and_the_last_colouring_wins(page: playwright.Page) -> None:
    page.get_by_label("label", exact=True).focus()
    before = page.url
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(300)
    assert page.url == before
    page.keyboard.press("Enter")
    page.wait_for_function("() => location.hash.includes('label=green')")
    page.goto("/#/map")
    page.wait_for_selector(".legend a >> text=green")
    held: list[playwright.Route] = []
    page.route("**/api/map/colours?by=cluster", lambda route: held.append(route))
    page.get_by_label("colour by").select_option("cluster")
    page.wait_for_selector("text=Computing clusters")
    page.get_by_label("colour by").select_option("label")
    page.wait_for_selector(".legend a >> text=green")
    held[0].fulfill(json={"names": ["60 pictures"], "codes": [0] * COUNT})
    page.wait_for_timeout(1000)  # the answer that comes late changes nothing
    assert page.locator(".legend a >> text=green").count() == 1 and "by=cluster" not in page.url


def test_the_grid_says_that_the_server_is_gone_and_goes_on_when_it_is_back(page: playwright.Page) -> None:
    page.evaluate("location.hash = '#/label'")
    page.wait_for_selector(".large")
    page.route("**/api/pictures?**", lambda route: route.abort())
    page.evaluate("location.hash = '#/'")
    page.wait_for_selector("text=Lost connection to instdisc: is it still running?")
    page.unroute("**/api/pictures?**")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".scroll .cell img")
