"""The page for all: axe-core, narrow windows, contrast, keys that can be off; slow and lost servers; long work."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import needs_chromium, playwright
from serving import COUNT, Told, beside, made_collection, served

from instdisc.jobs.label import hand_labels
from instdisc.progress import Bar

pytestmark = needs_chromium
AXE = Path(__file__).resolve().parents[2] / "build" / "node_modules" / "axe-core" / "axe.min.js"  # .ci/run
VIEWS = (
    *("overview", "", "picture/2", "search?like=1,2&unlike=4", "label", "dozen", "map", "map?by=cluster"),
    *("duplicates", "look-alikes?threshold=0.9", "outliers", "nothing", "set/some", "compare"),
)
STOPS = """[...document.querySelectorAll('a[href], button, input, select, [tabindex]')].filter((one) =>
    one.tabIndex >= 0 && !one.disabled && one.checkVisibility()).length"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("all"))


@pytest.fixture
def visit(browser: playwright.Browser) -> Iterator[Callable[..., playwright.Page]]:
    """visit(client, ...): a new window on that server."""
    contexts = []

    def act(client: Any, **more: Any) -> playwright.Page:
        window = {"viewport": {"width": 1100, "height": 800}}
        contexts.append(browser.new_context(base_url=client.address, **window | more))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        return page

    yield act
    for context in contexts:
        context.close()


def settled(page: playwright.Page) -> None:
    page.wait_for_selector("main img, canvas.map, .dozen, .empty")
    page.wait_for_timeout(600)


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (1280, "light")])
def test_nothing_is_found_wanting_in_any_view(visit, run: Path, width: int, scheme: str) -> None:
    """By axe-core, whatever rules it has; no sideways scroll; at most 25 stops of the Tab key."""
    with served(beside(run)) as client:
        for row in range(12):
            client.json("/api/labels", {"rows": [row], "label": f"class {row % 4}"})
        client.json("/api/sets", {"name": "some", "rows": [1, 2, 3], "origin": "Map of all pictures"})
        page = visit(client, viewport={"width": width, "height": 760}, color_scheme=scheme, bypass_csp=True)
        page.goto("/#/")
        page.locator(".scroll .cell").first.focus()
        page.keyboard.press("x")  # the tray is there in every view
        for view in VIEWS:
            page.goto(f"/#/{view}")
            page.reload()
            settled(page)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
            assert page.evaluate(STOPS) <= 25, view
            if AXE.is_file():
                page.evaluate(AXE.read_text(encoding="utf-8"))
                found = page.evaluate("axe.run(document, {resultTypes: ['violations', 'passes']})")
                wrong = {one["id"]: [node["html"][:200] for node in one["nodes"][:3]] for one in found["violations"]}
                assert not wrong and len(found["passes"]) > 15, (view, wrong)
        if not AXE.is_file():
            pytest.skip("axe-core is not installed: npm install --prefix build axe-core; the rest was looked at")
        page.evaluate("document.querySelector('h1').style.color = 'var(--line)'")
        found = page.evaluate("axe.run()")
        assert "color-contrast" in {one["id"] for one in found["violations"]}, "it would have seen it"


def luminance(colour: str) -> float:
    """Of a colour as a browser computes it, by WCAG's formula."""
    parts = np.array([float(one) for one in re.findall(r"[\d.]+", colour)[:3]]) / 255
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_borders_of_fields_are_seen(visit, run: Path, scheme: str) -> None:
    """At least 3 to 1, against the field and against what it lies on."""
    look = """() => [...document.querySelectorAll('input:not([hidden]), select')].map((one) => {
        const within = getComputedStyle(one);
        let behind = one.parentElement;
        const under = () => getComputedStyle(behind ?? document.body).backgroundColor;
        while (behind && /, 0\\)|transparent/.test(under())) behind = behind.parentElement;
        return [within.borderTopColor, within.backgroundColor, under()];
    })"""
    with served(Told(run)) as client:
        page = visit(client, color_scheme=scheme)
        for view in ("", "label", "map", "picture/1"):
            page.goto(f"/#/{view}")
            page.reload()
            settled(page)
            fields = page.evaluate(look)
            assert fields
            for border, *others in fields:
                for other in others:
                    low, high = sorted((luminance(border), luminance(other)))
                    assert (high + 0.05) / (low + 0.05) >= 3, (view, border, other)


