"""The sheets, colours and names of the map, each a second way: by loops over points, by the pictures' own pixels."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import COUNT, Client, Told, made_collection, served

from instdisc.serve import session
from instdisc.serve.regions import regions

ACROSS = 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("map"))


class Scattered(Told):
    """With points that lie anywhere, in a window that is wider than high."""

    def map_points(self) -> tuple[np.ndarray, np.ndarray]:
        points = np.random.default_rng(5).normal(size=(len(self.index), 2)) * [40, 3] + [7, -100]
        return np.arange(len(self.index)), points.astype(np.float32)


@pytest.fixture
def opened(made: tuple[Path, Path]) -> Scattered:
    return Scattered(made[1])


@pytest.fixture
def client(opened: Scattered) -> Iterator[Client]:
    with served(opened) as client:
        yield client


def points_of(client: Client) -> tuple[list[int], np.ndarray, str]:
    status, headers, content = client.send("GET", "/api/map/points")
    assert status == 200
    count = len(content) // 12
    points = np.frombuffer(content, "<f4", offset=4 * count).reshape(count, 2)
    return np.frombuffer(content, "<i4", count).tolist(), points, headers["etag"].strip('"')


def sheet_of(client: Client, path: str) -> tuple[Image.Image, list[int], list[int]]:
    """The picture, the cells and the places of a sheet."""
    status, headers, content = client.send("GET", f"/api/map/sheet/{path}")
    assert status == 200 and headers["content-type"] == "image/jpeg", content
    many = int.from_bytes(content[-4:], "little")
    numbers = np.frombuffer(content[-8 * many - 4 : -4], "<i4").tolist()
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture, numbers[:many], numbers[many:]


def by_hand(points: np.ndarray, columns: int, rows: int, level: int, part: int) -> dict[int, int]:
    """cell -> the place of the point that stands for it."""
    across, found = 2**level, dict[int, tuple[float, int]]()
    down, right = divmod(part, across)
    for place, (u, v) in enumerate(points.tolist()):
        x, y = u * columns * across, v * rows * across
        i, j = min(int(x), columns * across - 1), min(int(y), rows * across - 1)
        if i // columns != right or j // rows != down:
            continue
        cell = j % rows * columns + i % columns
        best = (x - i - 0.5) ** 2 + (y - j - 0.5) ** 2, place
        found[cell] = min(found.get(cell, best), best)
    return {cell: place for cell, (_, place) in sorted(found.items())}


def test_points_fill_the_square_and_are_in_no_order_of_labels(client: Client, opened: Scattered) -> None:
    rows, points, _ = points_of(client)
    given = opened.map_points()[1].astype(np.float64)
    assert sorted(rows) == list(range(COUNT)) and rows != sorted(rows)
    assert points.min(0).tolist() == [0, 0] and points.max(0).tolist() == [1, 1]
    for axis in (0, 1):
        low, high = given[:, axis].min(), given[:, axis].max()
        np.testing.assert_allclose(points[:, axis], (given[rows, axis] - low) / (high - low), atol=1e-6)
    assert points_of(client)[0] == rows


@pytest.mark.parametrize(("columns", "rows", "level"), [(7, 5, 0), (36, 18, 0), (3, 2, 1), (5, 4, 3), (1, 1, 8)])
def test_the_right_tile_stands_at_the_right_place(
    client: Client, opened: Scattered, columns: int, rows: int, level: int
) -> None:
    known, points, _ = points_of(client)
    pictures = {row: opened.picture(row).astype(float) for row in known}
    seen = Counter[int]()
    for part in range(4**level) if level < 4 else [0, 77, 4**level - 1]:
        sheet, cells, places = sheet_of(client, f"{level}/{part}?columns={columns}&rows={rows}")
        assert dict(zip(cells, places, strict=True)) == by_hand(points, columns, rows, level, part)
        side = sheet.width // ACROSS
        assert side == (96 if columns * rows <= 256 else 64)
        seen.update(places)
        for slot, place in enumerate(places):
            x, y = slot % ACROSS * side, slot // ACROSS * side
            tile = sheet.crop((x, y, x + side, y + side)).resize((16, 16), Image.Resampling.BOX)
            apart = {row: np.abs(np.asarray(tile, float) - own).mean() for row, own in pictures.items()}
            assert min(apart, key=lambda row: apart[row]) == known[place]
            assert apart[known[place]] < 8
    assert max(seen.values(), default=1) == 1
    assert level > 0 or len(seen) == len(by_hand(points, columns, rows, 0, 0))


def test_a_browser_keeps_a_sheet_of_this_version_alone(client: Client, opened: Scattered) -> None:
    _, _, version = points_of(client)
    path = "/api/map/sheet/0/0?columns=8&rows=4"
    assert client.send("GET", path)[1]["cache-control"] == "no-store"
    assert "immutable" in client.send("GET", f"{path}&version={version}")[1]["cache-control"]
    opened.index.removed[3] = True
    rows, _, other = points_of(client)
    assert other != version and 3 not in rows and len(rows) == COUNT - 1
    status, _, content = client.send("GET", f"{path}&version={version}")
    assert status == 404 and b"load the page again" in content
    for part in range(4):
        _, _, places = sheet_of(client, f"1/{part}?columns=36&rows=18")
        assert 3 not in [rows[place] for place in places]


def test_of_too_many_points_a_random_part_is_drawn_and_that_is_said(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, points, _ = points_of(client)
    assert "drawn" not in client.json("/api/map/colours?by=folder")["note"]
    monkeypatch.setattr(session, "MOST_DRAWN", 9)
    fewer, there, _ = points_of(client)
    assert fewer == rows[:9] and np.array_equal(there, points[:9])
    for by in ("folder", "label", "cluster", "suggestion"):
        found = client.json(f"/api/map/colours?by={by}")
        assert len(found["codes"]) == 9 and f"A random 9 of {COUNT} pictures are drawn." in found["note"]
    places = [place for part in range(4) for place in sheet_of(client, f"1/{part}?columns=36&rows=18")[2]]
    assert max(places) < 9


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("0/1", 400), ("2/16", 400), ("0/0?columns=64&rows=64", 400), ("9/0", 422), ("-1/0", 422), ("0/-1", 422),
        ("0/0?columns=0", 422), ("0/0?rows=x", 422), ("0/0?columns=99999", 422), ("x/0", 422), ("0/0?version=old", 404),
    ],
)  # fmt: skip
def test_what_is_no_part_is_refused_in_a_sentence(client: Client, path: str, status: int) -> None:
    found, _, content = client.send("GET", f"/api/map/sheet/{path}")
    assert found == status and b"detail" in content and b"Traceback" not in content


def test_a_picture_that_is_gone_is_a_grey_tile(tmp_path: Path) -> None:
    pictures, run = made_collection(tmp_path)
    opened = Scattered(run)
    gone = Path(opened.location(4))
    with served(opened) as client:
        rows, _, _ = points_of(client)
        gone.unlink()
        sheet, _, places = sheet_of(client, "0/0?columns=60&rows=30")
        slot = [rows[place] for place in places].index(4)
    side = sheet.width // ACROSS
    x, y = slot % ACROSS * side, slot // ACROSS * side
    tile = np.asarray(sheet.crop((x, y, x + side, y + side)), float)
    assert np.abs(tile - 128).max() <= 2 and pictures.is_dir()


def test_colours_by_folder_and_of_many_labels(made: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(made[1], tmp_path / "run"))
    with served(Told(run)) as client:
        rows, _, _ = points_of(client)
        folders = [Path(client.json(f"/api/pictures/{row}")["path"]).parent.name for row in rows]
        found = client.json("/api/map/colours?by=folder")
        assert [found["names"][code] for code in found["codes"]] == folders
        assert found["names"] == sorted(set(folders)) and found["others"] == 0 and found["none"] == ""
        for row in range(COUNT):
            client.json("/api/labels", {"rows": [row], "label": f"kind {row // 2 if row < 22 else row}"})
        found = client.json("/api/map/colours?by=label")
        shown = {row: found["names"][code] for row, code in zip(rows, found["codes"], strict=True)}
    kinds = {f"kind {number}" for number in range(11)}
    assert (
        found["names"] == [*sorted(kinds, key=lambda name: int(name[5:])), "18 other labels"] and found["others"] == 18
    )
    assert all(shown[row] == (f"kind {row // 2}" if row < 22 else "18 other labels") for row in range(COUNT))


def test_regions_are_named_where_nearly_all_are_called_so() -> None:
    random = np.random.default_rng(0)

    def blob(x: float, y: float, count: int) -> np.ndarray:
        return np.clip(random.normal([x, y], 0.05, (count, 2)), 0, 1)

    points = np.concatenate([blob(0.2, 0.2, 300), blob(0.8, 0.2, 100), blob(0.5, 0.8, 200)]).astype(np.float32)
    codes = np.array([0] * 300 + [1] * 100 + [0, 1] * 100)  # the third is mixed
    found = regions(points, codes, ["cat", "dog"])
    assert [region.name for region in found[:2]] == ["cat", "dog"]
    for region, (x, y) in zip(found, [(0.2, 0.2), (0.8, 0.2)], strict=False):
        assert abs(region.x - x) < 0.06 and abs(region.y - y) < 0.06
    assert found[0].count > 280 and found[1].count > 90
    assert not [one for one in found if one.y > 0.7 and one.count > 10]
    assert regions(points, np.zeros(600, int), ["cat", "dog"]) == []
    assert regions(points, np.full(600, -1), []) == []


def test_names_are_given_by_hand_else_by_folder(made: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    class Apart(Told):
        """Each colour in a corner of its own."""

        def map_points(self) -> tuple[np.ndarray, np.ndarray]:
            corner = {"red": (0, 0), "green": (9, 0), "blue": (0, 9)}
            folders = [Path(one.path).parent.name for one in self.index.entries(range(len(self.index)))]
            noise = np.random.default_rng(1).uniform(0, 1, (len(folders), 2))
            return np.arange(len(folders)), (np.array([corner[one] for one in folders]) + noise).astype(np.float32)

    run = Path(shutil.copytree(made[1], tmp_path / "run"))
    with served(Apart(run)) as client:
        found = client.json("/api/map/names")["regions"]
        places = {one["name"]: (round(one["x"]), round(one["y"])) for one in found}
        assert places == {"red": (0, 0), "green": (1, 0), "blue": (0, 1)}
        red = [one["row"] for one in client.json("/api/pictures?label=red&count=500")["pictures"]]
        client.json("/api/labels", {"rows": red, "label": "rose"})
        assert "rose" in {one["name"] for one in client.json("/api/map/names")["regions"]}


def test_without_a_map_there_is_neither_a_sheet_nor_a_name(made: tuple[Path, Path]) -> None:
    with served(made[1]) as client:
        for path in ("sheet/0/0", "names", "points", "colours"):
            status, _, content = client.send("GET", f"/api/map/{path}")
            assert status == 404 and b"There is no map yet." in content
