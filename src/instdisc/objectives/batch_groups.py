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
from instdisc.shapes import Bool, Float, Int, Tensor

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
    fraction of the run from which it counts. Raises InputError for fewer than two groups.

    Examples:
        >>> import torch
        >>> from instdisc import MemoryBank
        >>> from instdisc.objectives import BatchGroups
        >>> groups = BatchGroups(channels=8, groups=2)
        >>> loss = groups(torch.rand(8, 8), torch.arange(4).repeat_interleave(2), MemoryBank(4, dim=2))
        >>> loss.ndim, groups.reads
        (0, 'pooled')
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
        self._has_looked = False
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
        views, pictures = self._first_two(owners)
        start = sum(ranks.sizes(len(own))[: ranks.rank()])
        loss, count = everyone.sum() * 0, torch.zeros((), device=own.device)
        for asking, telling in (views, views[::-1]):
            # the number of the picture that each view asks for; one past the last where it does not ask
            number = torch.full((len(owners) + 1,), len(asking), device=own.device)
            number.scatter_(0, asking, torch.arange(len(asking), device=own.device))
            mine = number[start : start + len(own)]
            asks = mine < pictures
            group, means, empty = self._grouped(torch.cat([everyone, everyone[:1]])[telling], pictures)
            scores = (own @ means.T / self.temperature).masked_fill(empty, -torch.inf)
            losses = cross_entropy(scores, group[mine.clamp_max(len(group) - 1)], reduction="none")
            loss, count = loss + torch.where(asks, losses, 0.0).sum(), count + asks.sum()
        return loss / count.clamp_min(1)

    def _grouped(
        self, rows: Float[Tensor, "most dim"], pictures: Int[Tensor, ""]
    ) -> tuple[Int[Tensor, " most"], Float[Tensor, "k dim"], Bool[Tensor, " k"]]:
        """(group of each, means of the groups, which are empty), k-means by cosine over the first `pictures` rows.

        No shape depends on a value, for which a GPU would make the host wait.
        """
        fixed, count = rows.detach(), torch.arange(len(rows), device=rows.device)
        real = (count < pictures)[:, None]
        centres = fixed[: max(1, min(self.groups, len(rows) // 2))]
        unused = count[: len(centres)] >= (pictures // 2).clamp(1, self.groups)

        def nearest() -> Int[Tensor, " most"]:
            return (fixed @ centres.T).masked_fill(unused, -torch.inf).argmax(1)

        for _ in range(_ROUNDS):
            centres = normalize(torch.zeros_like(centres).index_add(0, nearest(), fixed * real), dim=1)
        group = nearest()
        sizes = rows.new_zeros(len(centres)).index_add(0, group, real[:, 0].to(rows.dtype))
        sums = rows.new_zeros(centres.shape).index_add(0, group, rows * real)
        return group, sums / sizes.clamp_min(1)[:, None], sizes == 0

    def _first_two(self, owners: Int[Tensor, " views"]) -> tuple[tuple[Tensor, Tensor], Int[Tensor, ""]]:
        """Places of the first and of the second view of each picture, in the order of the first ones, and how many
        pictures there are: the entries after that are `len(owners)`, which is no position."""
        most, views = len(owners) // 2, len(owners)
        ordered, order = owners.sort(stable=True)
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        fresh[1:] = ordered[1:] != ordered[:-1]
        pictures, group = fresh.sum(), fresh.cumsum(0) - 1
        second = torch.zeros_like(fresh)
        second[1:] = fresh[:-1] & ~fresh[1:]
        if owners.device.type == "cpu" or not self._has_looked:  # elsewhere the host would wait at each step
            self._has_looked = True
            if int(second.sum()) < int(pictures):
                raise InputError("Groups are told from one view to another: set views to 2 or more.")
        positions = torch.full((2, views + 1), views, device=owners.device)
        for row, chosen in enumerate((fresh, second)):  # what is not chosen goes to the last position, which is cut off
            positions[row].scatter_(0, torch.where(chosen, group, views), torch.where(chosen, order, views))
        first, shown = positions[0, :most].sort()
        return (first, positions[1, shown]), pictures
