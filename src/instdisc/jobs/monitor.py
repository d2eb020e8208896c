"""What is measured while a run trains: kNN accuracy where there are labels, and health that needs none.

A sample of the training pictures is embedded as for evaluation, without augmentation, and its neighbours are looked up
among the rows of the bank, each picture's own row left out: a forward pass over the sample and one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from instdisc import draws, ranks
from instdisc.bank import MemoryBank
from instdisc.data.augment import centre
from instdisc.data.pictures import Pictures
from instdisc.data.source import Source
from instdisc.encoder import evaluating
from instdisc.evaluation.knn import KNN
from instdisc.evaluation.quality import effective_rank, uniformity
from instdisc.shapes import Float, Tensor
from instdisc.training import Settings, Training

_SAMPLE, _NEIGHBOURS = 2048, 200
_BATCH = 256
_STREAM_STEP = 1 << 40  # of draws.permutation: no epoch has this number


def make_monitor(
    settings: Settings, source: Source, pictures: Pictures, held_out: Source | None, bank: MemoryBank
) -> Callable[[Training], dict[str, float]]:
    """A function that measures a run as it stands."""
    order = draws.permutation(pictures.count, seed=settings.seed, step=_STREAM_STEP)
    sample = np.sort(order[: max(1, min(_SAMPLE, pictures.count // 4))])
    labels = None if source.labels is None else source.labels[pictures.rows]
    neighbours = min(_NEIGHBOURS, pictures.count - len(sample))

    def measure(training: Training) -> dict[str, float]:
        encoder = training.encoder
        vectors, rows = _embed_stored(training, sample)
        own = bank.lookup(torch.as_tensor(rows, device=bank.device), common=True).cpu()
        numbers: dict[str, float] = {}
        if labels is not None:
            all_rows = ranks.gather(bank.rows).float().cpu()
            others = labels.copy()
            others[rows] = -1  # the sample's own rows do not vote, so none is its own neighbour
            if (others >= 0).sum() >= neighbours:
                numbers["knn"] = KNN(neighbours).fit(all_rows, others).score(vectors, labels[rows])
            if held_out is not None and held_out.labels is not None and (labels >= 0).sum() >= neighbours:
                tested = encoder.embed(held_out, batch=_BATCH)
                numbers["knn_test"] = KNN(neighbours).fit(all_rows, labels).score(tested, held_out.labels)
        numbers["distance_to_bank"] = float((vectors - own).square().sum(1).mean())
        numbers["uniformity"] = uniformity(vectors)
        numbers["effective_rank"] = effective_rank(vectors)
        return numbers

    return measure


def _embed_stored(training: Training, instances: np.ndarray) -> tuple[Float[Tensor, "sample dim"], np.ndarray]:
    """Unit vectors of stored pictures in the evaluation view, and the instances that could be read."""
    encoder, pictures = training.encoder, training.pictures
    view = encoder.preprocessing
    vectors, rows = [], []
    pieces = [instances[start : start + _BATCH] for start in range(0, len(instances), _BATCH)]
    with evaluating(encoder):
        for batch in pictures.batches(pieces):
            images = centre(
                batch.images,
                pictures.aspects[batch.indices],
                size=view.size,
                crop_fraction=view.crop_fraction,
                mean=view.mean,
                std=view.std,
            )
            vectors.append(encoder(images).cpu())
            rows.append(batch.indices.cpu().numpy())
    return torch.cat(vectors), np.concatenate(rows)
