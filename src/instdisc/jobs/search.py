"""`instdisc search`: the pictures of a run's collection that are most like a picture of one's own.

The bank of a run is the index: nothing is built. Search is exact, by blocks, whatever the size of the collection.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from instdisc import checkpoint, ranks
from instdisc.data.decode import UnreadableError, decode
from instdisc.data.source import Source, open_source
from instdisc.errors import InputError
from instdisc.jobs.sources import read_facts, read_rows, reopen
from instdisc.neighbours import top_k
from instdisc.report import neighbour_sheet
from instdisc.runs import RunFolder

_GREY = np.full((64, 64, 3), 128, np.uint8)  # in the place of a picture that has gone


@dataclass(frozen=True)
class Neighbour:
    """score: cosine with the query; row: of the bank; id, path: as the source calls the picture; label: "" = none."""

    score: float
    row: int
    id: str
    path: str
    label: str


def search(
    run: str | Path,
    pictures: Sequence[str | Path],
    *,
    neighbours: int = 20,
    where: str | None = None,
    label: str | None = None,
    sheet: str | Path | None = None,
    train_source: Any = None,
    device: str = "auto",
) -> list[list[Neighbour]]:
    """For each picture file the `neighbours` pictures of the collection with the highest cosine, best first.

    A picture of the collection itself is never its own neighbour. where: only ids that match this pattern (`*`, `?`);
    label: only pictures of this class. sheet: a PNG to draw the answers to. train_source: where the collection is now,
    if it was moved: needed for labels and the sheet only.
    Raises InputError for pictures that can't be read, and where fewer than `neighbours` pictures are to choose from.
    """
    if ranks.world() > 1:
        raise InputError("A search is one process's work: start it without torchrun.")
    if not pictures:
        raise InputError("Name a picture to search for.")
    folder = RunFolder(run)
    facts = read_facts(folder)
    place = ranks.device(device)
    saved = checkpoint.latest(folder.checkpoints)
    encoder = checkpoint.load_encoder(run, saved).to(place)
    assert saved is not None  # load_encoder refuses that
    rows = read_rows(folder)
    bank = saved.rows("bank", 0, len(rows))["rows"]
    known = _Known.of(folder)
    source = _reopened(folder, facts, train_source, needed=label is not None)
    labels = [""] * len(rows)
    if source is not None and source.labels is not None:
        labels = [source.class_name(code) for code in source.labels[rows].tolist()]
    chosen = np.flatnonzero(_matching(known, labels, where, label))
    own = torch.tensor([_own(known, chosen, picture) for picture in pictures])
    most = len(chosen) - bool((own >= 0).any())
    if not 1 <= neighbours <= most:
        raise InputError(
            f"{neighbours} neighbours were asked for, and {most:,} pictures are there to choose from: "
            f"{'ask for at least one' if neighbours < 1 else 'ask for fewer'}."
        )
    queries = encoder.embed([os.fspath(picture) for picture in pictures]).to(place)
    scores, found = top_k(queries, bank[torch.from_numpy(chosen)].to(place), neighbours, exclude=own)
    answers = [
        [
            Neighbour(score, row, known.ids[row], known.paths[row], labels[row])
            for score, row in zip(line, chosen[places].tolist(), strict=True)
        ]
        for line, places in zip(scores.tolist(), found.cpu().numpy(), strict=True)
    ]
    if sheet is not None:
        if source is None:
            raise InputError("The pictures of the collection are not where they were: say where with --train-source.")
        own_labels = [labels[chosen[place]] if place >= 0 else "" for place in own.tolist()]
        _draw(Path(sheet), pictures, own_labels, answers, source, rows)
    return answers


@dataclass(frozen=True)
class _Known:
    """What instances.arrow says of every bank row."""

    ids: list[str]
    paths: list[str]

    @classmethod
    def of(cls, folder: RunFolder) -> _Known:
        with pa.memory_map(str(folder.instances)) as file:
            table = pa.ipc.open_file(file).read_all()
            return cls(_texts(table["id"]), _texts(table["location"]))


def _texts(column: pa.ChunkedArray) -> list[str]:
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):  # names that are not UTF-8
        return [os.fsdecode(value) for value in column.to_pylist()]
    return pc.cast(column, pa.string()).to_pylist()


def _reopened(folder: RunFolder, facts: dict[str, Any], moved_to: Any, *, needed: bool) -> Source | None:
    """The collection, or None where it is not there any more: a search can do without."""
    try:
        return reopen(folder, facts, moved_to)
    except InputError:
        if needed or moved_to is not None:
            raise
        return None


def _matching(known: _Known, labels: list[str], where: str | None, label: str | None) -> np.ndarray:
    """Which bank rows may be answers."""
    matching = np.ones(len(known.ids), dtype=bool)
    if where is not None:
        matching &= np.array([fnmatch.fnmatchcase(name, where) for name in known.ids])
    if label is not None:
        if label not in labels:
            present = ", ".join(sorted(set(labels) - {""})) or "none at all"
            raise InputError(f'No picture has the label "{label}"; there are: {present}.')
        matching &= np.array([one == label for one in labels])
    return matching


def _own(known: _Known, chosen: np.ndarray, picture: str | Path) -> int:
    """The place of a picture among the chosen ones, -1 if it is none of them."""
    path = os.path.abspath(os.path.expanduser(picture))
    return next((place for place, row in enumerate(chosen.tolist()) if known.paths[row] == path), -1)


def _draw(
    out: Path,
    pictures: Sequence[str | Path],
    own_labels: list[str],
    answers: list[list[Neighbour]],
    source: Source,
    rows: np.ndarray,
) -> None:
    asked = open_source([os.fspath(picture) for picture in pictures])
    neighbour_sheet(
        [decode(asked.read(row)) for row in range(len(asked))],
        [[_picture(source, int(rows[one.row])) for one in line] for line in answers],
        [[one.score for one in line] for line in answers],
        out,
        query_labels=own_labels,
        neighbour_labels=[[one.label for one in line] for line in answers],
    )


def _picture(source: Source, row: int) -> np.ndarray:
    try:
        return decode(source.read(row))
    except UnreadableError:
        return _GREY
