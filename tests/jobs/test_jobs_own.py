"""`instdisc open VECTORS [SOURCE]`: vectors that were made elsewhere, against NumPy on the same file."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import picture_folder

import instdisc
from instdisc.data.sources.given import read_vectors
from instdisc.errors import InputError
from instdisc.jobs.catalogue import Listed
from instdisc.jobs.collection import Collection
from instdisc.jobs.duplicates import look_alikes
from instdisc.jobs.label import assign
from instdisc.jobs.map import make_map, read_map
from instdisc.jobs.outliers import outliers
from instdisc.jobs.own import open_vectors
from instdisc.jobs.purge import purge
from instdisc.jobs.run import Run
from instdisc.jobs.search import search
from instdisc.serve.opened import Opened

COUNT, DIM = 30, 12


def made_vectors(count: int = COUNT, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (count, dim)).astype(np.float32)


def table_of(vectors: np.ndarray, kind: pa.DataType | None = None, **columns: Any) -> pa.Table:
    column = pa.array(list(vectors), kind or pa.list_(pa.float32()))
    return pa.table({"id": [f"p{row}" for row in range(len(vectors))], **columns, "vector": column})


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """A run on vectors of pictures in a folder; the vectors stand in another order than the folder's pictures."""
    folder = tmp_path_factory.mktemp("own")
    pictures = picture_folder(folder / "pictures", COUNT)
    files = sorted(pictures.glob("*/*.png"))[::-1]
    names = [path.relative_to(pictures).as_posix() for path in files]
    more = {"filepath": names, "camera": [f"c{row % 2}" for row in range(COUNT)], "label": [n[:3] for n in names]}
    pq.write_table(table_of(made_vectors(), **more), folder / "vectors.parquet")
    open_vectors(folder / "vectors.parquet", folder / "run", pictures, say=None)
    return folder, folder / "run", made_vectors()


@pytest.mark.parametrize(
    ("kind", "width"),
    [
        (pa.list_(pa.float32()), np.float32),
        (pa.list_(pa.float32(), DIM), np.float32),
        (pa.large_list(pa.float64()), np.float32),
        (pa.list_(pa.float16(), DIM), np.float16),
        (pa.list_(pa.float16()), np.float16),
    ],
)
def test_every_kind_of_list_opens(kind: pa.DataType, width: type, tmp_path: Path) -> None:
    vectors = made_vectors().astype(np.float16 if width is np.float16 else np.float32)
    pq.write_table(table_of(vectors, kind), tmp_path / "v.parquet", row_group_size=7)
    found = read_vectors(tmp_path / "v.parquet")
    assert found.vectors.dtype == width
    np.testing.assert_array_equal(found.vectors, vectors)


