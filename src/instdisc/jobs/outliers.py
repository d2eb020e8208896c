"""`instdisc outliers`: the pictures of a collection that are least like any other."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instdisc import ranks
from instdisc.encoder.backbones import evaluating
from instdisc.encoder.embed import autocast, stream
from instdisc.errors import InputError
from instdisc.files import csv_text, write_text
from instdisc.jobs import index as index_job
from instdisc.jobs.collection import AnyRun, Collection
from instdisc.jobs.duplicates import comparing, refuse_graph
from instdisc.jobs.search import Neighbour, picture_or_grey
from instdisc.report import neighbour_sheet
from instdisc.search.catalogue import Entry
from instdisc.search.mahalanobis import outlier_scores
from instdisc.shapes import Float, Tensor

WAYS = ("outlier_score", "similarity", "uniqueness")
_OLD = "strangeness"  # the outlier score's name before 0.2, taken for one release; old outliers.csv keep their column
_DRAWN, _NEAREST = 24, 6  # outliers on the sheet, neighbours of each
_COLUMNS = ("path", "id", "label", *WAYS, "nearest_path")


@dataclass(frozen=True)
class Outlier(Entry):
    """outlier_score: by the network's stages (search/mahalanobis.py), higher is more unusual; NaN if unreadable.

    similarity: mean cosine with the nearest others; uniqueness: 1 - cosine with the nearest one.
    """

    outlier_score: float
    similarity: float
    uniqueness: float
    nearest: Neighbour

    @property
    def strangeness(self) -> float:
        """`outlier_score` by its old name, for one release."""
        return self.outlier_score


def outliers(
    run: AnyRun,
    *,
    by: str = "outlier_score",
    neighbours: int = 10,
    count: int = 50,
    out: str | Path | None = None,
    bank: bool = False,
    approximate: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Callable[[str], None] | None = print,
) -> list[Outlier]:
    """The `count` pictures that are least like any other, the most unusual first.

    by: outlier_score (what the network's stages see, from one pass over the pictures), similarity (lowest mean cosine
    with the `neighbours` nearest others) or uniqueness (lowest cosine with the nearest). out: the folder of
    outliers.csv, with all pictures in that order, and outliers.png; RUN/outliers without. bank: compare the rows of the
    bank in place of vectors of the pictures as they are. approximate: as in `duplicates`, and so is torchrun.
    Raises InputError for an invalid argument.
    """
    by = WAYS[0] if by == _OLD else by
    if by not in WAYS:
        raise InputError(f'Invalid order of outliers: "{by}". Choose from {", ".join(WAYS)}.')
    with ranks.distributed():
        say = say if ranks.is_main() else None
        refuse_graph(approximate)
        collection = index_job.without_augmentation(
            run, bank=bank, train_source=train_source, device=device, say=say, by_ranks=True
        )
        index = collection.index
        rows, vectors = index.present(ranks.device(device))
        compared = comparing(collection, rows, vectors, approximate, say)
        scores, positions = compared.neighbours_of_all(neighbours, show=say is not None)
        unusual = np.full(len(rows), np.nan, np.float32)
        if by == "outlier_score":
            unusual = _outlier_scores(collection, rows, device, show=say is not None)
        if not ranks.is_main():
            return []
    values = {"outlier_score": unusual, "similarity": scores.mean(axis=1), "uniqueness": 1 - scores[:, 0]}
    order = np.argsort(values[by] if by == "similarity" else -values[by], kind="stable")  # NaN last
    folder = collection.folder.outliers if out is None else Path(out)
    nearest = index.entries(rows[positions[order, 0]])
    lines = (
        (entry.path, entry.id, entry.label, *(f"{values[way][position]:.6f}" for way in WAYS), closest.path)
        for entry, closest, position in zip(index.entries(rows[order]), nearest, order, strict=True)
    )
    write_text(folder / "outliers.csv", csv_text(_COLUMNS, lines))
    drawn = order[: min(count, _DRAWN)]
    _draw(collection, rows[drawn], rows[positions[drawn, :_NEAREST]], scores[drawn, :_NEAREST], folder)
    return [
        Outlier(
            **vars(entry),
            outlier_score=float(values["outlier_score"][position]),
            similarity=float(values["similarity"][position]),
            uniqueness=float(values["uniqueness"][position]),
            nearest=Neighbour(**vars(closest), score=float(scores[position, 0])),
        )
        for entry, closest, position in zip(
            index.entries(rows[order[:count]]), nearest[:count], order[:count], strict=True
        )
    ]


def _draw(collection: Collection, rows: np.ndarray, nearest: np.ndarray, scores: np.ndarray, folder: Path) -> None:
    """outliers.png: each of `rows` with its nearest others, (pictures, neighbours), and their cosines."""
    neighbour_sheet(
        [picture_or_grey(collection, int(row)) for row in rows],
        [[picture_or_grey(collection, int(row)) for row in others] for others in nearest],
        scores.tolist(),
        folder / "outliers.png",
        heading="Outlier",
        title="Similar pictures, with the cosine",
    )


def known_outliers(collection: Collection) -> list[tuple[int, float]]:
    """(row, outlier score) as RUN/outliers/outliers.csv has them, the highest first; none where it was not made."""
    file = collection.folder.outliers / "outliers.csv"
    if not file.is_file():
        return []
    try:
        with open(file, newline="", encoding="utf-8", errors="surrogateescape") as lines:
            read = csv.DictReader(lines)
            column = _OLD if _OLD in (read.fieldnames or ()) else WAYS[0]
            found = [(line["path"], float(line[column])) for line in read]
    except (OSError, KeyError, ValueError, TypeError, csv.Error):
        return []
    rows = collection.index.rows_of([path for path, _ in found]).tolist()
    scored = [(row, score) for row, (_, score) in zip(rows, found, strict=True) if row >= 0 and score == score]
    return sorted(scored, key=lambda one: (-one[1], one[0]))


def _outlier_scores(
    collection: Collection, rows: np.ndarray, device: str, *, show: bool
) -> Float[np.ndarray, " pictures"]:
    """Of the collection's pictures at `rows`, NaN where one can't be read. Each rank looks at its share of them.

    The features lie in a file meanwhile. Of vectors that were made elsewhere: by these vectors, which are all there is.
    """
    if collection.given:
        first, last = ranks.share(len(rows))
        scores = outlier_scores({"vectors": collection.index.vectors(rows[first:last]).numpy()})
        return ranks.gather(torch.from_numpy(scores)).numpy()
    encoder = collection.encoder(device)
    torch_device = ranks.device(device)
    begin, end = ranks.share(len(rows))
    place_of = np.full(len(collection.index), -1)
    place_of[rows[begin:end]] = np.arange(end - begin)

    def compute(images: Tensor) -> dict[str, Tensor]:
        with evaluating(encoder), autocast(torch_device, "auto"):
            found = encoder.levels(encoder.preprocessing.normalise(images.to(torch_device)))
        return {name: values for name, values in found.items() if name in channels}

    channels = encoder.level_channels()
    if len(channels) > 1:
        del channels["backbone"]  # the last stage once more
    with tempfile.TemporaryDirectory(prefix="instdisc-") as folder:
        stages = {
            name: np.lib.format.open_memmap(
                Path(folder) / f"{number}.npy", mode="w+", dtype=np.float32, shape=(end - begin, width)
            )
            for number, (name, width) in enumerate(channels.items())
        }
        seen = np.zeros(end - begin, dtype=bool)
        with ranks.fail_together():
            for source, theirs, ours in collection.sources():
                wanted = place_of[ours] >= 0
                known = dict(zip(theirs[wanted].tolist(), place_of[ours[wanted]].tolist(), strict=True))
                chunks = stream(
                    source,
                    encoder.preprocessing,
                    compute,
                    batch=256,
                    on_unreadable=lambda *_: None,
                    rows=theirs[wanted],
                    progress=show,
                )
                for numbers, values in chunks:
                    at = np.array([known[number] for number in numbers.tolist()])
                    for name, stage in stages.items():
                        stage[at] = values[name].numpy()
                    seen[at] = True
        if not ranks.any_rank(bool(seen.any())):
            raise InputError("None of the pictures can be read any more: are they where they were?")
        found = np.full(end - begin, np.nan, np.float32)
        found[seen] = outlier_scores(stages if seen.all() else {name: stage[seen] for name, stage in stages.items()})
        return ranks.gather(torch.from_numpy(found)).numpy()
