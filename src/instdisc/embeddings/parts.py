"""The finished parts of an unfinished file of vectors: one file each, written whole, and the journal of their job."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instdisc.errors import InputError, is_shortage
from instdisc.files import write_json, write_whole


class Embedded(NamedTuple):
    """What became of a part's pictures: a vector or a reason for each.

    Examples:
        >>> import numpy as np
        >>> from instdisc.embeddings import Embedded
        >>> embedded = Embedded(np.eye(2, 4, dtype=np.float32), np.array([0, 2]), [(1, "the JPEG is cut short")])
        >>> embedded.vectors.shape, embedded.unreadable
        ((2, 4), [(1, 'the JPEG is cut short')])
    """

    vectors: np.ndarray  # (read, dim) float32
    rows: np.ndarray  # (read,) source rows, ascending
    unreadable: list[tuple[int, str]]  # source row, reason


class Parts:
    """The folder of finished parts: part `number` holds the source rows `bounds(number)`."""

    def __init__(self, folder: Path, pictures: int, chunk: int) -> None:
        self.folder, self.pictures, self.chunk = folder, pictures, chunk
        self.count = -(-pictures // chunk)

    def bounds(self, number: int) -> tuple[int, int]:
        """The source rows [start, stop) of a part."""
        return number * self.chunk, min((number + 1) * self.chunk, self.pictures)

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:08d}.npz"

    def prepare(self, job: dict[str, Any], restart: bool | str) -> list[int]:
        """The numbers of the parts that are still to do. Refuses the parts of another job."""
        journal = self.folder / "job.json"
        if self.folder.exists() and (restart is True or not journal.exists()):
            # Without its journal the folder is what was left of a job that had just ended.
            shutil.rmtree(self.folder)
        if journal.exists():
            try:
                before = json.loads(journal.read_text(encoding="utf-8"))
            except ValueError:
                before = {}
            # The chunk may differ from the one asked for only at the price of other bounds: that is another job too.
            names = {"run": "encoder", "source": "source", "pictures": "number of pictures", "chunk": "chunk size"}
            other = [names[key] for key in names if before.get(key) != job[key]]
            if other and restart:
                return self.prepare(job, restart=True)
            if other:
                raise InputError(
                    f"{self.folder} holds the unfinished work of another job (another {' and '.join(other)}): "
                    "choose another output file, or pass --restart to throw that work away."
                )
        else:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"{self.folder} can't be made ({error.strerror}): choose another output file."
                ) from None
            write_json(journal, job)
        return [number for number in range(self.count) if not self.path(number).exists()]

    def write(self, number: int, embedded: Embedded) -> None:
        """One part, whole or not at all."""
        vectors = np.asarray(embedded.vectors, dtype=np.float32)
        rows = np.asarray(embedded.rows, dtype=np.int64)
        bad_rows = np.array([row for row, _ in embedded.unreadable], dtype=np.int64)
        start, stop = self.bounds(number)
        if vectors.ndim != 2 or len(vectors) != len(rows):
            raise ValueError(f"vectors of shape {vectors.shape} for {len(rows)} rows")
        if (np.diff(rows) <= 0).any() or not np.array_equal(np.sort(np.r_[rows, bad_rows]), np.arange(start, stop)):
            raise ValueError(f"each of the rows {start} to {stop - 1} needs a vector or a reason, in order")
        if not np.isfinite(vectors).all():
            raise InputError(
                "The encoder gave NaN or infinity for a picture: its weights are damaged, use another checkpoint."
            )
        reasons = np.array([reason for _, reason in embedded.unreadable], dtype=np.str_)
        content = io.BytesIO()
        dim = np.array(vectors.shape[1])
        np.savez(content, vectors=vectors, dim=dim, rows=rows, bad_rows=bad_rows, reasons=reasons)
        write_whole(self.path(number), content.getvalue())

    def read(self, number: int, *names: str) -> list[np.ndarray]:
        """Arrays of one part. A damaged part is removed, so that the next start makes it again."""
        path = self.path(number)
        if not path.exists():
            raise InputError(
                f"{path} is missing: all processes must see the folder {self.folder}. Start again to go on."
            )
        try:
            # Opened here: np.load leaves a damaged file open.
            with open(path, "rb") as file, np.load(file) as arrays:
                return [arrays[name] for name in names]
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
            if is_shortage(error):
                raise
            path.unlink(missing_ok=True)
            raise InputError(f"{path} was damaged and is removed: run the same command to make it again.") from None

    def remove(self) -> None:
        """Remove the folder, its journal first: what a kill leaves here is then known to be of no use."""
        (self.folder / "job.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
