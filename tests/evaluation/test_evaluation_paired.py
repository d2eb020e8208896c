"""The paired test against scipy's binomial test, and on runs that differ by chance alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from instdisc.errors import InputError
from instdisc.evaluation.paired import paired_test


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (3, 9), (20, 20), (40, 15), (900, 1100)])
def test_the_probability_is_that_of_tossing_a_coin(only_first: int, only_second: int) -> None:
    both, neither = 7, 5
    first = np.array([True] * (both + only_first) + [False] * (only_second + neither))
    second = np.array([True] * both + [False] * only_first + [True] * only_second + [False] * neither)
    found = paired_test(first, second)
    tosses = only_first + only_second
    assert found.probability == pytest.approx(binomtest(only_first, tosses).pvalue if tosses else 1.0)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.difference == pytest.approx(first.mean() - second.mean())


def test_equally_good_runs_are_called_different_once_in_twenty() -> None:
    draws = np.random.default_rng(0)
    called = [paired_test(*(draws.random((2, 400)) < 0.7)).probability < 0.05 for _ in range(1000)]
    assert 0.02 < np.mean(called) < 0.06  # an exact test is a little conservative


@pytest.mark.parametrize("second", [[True], [[True, False]], []])
def test_other_pictures_are_refused(second: list[object]) -> None:
    with pytest.raises(InputError, match="same pictures"):
        paired_test([True, False] if second else [], second)
