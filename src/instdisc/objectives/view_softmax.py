"""The softmax of one view of a picture among the batch and a sample of the bank: needs two or more views a picture."""

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


class ViewSoftmax(Term):
    """-log [exp(f . f' / t) / (exp(f . f' / t) + sum over other pictures of exp(f . g / t) + sum_k exp(f . v_jk / t))].

    f' is another view of the same picture in the same batch; g runs over all views of the other pictures of the global
    batch; v_jk are `negatives` rows of the bank, shared by the batch (0: none). With more than two views, the mean over
    the other views. Early in a run the rows of the bank are an epoch old, while the views of a batch are not: this term
    teaches while the bank still fills, and it is the batch-wise contrast of Chen et al. 2020 with the bank as memory.
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

    def forward(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " batch"], bank: MemoryBank
    ) -> Float[Tensor, ""]:
        """The mean over the batch."""
        everyone, owners, first = ranks.gather_with_gradient(features), ranks.gather(indices), _first(len(features))
        with full_precision(features):
            scores = features.float() @ everyone.float().T / self.temperature
        same = torch.eq(indices[:, None], owners[None, :])
        itself = torch.arange(len(features), device=features.device) + first
        picture, place = same.scatter(1, itself[:, None], False).nonzero(as_tuple=True)  # of other views
        views = picture.bincount(minlength=len(features))
        if not bool((views > 0).all()):
            raise InputError("ViewSoftmax compares views of one picture: set views to 2 or more.")
        others = scores.masked_fill(same, -torch.inf).logsumexp(1)
        if self.noise is not None:
            drawn = self.noise.indices(indices, bank)
            rows = bank.log_partition(features, self.temperature, among=drawn, without=indices)
            # filled where it is -inf already: the gradient of a sum of nothing is no number, and stops there
            rows = rows.masked_fill(torch.isneginf(rows), -torch.inf)
            others = torch.stack([others, rows]).logsumexp(0)
        # for each other view p: -log(e^p / (e^p + e^others)) = softplus(others - p)
        terms = nn.functional.softplus(others[picture] - scores[picture, place]) / views[picture]
        return self.weight * terms.sum() / len(features)


def _first(count: int) -> int:
    """Where this rank's part of the batch stands in the global one."""
    return sum(ranks.sizes(count)[: ranks.rank()])
