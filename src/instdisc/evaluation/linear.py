"""What linear classifiers on fixed features have in common: standardising, choosing a constant inside train, measuring.

LinearSVM (svm.py) and LinearProbe (probe.py) say how weights are learned. Vectors are kept by reference and read in
blocks, so that they may be a memory map larger than memory; classes are named by the training labels alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from instdisc import draws
from instdisc.errors import InputError
from instdisc.evaluation.intervals import wilson
from instdisc.evaluation.rows import integers, like, require_matrix, widened
from instdisc.progress import Bar
from instdisc.shapes import Float, Int, Tensor

_BLOCK_NUMBERS = 2**22  # numbers in a block of rows: 16 MB in float32
_KEPT_BYTES = 2**31  # standardised blocks are kept up to here, and made again in each pass beyond


@dataclass(frozen=True)
class LinearResult:
    """Accuracies as shares in [0, 1]. A test label that training never saw counts as an error."""

    top1: float
    top5: float
    interval: tuple[float, float]  # 95 % (Wilson) for top1
    count: int  # labelled test pictures
    chosen: float  # the constant that was chosen inside train


class LinearClassifier(ABC):
    """Scores w_c · x + b_c of standardised features x; the class with the highest one is the answer.

    choices: values of the constant that `_learn` takes. With more than one, the training rows are cut into `folds`
    parts; `rounds` of the parts, each in turn, are classified by what the rest teaches, and the value that does best is
    taken (the smallest of those that do equally well).

    After `fit`: `classes_` (ascending), `chosen_`, `accuracies_` (value -> accuracy on held-out training rows),
    `weights_` (classes, dim) and `intercepts_` (classes,) for standardised features, `mean_` and `scale_`.
    """

    what: str  # the constant, in words

    def __init__(
        self, choices: Sequence[float], folds: int, rounds: int, seed: int, device: torch.device | str | None
    ) -> None:
        if not choices or min(choices) <= 0:
            raise InputError(f"Values for {self.what} must be positive, not {list(choices)}.")
        if folds < 2:
            raise InputError(f"Choosing {self.what} needs two folds or more, not {folds}.")
        self.choices, self.folds, self.rounds, self.seed, self.device = sorted(choices), folds, rounds, seed, device

    @abstractmethod
    def _learn(
        self, rows: Standardised, classes: int, choice: float, start: Tensor | None
    ) -> Float[Tensor, "classes dim_and_one"]:
        """Weights, the intercept last. start: what the next smaller choice has given on the same rows, or None."""

    def fit(self, vectors: Any, labels: Any) -> LinearClassifier:
        """Choose the constant, and learn the weights from all rows that have a label.

        vectors: array or tensor (n, dim) of any real dtype; labels: n whole numbers, negative = no label.
        Raises InputError if shapes misfit or there are fewer than two classes.
        """
        require_matrix(vectors)
        values = integers(labels, len(vectors))
        self._device = torch.device(self.device or (vectors.device if isinstance(vectors, Tensor) else "cpu"))
        positions = np.flatnonzero(values >= 0)
        self.classes_, codes = np.unique(values[positions], return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError("A linear classifier tells classes apart: the labels name fewer than two.")
        everything = Rows(vectors, positions, codes, self._device)
        self.accuracies_ = self._try(everything) if len(self.choices) > 1 else {}
        best = max(self.accuracies_.values(), default=0.0)
        self.chosen_ = next(choice for choice in self.choices if self.accuracies_.get(choice, 0.0) == best)
        ready = everything.standardised()
        self.mean_, self.scale_ = ready.mean, ready.scale
        joined = self._learn(ready, len(self.classes_), self.chosen_, None)
        self.weights_, self.intercepts_ = joined[:, :-1], joined[:, -1]
        return self

    def scores(self, vectors: Any) -> Any:
        """The scores (n, classes), columns as in `classes_`; arrays give an array, tensors a tensor."""
        parts = [torch.zeros(0, len(self.classes_)), *(scores.cpu() for scores in self._walk(vectors))]
        return like(vectors, torch.cat(parts))

    def predict(self, vectors: Any) -> Any:
        """The label with the highest score for each row, as given to `fit`."""
        found = [self.classes_[scores.argmax(1).cpu().numpy()] for scores in self._walk(vectors)]
        return like(vectors, torch.from_numpy(np.concatenate(found) if found else np.zeros(0, np.int64)))

    def evaluate(self, vectors: Any, labels: Any) -> LinearResult:
        """Accuracy on test pictures; those with a negative label are left out."""
        require_matrix(vectors)
        values = integers(labels, len(vectors))
        known = np.flatnonzero(values >= 0)
        if not len(known):
            raise InputError("No test picture has a label, and accuracy needs labels: name them with --labels.")
        top1 = top5 = start = 0
        for scores in self._walk(vectors, known):
            wanted = torch.from_numpy(values[known[start : start + len(scores)]])
            start += len(scores)
            best = scores.topk(min(5, scores.shape[1]), dim=1).indices.cpu()
            hits = torch.from_numpy(self.classes_)[best] == wanted[:, None]
            top1 += int(hits[:, 0].sum())
            top5 += int(hits.any(1).sum())
        return LinearResult(top1 / len(known), top5 / len(known), wilson(top1, len(known)), len(known), self.chosen_)

    def score(self, vectors: Any, labels: Any) -> float:
        """Top-1 accuracy in [0, 1], as scikit-learn's classifiers give it."""
        return self.evaluate(vectors, labels).top1

    def _walk(self, vectors: Any, positions: np.ndarray | None = None) -> Iterator[Float[Tensor, "rows classes"]]:
        require_matrix(vectors)
        if vectors.shape[1] != len(self.mean_):
            raise InputError(f"The vectors have {vectors.shape[1]} dimensions, those in fit had {len(self.mean_)}.")
        places = np.arange(len(vectors)) if positions is None else positions
        rows = Rows(vectors, places, np.zeros(len(places), np.int64), self._device)
        joined = torch.cat([self.weights_, self.intercepts_[:, None]], dim=1)
        for block, _ in Standardised(rows, self.mean_, self.scale_, keeps=False):
            yield block @ joined.T

    def _try(self, everything: Rows) -> dict[float, float]:
        """Accuracy of each choice on held-out parts, by what the rest, with its own mean and scale, teaches."""
        order = draws.permutation(len(everything), seed=self.seed, step=0)
        parts = [np.sort(part) for part in np.array_split(order, self.folds) if len(part)][: self.rounds]
        hits = dict.fromkeys(self.choices, 0)
        with Bar(len(parts) * len(self.choices), f"Choosing {self.what}", "fits") as bar:
            for part in parts:
                rest = everything.some(np.setdiff1d(order, part, assume_unique=True)).standardised()
                held_out = Standardised(everything.some(part), rest.mean, rest.scale)
                joined = None
                for choice in self.choices:
                    joined = self._learn(rest, len(self.classes_), choice, joined)
                    for block, wanted in held_out:
                        hits[choice] += int(((block @ joined.T).argmax(1) == wanted).sum())
                    bar.advance()
        count = sum(map(len, parts))
        return {choice: right / count for choice, right in hits.items()}


