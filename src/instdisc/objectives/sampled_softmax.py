"""The softmax over the picture's own row and a sample of the others: for banks too large for the exact one."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from instdisc.bank import MemoryBank
from instdisc.objectives.noise import Draw, Noise, is_own
from instdisc.objectives.nonparametric_softmax import check_temperature
from instdisc.objectives.term import Objective
from instdisc.shapes import Float, Int, Tensor


class SampledSoftmax(Objective):
    """-log [exp(v_i . f / temperature) / (exp(v_i . f / temperature) + sum_k exp(v_jk . f / temperature))].

    negatives: how many rows j_k are drawn, uniformly; noise: "shared" by the batch or "private" to each picture.
    mask_own: rows that are the picture's own are left out of the negatives.
    decoupled: the positive is left out of the denominator (Yeh et al. 2022).
    draw: draw(count) -> (count,) row numbers, instead of the random ones.
    Eq 2 of Wu et al. 2018 with a sample of the rows in its sum. Raises InputError for a temperature or a number of
    negatives that is not positive.

    Examples:
        >>> import torch
        >>> from instdisc import MemoryBank
        >>> from instdisc.objectives import SampledSoftmax
        >>> bank = MemoryBank(4, dim=4)
        >>> bank.fill(torch.arange(4), torch.eye(4))
        >>> others = SampledSoftmax(temperature=1.0, negatives=3, draw=lambda count: torch.tensor([1, 2, 3]))
        >>> round(others(torch.eye(4)[:1], torch.tensor([0]), bank).item(), 4)  # all others are drawn: exact
        0.7437
    """

    def __init__(
        self,
        temperature: float = 0.07,
        negatives: int = 4096,
        noise: Literal["shared", "private"] = "shared",
        *,
        mask_own: bool = True,
        decoupled: bool = False,
        seed: int = 0,
        draw: Draw | None = None,
    ) -> None:
        super().__init__()
        self.temperature, self.mask_own, self.decoupled = check_temperature(temperature), mask_own, decoupled
        self.noise = Noise(negatives, noise, seed, draw)

    @classmethod
    def from_settings(cls, settings: Any, instances: int) -> SampledSoftmax:
        """Of the settings temperature, negatives, noise, mask_own and seed.

        Own rows among the drawn ones never count; mask_own takes the positive out of the denominator too.
        """
        own = settings.mask_own
        return cls(settings.temperature, settings.negatives, settings.noise, decoupled=own, seed=settings.seed)

    @staticmethod
    def described(settings: Any) -> str:
        """How many negatives."""
        return f" with {settings.negatives:,} negatives"

    def rows_needed(self, indices: Int[Tensor, " batch"], bank: MemoryBank) -> Int[Tensor, "*rows"]:
        """Those of the noise."""
        return self.noise.indices(indices, bank)

    def forward(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " batch"], bank: MemoryBank
    ) -> Float[Tensor, ""]:
        """The mean over the batch."""
        drawn = self.noise.indices(indices, bank)
        positive = bank.positives(features, indices) / self.temperature
        if drawn.dim() == 1:
            own = indices if self.mask_own else None
            repelled = bank.log_partition(features, self.temperature, among=drawn, without=own)
        else:
            repelled = self._over_private(bank.scores(features, drawn) / self.temperature, drawn, indices)
        if not self.decoupled:
            return nn.functional.softplus(repelled - positive).mean()
        alone = torch.isneginf(repelled)  # nothing was drawn that repels: the positive alone attracts
        return (repelled.masked_fill(alone, 0.0) - positive).mean()

    def _over_private(self, scores: Tensor, drawn: Tensor, indices: Tensor) -> Float[Tensor, " batch"]:
        """log of the sum of exp over each picture's own scores (batch, negatives); -inf where none is left."""
        if not self.mask_own:
            return scores.logsumexp(1)
        own = is_own(drawn, indices)
        alone = own.all(1)  # the gradient of a sum of nothing is no number: summed all the same, and then replaced
        return scores.masked_fill(own & ~alone[:, None], -torch.inf).logsumexp(1).masked_fill(alone, -torch.inf)
