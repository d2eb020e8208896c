"""A run as a Python object: `instdisc.open`, for a notebook or a script.

c = instdisc.open("runs/mine")
len(c), c[17]
c.search("cat.jpg", k=12)                # a table; in a notebook the pictures
c.duplicates().to_arrow()
"""

from __future__ import annotations

import base64
import html
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from instdisc.errors import InputError, counted
from instdisc.jobs.collection import Collection
from instdisc.jobs.duplicates import duplicates
from instdisc.jobs.index import searchable
from instdisc.jobs.map import make_map, read_map
from instdisc.jobs.outliers import outliers
from instdisc.jobs.run import Run
from instdisc.jobs.search import nearest, own_rows, picture_or_grey
from instdisc.report.thumbnails import as_jpeg
from instdisc.search.catalogue import Entry

_SIDE, _SHOWN, _PRINTED = 96, 48, 20  # pixels of a picture in a notebook; pictures there; lines of a table
_PAGE_SECONDS = 10  # for the page to end by itself


class Results(Sequence[dict[str, Any]]):
    """Pictures with what was found of each, best first: a sequence of dicts, one a picture.

    It prints as a table and shows the pictures in a notebook. `to_arrow` and `to_pandas` give all of it. Examples:

        found = c.search("cat.jpg", k=12)
        found[0]["path"], found[0]["score"]
        found.to_pandas().groupby("label").score.mean()
    """

    def __init__(self, lines: Sequence[dict[str, Any]], picture: Callable[[int], np.ndarray], caption: str) -> None:
        self._lines, self._picture, self.caption = list(lines), picture, caption

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Results: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | Results:
        if isinstance(place, slice):
            return Results(self._lines[place], self._picture, self.caption)
        return self._lines[place]

    def to_arrow(self) -> pa.Table:
        """A column for each fact; names that are no UTF-8 stand in a column of bytes."""
        names = self._lines[0] if self._lines else ("row", "id", "path", "label")
        return pa.table({name: _column([line[name] for line in self._lines]) for name in names})

    def to_pandas(self) -> Any:
        """A DataFrame; InputError where pandas is not installed."""
        try:
            import pandas  # noqa: F401  # pyarrow would say it less plainly
        except ImportError:
            raise InputError("A DataFrame needs pandas: pip install pandas, or take to_arrow().") from None
        return self.to_arrow().to_pandas()

    def __repr__(self) -> str:
        if not self._lines:
            return f"{self.caption}: none"
        names = list(self._lines[0])
        table = [names, *([_written(line[name]) for name in names] for line in self._lines[:_PRINTED])]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
        more = [f"... and {len(self) - _PRINTED:,} more"] if len(self) > _PRINTED else []
        return "\n".join([self.caption, *rows, *more])

    def _repr_html_(self) -> str:
        cells = []
        for line in self._lines[:_SHOWN]:
            words = " · ".join(
                _written(value) if name in ("label", "score") else f"{name.replace('_', ' ')} {_written(value)}"
                for name, value in line.items()
                if name not in ("row", "id", "path") and value != ""
            )
            pixels = self._picture(line["row"])
            way = "pixelated" if max(pixels.shape[:2]) < _SIDE else "auto"  # small ones stay sharp
            cells.append(
                f'<figure style="display:inline-block;margin:4px;width:{_SIDE}px;font:11px sans-serif">'
                f'<img src="{_address(pixels)}" title="{html.escape(str(line["path"]))}" '
                f'style="width:{_SIDE}px;height:{_SIDE}px;object-fit:contain;image-rendering:{way}">'
                f"<figcaption>{html.escape(words)}</figcaption></figure>"
            )
        more = f"<p>... and {len(self) - _SHOWN:,} more</p>" if len(self) > _SHOWN else ""
        return f"<p>{html.escape(self.caption)}</p><div>{''.join(cells)}</div>{more}"


