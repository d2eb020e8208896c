"""`evaluate --with semi`: what a few labels are worth, with the trained encoder and without, over several draws.

For each share of the labels and each draw, these learn from the same labelled pictures: the trained encoder fine-tuned;
the same network from random weights; weighted kNN on the embedding; weighted kNN on the search vectors, after the
labels have spread over the neighbour graph to all training pictures; and the trained encoder fine-tuned on those names.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from instdisc import draws
from instdisc.data.augment import Augmentation
from instdisc.data.loading.dataset import Pictures, open_pictures
from instdisc.data.sources.source import Source
from instdisc.encoder import Encoder
from instdisc.errors import InputError
from instdisc.evaluation.knn import KNN
from instdisc.evaluation.semi import FineTuning
from instdisc.files import read_json, write_json
from instdisc.jobs.vectors import Vectors
from instdisc.jobs.votes import NEIGHBOURS, vote
from instdisc.search import pairs
from instdisc.search.graph import nearest_graph
from instdisc.shapes import Float, Int, Tensor
from instdisc.training import Settings

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SHARES = (0.01, 0.02, 0.05, 0.10, 0.20)
DRAWS = 3
METHODS = {
    "spread_tuned": "fine-tuned on spread labels",
    "spread": "kNN of spread labels",
    "fine_tuned": "trained encoder, fine-tuned",
    "scratch": "same network from scratch",
    "knn": "weighted kNN",
}
_NEIGHBOURS = (1, 5, 20, 50, 200)
_HELD_OUT = 0.2  # of the training pictures, where there are no test pictures
_SPREAD_VIEWS, _MOST_PASSES = 150_000, 200  # of fine-tuning on spread labels
_BY_HAND = 0.25  # of the views of fine-tuning on spread labels, those of pictures with true ones


def check_shares(shares: Sequence[float]) -> None:
    """Refuse what can be no share of the labels."""
    if not shares or not all(0 < share <= 1 for share in shares):
        raise InputError("A share of the labels is above 0 and at most 100 %.")


def few_labels(
    encoder: Encoder,
    fresh: Callable[[int], Encoder],
    training: Source,
    train: Vectors,
    testing: Source | None,
    test: Vectors | None,
    settings: Settings,
    log: Callable[[str], None],
    kept: Path,
    *,
    shares: Sequence[float] = SHARES,
    precision: str = "auto",
) -> dict[str, Any]:
    """The report's section "semi": for each share and method the accuracies of the draws, their mean and deviation.

    fresh: seed -> an untrained encoder of the same build. settings: the run's. kept: a file for the draws that are
    done, so that an evaluation that was interrupted, or is asked for more shares, goes on there. precision: of the
    fine-tuning. Raises InputError where the smallest share holds fewer than two classes.
    """
    order = draws.permutation(len(train.rows), seed=0, step=0)
    held_out = round(_HELD_OUT * len(order)) if test is None else 0
    asked = train.some(np.sort(order[:held_out])) if test is None else test
    known = train.some(np.sort(order[held_out:]))
    assert asked.labels is not None and known.labels is not None  # evaluate comes here with labels only
    mode = "test pictures" if test is not None else f"{held_out:,} training pictures that were held out"
    device = next(encoder.parameters()).device
    view = encoder.preprocessing
    augmentation = Augmentation(
        size=view.size,
        scale=(0.35, 1.0),
        flip=settings.flip,
        jitter=0.0,
        grey=0.0,
        blur=0.0,
        mean=view.mean,
        std=view.std,
    )
    labelled = np.flatnonzero(known.labels >= 0)
    rows = []
    of = hashlib.sha256(f"{sorted(METHODS)} {encoder.origin} {fresh(0).config} {precision}".encode())
    if encoder.whitening is not None:
        of.update(encoder.whitening.digest.encode())
    for values in (known.rows, known.labels, asked.rows, asked.labels):
        of.update(np.ascontiguousarray(values, np.int64).tobytes())
    done = _done(kept, of.hexdigest())
    with ExitStack() as opened:
        pictures = opened.enter_context(open_pictures(training, settings.stored_side, device))
        tests = pictures
        if testing is not None:
            tests = opened.enter_context(open_pictures(testing, settings.stored_side, device))
        draw_of = _Draws(encoder, fresh, pictures, tests, known, asked, augmentation, precision)
        for share in sorted(shares):
            count = round(share * len(labelled))
            found: dict[str, list[float]] = {name: [] for name in METHODS}
            for draw in range(DRAWS):
                log(f"{100 * share:g} % of the labels ({count:,} pictures), draw {draw + 1} of {DRAWS}.")
                drawn = f"{count}/{draw}"
                if drawn not in done:
                    done[drawn] = draw_of.reached(labelled[_drawn(known.labels[labelled], count, draw)], draw)
                    write_json(kept, {"of": of.hexdigest(), "done": done})
                for name, accuracies in found.items():
                    accuracies.append(done[drawn][name])
            rows.append({"share": share, "labels": count} | {name: _summary(values) for name, values in found.items()})
    return {"mode": mode, "draws": DRAWS, "precision": precision, "shares": rows}


@dataclass
class _Draws:
    """What all draws have in common. known, asked: vectors of the pictures to learn from and of those to be named."""

    encoder: Encoder
    fresh: Callable[[int], Encoder]
    pictures: Pictures
    tests: Pictures
    known: Vectors
    asked: Vectors
    augmentation: Augmentation
    precision: str

    def reached(self, some: Int[np.ndarray, " labelled"], draw: int) -> dict[str, float]:
        """The accuracy of every method that is given the labels of `some` of the known pictures."""
        known, asked = self.known, self.asked
        assert known.labels is not None and asked.labels is not None
        labels, instances = known.labels[some], _instances(self.pictures.rows, known.rows)
        of_tests = np.full(self.tests.count, -1)
        of_tests[_instances(self.tests.rows, asked.rows)] = asked.labels
        names, sure = self._spread(some, labels)
        queries = asked.trained if asked.search is None else asked.search
        spread = KNN(min(NEIGHBOURS, len(names))).fit(self._vectors, names)
        reached = {"knn": _knn(known.trained[some], labels, asked), "spread": spread.score(queries, asked.labels)}
        shown = _repeated(some, len(names))
        passes = max(1, min(_MOST_PASSES, round(_SPREAD_VIEWS / len(shown))))
        untrained = self.fresh(draw).to(self.pictures.device)
        for method, start, epochs, positions, taught, weights in (
            ("fine_tuned", self.encoder, None, some, labels, None),
            ("scratch", untrained, None, some, labels, None),
            ("spread_tuned", self.encoder, passes, shown, names[shown], sure[shown]),
        ):
            tuning = FineTuning(self.augmentation, epochs=epochs, precision=self.precision, seed=draw)
            tuned = tuning.fit(start, self.pictures, instances[positions], taught, weights)
            reached[method] = tuned.accuracy(self.tests, of_tests)
        return reached

    @cached_property
    def _vectors(self) -> Float[Tensor, "pictures dim"]:
        known = self.known
        return torch.from_numpy(np.array(known.trained if known.search is None else known.search))

    @cached_property
    def _graph(self) -> csr_array:
        return nearest_graph(pairs.Vectors.of(self._vectors), show=True).affinity()

    def _spread(
        self, some: np.ndarray, labels: np.ndarray
    ) -> tuple[Int[np.ndarray, " pictures"], Float[np.ndarray, " pictures"]]:
        """(label, confidence) of every known picture, from the labels of `some`."""
        rows, codes = self.known.rows, np.full(len(self.known.rows), -1)
        classes, codes[some] = np.unique(labels, return_inverse=True)
        found = vote(rows, self._vectors, codes, [str(value) for value in classes], graph=self._graph)
        return classes[found.codes], found.confidence


def _done(kept: Path, of: str) -> dict[str, dict[str, float]]:
    """The draws that an earlier evaluation of the same encoder and pictures has finished."""
    if kept.is_file():
        with suppress(InputError):  # a damaged file: they are done again
            found = read_json(kept)
            if found.get("of") == of:
                return dict(found["done"])
    return {}


def _repeated(by_hand: np.ndarray, count: int) -> Int[np.ndarray, " places"]:
    """An epoch's positions: all pictures, those labelled by hand so often that they are a quarter of it."""
    others = np.setdiff1d(np.arange(count), by_hand)
    times = max(1, round(_BY_HAND / (1 - _BY_HAND) * len(others) / len(by_hand)))
    return np.concatenate([others, np.tile(by_hand, times)])


