"""What every term of a loss says of itself, so that the training loop need not know any by name."""

from __future__ import annotations

from typing import Literal

from torch import nn


class Term(nn.Module):
    """A term of the loss: `forward(features, indices, bank)` gives its mean over the batch. It never writes the bank.

    reads: the features that it is given, the encoder's unit vectors or what its head has them from.
    waits_for_bank: whether it counts only once the filling epochs are over.
    is_layer: whether its weights are a layer's, optimised as the encoder's are.
    begins: the fraction of the run from which it counts.
    """

    reads: Literal["embedding", "pooled"] = "embedding"
    waits_for_bank: bool = True
    is_layer: bool = False
    begins: float = 0.0
