"""Noise-contrastive estimation (eq 4 to 8): tell a picture's own row from m random rows, with a constant for Z."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import softplus

from instdisc import ranks
from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.objectives.noise import Draw, Noise, is_own
from instdisc.objectives.nonparametric_softmax import check_temperature
from instdisc.objectives.term import Objective
from instdisc.shapes import Float, Int, Tensor

Partition = Literal["first_batch", "moving_average", "exact"]
# Once the estimate of Z is more than so many times a fixed constant, that is left behind. On a made problem 3 times
# cost 2 points of 99, 10 times 9, 30 times 28, 100 times 53; one that is too large cost none (runs/nce_constant.py).
LEFT_BEHIND = 10.0
_WATCH_EVERY, _LOOK_EVERY = 10, 100  # steps


class NCE(Objective):
    """-log h(i, v_i) - sum_k log(1 - h(i, v_jk)) with h = P / (P + m P_n), P = exp(v . f / temperature) / Z, P_n = 1/n.

    All of it is a logistic loss on the logit v . f / temperature - log Z - log(m / n): computed in log space, in
    float32, so that exp(1 / 0.07) never stands alone. Eq 7's m * E_noise is the sum over the m draws.

    partition, how Z is known (eq 8); it is a constant for the gradient:
        "moving_average"  the Monte Carlo estimate of every step, averaged with weight 0.99;
        "first_batch"     that of the first batch, then fixed, as published. It warns once where Z has left it behind:
                          the noise then pulls Z / constant times as hard as it should (docs/method.md);
        "exact"           log Z of every picture over all rows: for study, it costs what the exact softmax costs.
    noise: a draw "shared" by the batch, or "private" to each picture as published.
    mask_own: leave out noise that hit the picture itself; eq 7 counts it.
    draw: draw(count) -> (count,) row numbers, instead of the random ones.
    Eq 5 to 8 of Wu et al. 2018. Raises InputError for a temperature or a number of negatives that is not positive.

    Examples:
        >>> import torch
        >>> from instdisc import MemoryBank
        >>> from instdisc.objectives import NCE
        >>> bank = MemoryBank(4, dim=4)
        >>> bank.fill(torch.arange(4), torch.eye(4))
        >>> nce = NCE(temperature=1.0, negatives=3, partition="exact", draw=lambda count: torch.tensor([1, 2, 3]))
        >>> round(nce(torch.eye(4)[:1], torch.tensor([0]), bank).item(), 4)
        1.5757
    """

    # An exact partition has no one number, and only a constant is watched.
    watched = ("log_partition", "recent_log_partition")
    log_partition: Tensor
    estimated_at: Tensor
    recent_log_partition: Tensor  # these two where the constant is fixed: the average that watches it,
    left_behind_at: Tensor  # and the bank update at which it was said that it is left behind; -1 = not so far

    def __init__(
        self,
        temperature: float = 0.07,
        negatives: int = 4096,
        noise: Literal["shared", "private"] = "shared",
        partition: Partition = "moving_average",
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
        # All are saved with the run: a resumed run that estimated Z again would follow another objective.
        self.register_buffer("log_partition", torch.tensor(math.nan))
        self.register_buffer("estimated_at", torch.tensor(-1))
        if partition == "first_batch":
            self.register_buffer("recent_log_partition", torch.tensor(math.nan))
            self.register_buffer("left_behind_at", torch.tensor(-1))
            self.register_load_state_dict_pre_hook(_watch_from_now_on)
            self._watched_at = -1
        self._numbers: dict[str, int] = {}  # what the host knows of these buffers, so as not to ask the device
        self.register_load_state_dict_post_hook(lambda module, _: module._numbers.clear())

    @classmethod
    def from_settings(cls, settings: Any, instances: int) -> NCE:
        """Of the settings temperature, negatives, noise, partition, mask_own and seed."""
        return cls(
            settings.temperature,
            settings.negatives,
            settings.noise,
            settings.partition,
            mask_own=settings.mask_own,
            seed=settings.seed,
        )

    @staticmethod
    def described(settings: Any) -> str:
        """How many negatives, and how Z is known."""
        return f" with {settings.negatives:,} negatives, Z by {settings.partition}"

    def rows_needed(self, indices: Int[Tensor, " batch"], bank: MemoryBank) -> Int[Tensor, "*rows"]:
        """Those of the noise."""
        return self.noise.indices(indices, bank)

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
            if self.partition == "first_batch" and self.training:
                self._watch(scores.detach(), bank)
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
        known = self._number("estimated_at")
        settled = not self.training or known == bank.updates or self.partition == "first_batch"
        if known >= 0 and settled:
            return self.log_partition
        estimate = self._estimate(scores, bank)
        if not self.training:
            return estimate
        if known < 0:
            _warn_of_strange_partition(float(estimate), bank, self.temperature, self.partition)
            self.log_partition.copy_(estimate)
        else:
            self.log_partition.copy_(_log_average(self.log_partition, estimate, self.partition_momentum))
        self._set_number("estimated_at", bank.updates)
        return self.log_partition

    def _number(self, name: str) -> int:
        """A whole number in a buffer; the host waits for it once, after it was loaded."""
        if name not in self._numbers:
            self._numbers[name] = int(self.get_buffer(name))
        return self._numbers[name]

    def _set_number(self, name: str, value: int) -> None:
        self.get_buffer(name).fill_(value)
        self._numbers[name] = value

    def _estimate(self, scores: Float[Tensor, "batch negatives"], bank: MemoryBank) -> Float[Tensor, ""]:
        each = ranks.gather(scores.float().logsumexp(1)) + math.log(bank.instances / self.noise.negatives)
        return each.logsumexp(0) - math.log(len(each))

    @torch.no_grad()
    def _watch(self, scores: Float[Tensor, "batch negatives"], bank: MemoryBank) -> None:
        """Follow Z beside the fixed constant, and say once when it has left that behind; neither loss nor gradient
        knows of it.

        The average takes every tenth step, and the host waits for it every hundredth: both go by the bank's updates,
        so that ranks, micro-batches and resumed runs agree.
        """
        if bank.updates % _WATCH_EVERY or bank.updates == self._watched_at:
            return
        self._watched_at = bank.updates
        recent = torch.where(self.recent_log_partition.isnan(), self.log_partition, self.recent_log_partition)
        recent = _log_average(recent, self._estimate(scores, bank), self.partition_momentum**_WATCH_EVERY)
        self.recent_log_partition.copy_(recent)
        if bank.updates % _LOOK_EVERY or self._number("left_behind_at") >= 0:
            return
        grown = float(recent - self.log_partition)
        if grown > math.log(LEFT_BEHIND):
            self._set_number("left_behind_at", bank.updates)
            if ranks.is_main():
                _warn_of_constant_left_behind(grown, bank.updates)


def _log_average(average: Float[Tensor, ""], new: Float[Tensor, ""], momentum: float) -> Float[Tensor, ""]:
    """The logarithm of momentum * average + (1 - momentum) * new, of their logarithms."""
    old, added = (math.log(weight) if weight > 0 else -math.inf for weight in (momentum, 1 - momentum))
    return torch.logaddexp(average + old, new + added)


def _watch_from_now_on(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A checkpoint from before a fixed constant was watched is taken as it is: the watch begins where it resumes."""
    for name in ("recent_log_partition", "left_behind_at"):
        state.setdefault(prefix + name, module.get_buffer(name))


