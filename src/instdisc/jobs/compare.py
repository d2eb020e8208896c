"""`instdisc compare`: two runs on the same test pictures, and whether their difference could be luck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from instdisc import ranks
from instdisc.allocator import keep_freed_memory
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.encoder import Encoder
from instdisc.encoder.embed import gathered
from instdisc.errors import InputError
from instdisc.evaluation.intervals import wilson
from instdisc.evaluation.knn import KNN
from instdisc.evaluation.paired import paired_test
from instdisc.jobs.run import Run
from instdisc.jobs.sources import log_lines

NEIGHBOURS = 200


def compare(
    first: str | Path,
    second: str | Path,
    source: Any,
    *,
    labels: Any = None,
    neighbours: int | None = None,
    temperature: float = 0.07,
    vectors: str = "search",
    device: str = "auto",
    say: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """Weighted kNN of two runs, each by its own training pictures, on the labelled test pictures of `source`.

    neighbours: k; None = 200, or as many labelled pictures as a run has.
    vectors: as `Encoder.embed` takes it; "search" compares embeddings where one of the runs has no search vectors.
    Pictures that can't be read are left out. Returns for each run top1, interval and neighbours, and the paired test.
    Raises InputError for an invalid argument.
    """
    if ranks.world() > 1:
        raise InputError("Runs are compared by one process: start it without torchrun.")
    torch_device = ranks.device(device)
    keep_freed_memory(torch_device.type)
    testing = open_source(source, labels=labels)
    testing.need_labels()
    log_lines(say, testing.label_notes)
    runs = [Run(run) for run in (first, second)]
    lacking = [run.path for run in runs if run.encoder(device).whitening is None]
    if vectors == "search" and lacking:
        vectors = "embedding"
        if say is not None:
            say(f"{lacking[0]} has no search vectors: the embeddings are compared.")
    right, voters = [], []
    for run in runs:
        if say is not None:
            say(f"Embedding the pictures of {run.path} and {len(testing):,} test pictures of {testing.name}.")
        judged, k = _right(run, run.encoder(device), testing, neighbours, temperature, vectors)
        right.append(judged)
        voters.append(k)
    # A picture may be readable at one time and not at another: both are judged by those that both have seen.
    rows = sorted(set(right[0]) & set(right[1]))
    if not rows:
        raise InputError(f"None of the pictures of {testing.name} has a label and can be read.")
    one, two = (np.array([found[row] for row in rows]) for found in right)
    about = {"source": testing.name, "pictures": len(rows)}
    report: dict[str, Any] = {"test": about, "vectors": vectors, "runs": {}}
    for name, folder, found, k in (("first", first, one, voters[0]), ("second", second, two, voters[1])):
        hits = int(found.sum())
        report["runs"][name] = {
            "run": str(folder),
            "top1": hits / len(rows),
            "interval": list(wilson(hits, len(rows))),
            "neighbours": k,
        }
    return report | {"paired": asdict(paired_test(one, two))}


def _right(
    run: Run, encoder: Encoder, testing: Source, neighbours: int | None, temperature: float, vectors: str
) -> tuple[dict[int, bool], int]:
    """Row of the test source -> whether the run's kNN names its class, of what has a label and can be read; and k."""
    training = run.source()
    known_labels = training.need_labels()
    testing.number_like(training)
    known_rows, known = _embedded(encoder, training, vectors)
    rows, asked = _embedded(encoder, testing, vectors)
    voting = known_labels[known_rows]
    k = min(NEIGHBOURS, max(1, int((voting >= 0).sum()))) if neighbours is None else neighbours
    knn = KNN(k, temperature).fit(known, voting)
    wanted = testing.need_labels()[rows]
    hits = knn.predict(asked) == wanted
    return {int(row): bool(hit) for row, hit, label in zip(rows, hits, wanted, strict=True) if label >= 0}, k


def _embedded(encoder: Encoder, source: Source, vectors: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows that can be read and their vectors (n, dim)."""
    chunks = encoder.embed_stream(source, vectors=vectors, on_unreadable=lambda *found: None, progress=True)
    return gathered(chunks, len(source), encoder.dimensions(vectors))
