"""Weighted nearest neighbours: do the labels of the nearest training pictures name a picture? (Wu et al. 2018.)

    knn = KNN(neighbours=200, temperature=0.07).fit(train_vectors, train_labels)
    knn.predict(test_vectors)                      # labels, as they were given
    knn.evaluate(test_vectors, test_labels)        # top-1, top-5, 95 % interval
    knn.leave_one_out()                            # the same on the training pictures, each without itself

The training vectors are kept by reference and read in blocks, so that they may be a memory map larger than memory; they
are never written. Votes need (batch, classes) numbers, whatever the number of neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from instdisc import ranks
from instdisc.errors import InputError
from instdisc.evaluation.intervals import wilson
from instdisc.evaluation.rows import integers, like, require_matrix, widened
from instdisc.neighbours import Nearest, block_rows
from instdisc.neighbours.selection import merge
from instdisc.shapes import Float, Int

__all__ = ["KNN", "KNNResult"]

_BLOCK_NUMBERS = 2**24  # numbers in a block: 64 MB in float32
_BATCH = 1024  # queries that share one walk over the training vectors
_LEAST_EXPONENT = -80.0  # exp(-80) is still a normal float32: a far neighbour's vote is tiny but never nothing


@dataclass(frozen=True)
class KNNResult:
    """Accuracies as shares in [0, 1]. A test label that training never saw counts as an error.

    Examples:
        >>> import numpy as np
        >>> from instdisc.evaluation.knn import KNN
        >>> knn = KNN(neighbours=1).fit(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([3, 8]))
        >>> found = knn.evaluate(np.array([[2.0, 0.1], [0.2, 1.0], [0.9, 0.3], [0.5, 0.1]]), np.array([3, 8, 8, -1]))
        >>> found.count, round(found.top1, 2), [round(end, 2) for end in found.interval]
        (3, 0.67, [0.21, 0.94])
    """

    top1: float
    top5: float  # the true class is among the five with the most votes, and got a vote
    interval: tuple[float, float]  # 95 % (Wilson) for top1
    count: int  # labelled test pictures
    neighbours: int
    temperature: float


class KNN:
    """k nearest neighbours by cosine; each votes for its class with weight exp(score / temperature).

    neighbours: the paper's k. temperature: the paper's τ. centre: subtract the training vectors' mean before the cosine
    (for raw pixels). device: where to compute; by default where the vectors are; a GPU under nccl.

    After `fit`: `classes_` (ascending), `count_` (labelled training rows, over all ranks) and `mean_` (or None).
    Section 3.4 of Wu et al. 2018.

    Examples:
        >>> import numpy as np
        >>> from instdisc import KNN
        >>> knn = KNN(neighbours=2).fit(np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]]), np.array([3, 3, 8, 8]))
        >>> knn.predict(np.array([[2.0, 0.1], [0.2, 1.0]]))
        array([3, 8])
        >>> knn.score(np.array([[2.0, 0.1], [0.2, 1.0]]), np.array([3, 3]))
        0.5
    """

    def __init__(
        self,
        neighbours: int = 200,
        temperature: float = 0.07,
        *,
        centre: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if neighbours < 1:
            raise InputError(f"neighbours is {neighbours}: choose at least 1.")
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature is {temperature}: choose a number above 0.")
        self.neighbours = neighbours
        self.temperature = temperature
        self.centre = centre
        self.device = device

    def fit(self, vectors: Any, labels: Any, *, sharded: bool = False) -> KNN:
        """Remember the training vectors and learn the classes.

        vectors: array or tensor (n, dim) of any real dtype, any lengths; kept by reference. labels: n integers of any
        values; negative ones mean "no label" and their rows are left out. sharded: these rows, and all that is handed
        over later, are this rank's share; the answers are those of one process that holds everything.
        Raises InputError if shapes misfit, if no row has a label, or if there are fewer such rows than neighbours.
        """
        require_matrix(vectors)
        values = integers(labels, len(vectors))
        self._sharded = sharded and ranks.world() > 1
        self._vectors = vectors
        self._device = torch.device(self.device or (vectors.device if isinstance(vectors, Tensor) else "cpu"))
        self._positions = np.flatnonzero(values >= 0)  # row of `vectors` for each labelled row
        counts = ranks.sizes(len(self._positions)) if self._sharded else [len(self._positions)]
        self._place = ranks.rank() if self._sharded else 0
        self._first = sum(counts[: self._place])  # number, over all ranks, of this rank's first labelled row
        self.count_ = sum(counts)
        if self.count_ == 0:
            raise InputError("No training picture has a label, and kNN accuracy needs labels: name them with --labels.")
        if self.neighbours > self.count_:
            raise InputError(
                f"{self.neighbours} neighbours were asked for but there are only {self.count_} labelled training "
                f"pictures: choose at most {self.count_}."
            )
        own_classes = torch.from_numpy(np.unique(values[self._positions])).to(self._device)
        self.classes_ = np.unique(self._gathered(own_classes).cpu().numpy())
        codes = torch.from_numpy(np.searchsorted(self.classes_, values[self._positions]))
        # One more entry at the end, where the index -1 of an unfilled position leads.
        self._codes = pad(codes, (0, 1)).to(self._device)
        self.mean_ = self._mean() if self.centre else None
        return self

    def predict(self, vectors: Any) -> Any:
        """The label with the most votes for each row (the lower one if two have as many), as given to `fit`.

        Arrays give an array, tensors a tensor on their device.
        """
        found = [self.classes_[votes.argmax(dim=1).cpu().numpy()] for votes in self._walk(vectors)]
        labels = np.concatenate(found) if found else np.zeros(0, np.int64)
        return like(vectors, torch.from_numpy(labels))

    def votes(self, vectors: Any) -> Any:
        """The share of the votes that each class gets: (n, classes) float32, columns as in `classes_`."""
        empty = torch.zeros(0, len(self.classes_))
        return like(vectors, torch.cat([empty, *(votes.cpu() for votes in self._walk(vectors))]))

    def evaluate(self, vectors: Any, labels: Any) -> KNNResult:
        """Accuracy on test pictures; those with a negative label are left out."""
        require_matrix(vectors)
        values = integers(labels, len(vectors))
        positions = np.flatnonzero(values >= 0)
        return self._measure(vectors, positions, values[positions], leave_one_out=False)

    def score(self, vectors: Any, labels: Any) -> float:
        """Top-1 accuracy in [0, 1], as scikit-learn's classifiers give it; `evaluate` tells more."""
        return self.evaluate(vectors, labels).top1

    def leave_one_out(self, asked: Any = None) -> KNNResult:
        """Accuracy on the training pictures; no picture is its own neighbour. Needs one more row than neighbours.

        asked: bool (this rank's labelled rows,), which are tested; all without.
        """
        if self.neighbours >= self.count_:
            raise InputError(
                f"{self.neighbours} neighbours were asked for but each of the {self.count_} labelled pictures has only "
                f"{self.count_ - 1} others: choose at most {self.count_ - 1}."
            )
        values = self.classes_[self._codes[:-1].cpu().numpy()]
        tested = np.ones(len(values), dtype=bool) if asked is None else np.asarray(asked)
        return self._measure(self._vectors, self._positions[tested], values[tested], leave_one_out=True)

    def _measure(self, vectors: Any, positions: np.ndarray, values: np.ndarray, *, leave_one_out: bool) -> KNNResult:
        at = np.searchsorted(self.classes_, values).clip(max=len(self.classes_) - 1)
        seen = torch.from_numpy(self.classes_[at] == values).to(self._device)
        codes = torch.from_numpy(at).to(self._device)
        hits = torch.zeros(3, dtype=torch.int64, device=self._device)  # top-1, top-5, pictures
        start = 0
        for votes in self._walk(vectors, positions, leave_one_out=leave_one_out):
            part = slice(start, start + len(votes))
            start += len(votes)
            own = votes.gather(1, codes[part, None])
            # A class ranks behind those with more votes, and behind those with as many and a lower label.
            lower = torch.arange(votes.shape[1], device=votes.device) < codes[part, None]
            rank = ((votes > own) | ((votes == own) & lower)).sum(dim=1)
            named = seen[part] & (own.squeeze(1) > 0)
            hits += torch.stack([(named & (rank < 1)).sum(), (named & (rank < 5)).sum(), torch.ones_like(named).sum()])
        if self._sharded:
            hits = ranks.total(hits)
        top1, top5, count = hits.tolist()
        if count == 0:
            raise InputError("No test picture has a label, and kNN accuracy needs labels: name them with --labels.")
        return KNNResult(top1 / count, top5 / count, wilson(top1, count), count, self.neighbours, self.temperature)

    def _walk(
        self, vectors: Any, positions: np.ndarray | None = None, *, leave_one_out: bool = False
    ) -> Iterator[Float[Tensor, "batch classes"]]:
        """The votes for the rows at `positions` (all without), a batch at a time.

        Ranks walk in step, each with its own rows: a rank that has no rows left still answers the others.
        """
        require_matrix(vectors)
        if vectors.shape[1] != self._vectors.shape[1]:
            known = self._vectors.shape[1]
            raise InputError(f"The vectors have {vectors.shape[1]} dimensions, those in fit had {known}.")
        count = len(vectors) if positions is None else len(positions)
        width = max(vectors.shape[1], len(self.classes_), self.neighbours)
        batch = max(1, min(_BATCH, _BLOCK_NUMBERS // width))
        most = max(ranks.sizes(count)) if self._sharded else count
        for start in range(0, most, batch):
            stop = min(start + batch, count)
            rows = slice(start, max(start, stop)) if positions is None else positions[start:stop]
            queries = self._prepared(vectors, rows)
            at = np.zeros(0, np.int64) if isinstance(rows, slice) else np.searchsorted(self._positions, rows)
            own = self._first + torch.from_numpy(at).to(self._device)
            counts = ranks.sizes(len(queries)) if self._sharded else [len(queries)]
            # `Nearest` counts this rank's rows from 0; a number outside them excludes nothing.
            exclude = self._gathered(own, counts) - self._first if leave_one_out else None
            votes = self._votes(self._gathered(queries, counts), exclude)
            first = sum(counts[: self._place])
            if len(queries):
                yield votes[first : first + len(queries)]

    def _votes(
        self, queries: Float[Tensor, "batch dim"], exclude: Int[Tensor, "batch"] | None
    ) -> Float[Tensor, "batch classes"]:
        nearest = Nearest(queries, self.neighbours, exclude)
        for rows, first in self._blocks():
            nearest.add(rows, first)
        scores, codes = nearest.scores, self._codes[nearest.indices]
        if self._sharded:
            # Ranks hold ascending row numbers, so candidates that stand rank after rank keep the rule for ties.
            counts = [len(scores)] * ranks.world()
            scores, codes = (torch.cat(self._gathered(part, counts).split(counts), dim=1) for part in (scores, codes))
            scores, codes = merge(scores, codes, self.neighbours)
        # The nearest neighbour's weight is set to 1: exp(1/0.07) is no trouble in float32, exp(1/0.01) is infinite.
        weights = ((scores - scores[:, :1]) / self.temperature).clamp_min(_LEAST_EXPONENT).exp()
        votes = scores.new_zeros(len(scores), len(self.classes_)).scatter_add_(1, codes, weights)
        return votes / votes.sum(dim=1, keepdim=True)

    def _blocks(self) -> Iterator[tuple[Float[Tensor, "rows dim"], int]]:
        """This rank's labelled training rows, prepared, with the number of the first one in each block."""
        rows = max(1, min(block_rows(_BATCH, self._device), _BLOCK_NUMBERS // self._vectors.shape[1]))
        all_labelled = len(self._positions) == len(self._vectors)
        for first in range(0, len(self._positions), rows):
            # A slice of a memory map or tensor is read as it lies; picking rows copies them one by one.
            picked = slice(first, first + rows) if all_labelled else self._positions[first : first + rows]
            yield self._prepared(self._vectors, picked), first

    def _prepared(self, vectors: Any, rows: slice | np.ndarray) -> Float[Tensor, "rows dim"]:
        """Rows as float32 on the device, centred if asked, with unit length (a zero vector stays zero)."""
        block = widened(vectors, rows, self._device)
        if self.mean_ is not None:
            block = block - self.mean_
        return normalize(block, dim=1, eps=1e-12)

    def _mean(self) -> Float[Tensor, "dim"]:
        total = torch.zeros(self._vectors.shape[1], dtype=torch.float64)
        for first in range(0, len(self._positions), _BATCH):
            block = widened(self._vectors, self._positions[first : first + _BATCH], torch.device("cpu"))
            total += block.sum(dim=0, dtype=torch.float64)
        mean = (total / self.count_).to(self._device, torch.float32)
        return ranks.total(mean) if self._sharded else mean

    def _gathered(self, tensor: Tensor, counts: list[int] | None = None) -> Tensor:
        """The ranks' tensors one after another (`counts`: their lengths); the tensor itself when nothing is sharded."""
        return ranks.gather(tensor, counts) if self._sharded else tensor
