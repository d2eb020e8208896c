"""The parametric softmax (eq 1): every instance has a trainable weight vector. The paper's baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from instdisc import draws
from instdisc.bank import MemoryBank, full_precision
from instdisc.objectives.term import Objective
from instdisc.shapes import Float, Int, Tensor

_WEIGHT_STREAM = 3  # of draws


class ParametricSoftmax(Objective):
    """-log P(i | f), P(i | f) = exp(w_i . f) / sum_j exp(w_j . f), with trainable `w` of shape (instances, dim).

    Eq 1 of Wu et al. 2018. The bank is not read. Each rank keeps all weights and forms the whole (batch, instances)
    matrix: a baseline for collections that fit.

    Examples:
        >>> import torch
        >>> from instdisc.objectives import ParametricSoftmax
        >>> classifier = ParametricSoftmax(instances=4, dim=2)
        >>> loss = classifier(torch.zeros(3, 2), torch.tensor([0, 1, 2]))
        >>> tuple(classifier.weight.shape), round(loss.item(), 4)  # log 4: nothing is told apart yet
        ((4, 2), 1.3863)
    """

    def __init__(self, instances: int, dim: int = 128, *, seed: int = 0) -> None:
        super().__init__()
        uniform = draws.uniforms(torch.arange(instances), dim, seed=seed, step=0, stream=_WEIGHT_STREAM)
        self.weight = nn.Parameter((2 * uniform - 1) / dim**0.5)  # as torch's Linear starts

    @classmethod
    def from_settings(cls, settings: Any, instances: int) -> ParametricSoftmax:
        """Of the settings dim and seed."""
        return cls(instances, settings.dim, seed=settings.seed)

    def forward(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " batch"], bank: MemoryBank | None = None
    ) -> Float[Tensor, ""]:
        """The mean over the batch."""
        with full_precision(features):
            return cross_entropy(features.to(self.weight.dtype) @ self.weight.T, indices)
