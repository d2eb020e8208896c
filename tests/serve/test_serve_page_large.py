"""The page of a million pictures in headless Chromium: it stays small, and its places are found again."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from browsing import needs_chromium, playwright
from serving import served

from instdisc.runs import RunFolder
from instdisc.search.index import Index
from instdisc.serve.facts import LabelState

pytestmark = needs_chromium


class Million:
    """A million pictures that are made when they are asked for."""

    vectors, recomputed, version = "search", True, 0
    folder = RunFolder("nowhere")

    def __init__(self) -> None:
        names = pa.array([f"{row:07d}" for row in range(1_000_000)], pa.large_string())
        self.dim = 2
        self.index = Index([torch.zeros(1_000_000, 2)], pa.table({"id": names, "location": names}))

    def picture(self, row: int, at_least: int | None = None) -> np.ndarray:
        return np.full((8, 8, 3), row % 256, np.uint8)

    def embed(self, pictures):
        raise NotImplementedError

    def hand_labels(self) -> dict[int, str]:
        return {}

    def known_outliers(self) -> list[tuple[int, float]]:
        return []

    def copies(self) -> list:
        return []

    def location(self, row: int) -> str:
        return f"{row:07d}"

    def map_points(self):
        return np.arange(0, 1_000_000, 10), np.random.default_rng(0).normal(size=(100_000, 2)).astype(np.float32)

    def make_map(self, progress) -> None:
        raise NotImplementedError

    def set_labels(self, rows, label, *, keep=False, bulk=False):
        raise NotImplementedError

    def last_act(self):
        return None

    def undo(self, act: str):
        raise NotImplementedError

    def classes(self) -> list[str]:
        return []

    def rename(self, old: str, new: str):
        raise NotImplementedError

    def file_facts(self, row: int):
        raise NotImplementedError

    def stamps(self):
        return None

    def label_state(self) -> LabelState:
        return LabelState({}, None, None)

    def labels_csv(self) -> str:
        return ""

    def suggestions(self):
        return None

    def proposals(self, count: int, by: str) -> list[int]:
        return []


def test_back_leads_to_the_place_in_the_grid(browser: playwright.Browser) -> None:
    with served(Million()) as client:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{client.address}/#/")
        page.wait_for_selector(".scroll button.cell img", timeout=120_000)
        page.evaluate("const one = document.querySelector('.scroll'); one.scrollTop = one.scrollHeight / 2")
        page.wait_for_function("() => /at=[0-9]{6}/.test(location.hash)", timeout=120_000)
        at = int(page.url.split("at=")[1])
        assert abs(at - 500_000) < 1_000
        # A wheel moves the pictures by what it says, though the bar is a scale.
        cell = page.locator(f"button.cell[data-row='{at + 12}']")
        cell.wait_for()
        before = cell.bounding_box()
        page.mouse.move(600, 500)
        page.mouse.wheel(0, 100)
        page.wait_for_timeout(800)
        after = cell.bounding_box()
        assert before is not None and after is not None and 60 < before["y"] - after["y"] < 140
        # A jump at the moment when the bar comes to where the pictures are is not undone.
        kept = page.evaluate("""async () => {
            const one = document.querySelector('.scroll'), pause = (ms) => new Promise((go) => setTimeout(go, ms));
            one.scrollTop += 40;
            await pause(200);
            for (const end = performance.now() + 150; performance.now() < end;);
            const wanted = one.scrollTop = one.scrollHeight / 4;
            await pause(600);
            return Math.abs(one.scrollTop - wanted);
        }""")
        assert kept < 200
        page.evaluate("one => { one.scrollTop = one.scrollHeight / 2 }", page.query_selector(".scroll"))
        page.wait_for_function("before => location.hash !== before", arg=page.evaluate("location.hash"))
        at = int(page.url.split("at=")[1])
        row = at + 24
        page.locator(f"button.cell[data-row='{row}']").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".large")
        page.go_back()
        page.wait_for_function("row => document.activeElement.dataset.row === row", arg=str(row), timeout=120_000)
        assert page.locator("button.cell[tabindex='0']").count() == 1  # the Tab key passes the grid in one step
        page.close()


@pytest.mark.parametrize(
    ("view", "shown", "move"),
    [
        ("", ".scroll button.cell img", "shown.closest('.scroll').scrollTop += 40"),
        (
            "map",
            "canvas.map",
            "shown.dispatchEvent(new WheelEvent('wheel', { deltaY: -60, cancelable: true }))",
        ),
    ],
)
def test_a_hand_that_rests_does_not_undo_what_it_did_next(
    browser: playwright.Browser, view: str, shown: str, move: str
) -> None:
    """Place or region are told to the address once the hand rests; a picture may be opened in that very moment.

    Every timer is held, and ends after the address has changed, but before the page has heard of that.
    """
    with served(Million()) as client:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.add_init_script("""
            const begin = setTimeout;
            window.held = null;
            window.setTimeout = (act, ...more) => (window.held ? (window.held.push(act), 0) : begin(act, ...more));
        """)
        page.goto(f"{client.address}/#/{view}")
        page.wait_for_selector(shown, timeout=120_000)
        page.evaluate(f"""async () => {{
            const shown = document.querySelector("{shown}");
            window.held = [];
            {move};
            for (let turn = 0; turn < 4; turn++) await new Promise((go) => requestAnimationFrame(go));
            const due = window.held;
            window.held = null;
            if (!due.length) throw new Error('nothing would be told');
            location.hash = '#/picture/5';
            due.forEach((act) => act());
        }}""")
        page.wait_for_selector(".one .subject", timeout=120_000)
        assert page.url.endswith("#/p/0000005")
        page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_a_million_pictures_scroll(browser: playwright.Browser, width: int) -> None:
    """Few elements, whatever the number; the last one can be reached, by bar and by key."""
    with served(Million()) as client:
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(f"{client.address}/#/")
        page.wait_for_selector(".scroll button.cell img", timeout=120_000)
        assert page.locator(".cell").count() < 400
        page.evaluate("document.querySelector('.scroll').scrollTop = 1e9")
        page.wait_for_selector("button.cell[data-row='999999']", timeout=120_000)
        assert page.locator(".cell").count() < 400
        page.locator("button.cell[data-row='999999']").focus()
        page.keyboard.press("Home")
        page.wait_for_function("() => document.activeElement.dataset.row === '0'", timeout=120_000)
        page.keyboard.press("End")
        page.wait_for_function("() => document.activeElement.dataset.row === '999999'", timeout=120_000)
        box = page.locator("button.cell[data-row='999999']").bounding_box()
        assert box is not None and box["y"] + box["height"] <= 801
        page.close()


@pytest.mark.slow
def test_a_map_of_a_hundred_thousand_points_is_smooth(browser: playwright.Browser) -> None:
    with served(Million()) as client:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{client.address}/#/map")
        page.wait_for_selector("canvas.map", timeout=120_000)
        frames = page.evaluate("""async () => {
            const canvas = document.querySelector("canvas.map");
            const box = canvas.getBoundingClientRect();
            let frames = 0;
            for (let turn = 0; turn < 30; turn++) {
                canvas.dispatchEvent(new WheelEvent("wheel", {deltaY: turn < 15 ? -60 : 60, clientX: box.left + 300,
                    clientY: box.top + 300, cancelable: true}));
                await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
                frames += 1;
            }
            return frames;
        }""")
        assert frames == 30, "each turn of the wheel was drawn"  # how soon: benchmarks/page.py
        page.mouse.move(640, 480)
        page.wait_for_selector(".card img", timeout=120_000)
        page.close()
