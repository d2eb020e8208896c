"""The exact non-parametric softmax (eq 2 and 3): classify each picture among all rows of the bank."""

from __future__ import annotations

from typing import Any

import torch

from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.objectives.term import Objective
from instdisc.shapes import Float, Int, Tensor


def check_temperature(temperature: float) -> float:
    """The temperature itself, where it is positive."""
    if not temperature > 0:
        raise InputError(f"The temperature must be positive, not {temperature}: the paper takes 0.07 or 0.1.")
    return float(temperature)


class NonParametricSoftmax(Objective):
    """-log P(i | f), P(i | f) = exp(v_i . f / temperature) / sum_j exp(v_j . f / temperature), over all n rows.

    Eq 2 of Wu, Xiong, Yu and Lin, CVPR 2018. features: unit vectors (batch, dim); the result is a scalar.
    Raises InputError for a temperature that is not positive.

    mask_own: leave the picture's own row out of the denominator (the "decoupled" form of Yeh et al. 2022): the positive
        then only attracts, and all others only repel.
    products: float32, or bfloat16, which takes two thirds of the time and has the gradient off by 2e-4 to 3e-2
        of its length: see MemoryBank.log_partition. That is small beside what one draw of augmentation changes, and so
        is what it saves beside an encoder's step; hence a choice, and float32 also in a run that trains in bfloat16.
        The loss itself may then come out below 0, by up to 0.05.

    Examples:
        >>> import torch
        >>> from instdisc import MemoryBank
        >>> from instdisc.objectives import NonParametricSoftmax
        >>> bank = MemoryBank(4, dim=4)
        >>> bank.fill(torch.arange(4), torch.eye(4))
        >>> loss = NonParametricSoftmax(temperature=1.0)(torch.eye(4)[:1], torch.tensor([0]), bank)
        >>> round(loss.item(), 4)  # log(e + 3) - 1
        0.7437
    """

    def __init__(
        self, temperature: float = 0.07, *, mask_own: bool = False, products: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.temperature, self.mask_own = check_temperature(temperature), mask_own
        self.products = products

    @classmethod
    def from_settings(cls, settings: Any, instances: int) -> NonParametricSoftmax:
        """Of the settings temperature and mask_own."""
        return cls(settings.temperature, mask_own=settings.mask_own)

    def forward(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " batch"], bank: MemoryBank
    ) -> Float[Tensor, ""]:
        """The mean over the batch."""
        positive = bank.positives(features, indices) / self.temperature
        without = indices if self.mask_own else None
        log_z = bank.log_partition(features, self.temperature, without=without, products=self.products)
        return (log_z - positive).mean()
