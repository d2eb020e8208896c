"""`instdisc outliers`: the pictures of a collection that are least like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instdisc import ranks
from instdisc.jobs import index as index_job
from instdisc.jobs.duplicates import collection_vectors, csv_text, write_text
from instdisc.jobs.search import Neighbour, picture_or_grey
from instdisc.report import neighbour_sheet
from instdisc.runs import RunFolder
from instdisc.search.index import Entry
from instdisc.search.pairs import neighbours_of_all

_DRAWN, _NEAREST = 24, 6  # outliers on the sheet, neighbours of each


@dataclass(frozen=True)
class Outlier(Entry):
    """similarity: mean cosine with the nearest others; uniqueness: 1 - cosine with the nearest one."""

    similarity: float
    uniqueness: float
    nearest: Neighbour


def outliers(
    run: str | Path,
    *,
    neighbours: int = 10,
    count: int = 50,
    out: str | Path | None = None,
    bank: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Callable[[str], None] | None = print,
) -> list[Outlier]:
    """The `count` pictures whose mean cosine with their `neighbours` nearest others is lowest, lowest first.

    out: the folder of outliers.csv, with every picture of the collection in that order, and outliers.png; RUN/outliers
    without. bank: compare the rows of the bank in place of vectors of the pictures as they are.
    """
    collection = index_job.without_augmentation(run, bank=bank, train_source=train_source, device=device, say=say)
    index = collection.index
    rows, vectors = collection_vectors(collection, ranks.device(device))
    scores, places = neighbours_of_all(vectors, neighbours, show=say is not None)
    similarity = scores.mean(axis=1)
    order = np.argsort(similarity, kind="stable")
    folder = RunFolder(run).outliers if out is None else Path(out)
    nearest = index.entries(rows[places[order, 0]])
    lines = (
        (entry.path, entry.id, entry.label, f"{similarity[place]:.6f}", f"{1 - scores[place, 0]:.6f}", closest.path)
        for entry, closest, place in zip(index.entries(rows[order]), nearest, order, strict=True)
    )
    columns = ["path", "id", "label", "similarity", "uniqueness", "nearest_path"]
    write_text(folder / "outliers.csv", csv_text(columns, lines))
    drawn = order[: min(count, _DRAWN)]
    if len(drawn):
        neighbour_sheet(
            [picture_or_grey(collection, int(row)) for row in rows[drawn]],
            [[picture_or_grey(collection, int(row)) for row in rows[places[place, :_NEAREST]]] for place in drawn],
            scores[drawn, :_NEAREST].tolist(),
            folder / "outliers.png",
            heading="Outlier",
            title="Most like it, with the cosine",
        )
    return [
        Outlier(
            **vars(entry),
            similarity=float(similarity[place]),
            uniqueness=float(1 - scores[place, 0]),
            nearest=Neighbour(**vars(closest), score=float(scores[place, 0])),
        )
        for entry, closest, place in zip(
            index.entries(rows[order[:count]]), nearest[:count], order[:count], strict=True
        )
    ]
