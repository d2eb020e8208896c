"""The page in headless Chromium, by doing what a person does."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import needs_chromium, playwright
from serving import served
from tiny_runs import picture_folder, tiny

from instdisc.jobs.catalogue import Listed
from instdisc.jobs.label import hand_labels
from instdisc.jobs.run import Run
from instdisc.jobs.train import train
from instdisc.serve.opened import Opened
from instdisc.serve.opening import Opening

pytestmark = needs_chromium
COUNT = 60
BY_HAND = "[...document.querySelectorAll('td:nth-child(2)')].reduce((sum, cell) => sum + +cell.textContent, 0)"
OURS = 3  # classes of the folders, which are offered first


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("page")
    pictures = picture_folder(folder / "pictures", COUNT)
    shutil.copy(pictures / "red" / "0000.png", pictures / "red" / "copy.png")
    return pictures, train(pictures, folder / "run", tiny(epochs=2), say=None).path


@pytest.fixture
def page(browser: playwright.Browser, run: Path) -> Iterator[playwright.Page]:
    """The front page of a server, which must not complain in the console."""
    with served(run) as client:
        context = browser.new_context(viewport={"width": 1100, "height": 800}, base_url=client.address)
        page = context.new_page()
        page.set_default_timeout(120_000)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        elsewhere: list[str] = []
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto("/")
        page.wait_for_selector(".scroll .cell img")
        yield page
        context.close()
        assert not [one for one in complaints if not re.search(" (400|503) |ERR_FAILED", one)]  # tests ask for them
        assert all(url.startswith((client.address, "blob:")) for url in elsewhere)


@pytest.mark.fault("no score shown")
@pytest.mark.fault("30 MB of JavaScript from a foreign host")
def test_click_a_picture_walk_on_and_come_back(page: playwright.Page) -> None:
    assert page.locator("h1").inner_text() == f"{COUNT + 1} pictures"
    page.locator(".scroll .cell").nth(3).click()
    page.wait_for_selector(".few .score")
    first = page.url
    assert "#/picture/3" in first
    scores = [float(one) for one in page.locator(".few .score").all_inner_texts()]
    assert len(scores) == 48 and scores == sorted(scores, reverse=True)
    page.locator(".few .cell").first.click()
    page.wait_for_function("address => location.href !== address", arg=first)
    page.go_back()
    page.wait_for_function("address => location.href === address", arg=first)
    page.keyboard.press("Escape")
    page.wait_for_selector(".scroll .cell")
    page.goto("/#/picture/7")  # a link that somebody kept
    page.reload()
    page.wait_for_selector(".large")


def test_several_pictures_as_one_query(page: playwright.Page) -> None:
    page.goto("/#/picture/3")
    page.locator(".few button[title^='More like this']").nth(2).click()
    page.wait_for_selector(".asked figure")
    page.locator(".few button[title^='Less like this']").nth(5).click()
    page.wait_for_selector(".asked .unlike")
    assert page.locator(".asked figure").count() == 3
    page.locator(".asked figcaption button").last.click()
    page.wait_for_function("() => document.querySelectorAll('.asked figure').length === 2")


@pytest.mark.fault("no search with an outside picture")
def test_search_with_an_own_picture_by_choosing_dropping_pasting(
    page: playwright.Page, trained: tuple[Path, Path]
) -> None:
    own = trained[0] / "green" / "0001.png"
    page.set_input_files("#file", own)
    page.wait_for_selector(".asked img[alt='your picture']", timeout=120_000)  # a process of its own is started
    page.wait_for_selector(".few .score")
    assert float(page.locator(".few .score").first.inner_text()) > 0.9
    give = """async ([kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "own.png", {type: "image/png"}));
        const event = kind === "drop" ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
                                      : new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
        document.body.dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        before = page.url
        page.evaluate(give, [kind, list(own.read_bytes())])
        page.wait_for_function("address => location.href !== address", arg=before)
        page.wait_for_selector(".few .score")
    page.set_input_files("#file", trained[1] / "config.json")
    page.wait_for_selector("#message.bad")
    assert "text file" in page.locator("#message").inner_text()


