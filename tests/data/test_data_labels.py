"""Every Arrow form of pictures and of labels is read; labels that can't be used stop only who needs them."""

from __future__ import annotations

import base64
import decimal
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_runs import TINY

import instdisc
from instdisc.data.decoding.decode import UnreadableError
from instdisc.data.sources.labels import encode
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError

ROWS = 20


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(number: int) -> bytes:
    out = io.BytesIO()
    values = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue().ljust(1000, b"\0")  # of one length, for the form that asks for it


PICTURES = [png(number) for number in range(6)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CELLS = [{"bytes": one, "path": "a.png"} for one in PICTURES]
TEXTS = [base64.b64encode(one).decode() for one in PICTURES]
FORMS: dict[str, pa.Array] = {
    "binary": pa.array(PICTURES, pa.binary()),
    "large_binary": pa.array(PICTURES, pa.large_binary()),
    "binary_view": pa.array(PICTURES, pa.binary_view()),
    "fixed_size_binary": pa.array(PICTURES, pa.binary(1000)),
    "dictionary": pa.array(PICTURES).dictionary_encode(),
    "dictionary of large_binary": pa.array(PICTURES, pa.large_binary()).dictionary_encode(),
    "list<uint8>": pa.array([list(one) for one in PICTURES], pa.list_(pa.uint8())),
    "list<int8>": pa.array([np.frombuffer(one, np.int8).tolist() for one in PICTURES], pa.list_(pa.int8())),
    "large_list<uint8>": pa.array([list(one) for one in PICTURES], pa.large_list(pa.uint8())),
    "fixed_size_list<uint8>": pa.array([list(one) for one in PICTURES], pa.list_(pa.uint8(), 1000)),
    "struct": pa.array(CELLS, STRUCT),
    "struct of large_binary": pa.array(CELLS, pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])),
    "struct of binary_view": pa.array(CELLS, pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])),
    "list<struct>": pa.array([[one] for one in CELLS], pa.list_(STRUCT)),
    "large_list<struct>": pa.array([[one] for one in CELLS], pa.large_list(STRUCT)),
    "list<binary>": pa.array([[one] for one in PICTURES], pa.list_(pa.binary())),
    "string (base64)": pa.array(TEXTS),
    "string_view (base64)": pa.array(TEXTS, pa.string_view()),
    "large_string (data URL)": pa.array([f"data:image/png;base64,{one}" for one in TEXTS], pa.large_string()),
}


@pytest.mark.fault("a column of pictures is not found for its exact Arrow type")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["image", "Images"])
def test_every_arrow_form_of_pictures_is_read(form: str, name: str, tmp_path: Path) -> None:
    table = pa.table({"other": ["a"] * len(PICTURES), name: FORMS[form], "label": ["x", "y"] * 3})
    groups = 6 if form == "struct of binary_view" else 4  # Arrow can write those whole only
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=groups)
    source = open_source(tmp_path / "a.parquet")
    assert [content for _, content in source.iterate()] == PICTURES
    assert [source.read(row) for row in (5, 0, 3)] == [PICTURES[row] for row in (5, 0, 3)]
    assert source.labels is not None and source.labels.tolist() == [0, 1] * 3


def test_a_column_is_found_by_what_it_surely_holds(tmp_path: Path) -> None:
    def opened(**columns: Any) -> Any:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        return open_source(tmp_path / "a.parquet").read(1)

    hashes = pa.array([b"0123456789abcdef"] * len(PICTURES), pa.binary(16))
    assert opened(md5=hashes, scan=PICTURES) == PICTURES[1]
    assert opened(image=["a.png"] * len(PICTURES), content=PICTURES) == PICTURES[1]
    assert opened(labels=pa.array([[1]] * len(PICTURES), pa.list_(pa.uint8())), scan=PICTURES) == PICTURES[1]
    assert opened(thumb=PICTURES[::-1], Image=PICTURES) == PICTURES[1]
    with pytest.raises(InputError, match="no column that is known to hold pictures .its columns: one, two"):
        opened(one=PICTURES, two=PICTURES)
    with pytest.raises(UnreadableError, match="holds text"):
        opened(image=["folder/a.png"] * len(PICTURES))


