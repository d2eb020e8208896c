"""Is one run better than another on the same pictures, or is it luck? McNemar's exact test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from instdisc.errors import InputError


@dataclass(frozen=True)
class Paired:
    """only_first, only_second: pictures that just one of the two gets right; difference: of the accuracies.

    probability: how often two equally good classifiers would differ at least so much, from only_first + only_second
    tosses of a fair coin.
    """

    only_first: int
    only_second: int
    difference: float
    probability: float


def paired_test(first: Any, second: Any) -> Paired:
    """Compare two arrays of right or wrong (n,), the same pictures in the same order (McNemar 1947, exact).

    Raises InputError if they are of different lengths or empty.
    """
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if one.shape != two.shape or one.ndim != 1 or not len(one):
        raise InputError(f"A paired test compares the same pictures, not {one.shape} with {two.shape}.")
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    probability = min(1.0, 2 * _tail(min(only_first, only_second), only_first + only_second))
    return Paired(only_first, only_second, (only_first - only_second) / len(one), probability)


def _tail(most: int, tosses: int) -> float:
    """The probability of at most so many heads: a sum of binomial coefficients, in whole numbers and so exact."""
    coefficient = total = 1
    for heads in range(1, most + 1):
        coefficient = coefficient * (tosses - heads + 1) // heads
        total += coefficient
    return total / 2**tosses
