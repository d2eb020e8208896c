"""Groups of alike pictures within a batch, found by k-means in one view and told from the other."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from instdisc import ranks
from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.objectives.nonparametric_softmax import check_temperature
from instdisc.objectives.term import Term
from instdisc.shapes import Float, Int, Tensor

_ROUNDS = 5
_OWN_SEED = 0x6B0  # apart from other weights drawn from the run's seed


class BatchGroups(Term):
    """Cross-level discrimination (Wang, Liu and Yu, CVPR 2021): pictures that are alike need not be pushed apart.

    With h = unit(W · pooled features) of the views a and b of a batch, k-means groups {h_b}: the picture i is in the
    group y_b(i), and the mean of a group is c_b. The term is the mean over the pictures of half of
        cross-entropy(h_a · c_b / t, y_b(i)) + cross-entropy(h_b · c_a / t, y_a(i)).
    The means are differentiated through, the groups are not. k-means runs over the global batch, by cosine, five rounds
    from the first pictures on. W is a head of its own, so that the embedding may still tell all pictures apart. A
    third view and more take no part.

    channels: of the pooled features. groups: k, at most half of the pictures of a batch. dim: of h. begins: the
    fraction of the run from which it counts.
    """

    reads = "pooled"
    waits_for_bank = False
    is_layer = True

    def __init__(
        self,
        channels: int,
        groups: int = 64,
        temperature: float = 0.2,
        *,
        dim: int = 128,
        begins: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.begins = begins
        if groups < 2:
            raise InputError(f"Pictures are told apart by two groups or more, not {groups}.")
        self.groups, self.temperature = groups, check_temperature(temperature)
        self.head = nn.Linear(channels, dim, bias=False)
        random = torch.Generator().manual_seed(seed ^ _OWN_SEED)
        nn.init.normal_(self.head.weight, std=channels**-0.5, generator=random)

    def forward(
        self, pooled: Float[Tensor, "batch channels"], indices: Int[Tensor, " batch"], bank: MemoryBank
    ) -> Float[Tensor, ""]:
        """The mean over the batch. pooled: features before the encoder's head."""
        with torch.autocast(pooled.device.type, enabled=False):
            own = normalize(self.head(pooled.float()), dim=1)
        everyone, owners = ranks.gather_with_gradient(own), ranks.gather(indices)
        views = _first_two(owners)
        number = torch.full((len(owners),), -1, device=own.device)
        start = sum(ranks.sizes(len(own))[: ranks.rank()])
        loss, count = everyone.sum() * 0, 0
        for asking, telling in (views, views[::-1]):
            number.fill_(-1)[asking] = torch.arange(len(asking), device=own.device)
            mine = number[start : start + len(own)]
            group, means = self._grouped(everyone[telling])
            scores = own[mine >= 0] @ means.T / self.temperature
            loss = loss + cross_entropy(scores, group[mine[mine >= 0]], reduction="sum")
            count += len(scores)
        return loss / max(1, count)

    def _grouped(self, rows: Float[Tensor, "pictures dim"]) -> tuple[Int[Tensor, " pictures"], Float[Tensor, "k dim"]]:
        """(group of each, means of the groups), k-means by cosine; empty groups are left out."""
        fixed = rows.detach()
        centres = fixed[: max(1, min(self.groups, len(rows) // 2))]
        for _ in range(_ROUNDS):
            group = (fixed @ centres.T).argmax(1)
            centres = normalize(torch.zeros_like(centres).index_add(0, group, fixed), dim=1)
        _, group = (fixed @ centres.T).argmax(1).unique(return_inverse=True)
        sizes = group.bincount()
        return group, rows.new_zeros(len(sizes), rows.shape[1]).index_add(0, group, rows) / sizes[:, None]


def _first_two(owners: Int[Tensor, " views"]) -> tuple[Int[Tensor, " pictures"], Int[Tensor, " pictures"]]:
    """Places of the first and of the second view of every picture, the pictures in the order of their first views."""
    order = owners.argsort(stable=True)
    _, sizes = owners[order].unique_consecutive(return_counts=True)
    if int(sizes.min()) < 2:
        raise InputError("Groups are told from one view to another: set views to 2 or more.")
    starts = sizes.cumsum(0) - sizes
    first, second = order[starts], order[starts + 1]
    shown = first.argsort()
    return first[shown], second[shown]