def test_labelling_by_keyboard(page: playwright.Page, run: Path) -> None:
    page.goto("/#/label")
    page.wait_for_selector(".large")
    page.keyboard.press("n")  # the classes of the folders have keys already
    page.keyboard.type("warm")
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => {BY_HAND} === 1")
    page.keyboard.press("n")
    page.keyboard.type("cold")
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => document.querySelectorAll('.classes button').length === {OURS + 2}")
    for done, digit in enumerate("445545", 3):
        page.keyboard.press(digit)
        page.wait_for_function(
            f"count => {BY_HAND} === count",
            arg=done,
        )
    assert len(hand_labels(run)) == 8 and set(hand_labels(run).values()) == {"warm", "cold"}
    assert "Estimated accuracy" in page.locator("section[aria-label='Progress']").inner_text()
    page.keyboard.press("u")
    page.wait_for_function(f"() => {BY_HAND} === 7")
    assert len(hand_labels(run)) == 7
    page.get_by_role("link", name=re.compile("^cold: .* by you")).click()
    page.wait_for_selector(".scroll .cell")
    assert page.locator("h1").inner_text().split()[0] == str(list(hand_labels(run).values()).count("cold"))


def test_copies_by_keyboard_and_the_saved_list(page: playwright.Page, trained: tuple[Path, Path]) -> None:
    page.goto("/#/duplicates")
    page.wait_for_selector(".group.now .kept")
    assert page.locator("h1").inner_text() == "1 group of copies"
    group = page.locator(".group.now")
    assert "same file" in group.inner_text() and "16 × 16 · PNG" in group.inner_text()
    copies = page.locator("h1 + .quiet")
    assert copies.inner_text() == "1 marked for removal"
    page.keyboard.press("2")
    assert group.locator(".cell").nth(1).get_attribute("aria-pressed") == "true"
    page.keyboard.press("x")
    assert page.locator(".group.now.apart").count() == 1 and copies.inner_text() == "0 marked for removal"
    page.keyboard.press("x")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download list").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines == [str(trained[0] / "red" / "0000.png")], "the second was chosen to be kept"


@pytest.mark.fault("a list of copies holds pictures that were never proven to be any")
def test_look_alikes_are_apart_and_nothing_is_marked_for_anybody(page: playwright.Page) -> None:
    page.goto("/#/duplicates")
    page.get_by_role("link", name="Look-alikes").click()
    page.wait_for_function("() => location.hash.startsWith('#/look-alikes')")
    page.goto("/#/look-alikes?threshold=0.9")
    page.wait_for_selector("input[type=number][value='0.9']")
    told, save = page.locator("h1 + .quiet"), page.get_by_role("button", name="Download list")
    assert told.inner_text() == "0 marked for removal" and save.is_disabled()
    assert page.locator(".kept, .gone").count() == 0
    assert page.locator(".group").count() > 1
    page.keyboard.press("2")
    members = page.locator(".group.now .cell").count()
    assert (
        told.inner_text() == f"{members - 1} marked for removal"
        and page.locator(".group.now .gone").count() == members - 1
    )
    with page.expect_download() as download:
        save.click()
    assert len(Path(download.value.path()).read_text().splitlines()) == members - 1
    page.keyboard.press("x")
    assert page.locator(".kept, .gone").count() == 0 and save.is_disabled()