def _warn_of_constant_left_behind(grown: float, updates: int) -> None:
    ratio = math.exp(min(grown, 99.0))
    warnings.warn(
        f"NCE's constant for Z is left behind after {updates:,} steps: the estimate is {ratio:,.0f} times that of the "
        "first batch, so the noise pulls too hard by up to this factor and the vectors can collapse. Watch the "
        "effective rank and kNN, or start a new run with partition=moving_average (--set partition=moving_average), "
        "which follows Z.",
        stacklevel=4,
    )


def _warn_of_strange_partition(log_z: float, bank: MemoryBank, temperature: float, partition: str) -> None:
    """A first estimate far from that of a random bank spoils the whole run, or its beginning."""
    found = log_z - math.log(bank.instances)
    expected = _log_mean_of_random_bank(bank.dim, temperature)
    if abs(found - expected) > math.log(10):
        fixed = partition == "first_batch"
        warnings.warn(
            f"The partition's logarithm, log(Z / n), was estimated as {found:.3g} from the first batch, where a random "
            f"bank gives {expected:.3g}: {'with such a constant' if fixed else 'until the average has followed'} NCE "
            f"learns badly. Take more negatives{', ' if fixed else ' or '}a higher temperature"
            f"{', or partition=' + repr('moving_average') if fixed else ''}.",
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