@pytest.mark.fault("keys of a single letter that can't be switched off")
def test_keys_of_one_letter_can_be_off(visit, run: Path) -> None:
    with served(Told(run)) as client:
        page = visit(client)
        page.goto("/#/")
        switch = page.get_by_role("button", name="Keys", exact=True)
        playwright.expect(switch).to_have_attribute("aria-pressed", "true")
        switch.click()
        page.reload()  # it stays so
        page.wait_for_selector(".scroll .cell img")
        playwright.expect(switch).to_have_attribute("aria-pressed", "false")
        page.locator(".scroll .cell").first.focus()
        page.keyboard.press("x")
        page.keyboard.press("ArrowRight")
        assert page.locator(".cell.chosen").count() == 0
        assert page.evaluate("document.activeElement.dataset.place") == "1", "arrows are no letters"
        page.evaluate("location.hash = '#/label'")
        page.wait_for_selector(".large")
        for key in ("1", "s", "u", "n"):
            page.keyboard.press(key)
        page.wait_for_timeout(300)
        assert hand_labels(run) == {} and page.evaluate("document.activeElement.tagName") != "INPUT"
        page.get_by_label("Type a label").fill("")
        page.keyboard.type("x1")  # fields take letters
        page.keyboard.press("Enter")
        page.wait_for_selector("#message >> text=Labelled 1 picture")
        switch.click()
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("u")
        page.wait_for_selector("#message >> text=Undone")


@pytest.mark.fault("a page that stays dead when its server is back")
@pytest.mark.parametrize("view", ["", "label", "map", "outliers", "picture/3"])
def test_a_view_says_that_the_server_is_gone_and_comes_back_by_itself(visit, run: Path, view: str) -> None:
    with served(Told(run)) as client:
        page = visit(client)
        page.goto("/#/nothing")
        page.wait_for_selector(".empty")
        page.context.set_offline(True)
        page.evaluate("view => { location.hash = '#/' + view; }", view)
        page.wait_for_selector("text=Lost connection to instdisc: is it still running?")
        page.context.set_offline(False)
        page.wait_for_selector(".scroll .cell img, .few .cell img, .large, canvas.map", timeout=15_000)


def test_a_label_that_did_not_get_through_is_told_and_can_be_given_again(visit, run: Path) -> None:
    with served(Told(run)) as client:
        page = visit(client)
        page.goto("/#/label")
        page.wait_for_selector(".large")
        page.context.set_offline(True)
        page.keyboard.press("1")
        page.wait_for_selector("#message.bad >> text=Lost connection to instdisc")
        assert hand_labels(run) == {}
        page.context.set_offline(False)
        page.keyboard.press("1")
        page.wait_for_selector("#message:not(.bad) >> text=Labelled 1 picture")
        assert len(hand_labels(run)) == 1


def test_a_slow_network_shows_that_something_is_on_its_way(visit, run: Path) -> None:
    """400 kilobits and 400 ms: the first word within 1.5 s, the first picture within ten."""
    with served(Told(run)) as client:
        page = visit(client)
        line = page.context.new_cdp_session(page)
        line.send("Network.enable")
        slow = {"offline": False, "latency": 400, "downloadThroughput": 50_000, "uploadThroughput": 50_000}
        line.send("Network.emulateNetworkConditions", slow)
        page.goto("/#/", wait_until="commit")
        page.wait_for_selector("text=Opening the collection", timeout=5_000)
        page.wait_for_selector(".scroll .cell img", timeout=30_000)
        page.wait_for_function("() => document.querySelector('.cell img').naturalWidth > 0")
        page.evaluate("location.hash = '#/label'")
        page.wait_for_selector("#busy:not([hidden])", timeout=1_500)
        page.wait_for_selector(".large")
        page.wait_for_selector("#busy", state="hidden")


class Slow(Told):
    """Copies and the map take seconds, as they would of many pictures."""

    steps, seconds = 60, 0.1

    def copies(self) -> Any:
        with Bar(self.steps, "Making thumbnails", "pictures", enabled=False) as bar:
            for _ in range(self.steps):
                time.sleep(self.seconds)
                bar.advance()
        return super().copies()


