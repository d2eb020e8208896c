"""`instdisc.open`: what a notebook gets of a run, beside scikit-learn and the pictures themselves."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from tiny_runs import picture_folder, tiny

import instdisc
from instdisc.errors import InputError
from instdisc.jobs import index as index_job
from instdisc.jobs.handle import Handle, Results
from instdisc.jobs.own import open_vectors
from instdisc.jobs.search import search
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
    file, own_id = Path(opened[5][0]["path"]), opened[5][0]["id"]
    far, places = NearestNeighbors(n_neighbors=7, metric="cosine").fit(vectors).kneighbors(vectors[[5]])
    expected = [place for place in places[0] if place != 5][:6]
    for query in (5, np.int64(5), file, str(file), own_id, f"./{own_id}"):
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


def test_a_file_is_taken_before_an_id(opened: Handle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_id = opened[0][0]["id"]
    (tmp_path / own_id).parent.mkdir()
    Image.fromarray(255 - opened.picture(0)).save(tmp_path / own_id)
    inside = opened.search(own_id, k=3)
    monkeypatch.chdir(tmp_path)
    outside = opened.search(own_id, k=3)
    assert list(outside) == list(opened.search(255 - opened.picture(0), k=3)) != list(inside)


def test_both_ways_to_search_are_one(opened: Handle, pictures: Path, tmp_path: Path) -> None:
    """The command and the object, of a picture of the run by its path and its id, and of one from elsewhere."""
    run, file = opened.path, Path(opened[7][0]["path"])
    Image.fromarray(255 - opened.picture(7)).save(tmp_path / "other.png")
    asked = [file, opened[7][0]["id"], tmp_path / "other.png"]
    lines = search(run, asked, neighbours=5, device="cpu", say=None, sheet=tmp_path / "sheet.png")
    for query, line in zip(asked, lines, strict=True):
        found = opened.search(query, k=5)
        assert [(one["row"], one["path"]) for one in found] == [(one.row, one.path) for one in line]
        assert [one["score"] for one in found] == pytest.approx([one.score for one in line], abs=1e-5)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 3 * sheet.width / 10


def test_a_removed_picture_is_no_query(pictures: Path, tmp_path: Path) -> None:
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    gone = Handle(run)[3][0]
    index_job.remove(run, paths=[gone["path"]], say=None)
    left = Handle(run, device="cpu")
    assert len(left) == 40 and gone["row"] not in left.rows
    with pytest.raises(InputError, match=f"Picture {gone['row']} was removed"):
        left.search(gone["row"])
    assert gone["row"] not in [one["row"] for one in left.search(gone["path"], k=39)]


def test_a_run_on_vectors_made_elsewhere(opened: Handle, pictures: Path, tmp_path: Path) -> None:
    """Its own pictures are searched for, by row, path and id, without an encoder; another is refused in a sentence."""
    files = sorted(pictures.glob("*/*.png"))
    table = pa.table({"id": [f"p{row}" for row in range(len(files))], "path": list(map(str, files))})
    vectors = np.random.default_rng(0).normal(size=(len(files), 6)).astype(np.float32)
    pq.write_table(table.append_column("vector", pa.array(list(vectors))), tmp_path / "v.parquet")
    open_vectors(tmp_path / "v.parquet", tmp_path / "run", pictures, say=None)
    c = instdisc.open(tmp_path / "run")
    np.testing.assert_allclose(c.vectors(), vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-6)
    cosines = c.vectors() @ c.vectors()[9]
    best = [row for row in np.argsort(-cosines).tolist() if row != 9][:4]
    assert all([one["row"] for one in c.search(query, k=4)] == best for query in (9, "p9", files[9], str(files[9])))
    assert (c.picture(9) == pixels(files[9])).all()
    assert len(c.outliers(3)) == 3 and len(c.map()) == len(files) and "copy.png" in repr(c.duplicates())
    other = tmp_path / "other.png"
    other.write_bytes(files[9].read_bytes())
    for outside, words in ((other, "other.png is no picture of"), (pixels(other), "The picture given is none of")):
        with pytest.raises(InputError, match=f"{words} .*made elsewhere, and there is no encoder.*row, path or id"):
            c.search(outside)


def test_a_run_is_opened_once(opened: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.search(0)
    monkeypatch.setattr("instdisc.jobs.run.read_facts", lambda _: pytest.fail("config.json was read again"))
    for work in (opened.duplicates, opened.outliers, opened.vectors, lambda: opened.search(1)):
        assert len(work())


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
        "&lt;" in Results([{"row": 0, "id": "", "path": "<b>", "label": "<i>"}], opened.picture, "<x>")._repr_html_()
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
        with urllib.request.urlopen(f"{server.url}api/collection", timeout=500) as answer:
            assert json.load(answer)["pictures"] == 41
    assert "ended" in repr(server)
    with pytest.raises(InputError, match="another process"):
        Handle(opened.path, train_source=[pixels(opened[0][0]["path"])] * 41).serve()
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="is not a run folder"):
        instdisc.open(tmp_path / "run")


def test_the_page_ends_with_whoever_started_it(opened: Handle) -> None:
    """Where the object is dropped, and where the whole interpreter is killed."""
    code = f"""
import instdisc, sys
for _ in range(2):
    c = instdisc.open({os.fspath(opened.path)!r}, device="cpu")
    print(c.serve().url, flush=True)
    sys.stdin.readline()
    del c
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as python:
        assert python.stdout is not None and python.stdin is not None
        dropped = python.stdout.readline().strip()
        assert _answers(dropped)
        python.stdin.write("\n")
        python.stdin.flush()
        killed = python.stdout.readline().strip()
        assert not _answers(dropped) and _answers(killed)
        python.kill()
        until = time.monotonic() + 60
        while _answers(killed) and time.monotonic() < until:
            time.sleep(0.1)
        assert not _answers(killed)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=120):
            return True
    except OSError:
        return False
