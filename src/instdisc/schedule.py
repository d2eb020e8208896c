"""How far the run has come -> the factor of the learning rate, and the side of the views.

Progress is a fraction of the whole run in [0, 1], so that the same schedule serves `--epochs` and `--minutes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from instdisc.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run.

    kind: "step" multiplies by `gamma` at every fraction in `drops` (the paper: 0.1 at 120 and 160 of 200 epochs, so
        drops = (0.6, 0.8)); "cosine" falls to `final` of the start along half a cosine (Loshchilov & Hutter 2017);
        "constant" stays.
    warmup: fraction of the run over which the rate rises linearly from zero; the cosine then spans what is left.
    """

    kind: Literal["step", "cosine", "constant"] = "cosine"
    warmup: float = 0.0
    drops: tuple[float, ...] = (0.6, 0.8)
    gamma: float = 0.1
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("step", "cosine", "constant"):
            raise InputError(f"There is no schedule '{self.kind}': choose step, cosine or constant.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"The warm-up is a fraction of the run in [0, 1), not {self.warmup}.")

    def factor(self, progress: float) -> float:
        """The learning rate at this fraction of the run, relative to the base rate."""
        progress = min(max(progress, 0.0), 1.0)
        if progress < self.warmup:
            return progress / self.warmup
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            # 1e-9: epoch 120 of 200 must count as 0.6 whatever the rounding of the division
            return self.gamma ** sum(progress >= drop - 1e-9 for drop in self.drops)
        rest = (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * rest))


@dataclass(frozen=True)
class Growth:
    """Views that grow over a run (progressive resizing): a step costs about as many pixels as it has.

    shares: of the full side, one after the other, before views are whole; until: the fraction of the run at which each
        ends. Both empty: whole views all the time.
    """

    shares: tuple[float, ...] = ()
    until: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.until):
            raise InputError(
                f"early_sizes and grow_at go together, a fraction of the run for each size: {len(self.shares)} and "
                f"{len(self.until)} were given."
            )
        if not all(0 < share <= 1 for share in self.shares) or list(self.shares) != sorted(self.shares):
            raise InputError("early_sizes are shares of the size, smaller ones first: numbers above 0, up to 1.")
        ends = (0.0, *self.until, 1.0)
        if not all(earlier < later for earlier, later in pairwise(ends)):
            raise InputError("grow_at are fractions of the run between 0 and 1, each larger than the one before.")

    def share(self, progress: float) -> float:
        """The views' side at this fraction of the run, relative to the full one."""
        for share, until in zip(self.shares, self.until, strict=True):
            if progress < until - 1e-9:
                return share
        return 1.0

    def progress(self, done: float) -> float:
        """The fraction of the run's work after this fraction of its steps: those with small views are less of it."""
        if not self.shares:
            return done
        work = steps = 0.0
        total = 1 / self.mean_cost
        for share, until in zip((*self.shares, 1.0), (*self.until, 1.0), strict=True):
            length = (until - work) / share**2 / total  # of all steps
            if done <= steps + length:
                return work + (done - steps) * share**2 * total
            work, steps = until, steps + length
        return 1.0

    @property
    def mean_cost(self) -> float:
        """What a step costs in the mean over all steps, relative to one with whole views."""
        ends = (0.0, *self.until, 1.0)
        return 1 / sum(
            (end - start) / share**2 for share, (start, end) in zip((*self.shares, 1.0), pairwise(ends), strict=True)
        )
