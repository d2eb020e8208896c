"""The map drawn as pictures, by doing what a person does; what is drawn is read from the canvas, beside the files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browsing import needs_chromium, playwright, quiet_page
from PIL import Image
from serving import COUNT, Told, made_collection, served

pytestmark = needs_chromium
MARGIN = 16  # pixels around the map


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("map"))


class Drawn:
    """The page of the map, the sheets that it asked for, and where what stands on its canvas."""

    def __init__(self, page: playwright.Page) -> None:
        self.page, self.sheets = page, list[str]()
        page.on("request", lambda one: self.sheets.append(one.url) if "/sheet/" in one.url else None)

    def visit(self, address: str = "/#/map") -> Drawn:
        self.page.goto("about:blank")
        self.page.goto(address)
        self.page.wait_for_selector("canvas.map")
        return self

    def id_of(self, row: int) -> str:
        found: str = self.page.evaluate("async (row) => (await (await fetch(`api/pictures/${row}`)).json()).id", row)
        return found

    @property
    def box(self) -> dict[str, float]:
        box = self.page.locator("canvas.map").bounding_box()
        assert box is not None
        return box

    def pixel(self, x: float, y: float) -> list[int]:
        """Red, green, blue and alpha of a place of the canvas."""
        found: list[int] = self.page.evaluate(
            "([x, y]) => [...document.querySelector('canvas.map').getContext('2d').getImageData(x, y, 1, 1).data]",
            [x, y],
        )
        return found

    def until(self, x: float, y: float, test: str) -> None:
        """Wait until the pixel (r, g, b, a) is so."""
        self.page.wait_for_function(
            f"""([x, y]) => {{
                const pen = document.querySelector('canvas.map').getContext('2d');
                const [r, g, b, a] = pen.getImageData(x, y, 1, 1).data;
                return {test};
            }}""",
            arg=[x, y],
        )

    def grid(self) -> tuple[int, int]:
        """Columns and rows of the last sheet."""
        self.page.wait_for_function(
            "() => performance.getEntriesByType('resource').some((one) => /sheet/.test(one.name))"
        )
        found = re.search(r"columns=(\d+)&rows=(\d+)", self.sheets[-1])
        assert found is not None
        return int(found[1]), int(found[2])

    def centre(self, row: int) -> tuple[float, float]:
        """Where, on the whole map, the middle of the cell of a picture is: ten stand in a row."""
        columns, rows = self.grid()
        wide, high = self.box["width"] - 2 * MARGIN, self.box["height"] - 2 * MARGIN
        i = min(int(row % 10 / 9 * columns), columns - 1)
        j = min(int(row // 10 / ((COUNT - 1) // 10) * rows), rows - 1)
        return MARGIN + (i + 0.5) * wide / columns, MARGIN + (j + 0.5) * high / rows


@pytest.fixture
def run(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "run"))


@pytest.fixture
def drawn(browser: playwright.Browser, run: Path) -> Iterator[Drawn]:
    with served(Told(run)) as client, quiet_page(browser, client.address) as page:
        yield Drawn(page).visit()


def selected(drawn: Drawn, count: int) -> None:
    drawn.page.wait_for_selector(f"#tray >> text=/^{count} selected$/")


def test_the_whole_map_is_one_request_and_shows_each_picture_at_its_place(
    drawn: Drawn, made: tuple[Path, Path]
) -> None:
    files = sorted(made[0].glob("*/*.png"))
    places = [drawn.centre(row) for row in range(COUNT)]
    drawn.until(*places[0], "a === 255")
    for row in (0, 5, 13, 22, COUNT - 1):
        expected = np.asarray(Image.open(files[row]).convert("RGB"), float)[6:10, 6:10].mean((0, 1))
        found = np.mean(
            [drawn.pixel(places[row][0] + dx, places[row][1] + dy)[:3] for dx in (-3, 3) for dy in (-3, 3)], 0
        )
        assert np.abs(found - expected).max() < 40 and found.argmax() == expected.argmax()
    assert len(drawn.sheets) == 1 and "/sheet/0/0?" in drawn.sheets[0]
    assert drawn.pixel(4, 4)[3] == 0, "nothing lies in the margin"


def test_zooming_leads_to_a_single_picture_which_a_click_opens(drawn: Drawn) -> None:
    row, box = 24, drawn.box
    u, v = row % 10 / 9, row // 10 / ((COUNT - 1) // 10)
    x, y = MARGIN + u * (box["width"] - 2 * MARGIN), MARGIN + v * (box["height"] - 2 * MARGIN)
    drawn.page.mouse.move(box["x"] + x, box["y"] + y)
    for _ in range(12):
        drawn.page.mouse.wheel(0, -120)
        drawn.page.wait_for_timeout(30)
    drawn.page.wait_for_function("() => location.hash.includes('see=')")
    drawn.until(x, y, "a === 255 && r + g + b > 0")
    assert any(re.search(r"/sheet/[2-8]/", one) for one in drawn.sheets)
    drawn.page.reload()
    drawn.page.wait_for_selector("canvas.map")
    drawn.until(x, y, "a === 255")
    drawn.page.mouse.click(box["x"] + x, box["y"] + y)
    drawn.page.wait_for_function(f"() => location.hash.startsWith('#/p/{drawn.id_of(row)}')")


def test_dots_are_a_choice_that_the_address_keeps(drawn: Drawn) -> None:
    middle = drawn.centre(24)
    drawn.until(*middle, "a === 255")
    drawn.page.get_by_role("button", name="Dots").click()
    drawn.page.wait_for_function("() => location.hash.includes('as=dots')")
    filled = """() => {
        const canvas = document.querySelector('canvas.map');
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let count = 0;
        for (let place = 3; place < pixels.length; place += 4) count += pixels[place] > 0;
        return count;
    }"""
    dots = drawn.page.evaluate(filled)
    assert 0 < dots < COUNT * 60
    drawn.page.reload()
    drawn.page.wait_for_selector("canvas.map")
    drawn.page.wait_for_timeout(500)
    assert abs(drawn.page.evaluate(filled) - dots) < 20
    drawn.page.get_by_role("button", name="Dots").click()
    drawn.until(*middle, "a === 255")
    assert drawn.page.evaluate(filled) > 10 * dots


def test_the_lasso_leads_to_a_list_in_three_acts_and_stays_armed(drawn: Drawn, made: tuple[Path, Path]) -> None:
    files, box = sorted(made[0].glob("*/*.png")), drawn.box

    def around(right: float) -> None:
        drawn.page.mouse.move(box["x"] + 3, box["y"] + 3)
        drawn.page.mouse.down()
        for x, y in ((right, 0), (right, 1), (0, 1), (0, 0)):
            drawn.page.mouse.move(
                box["x"] + 3 + x * (box["width"] - 6), box["y"] + 3 + y * (box["height"] - 6), steps=4
            )
        drawn.page.mouse.up()

    drawn.page.get_by_role("button", name="Lasso").click()
    around(0.5)  # the left half: five of ten in each row
    selected(drawn, COUNT // 2)
    with drawn.page.expect_download() as download:
        drawn.page.get_by_role("button", name="Download list").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert sorted(lines) == sorted(str(files[row]) for row in range(COUNT) if row % 10 < 5)
    drawn.page.keyboard.press("Escape")
    drawn.page.wait_for_selector("#tray", state="hidden")
    box = drawn.box
    around(1)
    selected(drawn, COUNT)


def test_cells_are_selected_and_opened_by_keyboard(drawn: Drawn) -> None:
    drawn.until(*drawn.centre(0), "a === 255")
    page = drawn.page
    page.locator("canvas.map").focus()
    for _ in range(40):  # to the upper left corner
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowUp")
    page.wait_for_selector(".card img")
    page.keyboard.press("Space")
    selected(drawn, 1)
    for _ in range(40):
        page.keyboard.press("Shift+ArrowRight")
    selected(drawn, 10)
    for _ in range(20):
        page.keyboard.press("Shift+ArrowDown")
    selected(drawn, COUNT)
    page.keyboard.press("Space")  # all of the block are selected: they are let go
    page.wait_for_selector("#tray", state="hidden")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("x")
    selected(drawn, 1)
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => location.hash.startsWith('#/p/{drawn.id_of(COUNT - 1)}')")


def test_the_legend_isolates_and_opens(drawn: Drawn, made: tuple[Path, Path]) -> None:
    files, page = sorted(made[0].glob("*/*.png")), drawn.page
    red = next(row for row, file in enumerate(files) if file.parent.name == "red")
    blue = next(row for row, file in enumerate(files) if file.parent.name == "blue")
    places = {row: drawn.centre(row) for row in (red, blue)}
    drawn.until(*places[red], "a === 255")
    drawn.until(*places[blue], "a === 255")
    page.locator(".legend a", has_text="blue").click()
    drawn.until(*places[red], "a < 90")
    drawn.until(*places[blue], "a === 255")
    page.wait_for_function("() => location.hash.includes('only=blue')")
    page.reload()
    page.wait_for_selector(".legend a[aria-pressed=true] >> text=blue")
    drawn.until(*places[red], "a > 0 && a < 90")
    page.locator(".legend a", has_text="blue").click()
    drawn.until(*places[red], "a === 255")
    page.locator(".legend a", has_text="blue").dblclick()
    page.wait_for_function("() => location.hash === '#/?label=blue'")
    page.wait_for_selector(".scroll .cell img")


def test_the_map_is_whole_on_a_phone_in_the_dark(browser: playwright.Browser, run: Path) -> None:
    with served(Told(run)) as client:
        context = browser.new_context(
            viewport={"width": 390, "height": 844}, color_scheme="dark", base_url=client.address, has_touch=True
        )
        drawn = Drawn(context.new_page()).visit()
        drawn.until(*drawn.centre(0), "a === 255")
        assert drawn.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        columns, rows = drawn.grid()
        assert 40 <= (drawn.box["width"] - 2 * MARGIN) / columns < 91 and columns * rows <= 2048
        context.close()
