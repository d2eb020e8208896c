"""`instdisc label`: a few labels by hand, a vote for every other picture, and proposals of what to label next.

RUN/labels/hand.csv     path, label, time: what was said by hand; nothing else ever changes it
RUN/labels/journal.jsonl    each change of it, with its inverse (jobs/journal.py)
RUN/labels/next.csv     proposals, with an empty column to fill in; next.png shows them in the same order
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from instdisc.data.sources.labels import LabelLines, read_label_lines
from instdisc.errors import InputError, counted
from instdisc.files import csv_text, replacing, write_text
from instdisc.jobs import index as index_job
from instdisc.jobs import journal
from instdisc.jobs.collection import Collection
from instdisc.jobs.journal import Act
from instdisc.jobs.run import Run
from instdisc.jobs.search import picture_or_grey
from instdisc.jobs.sources import log_lines
from instdisc.jobs.votes import NEIGHBOURS, TEMPERATURE, VOTES, WAYS, Labelled, proposals, spreading_graph, vote
from instdisc.report import neighbour_sheet
from instdisc.runs import RunFolder
from instdisc.search.catalogue import Entry
from instdisc.search.index import Index
from instdisc.shapes import Float, Tensor

_SHOWN = 5  # neighbours beside each proposal
Say = Callable[[str], None] | None


def assign(
    run: str | Path, labels: Mapping[str, str] | LabelLines, *, replace: bool = False, say: Say = print
) -> tuple[int, list[str]]:
    """Label pictures by hand. How many are new, and the paths that keep another label they had.

    labels: path (or id) -> label, each in the collection; or what `read_table` read, whose lines that
    fit no picture are skipped and told. replace: put the new label in the place of the other.
    Raises InputError for a name that is not in the collection, or where no line of a table fits.
    """
    with index_job.changing(run) as folder:
        collection = Collection(folder.path)
        index = collection.index
        if isinstance(labels, LabelLines):
            texts = labels.labels
            rows, sentences = labels.match(*index.names, len(index), ~index.removed)
            log_lines(say, sentences)
        else:
            given = {path: label.strip() for path, label in labels.items() if label.strip()}
            rows, texts = index.rows_named(list(given)), list(given.values())
            if (rows < 0).any():
                lost = list(given)[int(np.flatnonzero(rows < 0)[0])]
                raise InputError(
                    f"{counted(int((rows < 0).sum()), 'name is', 'names are')} not in the collection of {folder.path}, "
                    f"the first is {lost}: name pictures by the paths that `instdisc search` shows."
                )
        fit = np.flatnonzero(rows >= 0)
        paths = [entry.path for entry in index.entries(rows[fit])]
        chosen = {path: texts[position] for path, position in zip(paths, fit.tolist(), strict=True)}
        new, kept, _ = change_hand_labels(folder, chosen, replace=replace)
    if say is not None and kept:
        before = counted(len(kept), "picture keeps its label", "pictures keep their labels")
        say(f"{before} of before, the first is {kept[0]}: --replace changes that.")
    return new, kept


def change_hand_labels(
    folder: RunFolder, given: Mapping[str, str | None], *, replace: bool = False, bulk: bool = False
) -> tuple[int, list[str], Act | None]:
    """`assign` for paths as the collection has them, with the act to undo; None takes a label away.

    bulk: they are labelled together, without a look at each (jobs/journal.py). Only inside `index.changing`.
    """
    known = journal.read(folder)
    kept, new, done = [], 0, Counter[str | None]()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for path, label in given.items():
        before = known.get(path, (None, ""))[0]
        if before == label:
            continue
        if before is not None and not replace:
            kept.append(path)
            continue
        done[label] += 1
        if label is None:
            del known[path]
        else:
            known[path] = (label, now)
            new += 1
    pictures = counted(done.total(), "picture")
    text = f"Removed the label of {pictures}" if set(done) == {None} else f"Labelled {pictures}"
    if len(done) == 1 and None not in done:
        text += f" “{next(iter(done))}”"
    return new, kept, journal.write(folder, known, text=text, bulk=bulk)


def read_table(file: str | Path) -> LabelLines:
    """The labels in a table (sources/tables.py); lines without a label, and those labelled by vote, are skipped."""
    return read_label_lines(file, by=("path", "location", "file_name", "filename", "file", "id"), votes=False)


def label(
    run: str | Path,
    *,
    votes: str = VOTES[0],
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    bank: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Say = print,
) -> Labelled:
    """A label for every picture: that given by hand, or what the labels by hand say of it.

    votes: "spread", along the neighbour graph (`jobs/votes.py`), which is computed once and kept in RUN/index/; or
    "neighbours", the paper's classifier: of the `neighbours` nearest labelled pictures each votes with weight
    exp(cosine / temperature). Raises InputError where there is no label. Examples:

        found = label("runs/mine")
        dict(zip(found.rows, (found.names[code] for code in found.codes)))
    """
    if votes not in VOTES:
        raise InputError(f'Votes come by {" or ".join(VOTES)}, not by "{votes}".')
    collection = index_job.without_augmentation(run, bank=bank, train_source=train_source, device=device, say=say)
    known = known_labels(collection)
    graph = None
    if votes == "spread" and (known[2] >= 0).any():
        graph = spreading_graph(collection.folder, known[1], device=device, show=say is not None)
    together = journal.labelled_together(collection.folder, collection.run.hand_labels())
    asked = np.setdiff1d(known[0], collection.index.rows_of(list(together)))
    return vote(
        *known,
        graph=graph,
        asked=np.isin(known[0], asked),
        neighbours=neighbours,
        temperature=temperature,
        device=device,
    )


def known_labels(collection: Collection) -> tuple[np.ndarray, Float[Tensor, "pictures dim"], np.ndarray, list[str]]:
    """(rows, vectors, code of the label given by hand or -1, names of the classes) of the pictures that are there."""
    index = collection.index
    rows, vectors = index.whole()
    hand = collection.run.hand_labels()
    names = sorted({given for given, _ in hand.values()})
    codes = np.full(len(index), -1)
    positions = index.rows_of(list(hand))
    given = np.array([names.index(text) for text, _ in hand.values()], dtype=np.int64)
    codes[positions[positions >= 0]] = given[positions >= 0]
    return rows, vectors, codes[rows], names


def propose(
    run: str | Path,
    count: int,
    *,
    by: str = "mixed",
    bank: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Say = print,
) -> list[Entry]:
    """What to label next, the most useful first; RUN/labels/next.csv, to fill in, and next.png show them.

    by: covered (from all over the neighbour graph), uncertain (where the votes are in doubt), or mixed: the first until
    there are five labels a class, then half of each. Raises InputError for an invalid argument.
    """
    if by not in WAYS:
        raise InputError(f'Pictures are proposed as {", ".join(WAYS)}, not as "{by}".')
    if count < 1:
        raise InputError(f"{count} proposals were asked for: ask for at least one.")
    collection = index_job.without_augmentation(run, bank=bank, train_source=train_source, device=device, say=say)
    rows, vectors, codes, _ = known_labels(collection)
    graph = spreading_graph(collection.folder, vectors, device=device, show=say is not None)
    positions = proposals(vectors, codes, count, graph=graph, by=by, device=device)
    if not len(positions):
        raise InputError("Every picture of the collection is labelled by hand: there is nothing left to propose.")
    entries = collection.index.entries(rows[positions])
    folder = collection.folder.labels
    write_text(folder / "next.csv", csv_text(["path", "label"], [(entry.path, "") for entry in entries]))
    scores, near = collection.index.search(
        vectors[torch.from_numpy(positions)], min(_SHOWN, len(rows) - 1), exclude=rows[positions]
    )
    neighbour_sheet(
        [picture_or_grey(collection, entry.row) for entry in entries],
        [[picture_or_grey(collection, row) for row in line] for line in near.tolist()],
        scores,
        folder / "next.png",
        heading="Label it",
        title="Similar pictures, with the cosine",
    )
    return entries


def labels_csv(index: Index, labelled: Labelled) -> str:
    """Every picture's label with its provenance: id, path, label, by (hand or vote), confidence."""
    pictures = index.pictures.take(pa.array(labelled.rows))
    texts = (
        [os.fsdecode(value) for value in pc.cast(pictures[column], pa.large_binary()).to_pylist()]
        for column in ("id", "location")
    )
    shares = [f"{share:.4f}" for share in labelled.confidence.tolist()]
    return csv_text(["id", "path", "label", "by", "confidence"], zip(*texts, *_in_words(labelled), shares, strict=True))