@pytest.mark.fault("a comparison of minutes without a bar, a time left, or a way to end it")
def test_a_long_comparison_has_a_bar_a_time_left_and_an_end(visit, run: Path) -> None:
    with served(Slow(run)) as client:
        page = visit(client)
        page.goto("/#/duplicates")
        told = page.locator("main [role=status]")
        page.wait_for_selector("text=/Making thumbnails, about [0-9]+ s left/")
        assert 1 <= int(re.findall(r"about (\d+) s", told.inner_text())[0]) <= 3 * Slow.steps * Slow.seconds
        first = page.locator("progress").evaluate("it => it.value")
        page.wait_for_function("first => document.querySelector('progress').value > first", arg=first)
        state = client.json("/api/work")
        assert state["what"] == "Making thumbnails" and 0 < state["progress"] < 1
        page.get_by_role("button", name="Stop").click()
        page.wait_for_selector(".empty >> text=Stopped.")
        assert client.json("/api/work") == {"what": "", "progress": 0.0, "seconds_left": None}
        Slow.steps = 1
        page.get_by_role("button", name="Try again").click()
        page.wait_for_selector("text=No copies")
        Slow.steps = 60


@pytest.mark.fault("the time left is wrong by a factor of ten at the start")
def test_the_time_left_of_the_map_is_about_right_from_its_first_word(visit, run: Path) -> None:
    """Neighbours at once, then loading, then even steps: each time that is said is held against the end."""
    made = threading.Event()

    class Making(Told):
        def map_points(self) -> Any:
            return super().map_points() if made.is_set() else None

        def make_map(self, progress: Callable[[float], None]) -> None:
            progress(0.02)
            time.sleep(1.5)
            for step in range(1, 81):
                progress(0.02 + 0.98 * step / 80)
                time.sleep(0.1)
            made.set()

    with served(Making(run)) as client:
        page = visit(client)
        page.goto("/#/map")
        page.get_by_role("button", name="Compute the map").click()
        said: list[tuple[float, int]] = []
        while not made.is_set():
            words = page.locator("main [role=status]")
            found = re.findall(r"about (\d+) s left", words.inner_text() if words.count() else "")
            said += [(time.monotonic(), int(one)) for one in found]
            page.wait_for_timeout(100)
        end = time.monotonic()
        page.wait_for_selector("canvas.map")
    assert len(said) > 10
    for at, left in said:
        assert (end - at) / 2 - 2 <= left <= 2 * (end - at) + 2, (end - at, left)


def test_the_shares_of_a_maps_steps_grow_evenly_to_the_whole() -> None:
    from instdisc.jobs.tsne import share_of_time

    shares = np.array([share_of_time(step) for step in range(0, 751, 10)])
    grown = np.diff(shares)
    assert shares[0] == 0 and shares[-1] == pytest.approx(1) and (grown > 0).all()
    assert grown[-1] / grown[0] == pytest.approx(3) and (np.diff(grown) >= -1e-12).all()


@pytest.mark.fault("clusters that are strewn over the map, and say nothing of what is in them")
def test_the_legend_names_the_clusters_and_each_is_one_place(visit, run: Path) -> None:
    """Vectors that tell the colours apart, and a map that does not: before, a cluster lay all over the map."""
    with served(Told(run)) as client:
        page = visit(client)
        page.goto("/#/map?by=cluster")
        page.wait_for_selector(".legend a")
        texts = page.locator(".legend a").all_inner_texts()
        assert len(texts) == len(set(texts)) == 12
        assert all(re.fullmatch(r"((mostly )?(red|green|blue)|mixed), \d+( \(\d+\))?", one) for one in texts), texts
        content = client.send("GET", "/api/map/points")[2]
        points = np.frombuffer(content[4 * COUNT :], "<f4").reshape(-1, 2)
        codes = np.array(client.json("/api/map/colours?by=cluster")["codes"])
    for code in range(12):
        inside = points[codes == code]
        middles = {other: points[codes == other].mean(0) for other in range(12)}
        nearest = [min(middles, key=lambda other, at=at: float(((middles[other] - at) ** 2).sum())) for at in inside]
        assert np.mean(np.array(nearest) == code) > 0.8
