"""Tables in memory as sources: what stands in their rows comes out, from pandas, Arrow and Hugging Face's data sets."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
from PIL import Image
from tiny_runs import made_pictures, picture_folder

from instdisc.data.decoding.decode import UnreadableError, decode
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError

COUNT = 9
NAMES = ["red", "green", "blue"]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def made() -> np.ndarray:
    return made_pictures(COUNT)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = picture_folder(tmp_path_factory.mktemp("frames") / "p", COUNT)
    return [str(folder / NAMES[row % 3] / f"{row:04d}.png") for row in range(COUNT)]


def column(kind: str, made: np.ndarray) -> list[Any]:
    encoded = [png(one) for one in made]
    held: dict[str, Callable[[], list[Any]]] = {
        "bytes": lambda: encoded,
        "struct": lambda: [{"bytes": one, "path": f"{row}.png"} for row, one in enumerate(encoded)],
        "images": lambda: [Image.fromarray(one) for one in made],
        "arrays": lambda: list(made),
    }
    return held[kind]()


class Streamed:
    """A table of another library, as polars': it has columns, and hands itself on in Arrow's form."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = list(columns)
        self._table = pa.table(columns)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


def labels_of(source: Any) -> list[str]:
    assert source.labels is not None
    return [source.class_name(int(code)) for code in source.labels]


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    **{f"pandas {kind}": (kind, pandas.DataFrame) for kind in ("bytes", "struct", "images", "arrays")},
    **{f"arrow {kind}": (kind, pa.table) for kind in ("bytes", "struct")},
    "record batch": ("bytes", pa.RecordBatch.from_pydict),
    "another library's": ("struct", Streamed),
}


@pytest.mark.parametrize("form", TABLES)
def test_pictures_in_a_column(form: str, made: np.ndarray) -> None:
    kind, table = TABLES[form]
    name, more = ("image", {"other": [b"x"] * COUNT}) if kind == "bytes" else ("anything", {"size": list(range(COUNT))})
    source = open_source(table({name: column(kind, made), "label": [NAMES[row % 3] for row in range(COUNT)], **more}))
    assert len(source) == COUNT and labels_of(source) == [NAMES[row % 3] for row in range(COUNT)]
    assert all((decode(source.read(row)) == made[row]).all() for row in range(COUNT))
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - as a worker is given it
    assert (decode(again.read(4)) == made[4]).all() and again.fingerprint == source.fingerprint
    first = open_source(table({name: column(kind, made), "label": list(range(COUNT)), **more}), limit=4)
    assert len(first) == 4 and first.labels is not None and first.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("table", [pandas.DataFrame, pa.table], ids=["pandas", "arrow"])
def test_a_column_of_paths_is_the_files(table: Callable[..., Any], files: list[str]) -> None:
    wanted = [Path(file).parent.name.upper() for file in files]
    source = open_source(table({"camera": ["c"] * COUNT, "filepath": files[::-1], "label": wanted[::-1]}))
    assert [source.identifier(row) for row in range(COUNT)] == files[::-1] and labels_of(source) == wanted[::-1]
    assert source.read(2) == Path(files[-3]).read_bytes()
    only = open_source(table({"where": files}), limit=5, labels=list("abcde"))
    assert len(only) == 5 and labels_of(only) == list("abcde"), "labels from elsewhere count"
    cut = open_source(table({"path": files, "label": wanted}), limit=4)
    assert labels_of(cut) == wanted[:4] and not cut.label_notes
    none = open_source(table({"path": files, "label": [row + 0.5 for row in range(COUNT)]}))
    assert none.labels is None and "labels are fractions" in " ".join(none.notes)


def test_a_data_set_of_hugging_face(made: np.ndarray, files: list[str], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": column("struct", made), "label": [row % 3 for row in range(COUNT)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    source = open_source(data)
    assert labels_of(source) == [NAMES[row % 3] for row in range(COUNT)]
    assert all((decode(source.read(row)) == made[row]).all() for row in range(COUNT))
    turned = open_source(data.select(range(COUNT - 1, -1, -1)))
    assert labels_of(turned) == labels_of(source)[::-1] and (decode(turned.read(0)) == made[-1]).all()
    data.save_to_disk(str(tmp_path / "data"))
    mapped = open_source(datasets.load_from_disk(str(tmp_path / "data")))
    assert (decode(pickle.loads(pickle.dumps(mapped)).read(5)) == made[5]).all()  # noqa: S301
    by_path = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    assert open_source(by_path).read(1) == Path(files[1]).read_bytes()
    assert open_source(datasets.Dataset.from_dict({"path": files})).identifier(1) == files[1]
    with pytest.raises(InputError, match=r'holds train, test: give one of them, as in data\["train"\]'):
        open_source(datasets.DatasetDict({"train": data, "test": data}))


def test_what_is_no_table_of_pictures(files: list[str], made: np.ndarray) -> None:
    with pytest.raises(
        InputError, match=r"The DataFrame has no column .* \(its columns: a, b\): call the one with paths"
    ):
        open_source(pandas.DataFrame({"a": [1, 2], "b": [0.5, None]}))
    with pytest.raises(InputError, match=r'2 rows have no path in the column "path" of the DataFrame, as row 1'):
        open_source(pandas.DataFrame({"path": [files[0], None, files[1], ""]}))
    with pytest.raises(InputError, match="1 row has no path"):
        open_source(pa.table({"path": [files[0], None]}))
    with pytest.raises(InputError, match="names a file twice"):
        open_source(pandas.DataFrame({"path": [files[0], files[0]]}))
    holes = open_source(pandas.DataFrame({"image": [png(made[0]), None, png(made[2])]}))
    assert holes.read(2) == png(made[2])
    for empty in (holes, open_source(pa.table({"image": pa.array([b"x", None, b"y"])}))):
        with pytest.raises(UnreadableError, match="holds no"):
            empty.read(1)