@pytest.mark.fault("the saved list of copies holds only the groups on the screen")
def test_the_saved_list_is_whole_whatever_is_on_the_screen(page: playwright.Page) -> None:
    """The server is made to have 150 groups of two; the page shows the first hundred."""

    def picture(row: int, kind: str) -> dict[str, object]:
        facts = {"changes": [], "agreement": 1, "width": 16, "height": 16, "size": 9, "format": "PNG", "modified": None}
        return {
            "row": row,
            "id": str(row),
            "path": f"/pictures/{row}",
            "label": "",
            "hand": False,
            "kind": kind,
        } | facts

    def answer(route: playwright.Route) -> None:
        asked = {name: int(value) for name, value in re.findall(r"(start|count)=(\d+)", route.request.url)}
        groups = [[picture(2 * number, ""), picture(2 * number + 1, "same file")] for number in range(150)]
        some = groups[asked["start"] : asked["start"] + asked["count"]]
        route.fulfill(json={"total": 150, "copies": 150, "groups": [{"pictures": group} for group in some]})

    page.route("**/api/duplicates?**", answer)
    page.route("**/pictures/**", lambda route: route.fulfill(status=200, body=b"", content_type="image/svg+xml"))
    page.goto("/#/duplicates")
    page.wait_for_selector(".group.now .kept")
    assert (
        page.locator(".group").count() == 100 and page.locator("h1 + .quiet").inner_text() == "150 marked for removal"
    )
    page.keyboard.press("2")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download list").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines == ["/pictures/0", *(f"/pictures/{2 * number + 1}" for number in range(1, 150))]


def test_outliers_by_keyboard_and_the_saved_list(page: playwright.Page) -> None:
    page.goto("/#/outliers")
    page.wait_for_selector(".few .cell img")
    for key in "jxjjx":  # the first and the third
        page.keyboard.press(key)
    third = page.locator(".few .cell").nth(2)
    page.wait_for_selector("#tray >> text=2 selected")
    assert page.locator(".few .cell.chosen").count() == 2 and "chosen" in (third.get_attribute("class") or "")
    page.keyboard.press("Enter")
    page.wait_for_selector(".large")
    paths = ["/".join(page.locator("dd").nth(place).inner_text() for place in (1, 0))]
    page.go_back()
    page.wait_for_selector(".few .cell.chosen")  # what was selected still is, and the eye is where it was
    page.wait_for_function(
        "() => document.activeElement === document.querySelectorAll('.few .cell')[2]", timeout=120_000
    )
    with page.expect_download() as download:
        page.get_by_role("button", name="Download list").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == 2 and set(paths) < set(lines) and all(Path(line).is_file() for line in lines)
    page.keyboard.press("Escape")


def test_decisions_on_groups_survive_a_look_and_a_reload(page: playwright.Page) -> None:
    page.goto("/#/duplicates")
    page.wait_for_selector(".group.now .kept")
    page.get_by_role("button", name="Not duplicates").click()
    page.goto("/#/look-alikes?threshold=0.9")
    page.wait_for_selector("input[type=number][value='0.9']")
    page.keyboard.press("2")
    said = page.locator("h1 + .quiet").inner_text()
    page.locator(".group .cell").first.dblclick()
    page.wait_for_selector(".large")
    page.go_back()
    page.reload()
    page.wait_for_selector(".group .kept")
    assert page.locator("h1 + .quiet").inner_text() != "0 marked for removal"
    page.get_by_role("link", name="Copies").click()
    page.wait_for_selector(".group.apart")
    assert page.locator("h1 + .quiet").inner_text() == "0 marked for removal" != said


def test_views_that_can_not_be_shown_say_why(page: playwright.Page) -> None:
    for address, words in (("/#/nothing", "Page not found"), ("/#/picture/x", "has this number"),
                           ("/#/search", "drop, paste or choose")):  # fmt: skip
        page.goto(address)
        page.wait_for_selector(f".empty >> text={words}")
    page.get_by_role("link", name="All pictures").click()
    page.wait_for_selector(".scroll .cell img")
    page.route("**/api/proposals**", lambda route: route.abort())
    page.evaluate("location.hash = '#/label'")
    page.wait_for_selector("text=Lost connection to instdisc: is it still running?")
    page.unroute("**/api/proposals**")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector("section[aria-label='What is it?'] img")


def test_an_answer_that_must_be_waited_for_is_waited_for(page: playwright.Page) -> None:
    """503 with Retry-After: others ask for much just now."""
    told: list[str] = []

    def busy(route: playwright.Route) -> None:
        told.append(route.request.url)
        if len(told) > 1:
            route.continue_()
        else:
            route.fulfill(status=503, headers={"retry-after": "1"}, json={"detail": "Try again."})

    page.route("**/api/neighbours/5**", busy)
    page.evaluate("location.hash = '#/picture/5'")
    page.wait_for_selector(".few .score")
    assert len(told) == 2