def save(run: str | Path, labelled: Labelled, out: str | Path) -> None:
    """`labels_csv` to a file; or the same as Parquet, by its name."""
    out = Path(out)
    if out.suffix not in (".csv", ".parquet"):
        raise InputError(f"Labels are written as .csv or .parquet, not as {out.name}.")
    index = Collection(run).index
    if out.suffix == ".csv":
        write_text(out, labels_csv(index, labelled))
        return
    pictures = index.pictures.take(pa.array(labelled.rows))
    names, ways = (pa.array(words).dictionary_encode() for words in _in_words(labelled))
    columns = {"id": pictures["id"], "path": pictures["location"], "label": names, "by": ways}
    with replacing(out) as temporary, open(temporary, "wb") as file:
        pq.write_table(pa.table(columns | {"confidence": labelled.confidence}), file)


def _in_words(labelled: Labelled) -> tuple[list[str], list[str]]:
    """The label of each picture, and how it came."""
    return [labelled.names[code] for code in labelled.codes.tolist()], np.where(labelled.hand, "hand", "vote").tolist()


def counts(labelled: Labelled) -> list[tuple[str, int, int]]:
    """For each class its name, how many pictures have it by hand, and how many by vote."""
    by_hand, by_vote = (Counter(labelled.codes[kind].tolist()) for kind in (labelled.hand, ~labelled.hand))
    return [(name, by_hand[code], by_vote[code]) for code, name in enumerate(labelled.names)]


def hand_labels(run: str | Path) -> dict[str, str]:
    """path -> label, as given by hand."""
    return {path: given for path, (given, _) in Run(run).hand_labels().items()}
