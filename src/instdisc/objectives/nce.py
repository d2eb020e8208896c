"""Noise-contrastive estimation (eq 4 to 8): tell a picture's own row from m random rows, with a constant for Z."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import softplus

from instdisc import ranks
from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.objectives.noise import Draw, Noise, is_own
from instdisc.objectives.nonparametric_softmax import check_temperature
from instdisc.shapes import Float, Int, Tensor

Partition = Literal["first_batch", "moving_average", "exact"]


class NCE(nn.Module):
    """-log h(i, v_i) - sum_k log(1 - h(i, v_jk)) with h = P / (P + m P_n), P = exp(v . f / temperature) / Z, P_n = 1/n.

    All of it is a logistic loss on the logit v . f / temperature - log Z - log(m / n): computed in log space, in
    float32, so that exp(1 / 0.07) never stands alone. Eq 7's m * E_noise is the sum over the m draws.

    partition, how Z is known (eq 8); it is a constant for the gradient:
        "first_batch"     the Monte Carlo estimate from the first batch, then fixed, as published;
        "moving_average"  the same estimate in every step, averaged with weight 0.99;
        "exact"           log Z of every picture over all rows: for study, it costs what the exact softmax costs.
    noise: a draw "shared" by the batch, or "private" to each picture as published.
    mask_own: leave out noise that hit the picture itself; eq 7 counts it.
    draw: draw(count) -> (count,) row numbers, instead of the random ones.
    """

    log_partition: Tensor
    estimated_at: Tensor

    def __init__(
        self,
        temperature: float = 0.07,
        negatives: int = 4096,
        noise: Literal["shared", "private"] = "shared",
        partition: Partition = "first_batch",
        *,
        mask_own: bool = False,
        partition_momentum: float = 0.99,
        seed: int = 0,
        draw: Draw | None = None,
    ) -> None:
        super().__init__()
        if partition not in ("first_batch", "moving_average", "exact"):
            raise InputError(f"The partition is first_batch, moving_average or exact, not '{partition}'.")
        self.temperature, self.partition, self.mask_own = check_temperature(temperature), partition, mask_own
        self.partition_momentum = partition_momentum
        self.noise = Noise(negatives, noise, seed, draw)
        # Both are saved with the run: a resumed run that estimated Z anew would follow another objective.
        self.register_buffer("log_partition", torch.tensor(math.nan))
        self.register_buffer("estimated_at", torch.tensor(-1))

    def forward(
        self, features: Float[Tensor, "batch dim"], indices: Int[Tensor, " batch"], bank: MemoryBank
    ) -> Float[Tensor, ""]:
        """The mean over the batch."""
        drawn = self.noise.indices(indices, bank)
        positive = bank.positives(features, indices) / self.temperature
        scores = bank.scores(features, drawn) / self.temperature
        if self.partition == "exact":
            log_z = bank.log_partition(features.detach(), self.temperature)[:, None]
        else:
            log_z = self._constant(scores.detach(), bank)
        # log(P / (m P_n)) of the data row and of the noise rows
        offset = log_z + math.log(self.noise.negatives / bank.instances)
        data, noise = positive[:, None] - offset, scores - offset
        repelled = softplus(noise)
        if self.mask_own:
            repelled = repelled.masked_fill(is_own(drawn, indices), 0.0)
        return (softplus(-data)[:, 0] + repelled.sum(1)).mean()

    @torch.no_grad()
    def _constant(self, scores: Float[Tensor, "batch negatives"], bank: MemoryBank) -> Float[Tensor, ""]:
        """log Z of eq 8: Z ~ (n / m) sum_k exp(v_jk . f / temperature), averaged over the global batch.

        It is estimated once a bank update: micro-batches of one step (gradient accumulation) all use that of the first.
        Evaluation keeps nothing: before any training it uses its own estimate.
        """
        known = int(self.estimated_at)
        settled = not self.training or known == bank.updates or self.partition == "first_batch"
        if known >= 0 and settled:
            return self.log_partition
        each = ranks.gather(scores.float().logsumexp(1)) + math.log(bank.instances / self.noise.negatives)
        estimate = each.logsumexp(0) - math.log(len(each))
        if not self.training:
            return estimate
        if known < 0:
            _warn_of_strange_partition(float(estimate), bank, self.temperature)
            self.log_partition.copy_(estimate)
        else:
            momentum = self.partition_momentum
            self.log_partition.copy_(
                torch.logaddexp(self.log_partition + math.log(momentum), estimate + math.log1p(-momentum))
            )
        self.estimated_at.fill_(bank.updates)
        return self.log_partition


def _warn_of_strange_partition(log_z: float, bank: MemoryBank, temperature: float) -> None:
    """A first estimate far from that of a random bank spoils the whole run."""
    found = log_z - math.log(bank.instances)
    expected = _log_mean_of_random_bank(bank.dim, temperature)
    if abs(found - expected) > math.log(10):
        warnings.warn(
            f"The partition's logarithm, log(Z / n), was estimated as {found:.3g} from the first batch, where a random "
            f"bank gives {expected:.3g}: with such a constant NCE learns badly. Take more negatives, a higher "
            "temperature, or partition='moving_average'.",
            stacklevel=4,
        )


def _log_mean_of_random_bank(dim: int, temperature: float) -> float:
    """log(Z / n) of uniform rows: the mean of exp(v . f / temperature) is 0F1(dim / 2; 1 / (2 temperature)^2).

    It is 1 / (2 dim temperature^2) to first order, which is close where that is small (0.8 for 128 and 0.07), and
    tens too large in few dimensions.
    """
    log_square, log_term, log_sum = -2 * math.log(2 * temperature), 0.0, 0.0
    for k in range(1, 100 + round(2 / temperature)):  # the terms are largest near 1 / (2 temperature), then vanish
        log_term += log_square - math.log(k * (dim / 2 + k - 1))
        high, low = max(log_sum, log_term), min(log_sum, log_term)
        log_sum = high + math.log1p(math.exp(low - high))
    return log_sum