def test_cells_without_one_picture_are_told(tmp_path: Path) -> None:
    cells = [[CELLS[0]], [], None, CELLS[:2], [None], [{"bytes": None, "path": "x.png"}]]
    pq.write_table(pa.table({"images": pa.array(cells, pa.list_(STRUCT))}), tmp_path / "a.parquet")
    found = [content for _, content in open_source(tmp_path / "a.parquet").iterate()]
    assert found[0] == PICTURES[0]
    reasons = [one.reason for one in found[1:] if isinstance(one, UnreadableError)]
    assert len(reasons) == 5 and reasons[2] == "the row holds 2 pictures: write one a row"
    assert all("holds no bytes" in reasons[place] for place in (0, 1, 3, 4))


NUMBERS = [3, 1, None, 1]
WORDS = ["b", "a", None, "a"]
INTEGERS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]
TEXT_KINDS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]
LABELS: list[tuple[pa.Array, list[str]]] = [
    *((pa.array(NUMBERS, kind), ["1", "3"]) for kind in INTEGERS),
    *((pa.array(NUMBERS, kind).dictionary_encode(), ["1", "3"]) for kind in INTEGERS),
    *((pa.array(NUMBERS, kind), ["1", "3"]) for kind in (pa.float32(), pa.float64(), pa.decimal128(5, 0))),
    (pa.array(np.array([3, 1, -1, 1], np.float16)), ["1", "3"]),
    (pa.array([3, 1, 2**63, 1], pa.uint64()), ["1", "3", str(2**63)]),
    (pa.array([decimal.Decimal("3.00"), decimal.Decimal(1), None, decimal.Decimal(1)]), ["1", "3"]),
    (pa.array([True, False, None, False]), ["0", "1"]),
    *((pa.array(WORDS, kind), ["a", "b"]) for kind in TEXT_KINDS),
    (pa.array(WORDS, pa.binary(1)), ["a", "b"]),
    *((pa.array(WORDS, kind).dictionary_encode(), ["a", "b"]) for kind in TEXT_KINDS),
    (pc.run_end_encode(pa.array(WORDS)), ["a", "b"]),
    *((pa.array([[3], [1], None, [1]], kind), ["1", "3"]) for kind in (pa.list_(pa.int64()), pa.large_list(pa.int8()))),
    (pa.array([["b"], ["a"], [], ["a"]]), ["a", "b"]),
    (pa.array(["3", "1", "", "1"]), ["1", "3"]),
]


@pytest.mark.parametrize(("column", "names"), LABELS, ids=[str(column.type) for column, _ in LABELS])
def test_every_arrow_form_of_labels_is_read(column: pa.Array, names: list[str]) -> None:
    expected = [1, 0, 2 if len(names) == 3 else -1, 0]
    for given in (column, pa.chunked_array([column[:1], column[1:]])):
        codes, found = encode(given)
        assert codes.dtype == np.int64 and codes.tolist() == expected and found == names


@pytest.mark.parametrize("column", [pa.nulls(4), pa.array([None] * 4, pa.string()), pa.array([[]] * 4)])
def test_a_column_without_a_value_is_no_labels(column: pa.Array) -> None:
    assert encode(column)[0].tolist() == [-1] * 4 and encode(column)[1] == []


USELESS = {
    "several": (pa.array([[1, 2]] * ROWS), "several labels each"),
    "struct": (pa.array([{"x": 1}] * ROWS), "of type struct"),
    "fractions": (pa.array([0.5] * ROWS), "fractions"),
    "dates": (pa.array([1] * ROWS, pa.date32()), "of type date32"),
}


