"""The proximal term (eq 9): a pull of each feature towards the row that its picture left in the bank."""

from __future__ import annotations

from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.objectives.term import Term
from instdisc.shapes import Float, Int, Tensor


class Proximal(Term):
    """weight * |f_i - v_i|^2, the mean over the batch; `weight` is the paper's lambda (0, 10, 30, 50 are compared).

    It pulls the encoder, where the bank's momentum moves the bank: they are not the same, and a run may use both.
    Eq 9 of Wu et al. 2018. Raises InputError for a negative weight.

    Examples:
        >>> import torch
        >>> from instdisc import MemoryBank
        >>> from instdisc.objectives import Proximal
        >>> bank = MemoryBank(4, dim=4)
        >>> bank.fill(torch.arange(4), torch.eye(4))
        >>> Proximal(weight=30.0)(torch.eye(4)[1:2], torch.tensor([0]), bank).item()  # two unit vectors at right angles
        60.0
    """

    def __init__(self, weight: float = 30.0) -> None:
        super().__init__()
        if weight < 0:
            raise InputError(f"The proximal weight must not be negative, but it is {weight}.")
        self.weight = float(weight)

    def forward(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " batch"], bank: MemoryBank
    ) -> Float[Tensor, ""]:
        """The mean over the batch."""
        return self.weight * (features - bank.lookup(indices)).square().sum(1).mean()
