"""What is drawn: the right pictures in the right places with the right borders, and curves of what the metrics hold."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instdisc.errors import InputError
from instdisc.report import neighbour_sheet, plots, training_curves
from instdisc.report import sheet as drawing

RED, BLUE, YELLOW = (200, 10, 10), (10, 10, 200), (220, 220, 0)
GREEN_BORDER, ORANGE_BORDER = (0, 158, 115), (213, 94, 0)


def plain(colour: tuple[int, int, int], height: int = 32, width: int = 32) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3))


def runs_of(line: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many separate stretches of a colour a line of pixels holds."""
    hit = (line == np.array(colour)).all(axis=-1).astype(int)
    return int((np.diff(np.concatenate([[0], hit])) == 1).sum())


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def area(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((sheet == np.array(colour)).all(axis=-1).sum())


def test_each_row_is_a_query_and_its_neighbours_in_order(tmp_path: Path) -> None:
    queries = [plain(RED), plain(BLUE)]
    neighbours = [[plain(BLUE), plain(YELLOW)], [plain(YELLOW), plain(RED)]]
    neighbour_sheet(queries, neighbours, [[0.9, 0.5], [0.8, 0.1]], tmp_path / "sheet.png")
    sheet = drawn(tmp_path / "sheet.png")
    side = drawing._CELL
    known = {colour: area(sheet, colour) for colour in (RED, BLUE, YELLOW)}
    assert known == dict.fromkeys((RED, BLUE, YELLOW), 2 * side * side)
    centres = lambda colour, half: np.nonzero((half == np.array(colour)).all(axis=-1))[1].mean()  # noqa: E731
    middle = len(sheet) // 2
    upper, lower = sheet[:middle], sheet[middle:]
    assert centres(RED, upper) < centres(BLUE, upper) < centres(YELLOW, upper)
    assert centres(BLUE, lower) < centres(YELLOW, lower) < centres(RED, lower)
    assert not area(sheet, GREEN_BORDER) and not area(sheet, ORANGE_BORDER)


def test_borders_say_the_class_by_colour_and_by_shape(tmp_path: Path) -> None:
    neighbour_sheet(
        [plain(RED)],
        [[plain(BLUE), plain(YELLOW), plain(BLUE)]],
        [[0.9, 0.5, 0.4]],
        tmp_path / "sheet.png",
        query_labels=["cat"],
        neighbour_labels=[["cat", "dog", ""]],
    )
    sheet = drawn(tmp_path / "sheet.png")
    top = int(np.nonzero((sheet == np.array(RED)).all(axis=-1))[0][0]) - 2  # inside the border above the pictures
    assert runs_of(sheet[top], GREEN_BORDER) == 1  # solid
    assert runs_of(sheet[top], ORANGE_BORDER) > 4  # broken
    frame = 4 * drawing._BORDER * (drawing._CELL + drawing._BORDER)
    legend = 4 * drawing._BORDER * (drawing._LEGEND_BOX + drawing._BORDER)
    assert area(sheet, GREEN_BORDER) == frame + legend  # one picture of the class; none for the one without a label


def test_proportions_are_kept_and_any_picture_is_taken(tmp_path: Path) -> None:
    wide, tall, grey = plain(RED, 100, 400), Image.fromarray(plain(BLUE, 400, 100)), np.full((8, 8), 77, np.uint8)
    neighbour_sheet(
        [wide], [[tall, grey, Image.new("RGBA", (1, 1000), (*YELLOW, 255))]], [[1, 0, -1]], tmp_path / "s.png"
    )
    sheet, side = drawn(tmp_path / "s.png"), drawing._CELL
    assert area(sheet, RED) == area(sheet, BLUE) == side * side // 4
    assert area(sheet, (77, 77, 77)) >= side * side
    assert area(sheet, YELLOW) == side


def test_long_names_stay_under_their_picture() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(drawing._TEXT)
    text = drawing._fitted("an uncommonly long\nname of a class", 112, font)
    assert text.startswith("an uncomm") and text.endswith("…") and font.getlength(text) <= 112
    assert drawing._fitted("cat", 112, font) == "cat"


def test_one_neighbour_leaves_room_for_the_legend(tmp_path: Path) -> None:
    neighbour_sheet(
        [plain(RED)], [[plain(BLUE)]], [[1]], tmp_path / "s.png", query_labels=["a"], neighbour_labels=[["b"]]
    )
    sheet = drawn(tmp_path / "s.png")
    assert (sheet[:, -drawing._MARGIN // 2 :] == 255).all()


def test_sheets_that_cannot_be_drawn(tmp_path: Path) -> None:
    out = tmp_path / "s.png"
    with pytest.raises(InputError, match="at least one query"):
        neighbour_sheet([], [], np.zeros((0, 3)), out)
    with pytest.raises(InputError, match="a score for each of them"):
        neighbour_sheet([plain(RED)], [[plain(RED)]], [[1, 2]], out)
    with pytest.raises(InputError, match="a score for each of them"):
        neighbour_sheet([plain(RED)] * 2, [[plain(RED)], []], [[1], [2]], out)
    with pytest.raises(InputError, match="one label for each"):
        neighbour_sheet([plain(RED)], [[plain(RED)]], [[1]], out, query_labels=["a"], neighbour_labels=[["a", "b"]])
    assert not out.exists()


def write_metrics(path: Path, *, measured: bool = True, cut: bool = False) -> None:
    lines = []
    for epoch in range(1, 21):
        losses = {"softmax": 9 / epoch, "proximal": float("nan") if epoch == 3 else 0.1}
        lines.append({"step": epoch * 10, "epoch": epoch, "loss": 9.0, "losses": losses})
        if measured and epoch % 5 == 0:
            numbers = {"knn": 0.5 + epoch / 100, "uniformity": -2.0, "effective_rank": 40.0, "alignment": None}
            lines.append({"step": epoch * 10, "epoch": epoch, "measured": numbers})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + ('{"step": 21, "ep' if cut else ""))


def test_panels_hold_the_numbers_of_the_metrics(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m.jsonl", cut=True)
    panels = plots._panels(plots._read_lines(tmp_path / "m.jsonl"))
    assert [name.split()[0] for name in panels] == ["Loss", "kNN", "Uniformity", "Effective"]
    assert panels["Loss"]["softmax"] == [(epoch, 9 / epoch) for epoch in range(1, 21)]
    assert [epoch for epoch, _ in panels["Loss"]["proximal"]] == [1, 2, *range(4, 21)]
    (curve,) = panels["kNN accuracy, % (higher is better)"].values()
    assert curve == [(epoch, pytest.approx(50 + epoch)) for epoch in (5, 10, 15, 20)]


def test_where_views_grow_is_marked(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = []
    for sides in ([16, 16, 24, 24, 32], [32] * 5):
        lines = [{"epoch": epoch + 1, "losses": {"nce": 9 - epoch}, "size": side} for epoch, side in enumerate(sides)]
        (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        training_curves(tmp_path / "m.jsonl", tmp_path / "c.png")
        pictures.append(drawn(tmp_path / "c.png"))
    changed = (pictures[0] != pictures[1]).any(axis=2).sum(axis=0)  # pixels that differ, by column
    columns = np.flatnonzero(changed > 100)
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 5) + 1)
    assert [len(group) < 5 for group in groups] == [True, True], "two upright lines"
    blue = np.flatnonzero((pictures[1] == (0, 114, 178)).all(axis=2).any(axis=0))  # the curve goes from epoch 1 to 5
    places = [1 + 4 * (group.mean() - blue[0]) / (blue[-1] - blue[0]) for group in groups]
    assert places == [pytest.approx(3, abs=0.05), pytest.approx(5, abs=0.05)]


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_metrics(tmp_path / "m.jsonl")
    training_curves(tmp_path / "m.jsonl", tmp_path / "all.png", title="runs/first")
    write_metrics(tmp_path / "m.jsonl", measured=False)
    training_curves(tmp_path / "m.jsonl", tmp_path / "loss.png")
    both = [drawn(tmp_path / name) for name in ("all.png", "loss.png")]
    assert both[0].shape[1] > 2 * both[1].shape[1]  # three panels side by side, and one
    blue, orange = (0, 114, 178), (213, 94, 0)
    assert all(area(image, blue) > 100 and area(image, orange) > 100 for image in both)


def test_curves_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="There are no metrics at"):
        training_curves(tmp_path / "m.jsonl", tmp_path / "c.png")
    (tmp_path / "m.jsonl").write_text('{"step": 0, "epoch": 0}\n')
    with pytest.raises(InputError, match="nothing to draw yet"):
        training_curves(tmp_path / "m.jsonl", tmp_path / "c.png")
    write_metrics(tmp_path / "m.jsonl")
    real = builtins.__import__

    def without_matplotlib(name: str, *rest, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(InputError, match=r"instdisc\[plots\]"):
        training_curves(tmp_path / "m.jsonl", tmp_path / "c.png")
