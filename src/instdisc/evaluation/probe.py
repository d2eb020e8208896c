"""The linear probe: softmax regression on fixed features, trained as the field does it.

    probe = LinearProbe().fit(train_vectors, train_labels)   # the learning rate is chosen on a held-out tenth of train
    probe.evaluate(test_vectors, test_labels)                # top-1, top-5, 95 % interval

Cross-entropy by SGD with momentum 0.9 and a cosine schedule, without weight decay, on standardised cached features (the
normalisation without parameters that He et al. 2022 put before the probe): no augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import one_hot

from instdisc import draws
from instdisc.errors import InputError
from instdisc.evaluation.linear import LinearClassifier, Standardised
from instdisc.shapes import Float, Tensor

__all__ = ["RATES", "LinearProbe"]

RATES = (0.001, 0.01, 0.1, 1.0)
_MOMENTUM = 0.9


class LinearProbe(LinearClassifier):
    """Softmax regression by SGD for `epochs` passes in batches of `batch`.

    rate: the learning rate at the start; None = the best of `rates` on a held-out tenth of the training vectors.
    device: where to compute; by default where the vectors are. Fitted values: see LinearClassifier.

    Examples:
        >>> import numpy as np
        >>> from instdisc.evaluation.probe import LinearProbe
        >>> vectors = np.array([[1.0, 0.1], [0.9, 0.0], [1.1, 0.2], [0.1, 1.0], [0.0, 0.9], [0.2, 1.1]])
        >>> probe = LinearProbe(rate=0.1, epochs=20).fit(vectors, np.array([3, 3, 3, 8, 8, 8]))
        >>> probe.evaluate(np.array([[0.8, 0.1], [0.1, 0.8]]), np.array([3, 8])).top1
        1.0
    """

    what = "the learning rate of the probe"

    def __init__(
        self,
        rate: float | None = None,
        *,
        rates: Sequence[float] = RATES,
        epochs: int = 100,
        batch: int = 1024,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if epochs < 1 or batch < 1:
            raise InputError(f"A probe needs at least one epoch and one row a batch, not {epochs} and {batch}.")
        super().__init__(rates if rate is None else [rate], folds=10, rounds=1, seed=seed, device=device)
        self.epochs, self.batch = epochs, batch

    def _learn(
        self, rows: Standardised, classes: int, choice: float, start: Tensor | None
    ) -> Float[Tensor, "classes dim_and_one"]:
        device = rows.mean.device
        weights = torch.zeros(classes, len(rows.mean) + 1, device=device)
        velocity = torch.zeros_like(weights)
        # Collections often come class by class: in a random order, a block of rows is a fair sample of all.
        order = draws.permutation(len(rows), seed=self.seed, step=0)
        mixed = Standardised(rows.rows.some(order), rows.mean, rows.scale)
        seen, planned = 0, self.epochs * len(rows)
        for epoch in range(self.epochs):
            for number, (block, codes) in enumerate(mixed):
                within = draws.permutation(len(block), seed=self.seed, step=epoch + 1, stream=number)
                for part in torch.from_numpy(within).to(device).split(self.batch):
                    picked = block[part]
                    slope = (picked @ weights.T).softmax(1) - one_hot(codes[part], classes)
                    velocity.mul_(_MOMENTUM).addmm_(slope.T, picked, alpha=1 / len(part))
                    weights.add_(velocity, alpha=-choice * 0.5 * (1 + math.cos(math.pi * seen / planned)))
                    seen += len(part)
        return weights
