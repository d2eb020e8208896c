"""`instdisc.open`: what a notebook gets of a run, beside scikit-learn and the pictures themselves."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from tiny_runs import picture_folder, tiny

import instdisc
from instdisc.errors import InputError
from instdisc.jobs.handle import Handle
from instdisc.jobs.train import train


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = picture_folder(tmp_path_factory.mktemp("handle") / "pictures", 40)
    (folder / "red" / "copy.png").write_bytes((folder / "red" / "0003.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def opened(pictures: Path) -> Handle:
    return instdisc.open(train(pictures, pictures.parent / "run", tiny(epochs=1), say=None).path, device="cpu")


def pixels(file: str | Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_its_pictures(opened: Handle, pictures: Path) -> None:
    assert len(opened) == 41 and "41 pictures" in repr(opened)
    assert opened.labels == [Path(one["path"]).parent.name for one in opened[:]]
    seventeen = opened[17][0]
    assert (opened.picture(seventeen["row"]) == pixels(seventeen["path"])).all()
    with pytest.raises(IndexError):
        opened[41]
    assert set(opened.to_arrow().column_names) == {"row", "id", "path", "label"}


def test_a_search_finds_what_scikit_learn_finds(opened: Handle, pictures: Path) -> None:
    vectors = opened.vectors()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    file = Path(opened[5][0]["path"])
    far, places = NearestNeighbors(n_neighbors=7, metric="cosine").fit(vectors).kneighbors(vectors[[5]])
    expected = [place for place in places[0] if place != 5][:6]
    for query in (5, file, str(file)):
        found = opened.search(query, k=6)
        assert [one["row"] for one in found] == opened.rows[expected].tolist()
        assert [one["score"] for one in found] == pytest.approx(sorted(1 - far[0][far[0] > 1e-6])[::-1][:6], abs=1e-3)
    outside = opened.search(pixels(file), k=3)
    assert outside[0]["path"] == str(file) and outside[0]["score"] == pytest.approx(1, abs=1e-3)
    with Image.open(file) as image:
        assert {one["label"] for one in opened.search(image, k=5, label="blue")} == {"blue"}
    with pytest.raises(InputError, match="no picture 41: rows are 0 to 40"):
        opened.search(41)
    with pytest.raises(InputError):
        opened.search(pictures / "none.png")


def test_copies_and_outliers(opened: Handle) -> None:
    groups = opened.duplicates()
    assert {Path(one["path"]).name for one in groups if one["group"] == 0} == {"copy.png", "0003.png"}
    assert [one["keep"] for one in groups if one["group"] == 0] == [True, False]
    assert {one["kind"] for one in groups if not one["keep"]} == {"same file"}
    strange = opened.outliers(4)
    assert len(strange) == 4
    assert [one["outlier_score"] for one in strange] == sorted((one["outlier_score"] for one in strange), reverse=True)


def test_the_map_is_computed_once(opened: Handle) -> None:
    first, again = opened.map(), opened.map()
    assert len(first) == 41 and list(first) == list(again)
    assert len({(one["x"], one["y"]) for one in first}) > 30


def test_results_print_as_a_table_and_show_the_pictures(opened: Handle) -> None:
    found = opened.search(0, k=30)
    lines = repr(found).splitlines()
    assert lines[0] == "30 pictures most like row 0" and lines[1].split() == ["row", "id", "path", "label", "score"]
    assert len(lines) == 23 and lines[-1] == "... and 10 more"
    page = found[:3]._repr_html_()
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(shown) == 3
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0]))), np.float32)
    assert np.abs(image - opened.picture(found[0]["row"])).mean() < 12, "the picture itself, as JPEG"
    assert repr(found[:0]) == "30 pictures most like row 0: none" and len(found[:0].to_arrow()) == 0
    assert (
        "&lt;"
        in instdisc.jobs.handle.Results(
            [{"row": 0, "id": "", "path": "<b>", "label": "<i>"}], opened.picture, "<x>"
        )._repr_html_()
        and "<b>" not in page
    )


def test_frames(opened: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    frame = opened.search(0, k=5).to_pandas()
    assert isinstance(frame, pandas.DataFrame) and frame.score.is_monotonic_decreasing
    assert len(opened.to_pandas()) == 41
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pip install pandas"):
        opened.to_pandas()


def test_the_page_in_the_background(opened: Handle, tmp_path: Path) -> None:
    with opened.serve() as server:
        assert f'src="{server.url}"' in server._repr_html_() and "served" in repr(server)
        with urllib.request.urlopen(f"{server.url}api/collection", timeout=1200) as answer:
            assert json.load(answer)["pictures"] == 41
    assert "ended" in repr(server)
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="is not a run folder"):
        instdisc.open(tmp_path / "run")
