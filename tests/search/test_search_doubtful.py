"""Doubtful labels against a slow loop, and against scikit-learn's own leaving out of each picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from instdisc.errors import InputError
from instdisc.search.doubtful import doubts
from instdisc.search.pairs import Vectors, neighbours_of_all

K, TEMPERATURE = 7, 0.1


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(unit vectors (60, 5), their classes of four, the same with six of them flipped)."""
    random = np.random.default_rng(0)
    codes = np.arange(60) % 4
    vectors = np.eye(5)[codes] + random.normal(0, 0.2, (60, 5))
    noisy = codes.copy()
    flipped = random.choice(60, 6, replace=False)
    noisy[flipped] = (noisy[flipped] + 1) % 4
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), codes, noisy


def nearest(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return neighbours_of_all(Vectors.of(torch.from_numpy(vectors)), K)


def test_the_shares_are_those_of_a_slow_loop(made: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    vectors, _, codes = made
    voted, doubt = doubts(*nearest(vectors), codes, temperature=TEMPERATURE)
    for row in range(len(vectors)):
        cosines = sorted(((float(vectors[row] @ vectors[one]), one) for one in range(60) if one != row), reverse=True)
        votes = dict.fromkeys(range(4), 0.0)
        for cosine, one in cosines[:K]:
            votes[int(codes[one])] += np.exp(cosine / TEMPERATURE)
        given = votes.pop(int(codes[row]))
        best = max(votes, key=lambda code: votes[code])
        assert voted[row] == best
        assert doubt[row] == pytest.approx((votes[best] - given) / (sum(votes.values()) + given), abs=1e-5)


def test_each_is_left_out_as_scikit_learn_leaves_it_out(made: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    vectors, _, codes = made
    model = KNeighborsClassifier(
        K, metric="cosine", algorithm="brute", weights=lambda apart: np.exp((1 - apart) / TEMPERATURE)
    )
    shares = cross_val_predict(model, vectors, codes, cv=LeaveOneOut(), method="predict_proba")
    rows = np.arange(len(codes))
    given = shares[rows, codes]
    shares[rows, codes] = -1
    voted, doubt = doubts(*nearest(vectors), codes, temperature=TEMPERATURE)
    assert (voted == shares.argmax(axis=1)).all()
    np.testing.assert_allclose(doubt, shares.max(axis=1) - given, atol=1e-5)


def test_flipped_labels_come_first(made: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    vectors, codes, noisy = made
    voted, doubt = doubts(*nearest(vectors), noisy)
    first = np.argsort(-doubt)[:6]
    assert (noisy[first] != codes[first]).sum() >= 5
    assert (voted[first] == codes[first]).sum() >= 5


@pytest.mark.parametrize("codes", [[0, 0, 0], [0, -1, 1], [2, 2, 2]])
def test_one_class_alone_can_not_be_doubted(codes: list[int]) -> None:
    with pytest.raises(InputError, match="two classes"):
        doubts(np.ones((3, 1)), np.array([[1], [2], [0]]), np.array(codes))
