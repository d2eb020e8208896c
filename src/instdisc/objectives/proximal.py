"""The proximal term (eq 9): a pull of each feature towards the row that its picture left in the bank."""

from __future__ import annotations

from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.objectives.term import Term
from instdisc.shapes import Float, Int, Tensor


class Proximal(Term):
    """weight * |f_i - v_i|^2, the mean over the batch; `weight` is the paper's lambda (0, 10, 30, 50 are compared).

    It pulls the encoder, where the bank's momentum moves the bank: they are not the same, and a run may use both.
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