def test_the_first_pictures_come_before_the_vectors(browser: playwright.Browser, run: Path) -> None:
    """Grid and picture while the collection is being opened; the neighbours when it is."""
    released = threading.Event()

    def slow() -> Opened:
        released.wait(30)
        return Opened(run, device="cpu")

    with served(Opening("slow", slow, lambda: Listed(Run(run)))) as client:
        page = browser.new_page()
        page.goto(client.address)
        page.wait_for_selector(".scroll button.cell img")
        page.locator("button.cell").nth(5).click()
        page.wait_for_selector(".large")
        page.wait_for_selector("[aria-busy=true] .cell")
        assert page.locator(".few .score").count() == 0
        released.set()
        page.wait_for_selector(".few .score")
        assert page.locator("[aria-busy=true]").count() == 0
        page.close()


def test_filters_have_addresses(page: playwright.Page) -> None:
    page.get_by_label("label", exact=True).select_option("red")
    page.wait_for_function("() => location.hash.includes('label=red')")
    page.wait_for_function(f"() => document.querySelector('h1')?.textContent === '{COUNT // 3 + 1} pictures'")
    page.goto("/#/?where=nothing*")
    page.reload()
    page.wait_for_selector("text=No picture matches")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_nothing_is_wider_than_the_window(browser: playwright.Browser, run: Path, width: int, scheme: str) -> None:
    with served(run) as client:
        context = browser.new_context(
            viewport={"width": width, "height": 760}, color_scheme=scheme, base_url=client.address
        )
        page = context.new_page()
        for view in (
            "",
            "picture/2",
            "search?like=1,2&unlike=4",
            "label",
            "duplicates",
            "look-alikes?threshold=0.9",
            "outliers",
        ):
            page.goto(f"/#/{view}")
            page.reload()
            page.wait_for_selector("main img", timeout=120_000)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        context.close()


@pytest.mark.slow
def test_the_map_is_computed_once_and_a_region_labelled(page: playwright.Page, run: Path) -> None:
    page.goto("/#/map")
    page.get_by_role("button", name="Compute the map").click()
    page.wait_for_selector("canvas.map", timeout=120_000)
    box = page.locator("canvas.map").bounding_box()
    assert box is not None
    x, y, width, height = box["x"], box["y"], box["width"], box["height"]
    page.mouse.move(x + 14, y + 3)  # its corners are round
    page.keyboard.down("Shift")
    page.mouse.down()
    for dx, dy in ((1, 0), (1, 1), (0, 1), (0, 0)):
        page.mouse.move(x + 14 + dx * (width - 28), y + 3 + dy * (height - 6), steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")
    page.wait_for_selector("#tray >> text=61 selected")
    page.locator("#tray input").fill("everything")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Labelled 61 pictures “everything”.")
    assert set(hand_labels(run).values()) == {"everything"} and len(hand_labels(run)) == 61
    page.reload()
    page.wait_for_selector("canvas.map")  # not computed again
    assert page.locator(".dot").count() >= 1
    page.get_by_label("colour by").select_option("cluster")
    page.wait_for_selector(".legend a >> text=/^(mostly )?(everything|mixed), [0-9]+/", timeout=120_000)  # scikit-learn
    assert page.locator(".dot").count() == 12
    page.wait_for_function("() => location.hash.includes('by=cluster')")
    page.reload()  # the colours are part of the address, and what is selected stays so
    page.wait_for_selector("#tray >> text=61 selected")
    page.wait_for_selector("canvas.map")
    assert page.get_by_label("colour by").input_value() == "cluster"
    page.wait_for_selector("section[aria-label=Selected] .cell img")
    page.get_by_role("button", name="Clear").click()
    page.wait_for_selector("#tray", state="hidden")
    page.locator("canvas.map").focus()
    page.keyboard.press("+")
    page.wait_for_function("() => location.hash.includes('see=')")
    page.keyboard.press("0")
    page.wait_for_function("() => !location.hash.includes('see=')")
