"""Vectors on disk: what is written is what was computed, after a kill and by many processes too."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from two_processes import two_processes

from instdisc.data.sources.source import Source
from instdisc.embeddings import Embedded, Embeddings, open_embeddings, write_embeddings
from instdisc.errors import InputError

DIM = 6


class Numbers(Source):
    """Pictures that are nothing but their row number; ids may be any bytes."""

    def __init__(self, count: int, *, labels: bool = True, prefix: bytes = b"cats/") -> None:
        super().__init__("numbers", count)
        self._with_labels, self._prefix = labels, prefix

    def identifiers(self, start: int, stop: int) -> list[bytes]:
        return [self._prefix + b"%d.png" % row for row in range(start, stop)]

    def locations(self, start: int, stop: int) -> list[bytes]:
        return [b"pictures/" + name for name in self.identifiers(start, stop)]

    def read(self, row: int) -> bytes:
        return b"%d" % row

    def _own_labels(self):
        if not self._with_labels:
            return None
        return np.where(np.arange(len(self)) % 4 == 3, -1, np.arange(len(self)) % 2), ["even", "odd"]


def vector_of(row: int) -> np.ndarray:
    return np.sin(np.arange(1, DIM + 1) * (row + 1)).astype(np.float32)


def broken(row: int) -> bool:
    return row % 7 == 5


def embed(rows: np.ndarray) -> Embedded:
    read = [row for row in rows.tolist() if not broken(row)]
    vectors = np.array([vector_of(row) for row in read], dtype=np.float32).reshape(len(read), DIM)
    return Embedded(vectors, np.array(read, np.int64), [(r, "the file is empty") for r in rows.tolist() if broken(r)])


def check(embeddings: Embeddings, count: int) -> None:
    expected = [row for row in range(count) if not broken(row)]
    assert [embeddings.identifier(i) for i in range(len(expected))] == [f"cats/{row}.png" for row in expected]
    assert embeddings.location(0) == "pictures/cats/0.png"
    np.testing.assert_array_equal(embeddings.vectors, np.stack([vector_of(row) for row in expected]))
    assert embeddings.vectors.dtype == np.float32
    assert embeddings.labels is not None
    assert embeddings.labels.tolist() == [-1 if row % 4 == 3 else row % 2 for row in expected]
    assert embeddings.label_names == ["even", "odd"]


@pytest.mark.fault("recomputed rows misplaced unless n divides the batch size")
@pytest.mark.parametrize("name", ["vectors.parquet", "vectors.npy"])
@pytest.mark.parametrize("chunk", [1, 16, 64, 1000])
def test_every_vector_stands_beside_its_picture(tmp_path: Path, name: str, chunk: int) -> None:
    written = write_embeddings(Numbers(101), embed, tmp_path / name, run_fingerprint="a", chunk=chunk)
    assert (written.count, written.dim, written.unreadable, written.reused) == (87, DIM, 14, 0)
    check(open_embeddings(tmp_path / name), 101)
    others = {"vectors.ids.parquet"} if name.endswith("npy") else set()
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}.quarantine.csv", *others}


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    for name in ("v.parquet", "v.npy"):
        write_embeddings(Numbers(30), embed, tmp_path / name, run_fingerprint="a", chunk=8)
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["id", "location", "label", "vector"]
    assert str(table.schema.field("vector").type) == f"fixed_size_list<element: float>[{DIM}]"
    assert table["label"].null_count == sum(row % 4 == 3 and not broken(row) for row in range(30))
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), np.load(tmp_path / "v.npy"))
    assert isinstance(open_embeddings(tmp_path / "v.npy").vectors, np.memmap)
    assert pq.read_table(tmp_path / "v.ids.parquet").column_names == ["id", "location", "label"]


@pytest.mark.fault("a picture that can't be read is on no list with its reason, and not counted at the end")
def test_unreadable_pictures_are_listed_and_left_out(tmp_path: Path) -> None:
    out = tmp_path / "v.parquet"
    write_embeddings(Numbers(30), embed, out, run_fingerprint="a", chunk=8)
    with open(tmp_path / "v.parquet.quarantine.csv", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["id", "path", "reason"]
    assert lines[1:] == [
        [f"cats/{r}.png", f"pictures/cats/{r}.png", "the file is empty"] for r in range(30) if broken(r)
    ]
    assert np.isfinite(open_embeddings(out).vectors).all()
    # A later job without broken pictures leaves no old list behind.
    whole = lambda rows: Embedded(np.ones((len(rows), DIM), np.float32), rows, [])  # noqa: E731
    write_embeddings(Numbers(30), whole, out, run_fingerprint="a")
    assert not (tmp_path / "v.parquet.quarantine.csv").exists()


@pytest.mark.fault("names with spaces")
@pytest.mark.fault("names with newlines")
@pytest.mark.fault("names with non-UTF-8 bytes")
@pytest.mark.parametrize("name", ["vectors.parquet", "vectors.npy"])
def test_ids_that_are_not_text_survive(tmp_path: Path, name: str) -> None:
    source = Numbers(12, labels=False, prefix=b"a \n\xff/")
    write_embeddings(source, embed, tmp_path / name, run_fingerprint="a", chunk=5)
    embeddings = open_embeddings(tmp_path / name)
    assert embeddings.identifier(1) == source.identifier(1)
    assert embeddings.labels is None and embeddings.label_names is None
    assert os.fsencode(source.identifier(5)) in (tmp_path / f"{name}.quarantine.csv").read_bytes()


class Interrupted(Exception):
    pass


def stop_after(parts: int):
    done = []

    def embed_some(rows: np.ndarray) -> Embedded:
        if len(done) == parts:
            raise Interrupted
        done.append(rows)
        return embed(rows)

    return embed_some


@pytest.mark.parametrize("name", ["vectors.parquet", "vectors.npy"])
def test_a_new_start_does_only_what_is_missing(tmp_path: Path, name: str) -> None:
    out, seen = tmp_path / name, []
    with pytest.raises(Interrupted):
        write_embeddings(Numbers(101), stop_after(3), out, run_fingerprint="a", chunk=16)
    assert not out.exists()

    def counted(rows: np.ndarray) -> Embedded:
        seen.extend(rows.tolist())
        return embed(rows)

    written = write_embeddings(Numbers(101), counted, out, run_fingerprint="a", chunk=16)
    assert seen == list(range(48, 101))
    assert written.reused == 48
    check(open_embeddings(out), 101)


@pytest.mark.fault("resume with other settings silently mixes two runs")
def test_the_parts_of_another_job_are_refused_or_thrown_away(tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    with pytest.raises(Interrupted):
        write_embeddings(Numbers(40), stop_after(1), out, run_fingerprint="a", chunk=16)
    with pytest.raises(InputError, match="another encoder.*--restart"):
        write_embeddings(Numbers(40), embed, out, run_fingerprint="b", chunk=16)
    with pytest.raises(InputError, match="another source"):
        write_embeddings(Numbers(40, prefix=b"dogs/"), embed, out, run_fingerprint="a", chunk=16)
    with pytest.raises(InputError, match="number of pictures"):
        write_embeddings(Numbers(41), embed, out, run_fingerprint="a", chunk=16)
    written = write_embeddings(Numbers(40), embed, out, run_fingerprint="b", chunk=16, restart=True)
    assert written.reused == 0
    check(open_embeddings(out), 40)


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    out = tmp_path / "v.parquet"
    with pytest.raises(Interrupted):
        write_embeddings(Numbers(101), stop_after(3), out, run_fingerprint="a", chunk=16)
    part = tmp_path / "v.parquet.parts" / "part-00000001.npz"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match="was damaged and is removed"):
        write_embeddings(Numbers(101), embed, out, run_fingerprint="a", chunk=16)
    assert write_embeddings(Numbers(101), embed, out, run_fingerprint="a", chunk=16).reused == 101 - 16
    check(open_embeddings(out), 101)


def test_parts_without_their_journal_are_not_trusted(tmp_path: Path) -> None:
    out = tmp_path / "v.parquet"
    with pytest.raises(Interrupted):
        write_embeddings(Numbers(40), stop_after(1), out, run_fingerprint="a", chunk=16)
    (tmp_path / "v.parquet.parts" / "job.json").unlink()
    assert write_embeddings(Numbers(40), embed, out, run_fingerprint="a", chunk=16).reused == 0


SCRIPT = textwrap.dedent(
    """
    import sys, time
    sys.path[:0] = [sys.argv[1], sys.argv[1] + "/support"]
    from pathlib import Path
    from test_embeddings import Numbers, embed
    from instdisc import ranks
    from instdisc.embeddings import write_embeddings

    def slowly(rows):
        time.sleep(float(sys.argv[3]))
        return embed(rows)

    with ranks.distributed():
        written = write_embeddings(Numbers(300), slowly, Path(sys.argv[2]), run_fingerprint="a", chunk=4)
        print(written.count, written.reused, flush=True)
    """
)


def command(out: Path, pause: float) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(out), str(pause)]


def test_kill_9_at_a_random_moment_loses_at_most_a_part(tmp_path: Path) -> None:
    out = tmp_path / "vectors.npy"
    process = subprocess.Popen(command(out, 0.01), stdout=subprocess.PIPE)
    deadline = time.monotonic() + 500
    while len(list(tmp_path.glob("*.parts/part-*.npz"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = len(list(tmp_path.glob("*.parts/part-*.npz")))
    assert 5 <= finished < 75
    assert not out.exists()
    written = write_embeddings(Numbers(300), embed, out, run_fingerprint="a", chunk=4)
    assert written.reused == 4 * finished
    check(open_embeddings(out), 300)
    assert not list(tmp_path.glob("*.parts"))


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    out = tmp_path / "v.parquet"
    answers = two_processes(command(out, 0))
    assert [answer.split() for answer in answers] == [["257", "0"]] * 2
    check(open_embeddings(out), 300)


def test_what_a_person_can_get_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"should end in .parquet or .npy"):
        write_embeddings(Numbers(3), embed, tmp_path / "v.csv", run_fingerprint="a")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another output file"):
        write_embeddings(Numbers(3), embed, tmp_path / "file" / "v.npy", run_fingerprint="a")
    with pytest.raises(InputError, match="There are no vectors at"):
        open_embeddings(tmp_path / "none.npy")
    nothing = lambda rows: Embedded(np.zeros((0, DIM)), rows[:0], [(int(row), "broken") for row in rows])  # noqa: E731
    with pytest.raises(InputError, match="None of the 3 pictures could be read"):
        write_embeddings(Numbers(3), nothing, tmp_path / "v.npy", run_fingerprint="a")
    damaged = lambda rows: Embedded(np.full((len(rows), DIM), np.nan), rows, [])  # noqa: E731
    with pytest.raises(InputError, match="NaN"):
        write_embeddings(Numbers(3), damaged, tmp_path / "w.npy", run_fingerprint="a")
    write_embeddings(Numbers(9), embed, tmp_path / "x.npy", run_fingerprint="a")
    (tmp_path / "x.ids.parquet").rename(tmp_path / "y.ids.parquet")
    with pytest.raises(InputError, match="is missing"):
        open_embeddings(tmp_path / "x.npy")
    (tmp_path / "z.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match="can't be read as vectors"):
        open_embeddings(tmp_path / "z.parquet")


def test_rows_that_went_astray_are_a_fault_of_the_program(tmp_path: Path) -> None:
    shifted = lambda rows: Embedded(np.ones((len(rows), DIM), np.float32), rows + 1, [])  # noqa: E731
    with pytest.raises(ValueError, match="needs a vector or a reason"):
        write_embeddings(Numbers(9), shifted, tmp_path / "v.npy", run_fingerprint="a")


@pytest.mark.parametrize("name", ["v.npy", "v.parquet"])
def test_a_full_disk_while_putting_together_keeps_the_parts_and_what_stood_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by stress/kill.py: the old vectors were removed before the disk had taken the new ones."""
    out = tmp_path / name
    write_embeddings(Numbers(20), embed, out, run_fingerprint="a", chunk=16)

    def full(file: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("instdisc.embeddings._sync", full)
        with pytest.raises(InputError, match="No space left on device.*make room"):
            write_embeddings(Numbers(40), embed, out, run_fingerprint="a", chunk=16)
    check(open_embeddings(out), 20)
    assert not list(tmp_path.glob(".*")), "what was half written takes no room"
    assert json.loads((tmp_path / f"{name}.parts" / "job.json").read_text())["pictures"] == 40
    assert write_embeddings(Numbers(40), embed, out, run_fingerprint="a", chunk=16).reused == 40
    check(open_embeddings(out), 40)
