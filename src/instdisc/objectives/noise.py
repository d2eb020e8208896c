"""Which rows of the bank serve as negatives: uniform noise, P_n = 1/n, shared by a batch or private to a picture.

Uniform noise needs no sampler and no table: an index is a random number modulo n. The draw is a function of (seed,
number of bank updates), and for private noise of the picture, so it is the same on every rank, in every micro-batch of
one step, and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from instdisc import draws
from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.shapes import Bool, Int, Tensor

_NOISE_STREAM = 2  # of draws
Draw = Callable[[int], Tensor]


class Noise:
    """Draws `negatives` row numbers for a batch.

    kind: "shared", one draw of shape (negatives,) for the whole global batch: its scores are one matrix product;
        "private", one of shape (batch, negatives), a fresh draw for each picture as published.
    draw: draw(count) -> (count,) row numbers, instead of the random ones.
    """

    def __init__(self, negatives: int, kind: Literal["shared", "private"], seed: int, draw: Draw | None) -> None:
        if negatives < 1:
            raise InputError(f"There must be at least one negative, not {negatives}.")
        if kind not in ("shared", "private"):
            raise InputError(f"Noise is 'shared' or 'private', not '{kind}'.")
        self.negatives, self.kind, self.seed, self.draw = negatives, kind, seed, draw

    def indices(self, own: Int[Tensor, " batch"], bank: MemoryBank) -> Int[Tensor, "*batch negatives"]:
        """Row numbers for a batch of the instances `own`."""
        if self.draw is not None:
            count = self.negatives if self.kind == "shared" else self.negatives * len(own)
            drawn = self.draw(count).to(own.device)
            return drawn if self.kind == "shared" else drawn.reshape(len(own), self.negatives)
        whose = own if self.kind == "private" else own.new_zeros(1)
        drawn = draws.integers(
            whose, self.negatives, bank.instances, seed=self.seed, step=bank.updates, stream=_NOISE_STREAM
        )
        return drawn if self.kind == "private" else drawn[0]


def is_own(drawn: Int[Tensor, "*batch negatives"], own: Int[Tensor, " batch"]) -> Bool[Tensor, "batch negatives"]:
    """Where the noise hit the picture itself (8 % of the draws of 4096 among 50,000 hold it)."""
    return torch.eq(drawn if drawn.dim() == 2 else drawn[None, :], own[:, None])