class Rows:
    """Some rows of the vectors, with their classes 0, 1, ..., a block at a time."""

    def __init__(self, vectors: Any, positions: np.ndarray, codes: np.ndarray, device: torch.device) -> None:
        self.vectors, self.positions, self.codes, self.device = vectors, positions, codes, device

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "rows dim"], Int[Tensor, " rows"]]]:
        size = max(1, _BLOCK_NUMBERS // self.vectors.shape[1])
        for first in range(0, len(self), size):
            part = slice(first, first + size)
            codes = torch.from_numpy(self.codes[part]).to(self.device)
            yield widened(self.vectors, self.positions[part], self.device), codes

    def some(self, which: np.ndarray) -> Rows:
        """A choice of these rows."""
        return Rows(self.vectors, self.positions[which], self.codes[which], self.device)

    def standardised(self) -> Standardised:
        """Each number less its mean over these rows, over its deviation; one that never changes becomes 0."""
        dim = self.vectors.shape[1]
        mean, variance = (torch.zeros(dim, dtype=torch.float64, device=self.device) for _ in range(2))
        for block, _ in self:
            mean += block.sum(0, dtype=torch.float64) / len(self)
        for block, _ in self:
            variance += (block - mean).square().sum(0) / len(self)
        scale = variance.sqrt()
        varies = scale > 1e-6 * mean.abs().clamp_min(1e-6)
        return Standardised(self, mean.float(), torch.where(varies, scale, 1.0).float())


class Standardised:
    """Rows ready for a solver that passes over them many times, a 1 at the end of each: kept where memory allows."""

    def __init__(self, rows: Rows, mean: Tensor, scale: Tensor, *, keeps: bool = True) -> None:
        self.rows, self.mean, self.scale = rows, mean, scale
        self._keeps = keeps and 4 * len(rows) * (len(mean) + 1) <= _KEPT_BYTES
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "rows dim_and_one"], Int[Tensor, " rows"]]]:
        if self._kept is not None:
            yield from self._kept
            return
        made = []
        for block, codes in self.rows:
            ready = pad((block - self.mean) / self.scale, (0, 1), value=1.0)
            if self._keeps:
                made.append((ready, codes))
            yield ready, codes
        if self._keeps:
            self._kept = made
