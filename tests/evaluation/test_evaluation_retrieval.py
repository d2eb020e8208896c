"""Retrieval against scikit-learn's average precision and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from instdisc.errors import InputError
from instdisc.evaluation.retrieval import retrieval


def made(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, count) * 10
    return generator.normal(size=(count, 6)).astype(np.float32) + 0.1 * labels[:, None] * np.eye(6)[0], labels


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first / np.linalg.norm(first, axis=1)[:, None]) @ (second / np.linalg.norm(second, axis=1)[:, None]).T


def test_test_pictures_among_training_pictures() -> None:
    (train, labels), (test, test_labels) = made(120, 0), made(50, 1)
    result = retrieval(train, labels, test, test_labels, at=(1, 3))
    scores = cosines(test, train)
    precisions = [average_precision_score(labels == own, row) for own, row in zip(test_labels, scores, strict=True)]
    assert result.mean_average_precision == pytest.approx(np.mean(precisions), abs=1e-5)
    nearest = np.argsort(-scores, axis=1, kind="stable")
    for k in (1, 3):
        found = [(labels[row[:k]] == own).any() for own, row in zip(test_labels, nearest, strict=True)]
        assert result.recall[k] == pytest.approx(np.mean(found))
        right = [(labels[row[:k]] == own).mean() for own, row in zip(test_labels, nearest, strict=True)]
        assert result.precision[k] == pytest.approx(np.mean(right))
    assert result.queries == 50


@pytest.mark.fault("the query itself counted as its own neighbour in leave-one-out")
def test_a_picture_never_finds_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = made(60, 2)
    whole = retrieval(vectors, labels, at=(1, 5))
    scores = cosines(vectors, vectors)
    precisions = []
    for row, own in enumerate(labels):
        others = np.arange(60) != row
        precisions.append(average_precision_score(labels[others] == own, scores[row, others]))
    assert whole.mean_average_precision == pytest.approx(np.mean(precisions), abs=1e-5)
    monkeypatch.setattr("instdisc.evaluation.retrieval._SCORES", 60 * 7)
    assert retrieval(torch.from_numpy(vectors), labels, at=(1, 5)) == whole


def test_pictures_without_a_label_or_a_fellow_do_not_ask() -> None:
    vectors, labels = made(40, 3)
    labels[:5], labels[5] = -1, 777
    alone = retrieval(vectors, labels)
    kept = labels >= 0
    assert alone.queries == 34
    assert alone == retrieval(vectors[kept], labels[kept])
    assert retrieval(vectors, labels, most_queries=10).queries == 10
    with pytest.raises(InputError, match="shares its class"):
        retrieval(vectors, np.arange(40))


def test_perfect_and_worst_rankings() -> None:
    train, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 3])
    assert retrieval(train, labels, train, labels).mean_average_precision == 1.0
    wrong = retrieval(train, labels, -train[:1], labels[:1], at=(3, 4))
    assert wrong.mean_average_precision == 0.25 and wrong.recall == {3: 0.0, 4: 1.0}