def _instances(readable: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The instance numbers of source rows. Both are ascending; rows that could be embedded are readable."""
    found = np.searchsorted(readable, rows)
    if len(rows) and (found[-1] >= len(readable) or not np.array_equal(readable[found], rows)):
        raise InputError("Some pictures could be read and then could not: look for a failing disk, and try again.")
    return found


def _drawn(labels: np.ndarray, count: int, draw: int) -> np.ndarray:
    """Places of `count` pictures, each class in its share (one at least), ascending."""
    order = draws.permutation(len(labels), seed=draw, step=1)
    picked = []
    for value in np.unique(labels):
        own = order[labels[order] == value]
        picked.append(own[: max(1, round(count * len(own) / len(labels)))])
    if len(picked) < 2:
        raise InputError("A few labels tell classes apart only where there are two classes: the labels name one.")
    return np.sort(np.concatenate(picked))


def _knn(vectors: np.ndarray, labels: np.ndarray, asked: Vectors) -> float:
    """Accuracy on the test vectors, by as many neighbours as do best, leave-one-out, on the labelled ones."""
    known = torch.from_numpy(np.array(vectors))
    tried = [k for k in _NEIGHBOURS if k < len(known)]
    best = max(tried, key=lambda k: KNN(k).fit(known, labels).leave_one_out().top1)
    return KNN(best).fit(known, labels).score(np.asarray(asked.trained), asked.labels)


def _summary(values: list[float]) -> dict[str, Any]:
    return {"values": values, "mean": statistics.fmean(values), "std": statistics.stdev(values)}
