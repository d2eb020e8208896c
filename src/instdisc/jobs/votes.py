"""What a few labels by hand say of all other pictures, how far to trust it, and what to label next.

graph = spreading_graph(folder, vectors)
found = vote(rows, vectors, codes, names, graph=graph)      # spread over the graph; without one, weighted kNN
positions = proposals(vectors, codes, 20, graph=graph)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from instdisc import ranks
from instdisc.errors import InputError
from instdisc.evaluation.intervals import wilson
from instdisc.evaluation.knn import KNN
from instdisc.runs import RunFolder
from instdisc.search.graph import digest_of, nearest_graph, read_graph, stored_graph
from instdisc.search.labelling import least_certain, least_covered, least_reached
from instdisc.search.pairs import Vectors
from instdisc.search.spreading import calibrated, spread_labels
from instdisc.shapes import Bool, Float, Int, Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_array

WAYS = ("mixed", "covered", "uncertain")
VOTES = ("spread", "neighbours")
NEIGHBOURS, TEMPERATURE = 20, 0.07
_LEAST = 10  # labels by hand before the doubts of weighted kNN are worth asking
_LEAST_OF_CLASS = 5  # the same of spread labels, times the classes
_CROWD = 10_000  # pictures that stand for the collection where it is larger


@dataclass(frozen=True)
class Accuracy:
    """The share of the labelled pictures, `count`, that the others name rightly, and its 95 % interval (Wilson)."""

    top1: float
    interval: tuple[float, float]
    count: int


@dataclass(frozen=True)
class Labelled:
    """A label for every picture of the collection. rows: ascending; hand: bool. names: of the classes.

    codes: positions in `names`. confidence: 1 by hand; of a spread label its probability among the names given so far,
    as `search.spreading.calibrated` has it; of a direct vote its share of the votes. accuracy: leave-one-out on those
    labelled by hand, without those that were labelled together.
    """

    rows: Int[np.ndarray, " pictures"]
    codes: Int[np.ndarray, " pictures"]
    hand: np.ndarray
    confidence: Float[np.ndarray, " pictures"]
    names: list[str]
    accuracy: Accuracy | None


def spreading_graph(
    folder: RunFolder,
    vectors: Float[Tensor, "pictures dim"],
    *,
    device: str = "auto",
    show: bool = False,
    most: int | None = None,
) -> csr_array | None:
    """The graph that labels spread over, read from RUN/index/ or computed and written there.

    most: None where more pictures than these would have to be computed. Raises InputError where a vector is not finite.
    """
    torch_device = ranks.device(device)
    own = Vectors(len(vectors), lambda positions: vectors[torch.from_numpy(positions)].to(torch_device))
    graph = stored_graph(folder.neighbour_graph, own, show=show, most=most)
    return None if graph is None else graph.affinity()


def has_graph(folder: RunFolder, vectors: Vectors) -> bool:
    """Whether the graph of these vectors is kept in RUN/index/; then all of them are read once, block by block."""
    file = folder.neighbour_graph
    return file.is_file() and read_graph(file, digest_of(vectors), vectors.count) is not None


def vote(
    rows: Int[np.ndarray, " pictures"],
    vectors: Float[Tensor, "pictures dim"],
    codes: Int[np.ndarray, " pictures"],
    names: list[str],
    *,
    graph: csr_array | None = None,
    asked: Bool[np.ndarray, " pictures"] | None = None,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    device: str = "auto",
) -> Labelled:
    """A label for every picture. codes: of those given by hand, -1 elsewhere. asked: the labels by hand whose
    accuracy is counted, all without: those that many pictures were given at once are no independent test.

    graph: the labels spread over it, and a picture that none arrives at has the direct vote. Without: the direct vote
    of its `neighbours` nearest labelled pictures, by weighted kNN. Raises InputError where there is no label.
    """
    hand = codes >= 0
    tested = np.ones(int(hand.sum()), dtype=bool) if asked is None else asked[hand]
    if graph is None:
        knn = _fitted(vectors, codes, neighbours, temperature, device)
        confidence, best = (one.cpu().numpy() for one in knn.votes(vectors).max(dim=1))
        named, accuracy = knn.classes_[best], _left_out(knn, vectors, codes, device, tested)
    else:
        named, confidence, accuracy = _spread(graph, vectors, codes, device, tested)
    certain = np.where(hand, 1.0, confidence).astype(np.float32)
    return Labelled(rows, np.where(hand, codes, named), hand, certain, names, accuracy)


def proposals(
    vectors: Float[Tensor, "pictures dim"],
    codes: Int[np.ndarray, " pictures"],
    count: int,
    *,
    graph: csr_array | None = None,
    by: str = WAYS[0],
    device: str = "auto",
    seed: int = 0,
) -> Int[np.ndarray, " proposals"]:
    """What to label next, the most useful first, as positions among the vectors. by: as `jobs.label.propose`.

    graph: for labels that will be spread over it; without, for direct votes.
    """
    vectors = vectors.to(ranks.device(device))
    labelled = np.flatnonzero(codes >= 0)
    classes = len(np.unique(codes[labelled]))
    few = _LEAST if graph is None or by == "uncertain" else max(_LEAST, _LEAST_OF_CLASS * classes)
    if by == "covered" or len(labelled) < few or classes < 2:
        return _covering(vectors, labelled, count, graph, seed)
    if graph is None:
        votes = _fitted(vectors, codes, NEIGHBOURS, TEMPERATURE, device).votes(vectors)
    else:
        votes = torch.from_numpy(spread_labels(graph, codes).shares).to(vectors.device)
    doubted = least_certain(votes, vectors, labelled, count if by == "uncertain" else count // 2, seed=seed)
    if by == "uncertain":
        return doubted
    others = _covering(vectors, np.union1d(labelled, doubted), count - len(doubted), graph, seed)
    return np.concatenate([doubted, others])


def _covering(
    vectors: Tensor, labelled: np.ndarray, count: int, graph: csr_array | None, seed: int
) -> Int[np.ndarray, " proposals"]:
    """Pictures from all over the collection: of a large one a random sample with its own graph stands for all."""
    if graph is None:
        return least_covered(vectors, labelled, count, seed=seed)
    if len(vectors) <= _CROWD:
        return least_reached(graph, labelled, count, seed=seed)
    random = np.random.default_rng(seed)
    known = labelled if len(labelled) <= _CROWD // 2 else random.choice(labelled, _CROWD // 2, replace=False)
    others = np.setdiff1d(np.arange(len(vectors)), labelled)
    others = random.choice(others, min(len(others), max(_CROWD - len(known), count)), replace=False)
    crowd = np.sort(np.concatenate([known, others]))
    own = nearest_graph(Vectors.of(vectors[torch.from_numpy(crowd)])).affinity()
    return crowd[least_reached(own, np.searchsorted(crowd, np.sort(known)), count, seed=seed)]


def _spread(
    graph: csr_array, vectors: Tensor, codes: np.ndarray, device: str, tested: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Accuracy | None]:
    """(class, confidence) of every picture, and the accuracy on those labelled that are tested."""
    spread = spread_labels(graph, codes)
    trust = calibrated(spread, codes)
    named, confidence = trust.argmax(axis=1), trust.max(axis=1)
    lost = np.flatnonzero(~spread.reached)
    if len(lost):  # parts of the graph without any label: say what the nearest labels say, as sure as that is right
        knn = _fitted(vectors, codes, NEIGHBOURS, TEMPERATURE, device)
        shares, best = (one.cpu().numpy() for one in knn.votes(vectors[torch.from_numpy(lost)]).max(dim=1))
        known, chance = _left_out(knn, vectors, codes, device, tested), 1 / len(knn.classes_)
        most = chance if known is None else max(chance, known.top1)
        named[lost], confidence[lost] = knn.classes_[best], np.minimum(shares, most)
    right = spread.held_out.any(axis=1) & (spread.held_out.argmax(axis=1) == codes[codes >= 0])
    hits, count = int(right[tested].sum()), int(tested.sum())
    return named, confidence, Accuracy(hits / count, wilson(hits, count), count) if count and len(tested) > 1 else None


def _left_out(knn: KNN, vectors: Tensor, codes: np.ndarray, device: str, tested: np.ndarray) -> Accuracy | None:
    """Of weighted kNN, each tested picture of those labelled by the others; None where there are none."""
    if knn.count_ < 2 or not tested.any():
        return None
    neighbours = min(knn.neighbours, knn.count_ - 1)
    found = _fitted(vectors, codes, neighbours, knn.temperature, device).leave_one_out(tested)
    return Accuracy(found.top1, found.interval, found.count)


def _fitted(vectors: Tensor, codes: np.ndarray, neighbours: int, temperature: float, device: str) -> KNN:
    count = int((codes >= 0).sum())
    if not count:
        raise InputError("No picture is labelled yet: `instdisc label RUN --set PICTURE=LABEL` labels one.")
    return KNN(min(neighbours, count), temperature, device=ranks.device(device)).fit(vectors, codes)