@pytest.mark.fault("invalid labels stop what needs no labels")
@pytest.mark.parametrize("kind", USELESS)
def test_labels_that_are_of_no_use_stop_only_what_needs_them(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], said: Callable[..., str]
) -> None:
    column, sentence = USELESS[kind]
    pictures = [png(number) for number in range(ROWS)]
    name = "labels" if kind == "several" else "label"
    pq.write_table(pa.table({"image": pictures, name: column}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert source.labels is None and sentence in (source.labels_problem or "")
    with pytest.raises(InputError, match=sentence):
        source.need_labels()
    from instdisc.jobs.info import info

    assert sentence in info(tmp_path / "a.parquet")["labels"]
    if kind != "several":
        return
    run = instdisc.train(tmp_path / "a.parquet", tmp_path / "run", **TINY)
    assert "The labels are invalid; training needs none" in capsys.readouterr().out and run.finished
    folder = str(tmp_path / "run")
    assert "kNN accuracy was not measured: there are no valid labels. Pictures have several labels each" in said(
        "evaluate", folder
    )
    said("embed", folder, str(tmp_path / "a.parquet"), "-o", str(tmp_path / "v.parquet"))
    assert "label" not in pq.read_schema(tmp_path / "v.parquet").names
    said("duplicates", folder)
    pq.write_table(pa.table({"image": [png(99)], name: column[:1]}), tmp_path / "b.parquet")
    assert "1 picture was added" in said("index", folder, "--add", str(tmp_path / "b.parquet"))
    query = tmp_path / "q.png"
    query.write_bytes(png(3))
    assert "several labels each" in said("search", folder, str(query), "--label", "1", code=1)
    said("search", folder, str(query), "-k", "3")
    assert "several labels each" in said("compare", folder, folder, str(tmp_path / "a.parquet"), code=1)


def test_a_labels_file_that_has_gone_stops_only_what_needs_it(tmp_path: Path) -> None:
    from instdisc.jobs.duplicates import duplicates
    from instdisc.jobs.identity import reopen
    from instdisc.jobs.sources import read_facts
    from instdisc.runs import RunFolder

    for number in range(ROWS):
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / f"{number}.png").write_bytes(png(number))
    table = tmp_path / "labels.csv"
    table.write_text("id,label\n" + "".join(f"{number}.png,{number % 2}\n" for number in range(ROWS)))
    options: dict[str, Any] = TINY | {"say": None}
    instdisc.train(tmp_path / "p", tmp_path / "run", labels=table, **options)
    table.unlink()
    assert duplicates(tmp_path / "run", say=None) is not None
    run = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match=r"labels\.csv can't be read"):
        reopen(run, read_facts(run)).need_labels()
    with pytest.raises(InputError, match="can't be read"):  # who names it is told at once
        instdisc.train(tmp_path / "p", tmp_path / "other", labels=table, **options)


def hub(names: list[str]) -> dict[bytes, bytes]:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


@pytest.mark.fault("Parquet files of one data set are taken for two, for their class names")
def test_class_names_in_some_files_only_or_others(tmp_path: Path) -> None:
    def words(*files: tuple[Any, list[str] | None]) -> list[str]:
        for number, (label, names) in enumerate(files):
            columns = {"image": PICTURES[: len(label)]} | ({} if label[0] is None else {"label": label})
            table = pa.table(columns).replace_schema_metadata(hub(names) if names else None)
            pq.write_table(table, tmp_path / f"{number}.parquet")
        source = open_source([tmp_path / f"{number}.parquet" for number in range(len(files))])
        codes = source.need_labels()
        return [source.class_name(code) for code in codes.tolist()]

    assert words(([0, 1], ["a", "b"]), ([1, 0], None)) == ["a", "b", "b", "a"]
    assert words(([0, 1], None), (pa.array([1, 0], pa.int8()), ["a", "b"])) == ["a", "b", "b", "a"]
    assert words(([0, 1, -1], ["a", "b"]), ([0, 1], ["b", "c"])) == ["a", "b", "", "b", "c"]
    assert words(([0, 1], ["a", "b"]), (["b", "z"], None)) == ["a", "b", "b", "z"]
    assert words((["a", "b"], None), (pa.array(["b"], pa.large_string()), None)) == ["a", "b", "b"]
    assert words(([7, 3], None), (["3"], None)) == ["7", "3", "3"]
    assert words(([0, 1], ["a", "b"]), ([None, None], None)) == ["a", "b", "", ""]


def test_labels_of_mixed_kinds_from_python_are_one_sentence() -> None:
    with pytest.raises(InputError, match="no column of names or of whole numbers"):
        open_source(np.zeros((2, 9, 9), np.uint8), labels=["a", 1])
