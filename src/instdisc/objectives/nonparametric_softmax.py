"""The exact non-parametric softmax (eq 2 and 3): classify each picture among all rows of the bank."""

from __future__ import annotations

from torch import nn

from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.shapes import Float, Int, Tensor


def check_temperature(temperature: float) -> float:
    """The temperature itself, where it is positive."""
    if not temperature > 0:
        raise InputError(f"The temperature must be positive, not {temperature}: the paper takes 0.07 or 0.1.")
    return float(temperature)


class NonParametricSoftmax(nn.Module):
    """-log P(i | f), P(i | f) = exp(v_i . f / temperature) / sum_j exp(v_j . f / temperature), over all n rows.

    mask_own: leave the picture's own row out of the denominator (the "decoupled" form of Yeh et al. 2022): the positive
        then only attracts, and all others only repel.
    """

    def __init__(self, temperature: float = 0.07, *, mask_own: bool = False) -> None:
        super().__init__()
        self.temperature, self.mask_own = check_temperature(temperature), mask_own

    def forward(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " batch"], bank: MemoryBank
    ) -> Float[Tensor, ""]:
        """The mean over the batch."""
        positive = bank.positives(features, indices) / self.temperature
        without = indices if self.mask_own else None
        return (bank.log_partition(features, self.temperature, without=without) - positive).mean()
