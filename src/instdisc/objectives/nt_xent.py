"""NT-Xent: the softmax of one view of a picture among the batch and a sample of the bank; needs two or more views."""

from __future__ import annotations

import torch
from torch import nn

from instdisc import ranks
from instdisc.bank import MemoryBank, full_precision
from instdisc.errors import InputError
from instdisc.objectives.noise import Draw, Noise
from instdisc.objectives.nonparametric_softmax import check_temperature
from instdisc.objectives.term import Term
from instdisc.shapes import Float, Int, Tensor


class NTXent(Term):
    """-log [exp(f . f' / t) / (exp(f . f' / t) + sum over other pictures of exp(f . g / t) + sum_k exp(f . v_jk / t))].

    f' is another view of the same picture in the same batch; g runs over all views of the other pictures of the global
    batch; v_jk are `negatives` rows of the bank, shared by the batch (0: none). With more than two views, the mean over
    the other views. Early in a run the rows of the bank are an epoch old, while the views of a batch are not: this term
    teaches while the bank still fills, and it is the batch-wise contrast of Chen et al. 2020 with the bank as memory.
    Raises InputError for a temperature that is not positive.

    Examples:
        >>> import torch
        >>> from instdisc import MemoryBank
        >>> from instdisc.objectives import NTXent
        >>> features, indices = torch.eye(2).repeat_interleave(2, dim=0), torch.tensor([0, 0, 1, 1])
        >>> views = NTXent(temperature=1.0, negatives=0)
        >>> round(views(features, indices, MemoryBank(2, dim=2)).item(), 4)  # log(e + 2) - 1
        0.5514
    """

    waits_for_bank = False

    def __init__(
        self,
        temperature: float = 0.1,
        negatives: int = 4096,
        *,
        weight: float = 1.0,
        seed: int = 0,
        draw: Draw | None = None,
    ) -> None:
        super().__init__()
        self.temperature, self.weight = check_temperature(temperature), weight
        self.noise = Noise(negatives, "shared", seed, draw) if negatives else None
        self._has_looked = False

    def rows_needed(self, indices: Int[Tensor, " batch"], bank: MemoryBank) -> Int[Tensor, "*rows"] | None:
        """Those of the noise."""
        return None if self.noise is None else self.noise.indices(indices, bank)

    def forward(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " batch"], bank: MemoryBank
    ) -> Float[Tensor, ""]:
        """The mean over the batch."""
        everyone, owners, first = ranks.gather_with_gradient(features), ranks.gather(indices), _first(len(features))
        with full_precision(features):
            scores = features.float() @ everyone.float().T / self.temperature
        same = torch.eq(indices[:, None], owners[None, :])
        itself = torch.arange(len(features), device=features.device) + first
        other_views = same.scatter(1, itself[:, None], False)
        views = other_views.sum(1)
        if features.device.type == "cpu" or not self._has_looked:  # elsewhere the host would wait at each step
            self._has_looked = True
            if not bool((views > 0).all()):
                raise InputError("NTXent compares views of one picture: set views to 2 or more.")
        others = scores.masked_fill(same, -torch.inf).logsumexp(1)
        if self.noise is not None:
            drawn = self.noise.indices(indices, bank)
            rows = bank.log_partition(features, self.temperature, among=drawn, without=indices)
            # filled where it is -inf already: the gradient of a sum of nothing is no number, and stops there
            rows = rows.masked_fill(torch.isneginf(rows), -torch.inf)
            others = torch.stack([others, rows]).logsumexp(0)
        # for each other view p: -log(e^p / (e^p + e^others)) = softplus(others - p)
        terms = nn.functional.softplus(others[:, None] - scores).masked_fill(~other_views, 0.0).sum(1) / views
        return self.weight * terms.sum() / len(features)


def _first(count: int) -> int:
    """Where this rank's part of the batch stands in the global one."""
    return sum(ranks.sizes(count)[: ranks.rank()])
