"""`instdisc label`: a few labels by hand, a vote for every other picture, and proposals of what to label next.

RUN/labels/hand.csv     path, label, time: what was said by hand; nothing else ever changes it
RUN/labels/next.csv     proposals, with an empty column to fill in; next.png shows them in the same order
"""

from __future__ import annotations

import csv
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

from instdisc.errors import InputError
from instdisc.jobs import index as index_job
from instdisc.jobs.collection import Collection, read_hand_labels
from instdisc.jobs.duplicates import csv_text, write_text
from instdisc.jobs.search import picture_or_grey
from instdisc.jobs.votes import NEIGHBOURS, TEMPERATURE, VOTES, WAYS, Labelled, proposals, spreading_graph, vote
from instdisc.report import neighbour_sheet
from instdisc.runs import RunFolder
from instdisc.search.index import Entry, Index
from instdisc.shapes import Float, Tensor

_SHOWN = 5  # neighbours beside each proposal
Say = Callable[[str], None] | None


def assign(
    run: str | Path, labels: Mapping[str, str], *, replace: bool = False, say: Say = print
) -> tuple[int, list[str]]:
    """Label pictures by hand, by their paths. How many are new, and the paths that keep another label they had.

    replace: put the new label in the place of the other. Raises InputError for a path that is not in the collection.
    """
    with index_job.changing(run) as folder:
        collection = Collection(folder.path)
        index = collection.index
        given = {path: label.strip() for path, label in labels.items() if label.strip()}
        rows = index.rows_of(list(given))
        rows = np.where(rows < 0, index.rows_of([os.path.abspath(os.path.expanduser(path)) for path in given]), rows)
        if (rows < 0).any():
            lost = list(given)[int(np.flatnonzero(rows < 0)[0])]
            raise InputError(
                f"{int((rows < 0).sum()):,} pictures are not in the collection of {folder.path}, the first is {lost}: "
                "name them by the paths that `instdisc search` shows."
            )
        paths = [entry.path for entry in index.entries(rows)]
        new, kept = change_hand_labels(folder, dict(zip(paths, given.values(), strict=True)), replace=replace)
    if say is not None and kept:
        say(f"{len(kept):,} pictures keep the label they had, the first is {kept[0]}: --replace changes it.")
    return new, kept


def change_hand_labels(
    folder: RunFolder, given: Mapping[str, str | None], *, replace: bool = False
) -> tuple[int, list[str]]:
    """`assign` for paths as the collection has them; None takes a label away. Only inside `index.changing`."""
    known = read_hand_labels(folder)
    kept, new = [], 0
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for path, label in given.items():
        before = known.get(path, (None, ""))[0]
        if before == label:
            continue
        if before is not None and not replace:
            kept.append(path)
        elif label is None:
            del known[path]
        else:
            known[path] = (label, now)
            new += 1
    lines = [(path, label, time) for path, (label, time) in known.items()]
    write_text(folder.hand_labels, csv_text(["path", "label", "time"], lines))
    return new, kept


def read_table(file: str | Path) -> dict[str, str]:
    """path -> label of a CSV file; lines without a label, and those that a vote labelled, are passed over."""
    try:
        with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            reader = csv.DictReader(lines)
            if not {"path", "label"} <= set(reader.fieldnames or []):
                raise InputError(f"{file} needs a first line with the columns path and label.")
            return {
                line["path"]: line["label"]
                for line in reader
                if line["path"] and line["label"] and line.get("by") != "vote"
            }
    except (OSError, csv.Error) as error:
        raise InputError(f"{file} can't be read ({error}): check the path.") from None


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
    return vote(*known, graph=graph, neighbours=neighbours, temperature=temperature, device=device)


def known_labels(collection: Collection) -> tuple[np.ndarray, Float[Tensor, "pictures dim"], np.ndarray, list[str]]:
    """(rows, vectors, code of the label given by hand or -1, names of the classes) of the pictures that are there."""
    index = collection.index
    rows = np.flatnonzero(~index.removed)
    hand = read_hand_labels(collection.folder)
    names = sorted({given for given, _ in hand.values()})
    codes = np.full(len(index), -1)
    places = index.rows_of(list(hand))
    given = np.array([names.index(text) for text, _ in hand.values()], dtype=np.int64)
    codes[places[places >= 0]] = given[places >= 0]
    return rows, index.vectors(rows), codes[rows], names


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
    there are five labels a class, then half of each. Raises InputError for what can't be.
    """
    if by not in WAYS:
        raise InputError(f'Pictures are proposed as {", ".join(WAYS)}, not as "{by}".')
    if count < 1:
        raise InputError(f"{count} proposals were asked for: ask for at least one.")
    collection = index_job.without_augmentation(run, bank=bank, train_source=train_source, device=device, say=say)
    rows, vectors, codes, _ = known_labels(collection)
    graph = spreading_graph(collection.folder, vectors, device=device, show=say is not None)
    places = proposals(vectors, codes, count, graph=graph, by=by, device=device)
    if not len(places):
        raise InputError("Every picture of the collection is labelled by hand: there is nothing left to propose.")
    entries = collection.index.entries(rows[places])
    folder = collection.folder.labels
    write_text(folder / "next.csv", csv_text(["path", "label"], [(entry.path, "") for entry in entries]))
    scores, near = collection.index.search(
        vectors[torch.from_numpy(places)], min(_SHOWN, len(rows) - 1), exclude=rows[places]
    )
    neighbour_sheet(
        [picture_or_grey(collection, entry.row) for entry in entries],
        [[picture_or_grey(collection, row) for row in line] for line in near.tolist()],
        scores,
        folder / "next.png",
        heading="Label it",
        title="Most like it, with the cosine",
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
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            pq.write_table(pa.table(columns | {"confidence": labelled.confidence}), file)
        os.replace(aside, out)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise InputError(f"{out} could not be written ({error.strerror or error}): choose another place.") from None


def _in_words(labelled: Labelled) -> tuple[list[str], list[str]]:
    """The label of each picture, and how it came."""
    return [labelled.names[code] for code in labelled.codes.tolist()], np.where(labelled.hand, "hand", "vote").tolist()


def counts(labelled: Labelled) -> list[tuple[str, int, int]]:
    """For each class its name, how many pictures have it by hand, and how many by vote."""
    by_hand, by_vote = (Counter(labelled.codes[kind].tolist()) for kind in (labelled.hand, ~labelled.hand))
    return [(name, by_hand[code], by_vote[code]) for code, name in enumerate(labelled.names)]


def hand_labels(run: str | Path) -> dict[str, str]:
    """path -> label, as given by hand."""
    folder = RunFolder(run)
    folder.read_config()
    return {path: given for path, (given, _) in read_hand_labels(folder).items()}
