"""What every term of a loss, and every objective, says of itself: the training loop need not know any by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from torch import nn

from instdisc.bank import MemoryBank
from instdisc.shapes import Int, Tensor


class Term(nn.Module):
    """A term of the loss: `forward(features, indices, bank)` gives its mean over the batch. It never writes the bank.

    reads: the features that it is given, the encoder's unit vectors or what its head has them from.
    waits_for_bank: whether it counts only once the filling epochs are over.
    is_layer: whether its weights are a layer's, optimised as the encoder's are.
    begins: the fraction of the run from which it counts.
    watched: names of its buffers that a line of the metrics has too, where they are numbers.

    Examples:
        >>> from instdisc.objectives import TERMS
        >>> {name: term.reads for name, term in sorted(TERMS.items())}
        {'groups': 'pooled', 'proximal': 'embedding', 'views': 'embedding'}
    """

    reads: Literal["embedding", "pooled"] = "embedding"
    waits_for_bank: bool = True
    is_layer: bool = False
    begins: float = 0.0
    watched: tuple[str, ...] = ()

    def rows_needed(self, indices: Int[Tensor, " batch"], bank: MemoryBank) -> Int[Tensor, "*rows"] | None:
        """Rows of the bank, beside those of the batch, that the next `forward` asks for singly; None for none.

        Rows on a disk are then read while the encoder works.
        """
        return None


class Objective(Term, ABC):
    """A term that a run can be trained by: `--set objective=NAME`, by its name in `OBJECTIVES`.

    Examples:
        >>> from instdisc.objectives import OBJECTIVES, Objective
        >>> sorted(OBJECTIVES), all(issubclass(one, Objective) for one in OBJECTIVES.values())
        (['nce', 'parametric', 'sampled', 'softmax'], True)
    """

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Any, instances: int) -> Objective:
        """The objective of a run. settings: its `training.Settings`; instances: how many pictures it tells apart."""

    @staticmethod
    def described(settings: Any) -> str:
        """What the line of the recipe says of it after its name, as " with 4,096 negatives"."""
        return ""
