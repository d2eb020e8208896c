"""Step and cosine schedules: how far the run has come -> the factor of the learning rate.

Progress is a fraction of the whole run in [0, 1], so that the same schedule serves `--epochs` and `--minutes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
