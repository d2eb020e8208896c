"""The linear classifiers against scikit-learn: LinearSVC solves the SVM by liblinear, LogisticRegression the probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from instdisc import draws
from instdisc.errors import InputError
from instdisc.evaluation.linear import LinearClassifier
from instdisc.evaluation.probe import LinearProbe
from instdisc.evaluation.svm import LinearSVM

BOTH = pytest.mark.parametrize("make", [lambda: LinearSVM(1e-2), lambda: LinearProbe(0.1, epochs=20)])
Make = Callable[[], LinearClassifier]


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    vectors, labels = load_digits(return_X_y=True)
    return vectors[:1200].astype(np.float32), labels[:1200], vectors[1200:].astype(np.float32), labels[1200:]


def standardised(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, scale = vectors.astype(float).mean(0), vectors.astype(float).std(0)
    scale[scale == 0] = 1
    return (vectors - mean) / scale, mean, scale


@pytest.mark.parametrize("cost", [1e-3, 1e-1])
def test_the_svm_is_liblinears(cost: float) -> None:
    vectors, labels, test, test_labels = digits()
    ready, mean, scale = standardised(vectors)
    oracle = LinearSVC(C=cost, dual=False, tol=1e-8, max_iter=100_000).fit(ready, labels)
    svm = LinearSVM(cost).fit(vectors, labels)
    np.testing.assert_allclose(svm.mean_, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(svm.weights_, oracle.coef_, atol=3e-3)
    np.testing.assert_allclose(svm.intercepts_, oracle.intercept_, atol=3e-3)
    expected = oracle.score((test - mean) / scale, test_labels)
    assert abs(svm.score(test, test_labels) - expected) < 0.002


def test_the_svms_objective_is_no_higher_than_liblinears() -> None:
    vectors, labels, _, _ = digits()
    ready, _, _ = standardised(vectors)
    cost = 1e-2
    oracle = LinearSVC(C=cost, dual=False, tol=1e-10, max_iter=100_000).fit(ready, labels)

    def objective(weights: np.ndarray, intercepts: np.ndarray) -> float:
        signs = np.where(labels[:, None] == np.arange(10), 1, -1)
        slack = np.maximum(0, 1 - signs * (ready @ weights.T + intercepts))
        return 0.5 * (weights**2).sum() + 0.5 * (intercepts**2).sum() + cost * (slack**2).sum()

    svm = LinearSVM(cost).fit(vectors, labels)
    ours = objective(svm.weights_.double().numpy(), svm.intercepts_.double().numpy())
    assert ours <= objective(oracle.coef_, oracle.intercept_) * (1 + 1e-5)


@pytest.mark.fault("best epoch picked on the test set and reported as the result")
def test_the_cost_is_the_best_in_cross_validation_inside_train() -> None:
    vectors, labels, test, test_labels = digits()
    svm = LinearSVM(costs=(1e-4, 1e-2, 10.0), folds=3).fit(vectors, labels)
    parts = np.array_split(draws.permutation(len(labels), seed=0, step=0), 3)
    folds = [(np.setdiff1d(np.arange(len(labels)), part), part) for part in parts]
    for cost, accuracy in svm.accuracies_.items():
        oracle = make_pipeline(StandardScaler(), LinearSVC(C=cost, dual=False, max_iter=10_000))
        assert abs(accuracy - cross_val_score(oracle, vectors, labels, cv=folds).mean()) < 0.005
    assert svm.accuracies_[svm.chosen_] == max(svm.accuracies_.values())
    result = svm.evaluate(test, test_labels)
    assert result.chosen == svm.chosen_ and result.count == len(test)
    assert result.interval[0] < result.top1 < result.interval[1] and result.top5 > result.top1


def test_the_probe_comes_to_softmax_regression() -> None:
    vectors, labels, test, test_labels = digits()
    ready, mean, scale = standardised(vectors)
    oracle = LogisticRegression(C=1e6, max_iter=5000).fit(ready, labels)
    probe = LinearProbe().fit(vectors, labels)
    assert set(probe.accuracies_) == set(probe.choices) and probe.accuracies_[probe.chosen_] > 0.9
    assert abs(probe.score(test, test_labels) - oracle.score((test - mean) / scale, test_labels)) < 0.03
    own = LinearProbe(0.1, epochs=300).fit(vectors, labels)  # what separates them: separable data have no optimum
    assert own.score(vectors, labels) > 0.99 and oracle.score(ready, labels) == 1.0


def test_the_probe_does_not_mind_classes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels, test, test_labels = digits()
    by_class = np.argsort(labels, kind="stable")
    monkeypatch.setattr("instdisc.evaluation.linear._BLOCK_NUMBERS", 64 * 120)  # a block is a class
    mixed, ordered = (LinearProbe(0.01, epochs=30, batch=120) for _ in range(2))
    expected = mixed.fit(vectors, labels).score(test, test_labels)
    assert abs(ordered.fit(vectors[by_class], labels[by_class]).score(test, test_labels) - expected) < 0.02


@BOTH
def test_blocks_and_memory_maps_change_nothing(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels, test, _ = digits()
    whole = make().fit(vectors, labels)
    monkeypatch.setattr("instdisc.evaluation.linear._KEPT_BYTES", 0)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = make().fit(np.load(tmp_path / "vectors.npy", mmap_mode="r"), labels)
    torch.testing.assert_close(mapped.weights_, whole.weights_)
    if isinstance(whole, LinearSVM):  # the probe draws its batches within blocks
        monkeypatch.setattr("instdisc.evaluation.linear._BLOCK_NUMBERS", 64 * 100)
        pieces = make().fit(vectors, labels)
        torch.testing.assert_close(pieces.weights_, whole.weights_, atol=1e-3, rtol=0)
    scores = whole.scores(torch.from_numpy(test))
    assert isinstance(scores, torch.Tensor) and scores.shape == (len(test), 10)
    assert np.array_equal(whole.classes_[scores.argmax(1)], whole.predict(test))


@pytest.mark.fault("labels that are not 0..C-1 crash or give wrong counts")
@BOTH
def test_any_whole_numbers_are_labels_and_negative_ones_are_none(make: Make) -> None:
    vectors, labels, test, test_labels = digits()
    names = np.array([100, 7, 3, 52, 11, 900, 31, 2, 8, 64])
    missing = np.where(np.arange(len(labels)) % 5 == 0, -1, names[labels])
    kept = missing >= 0
    some, alone = make().fit(vectors, missing), make().fit(vectors[kept], missing[kept])
    assert np.array_equal(some.classes_, np.sort(names))
    torch.testing.assert_close(some.weights_, alone.weights_)
    partly = np.where(np.arange(len(test)) < 100, -1, names[test_labels])
    assert some.evaluate(test, partly).count == len(test) - 100
    assert some.evaluate(test, np.full(len(test), 12345)).top1 == 0  # a class that training never saw


@BOTH
def test_two_classes_and_constant_features(make: Make) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 3)).astype(np.float32)
    labels = (vectors[:, 0] > 0).astype(int)
    vectors[:, 2] = 4.0
    classifier = make().fit(vectors, labels)
    assert classifier.score(vectors, labels) > 0.9 and torch.isfinite(classifier.weights_).all()
    assert classifier.evaluate(vectors, labels).top5 == 1.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearSVM(0.0), "positive"),
        (lambda: LinearSVM(folds=1), "two folds"),
        (lambda: LinearProbe(epochs=0), "at least one epoch"),
        (lambda: LinearSVM().fit(np.zeros((4, 2)), [1, 1, 1, -1]), "fewer than two"),
        (lambda: LinearSVM(1.0).fit(np.eye(4), [0, 1, 0, 1]).predict(np.zeros((1, 3))), "had 4"),
        (lambda: LinearSVM(1.0).fit(np.eye(4), [0, 1, 0, 1]).evaluate(np.eye(4), [-1] * 4), "No test picture"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
