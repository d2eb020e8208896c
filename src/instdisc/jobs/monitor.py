"""What is measured while a run trains: kNN accuracy where there are labels, and health that needs none.

A sample of the training pictures is embedded as for evaluation, without augmentation, and its neighbours are looked up
among the rows of the bank, the sample's own rows left out: a forward pass over the sample and one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from instdisc import draws, ranks
from instdisc.data.augment import centre
from instdisc.data.loading.batches import Batch
from instdisc.data.loading.dataset import Pictures
from instdisc.data.loading.kept import KeptViews
from instdisc.data.sources.source import Source
from instdisc.encoder import evaluating
from instdisc.evaluation.knn import KNN
from instdisc.evaluation.quality import health
from instdisc.shapes import Float, Tensor
from instdisc.training import Measurement, Settings, Training
from instdisc.transfer import fetch

_SAMPLE, _PAIRS, _NEIGHBOURS = 2048, 512, 200
_FEWEST = 10  # labelled pictures that can vote; with fewer nothing is measured
_BATCH = 256
_APART = 1 << 40  # as step and epoch of draws: no step of a run has this number


def make_monitor(
    settings: Settings, source: Source, pictures: Pictures, held_out: Source | None
) -> Callable[[Training], Measurement]:
    """A function that measures a run as it stands. held_out: labelled pictures that it was not trained on."""
    order = draws.permutation(pictures.count, seed=settings.seed, step=_APART)
    sample = np.sort(order[: max(2, min(_SAMPLE, pictures.count // 4))])
    labels = None if source.labels is None else source.labels[pictures.rows]
    neighbours = min(_NEIGHBOURS, pictures.count - len(sample))
    if labels is not None:  # pictures without a label do not vote
        neighbours = min(neighbours, max(_FEWEST, int((np.delete(labels, sample) >= 0).sum())))

    def vote(training: Training, known: np.ndarray, vectors: Tensor, asked: np.ndarray) -> float:
        """kNN accuracy by the rows of the bank: each rank has its rows vote, and brings a share of the queries."""
        bank, mine = training.bank, slice(*ranks.share(len(vectors)))
        knn = KNN(neighbours, device=bank.device).fit(bank.rows, known[bank.start : bank.stop], sharded=True)
        return knn.score(vectors[mine], asked[mine])

    def measure(training: Training) -> Measurement:
        vectors, rows = _embed(training, sample, evaluation_view)
        numbers: dict[str, float] = {}
        if labels is not None:
            others = labels.copy()
            others[rows] = -1  # the sample's own rows do not vote, so none is its own neighbour
            if (others >= 0).sum() >= neighbours and (labels[rows] >= 0).any():
                numbers["knn"] = vote(training, others, vectors, labels[rows])
            if held_out is not None and held_out.labels is not None and (labels >= 0).sum() >= neighbours:
                tested = training.encoder.embed(held_out, batch=_BATCH, vectors="embedding")
                numbers["knn_test"] = vote(training, labels, tested, held_out.labels)
        first, second = (_embed(training, sample[:_PAIRS], view)[0] for view in (_random_view, _other_random_view))
        found = health(vectors, first, second)
        assert found.alignment is not None  # it was given views
        numbers |= {
            "alignment": found.alignment,
            "uniformity": found.uniformity,
            "effective_rank": found.effective_rank,
        }
        return Measurement(numbers, found.sentence if found.collapsed else "")

    return measure


def _embed(
    training: Training, instances: np.ndarray, view: Callable[[Training, Batch], Tensor]
) -> tuple[Float[Tensor, "sample dim"], np.ndarray]:
    """Unit vectors of stored pictures seen in some view, and the instances that could be read."""
    vectors, rows = [], []
    pieces = [instances[start : start + _BATCH] for start in range(0, len(instances), _BATCH)]
    with evaluating(training.encoder):
        for batch in training.pictures.batches(pieces):
            found, numbers = fetch(training.encoder(view(training, batch)), batch.indices)
            vectors.append(found)
            rows.append(numbers.numpy())
    return torch.cat(vectors), np.concatenate(rows)


def evaluation_view(training: Training, batch: Batch) -> Tensor:
    """Stored pictures as `embed` would see them, normalised (batch, 3, size, size); or their features that are kept."""
    if isinstance(training.pictures, KeptViews):
        return training.pictures.whole(batch)
    view = training.encoder.preprocessing
    return centre(
        batch.images,
        training.pictures.aspects[batch.indices],
        size=view.size,
        crop_fraction=view.crop_fraction,
        mean=view.mean,
        std=view.std,
    )


def _random_view(training: Training, batch: Batch, view: int = 0) -> Tensor:
    return training.random_view(batch, training.settings.size, _APART, view)


def _other_random_view(training: Training, batch: Batch) -> Tensor:
    return _random_view(training, batch, view=1)
