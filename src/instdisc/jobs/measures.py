"""What `evaluate --with` adds to kNN: linear classifiers on every level of features, retrieval, quality of the bank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from instdisc import checkpoint, draws, ranks
from instdisc.errors import InputError
from instdisc.evaluation.knn import KNNResult
from instdisc.evaluation.linear import LinearClassifier
from instdisc.evaluation.probe import LinearProbe
from instdisc.evaluation.quality import drift, neighbour_stability
from instdisc.evaluation.retrieval import retrieval
from instdisc.evaluation.svm import LinearSVM
from instdisc.jobs.run import Run
from instdisc.jobs.vectors import Vectors

HELD_OUT = 0.2  # of the training pictures, where there are no test pictures
_SEED = 0
_CLASSIFIERS: dict[str, type[LinearSVM] | type[LinearProbe]] = {"svm": LinearSVM, "linear": LinearProbe}


# The kinds of vectors whose kNN a report has, in the order in which people see them.
KINDS = {
    "knn_search": "search vectors",
    "knn": "embedding",
    "raw_pixels": "raw pixels",
    "raw_pixels_centred": "raw pixels, centred",
    "untrained": "untrained encoder, embedding",
    "untrained_whitened": "untrained encoder, whitened",
    "published": "published encoder, frozen",
    "published_whitened": "published encoder, whitened",
}


def knn_rows(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name of the vectors, their kNN) of what an evaluation has measured; versions before had fewer kinds."""
    measured = report["baselines"] | {name: report[name] for name in ("knn", "knn_search") if name in report}
    return [(words, measured[name]) for name, words in KINDS.items() if name in measured]


def best_vectors(report: dict[str, Any]) -> str:
    """Which vectors are best for this collection, and which the pictures don't tell apart from those, in words.

    Not told apart: the 95 % interval reaches the best share.
    """
    (name, best), *others = sorted(knn_rows(report), key=lambda row: -row[1]["top1"])
    close = [words for words, found in others if found["interval"][1] >= best["top1"]]
    sentence = f"Best for this collection: {name}, {100 * best['top1']:.2f} %."
    if close:
        sentence += f" By {best['count']:,} pictures not told apart from: {', '.join(close)}."
    return sentence


def plain(result: KNNResult) -> dict[str, Any]:
    """What a report keeps of a kNN."""
    return {"top1": result.top1, "top5": result.top5, "interval": list(result.interval), "count": result.count}


Measure = Callable[[Vectors, Vectors | None, torch.device], dict[str, Any]]


def check_measures(asked: list[str]) -> None:
    """Refuse names that are none, and what needs all vectors in one process when there are several."""
    known = ("knn", *MEASURES, "semi", "quality")
    for name in asked:
        if name not in known:
            raise InputError(f'There is no measurement "{name}": choose from {", ".join(known)}.')
    if ranks.world() > 1 and set(asked) - {"knn"}:
        raise InputError("Beside knn all measurements need one process: evaluate without torchrun, or with knn alone.")


def needs_levels(asked: list[str]) -> bool:
    """Whether the features of every stage are wanted."""
    return any(name in _CLASSIFIERS for name in asked)


def further_measures(
    asked: list[str], train: Vectors, test: Vectors | None, torch_device: torch.device
) -> dict[str, Any]:
    """The report's sections for what was asked beside kNN, in that order."""
    device = torch_device if torch_device.type == "cuda" else torch.device("cpu")
    report: dict[str, Any] = {}
    for name in asked:
        if name in MEASURES:
            report |= MEASURES[name](train, test, device)
    return report


def _retrievals(train: Vectors, test: Vectors | None, device: torch.device) -> dict[str, Any]:
    found = {"retrieval": _retrieval(train, test, "trained", device)}
    return found if train.search is None else found | {"retrieval_search": _retrieval(train, test, "search", device)}


def _retrieval(train: Vectors, test: Vectors | None, kind: str, device: torch.device) -> dict[str, Any]:
    asking = () if test is None else (getattr(test, kind), test.labels)
    found = retrieval(getattr(train, kind), train.labels, *asking, device=device)
    shares = {name: {str(k): share for k, share in getattr(found, name).items()} for name in ("precision", "recall")}
    return asdict(found) | shares


def bank_quality(run: Run, rows: np.ndarray, bank: np.ndarray, train: Vectors) -> dict[str, Any]:
    """How stale the bank is, and how much its neighbours have changed since the checkpoint before, each in words.

    rows, bank: the source rows that have a bank row, and those rows; train: the recomputed vectors.
    """
    _, kept, positions = np.intersect1d(train.rows, rows, assume_unique=True, return_indices=True)
    stale = drift(torch.from_numpy(bank[positions]), torch.from_numpy(train.trained[kept]))
    found: dict[str, Any] = {
        "bank_drift": stale,
        "sentences": [
            f"Bank drift {stale:.3f}: a row is that far (1 - cosine) from the vector of its picture now. Low is good: "
            "the bank then stands for the pictures as they are seen, and can be searched in place of new vectors."
        ],
    }
    step = run.checkpoint.step
    before = checkpoint.latest(run.folder.checkpoints, before=step)
    if before is not None:
        earlier = before.bank(0, len(rows))
        shared = neighbour_stability(earlier, torch.from_numpy(bank))
        found |= {"neighbour_stability": shared, "since_step": before.step}
        found["sentences"].append(
            f"Neighbour stability {shared:.2f}: that share of a picture's ten nearest is the same as at step "
            f"{before.step:,} (this is step {step:,}). High is good at the end of a run: it has settled."
        )
    return found


def _linear(name: str, train: Vectors, test: Vectors | None, device: torch.device) -> dict[str, Any]:
    if test is None:
        order = draws.permutation(len(train.rows), seed=_SEED, step=0)
        held_out = round(HELD_OUT * len(order))
        train, test = train.some(np.sort(order[held_out:])), train.some(np.sort(order[:held_out]))
        mode = f"{held_out:,} training pictures that were held out"
    else:
        mode = "test pictures"
    levels: dict[str, Any] = {}
    for level, known, asked in _levels(train, test):
        classifier: LinearClassifier = _CLASSIFIERS[name](device=device).fit(known, train.labels)
        levels[level] = asdict(classifier.evaluate(asked, test.labels)) | {"dim": known.shape[1]}
    return {name: {"mode": mode, "levels": levels}}


def _levels(train: Vectors, test: Vectors) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The vectors and every level of features; a level that only repeats the one before is skipped."""
    before: np.ndarray | None = None
    for name, values in train.levels.items():
        if before is None or before.shape != values.shape or not np.array_equal(before[:100], values[:100]):
            yield name, values, test.levels[name]
        before = values
    yield "embedding", train.trained, test.trained
    if train.search is not None and test.search is not None:
        yield "search vectors", train.search, test.search


# What `evaluate --with` names -> its sections of the report; the `sentences` of a section are printed too.
# knn, semi and quality ask for more than vectors: evaluate() itself has those.
MEASURES: dict[str, Measure] = {
    "svm": partial(_linear, "svm"),
    "linear": partial(_linear, "linear"),
    "retrieval": _retrievals,
}


def own_bank_rows(run: Run, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """For this rank's share of the source: the source rows that have a bank row, and those rows (n, dim) float32."""
    low, high = np.searchsorted(run.rows, ranks.share(pictures)).tolist()
    return run.rows[low:high], run.checkpoint.bank(low, high).numpy()