class Server:
    """The page of a run, served by a process of its own. In a notebook it shows the page.

    words: what starts it; it prints its address first. It ends by `stop`, and with this process, however that ends.
    Raises InputError, in its own words, where it does not start.
    """

    def __init__(self, words: Sequence[str]) -> None:
        with tempfile.TemporaryFile() as errors:  # no pipe, which would fill up
            # A session of its own: an interrupt of a cell goes to the whole group of the kernel.
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
            self._end = weakref.finalize(self, _end, self._process, os.getpid())  # also when the interpreter ends
            assert self._process.stdout is not None
            self.url = os.fsdecode(self._process.stdout.readline()).strip()
            if not self.url.startswith("http"):
                self._process.wait(_PAGE_SECONDS)
                self._end()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().removeprefix("instdisc: ")
                raise InputError(said or "The page did not start.")

    def stop(self) -> None:
        """End it."""
        self._end()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"{self.url} ({'served' if self._process.poll() is None else 'ended'})"

    def _repr_html_(self) -> str:
        return f'<iframe src="{html.escape(self.url)}" width="100%" height="700"></iframe>'


class Handle:
    """The pictures of a run: `len`, `c[row]`, and what the commands do, as small results.

    run: its folder. train_source: where the training pictures are now, if they were moved. device: "auto", "cpu", ...
    Search vectors are computed by the first call that needs them, once. What changes the run later (labels, new or
    removed pictures) is seen by the next `instdisc.open`. A run on vectors that were made elsewhere has no encoder, so
    that only its own pictures can be searched for. Raises InputError for a folder that is no run.

        c.search("cat.jpg", k=12, label="animals").to_pandas()

    Examples:
        >>> import numpy as np
        >>> import instdisc
        >>> pictures = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
        >>> small = dict(backbone="conv6", width=4, dim=8, size=16, batch=8, negatives=8, epochs=1)
        >>> run = instdisc.train(pictures, "runs/small", device="cpu", say=None, **small)
        >>> c = instdisc.open("runs/small", train_source=pictures)
        >>> len(c), c[17][0]["id"], len(c[3:6])
        (40, 'array#17', 3)
    """

    def __init__(self, run: str | os.PathLike[str], *, train_source: Any = None, device: str = "auto") -> None:
        self._device = device
        self._collection = Collection(Run(run, train_source=train_source))
        self._servers: list[Server] = []

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._collection.folder.path

    def _searchable(self) -> Collection:
        """The collection with its search vectors, computed now where the run lacks them."""
        self._collection = searchable(self._collection, device=self._device, say=None)
        return self._collection

    def __len__(self) -> int:
        """Pictures, without those that were removed."""
        return len(self.rows)

    @property
    def rows(self) -> np.ndarray:
        """(pictures,) int64, ascending: the number of each picture in the run, which results call `row`."""
        return np.flatnonzero(~self._collection.index.removed)

    def __getitem__(self, place: int | slice) -> Results:
        """The picture at this place, or pictures: their facts, and in a notebook the pictures themselves."""
        rows = self.rows[place] if isinstance(place, slice) else self.rows[[place]]
        return self._results(self._collection.index.entries(rows), counted(len(rows), "picture"))

    def __repr__(self) -> str:
        return f"instdisc.open({os.fspath(self.path)!r}): {len(self):,} pictures"

    @property
    def labels(self) -> list[str]:
        """The label of each picture, in order of `rows`; "" for none."""
        return [entry.label for entry in self._collection.index.entries(self.rows)]

    def picture(self, row: int) -> np.ndarray:
        """Its pixels, (height, width, 3) uint8; UnreadableError where the file has gone or is damaged."""
        return self._collection.picture(row)

    def vectors(self) -> np.ndarray:
        """(pictures, at most 256) float32, unit rows in order of `rows`: the search vectors."""
        return self._searchable().index.vectors(self.rows).cpu().numpy()

    def search(self, picture: Any, k: int = 12, *, label: str | None = None, tag: str | None = None) -> Results:
        """The k pictures that are most like this one, best first, with their cosine as `score`.

        picture: a file, a PIL image, an array (height, width, 3) uint8, or a picture of the run by its row, path or id,
        which is then not its own neighbour. label, tag: only among these. Raises InputError for a picture that can't be
        read, and where fewer than k pictures are to choose from.
        """
        collection = self._searchable()
        among = collection.index.matching(label=label, tag=tag)
        own = own_rows(collection, [picture])
        (found,) = nearest(collection, [picture], own, k, among=among, device=self._device)
        return self._results(found, f"{counted(len(found), 'picture')} most like {_name_of(picture)}")

    def duplicates(self) -> Results:
        """Copies, proven by their pixels, a line each: `group`, `keep` (one of a group), and why it is a copy."""
        lines = []
        found = duplicates(self._searchable(), device=self._device, say=_bars_alone)
        for number, group in enumerate(found):
            for copy in (group.kept, *group.copies):
                facts = {one.name: getattr(copy, one.name) for one in fields(Entry)}
                more = {"kind": copy.kind, "changes": ", ".join(copy.changes), "pixels": copy.width * copy.height}
                lines.append(facts | {"group": number, "keep": copy is group.kept} | more)
        return self._results(lines, f"{len(found)} groups of copies")

    def outliers(self, count: int = 50) -> Results:
        """The pictures least like any other, the most unusual first, with their outlier score."""
        found = outliers(self._searchable(), count=count, device=self._device, say=_bars_alone)
        lines = [
            {one.name: getattr(outlier, one.name) for one in fields(Entry)}
            | {"outlier_score": round(outlier.outlier_score, 4), "similarity": round(outlier.similarity, 4)}
            for outlier in found
        ]
        return self._results(lines, f"{len(lines)} outliers")

    def map(self) -> Results:
        """All pictures in the plane, `x` and `y`, those alike close together; computed once, for minutes where many."""
        collection = self._searchable()
        found = read_map(collection)
        if found is None:
            make_map(collection, device=self._device, say=_bars_alone)
            found = read_map(collection)
        assert found is not None
        entries = collection.index.entries(found[0])
        lines = [vars(entry) | {"x": float(x), "y": float(y)} for entry, (x, y) in zip(entries, found[1], strict=True)]
        return self._results(lines, f"The map of {len(lines):,} pictures")

    def to_arrow(self) -> pa.Table:
        """row, id, path, label of every picture."""
        return self._results(self._collection.index.entries(self.rows), "").to_arrow()

    def to_pandas(self) -> Any:
        """`to_arrow` as a DataFrame."""
        return self._results(self._collection.index.entries(self.rows), "").to_pandas()

    def serve(self, port: int = 0) -> Server:
        """The page, in the background, until `stop()`, or until this object or the process ends. port: 0: a free one.

        Raises InputError where the port is taken.
        """
        moved = self._searchable().moved_to
        if moved is not None and not isinstance(moved, str | os.PathLike):
            raise InputError("The page is served by another process, which can't have pictures in memory: save them.")
        words = [sys.executable, "-m", "instdisc", "serve", os.fspath(self.path), "--port", str(port), "--with-stdin"]
        words += [] if moved is None else ["--train-source", os.fspath(moved)]
        self._servers.append(server := Server(words))
        return server

    def _results(self, lines: Sequence[Entry] | Sequence[dict[str, Any]], caption: str) -> Results:
        known = [line if isinstance(line, dict) else vars(line) for line in lines]
        return Results(known, lambda row: picture_or_grey(self._collection, row), caption)


def _end(process: subprocess.Popen[bytes], starter: int) -> None:
    if os.getpid() != starter:  # a fork of it
        return
    process.terminate()
    try:
        process.wait(_PAGE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _bars_alone(_: str) -> None:
    """Drops what a command would print; its progress is shown."""


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except UnicodeEncodeError:
        return pa.array([os.fsencode(value) for value in values], pa.large_binary())


def _written(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _name_of(picture: Any) -> str:
    if isinstance(picture, int | np.integer):
        return f"row {picture}"
    return os.fspath(picture) if isinstance(picture, str | os.PathLike) else "the picture given"


def _address(pixels: np.ndarray) -> str:
    """A small JPEG as a data URL."""
    return "data:image/jpeg;base64," + base64.b64encode(as_jpeg(pixels, _SIDE)).decode()