def test_neighbours_are_those_of_numpy(opened: tuple[Path, Path, np.ndarray]) -> None:
    folder, run, vectors = opened
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit[4]
    expected = [f"p{row}" for row in np.argsort(-scores) if row != 4][:5]
    (by_id,) = search(run, ["p4"], neighbours=5, say=None)
    path = Collection(run).location(4)
    (by_path,) = search(run, [path], neighbours=5, say=None)
    assert [one.id for one in by_id] == [one.id for one in by_path] == expected
    assert by_id[0].score == pytest.approx(np.sort(scores)[-2], abs=1e-5)
    assert Path(path).is_file() and by_id[0].label in ("red", "gre", "blu")
    collection = Collection(run)
    assert np.array_equal(collection.picture(4), _pixels(Path(path)))
    assert pq.read_table(run / "given.parquet")["camera"].to_pylist()[:3] == ["c0", "c1", "c0"]
    with pytest.raises(InputError, match="no encoder"):
        search(run, [folder / "pictures" / "nowhere.png"], neighbours=5, say=None)
    with pytest.raises(InputError, match="no encoder"):
        instdisc.load(run)


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def test_all_that_needs_no_encoder_works(opened: tuple[Path, Path, np.ndarray], said: Callable[..., str]) -> None:
    folder, run, vectors = opened
    found = outliers(run, count=5, say=None)
    centred = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centred = centred - centred.mean(0)
    covariance = centred.T @ centred / COUNT
    covariance += 0.01 * np.trace(covariance) / DIM * np.eye(DIM)
    distances = np.einsum("nd,de,ne->n", centred, np.linalg.inv(covariance), centred)
    assert found[0].id == f"p{distances.argmax()}"
    make_map(run, say=None)
    points = read_map(Collection(run))
    assert points is not None and len(points[0]) == COUNT
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    closest = np.triu(unit @ unit.T, 1).max()
    assert len(look_alikes(run, threshold=float(closest) - 1e-4, say=None)) == 1
    assign(run, {Collection(run).location(0): "mine"})
    assert Collection(run).index.entries([0])[0].label == "mine"
    assert "made elsewhere" in said("info", run)
    served, look = Opened(run), Listed(Run(run))
    assert look.recomputed and served.recomputed and look.index.entries([0])[0].id == "p0"
    assert np.array_equal(served.picture(0), look.picture(0)) and served.copies() == []
    with pytest.raises(InputError, match="no encoder"):  # a picture that is dropped on the page
        served.embed([served.picture(0)])
    said("export", run, "-o", folder / "out")
    written = pq.read_table(folder / "out" / "vectors.parquet")
    assert written["id"].to_pylist() == [f"p{row}" for row in range(COUNT)]
    assert "no encoder" in said("export", run, "-o", folder / "out", "--only", "onnx", code=1)
    assert "no encoder" in said("index", run, "--add", picture_folder(folder / "more", 3, seed=9), code=1)
    assert "made elsewhere" in said("index", run)
    assert "no encoder" in said("evaluate", run, code=1)


def test_pictures_that_have_gone_and_arrays_without_any(
    opened: tuple[Path, Path, np.ndarray], tmp_path: Path, said: Callable[..., str]
) -> None:
    np.save(tmp_path / "v.npy", made_vectors())
    said("open", tmp_path / "v.npy", "-o", tmp_path / "run")
    (nearest,) = search(tmp_path / "run", ["7"], neighbours=3, say=None)
    assert [one.id for one in nearest] == [
        one.id.removeprefix("p") for one in search(opened[1], ["p7"], neighbours=3)[0]
    ]
    assert len(outliers(tmp_path / "run", count=3, say=None)) == 3
    assert "no copies can be proven" in said("duplicates", tmp_path / "run", "--look-alikes")
    pictures = picture_folder(tmp_path / "pictures", COUNT)
    with pytest.raises(InputError, match="belongs to a picture"):
        open_vectors(tmp_path / "v.npy", tmp_path / "other", pictures, say=None)
    assert not (tmp_path / "other").exists()


