"""The page in headless Chromium, by doing what a person does."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import needs_chromium, playwright, quiet_page
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
    expected = " (400|503) |ERR_FAILED"  # tests ask for them
    with served(run) as client, quiet_page(browser, client.address, expected) as page:
        elsewhere: list[str] = []
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto("/#/")
        page.wait_for_selector(".scroll .cell img")
        yield page
        assert all(url.startswith((client.address, "blob:")) for url in elsewhere)


@pytest.mark.fault("no score shown")
@pytest.mark.fault("30 MB of JavaScript from a foreign host")
def test_click_a_picture_walk_on_and_come_back(page: playwright.Page) -> None:
    assert page.locator("h1").inner_text() == f"{COUNT + 1} pictures"
    page.locator(".scroll .cell").nth(3).click()
    page.wait_for_selector(".few .score")
    first = page.url
    assert re.search(r"#/p/\w+/\d+\.png$", first), "the picture by its id"
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
        page.goto(f"{client.address}/#/")
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