def test_vectors_that_cannot_be_used_are_listed(tmp_path: Path, said: Callable[..., str]) -> None:
    vectors = made_vectors()
    vectors[3, 2], vectors[5] = np.nan, 0
    column = pa.array([*list(vectors[:-1]), None], pa.list_(pa.float32()))
    table = table_of(vectors).set_column(1, "vector", column)
    pq.write_table(table, tmp_path / "v.parquet")
    assert "3 vectors are left out" in said("open", tmp_path / "v.parquet", "-o", tmp_path / "run")
    lines = (tmp_path / "run" / "quarantine.csv").read_text().splitlines()[1:]
    assert sorted((line.split(",")[0], line.split(": ")[-1]) for line in lines) == [
        ("p29", "there is none"),
        ("p3", "it holds NaN or infinity"),
        ("p5", "it holds only zeros"),
    ]
    assert len(Collection(tmp_path / "run").index) == COUNT - 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("lengths", "row 2 has 3 dimensions, most have 12"),
        ("twice", 'The id "p1" stands twice'),
        ("long", "at most 4,096"),
        ("two columns", "Name the column of the vectors with --column"),
        ("no column", "no column of lists of numbers"),
        ("damaged", "can't be read as vectors"),
        ("pickle", "can't be read as vectors"),
        ("ids", "give one row a vector"),
        ("nowhere", "There is no file"),
        ("lance", "is a Lance data set: write it as Parquet first"),
    ],
)
def test_a_file_that_cannot_be_is_refused(wrong: str, words: str, tmp_path: Path, said: Callable[..., str]) -> None:
    path, vectors = tmp_path / "v.parquet", made_vectors(6)
    if wrong == "lengths":
        rows = [*vectors[:2], vectors[2][:3], *vectors[3:]]
        pq.write_table(pa.table({"vector": pa.array(rows, pa.list_(pa.float32()))}), path)
    elif wrong == "twice":
        pq.write_table(table_of(vectors).set_column(0, "id", pa.array(["p0", "p1", "p1", "p3", "p4", "p5"])), path)
    elif wrong == "long":
        pq.write_table(table_of(made_vectors(3, 4097)), path)
    elif wrong == "two columns":
        pq.write_table(table_of(vectors).rename_columns(["id", "a"]).append_column("b", table_of(vectors)[1]), path)
    elif wrong == "no column":
        pq.write_table(pa.table({"id": ["a"], "label": ["b"]}), path)
    elif wrong == "damaged":
        path.write_bytes(b"PAR1 and no more")
    elif wrong == "pickle":
        path = tmp_path / "v.npy"
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif wrong == "lance":
        path = tmp_path / "v.lance"
        path.mkdir()
    elif wrong == "ids":
        path = tmp_path / "v.npy"
        np.save(path, vectors)
        pq.write_table(pa.table({"id": ["a"]}), tmp_path / "v.ids.parquet")
    told = said("open", path, "-o", tmp_path / "run", code=1)
    assert words in told and "Traceback" not in told and not (tmp_path / "run").exists()


def test_what_embed_writes_opens_again(tmp_path: Path) -> None:
    """Labels are numbers there, with their names beside the table."""
    facts = {b"instdisc": json.dumps({"label_names": ["cat", "dog"]}).encode()}
    table = table_of(made_vectors(4), location=[f"/x/{row}.png" for row in range(4)], label=pa.array([1, 0, -1, 1]))
    pq.write_table(table.replace_schema_metadata(facts), tmp_path / "v.parquet")
    open_vectors(tmp_path / "v.parquet", tmp_path / "run", say=None)
    entries = Collection(tmp_path / "run").index.entries(range(4))
    assert [one.label for one in entries] == ["dog", "cat", "", "dog"]
    assert [one.path for one in entries] == [f"/x/{row}.png" for row in range(4)]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([uuid.UUID(int=n).bytes for n in range(4)], pa.uuid()), str(uuid.UUID(int=2))),  # DuckDB's
        (pa.array([bytes([n] * 12) for n in range(4)], pa.binary(12)), "02" * 12),  # MongoDB's
        (pa.array([{"$oid": f"a{n}"} for n in range(4)]), "{'$oid': 'a2'}"),
        (pa.array([f"a{n}" for n in range(4)]).dictionary_encode(), "a2"),
        (pa.array([n / 1 for n in range(4)]), "2"),
    ],
)
def test_ids_of_any_kind(ids: pa.Array, expected: str, tmp_path: Path) -> None:
    pq.write_table(table_of(made_vectors(4)).set_column(0, "id", ids), tmp_path / "v.parquet")
    open_vectors(tmp_path / "v.parquet", tmp_path / "run", say=None)
    assert Collection(tmp_path / "run").index.entries([2])[0].id == expected


def test_a_purge_is_refused_in_a_sentence(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.eye(6, 4, dtype=np.float32) + 1)
    open_vectors(tmp_path / "vectors.npy", tmp_path / "run", say=None)
    with pytest.raises(InputError, match="made elsewhere: leave the pictures out of their file"):
        purge(tmp_path / "run", ["3"])
