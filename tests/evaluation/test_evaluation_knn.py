"""Weighted kNN: against slow NumPy from the formula, against scikit-learn, two processes against one, and its edges."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import Allocations
from two_processes import two_processes

from instdisc.errors import InputError
from instdisc.evaluation import knn as knn_room
from instdisc.evaluation.baselines import knn_accuracy, shrink
from instdisc.evaluation.intervals import wilson
from instdisc.evaluation.knn import KNN


def clusters(count: int, *, dim: int = 12, classes: int = 7, noise: float = 1.5, seed: int = 0):
    """Overlapping clusters in random directions, lengths all different; labels are any numbers, ascending by class."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    vectors = (centres[codes] + noise * generator.normal(size=(count, dim))) * generator.uniform(0.5, 2, (count, 1))
    return vectors.astype(np.float32), np.array([3, 10, 11, 500, 7000, 7001, 90000])[:classes][codes]


def slow_votes(train: np.ndarray, labels: np.ndarray, tests: np.ndarray, k: int, temperature: float, own: bool = False):
    """The paper's formula, one test picture at a time, in float64."""
    unit = lambda x: x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)  # noqa: E731
    train, tests, classes = unit(train), unit(tests), np.unique(labels)
    votes = np.zeros((len(tests), len(classes)))
    for i, test in enumerate(tests):
        scores = train @ test
        if own:
            scores[i] = -np.inf
        for j in np.argsort(-scores, kind="stable")[:k]:
            votes[i, np.searchsorted(classes, labels[j])] += np.exp(scores[j] / temperature)
    return votes / votes.sum(axis=1, keepdims=True)


@pytest.mark.fault("labels that are not 0..C-1 crash or give wrong counts")
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.07), (200, 1.0)])
def test_votes_follow_the_formula(k: int, temperature: float) -> None:
    (train, labels), (tests, test_labels) = clusters(900), clusters(150, seed=1)
    knn = KNN(k, temperature).fit(train, labels)
    expected = slow_votes(train, labels, tests, k, temperature)
    np.testing.assert_allclose(knn.votes(tests), expected, atol=2e-5)
    named = np.unique(labels)[expected.argmax(axis=1)]
    np.testing.assert_array_equal(knn.predict(tests), named)
    result = knn.evaluate(tests, test_labels)
    assert result.top1 == knn.score(tests, test_labels) == np.mean(named == test_labels)
    best = np.unique(labels)[np.argsort(-expected, axis=1, kind="stable")[:, :5]]
    got = np.take_along_axis(expected, np.searchsorted(np.unique(labels), test_labels)[:, None], axis=1)[:, 0] > 0
    assert result.top5 == np.mean((best == test_labels[:, None]).any(axis=1) & got)
    assert result.count == 150 and result.neighbours == k and result.temperature == temperature


def test_agrees_with_scikit_learn() -> None:
    (train, labels), (tests, _) = clusters(2000), clusters(400, seed=1)
    from sklearn.neighbors import KNeighborsClassifier

    theirs = KNeighborsClassifier(50, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07))
    theirs.fit(train, labels)
    ours = KNN(50, 0.07).fit(train, labels)
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    np.testing.assert_allclose(ours.votes(tests), theirs.predict_proba(tests), atol=2e-5)
    np.testing.assert_array_equal(ours.predict(tests), theirs.predict(tests))


@pytest.mark.fault("the query itself counted as its own neighbour in leave-one-out")
def test_leave_one_out_is_one_fit_for_each_picture() -> None:
    train, labels = clusters(120)
    named = []
    for left_out in range(len(train)):
        others = np.arange(len(train)) != left_out
        named.append(KNN(15).fit(train[others], labels[others]).predict(train[left_out : left_out + 1])[0])
    result = KNN(15).fit(train, labels).leave_one_out()
    assert result.top1 == np.mean(np.array(named) == labels)
    assert result.count == 120
    expected = slow_votes(train, labels, train, 15, 0.07, own=True).argmax(axis=1)
    assert result.top1 == np.mean(np.unique(labels)[expected] == labels)


def test_rows_without_a_label_take_no_part() -> None:
    (train, labels), (tests, test_labels) = clusters(300), clusters(80, seed=1)
    hidden = np.random.default_rng(5).random(300) < 0.4
    some = np.where(hidden, -1, labels)
    knn, expected = KNN(30).fit(train, some), KNN(30).fit(train[~hidden], labels[~hidden])
    assert knn.count_ == (~hidden).sum()
    np.testing.assert_array_equal(knn.votes(tests), expected.votes(tests))
    assert knn.leave_one_out() == expected.leave_one_out()
    partly = np.where(np.arange(80) < 30, -1, test_labels)
    assert knn.evaluate(tests, partly) == knn.evaluate(tests[30:], test_labels[30:])


@pytest.mark.fault("number of classes taken from the test labels")
@pytest.mark.fault("labels that are not 0..C-1 crash or give wrong counts")
def test_a_class_that_training_never_saw_is_an_error() -> None:
    train, labels = clusters(200, noise=0.1)
    knn = KNN(5).fit(train, labels)
    assert knn.score(train, labels) == 1.0
    for stranger in (0, 4, 10**9):
        changed = labels.copy()
        changed[:50] = stranger
        result = knn.evaluate(train, changed)
        assert result.top1 == result.top5 == 0.75
        assert result.count == 200
    np.testing.assert_array_equal(knn.predict(train[:3]), labels[:3])


@pytest.mark.fault("fewer than five classes crashes top-5")
@pytest.mark.parametrize("classes", [1, 2, 4, 5, 6])
def test_any_number_of_classes(classes: int) -> None:
    (train, labels), (tests, test_labels) = clusters(150, classes=classes), clusters(60, classes=classes, seed=1)
    result = KNN(150).fit(train, labels).evaluate(tests, test_labels)
    assert 0 < result.top1 <= result.top5 <= 1
    if classes <= 5:
        assert result.top5 == 1  # every class got a vote


def test_a_class_without_a_vote_is_not_among_the_five() -> None:
    train, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    result = KNN(1).fit(train, labels).evaluate(np.eye(3, dtype=np.float32), np.array([1, 1, 1]))
    assert result.top1 == result.top5 == 1 / 3


@pytest.mark.fault("fewer than 100 test images crashes")
@pytest.mark.parametrize("count", [1, 2, 99])
def test_few_test_pictures(count: int) -> None:
    (train, labels), (tests, test_labels) = clusters(60), clusters(count, seed=1)
    assert KNN(10).fit(train, labels).evaluate(tests, test_labels).count == count


def test_equal_votes_go_to_the_lower_label() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for labels in ([8, 5], [5, 8]):
        knn = KNN(2).fit(rows, labels)
        assert knn.predict(rows).tolist() == [5, 5]
        assert knn.score(rows, [5, 5]) == 1 and knn.score(rows, [8, 8]) == 0
        assert knn.evaluate(rows, [8, 8]).top5 == 1


@pytest.mark.fault("`exp(1/τ)` in half precision: inf")
@pytest.mark.fault("normalise without an epsilon: NaN on a zero vector")
def test_small_temperatures_half_precision_and_zero_vectors() -> None:
    train, labels = clusters(200)
    train[7] = 0
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        votes = KNN(200, 0.001).fit(torch.from_numpy(train).to(dtype), labels).votes(torch.from_numpy(train).to(dtype))
        assert votes.isfinite().all() and (votes >= 0).all()
        torch.testing.assert_close(votes.sum(dim=1), torch.ones(200))


def test_arrays_give_arrays_and_tensors_tensors(tmp_path: Path) -> None:
    train, labels = clusters(200)
    np.save(tmp_path / "train.npy", train)
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    knn = KNN(9).fit(mapped, labels.tolist())
    assert isinstance(knn.predict(train), np.ndarray)
    found = knn.predict(torch.from_numpy(train))
    assert isinstance(found, torch.Tensor) and found.dtype == torch.int64
    np.testing.assert_array_equal(found, knn.predict(mapped))
    assert knn.predict(train[:0]).shape == (0,) and knn.votes(train[:0]).shape == (0, 7)


@pytest.mark.fault("evaluation overwrites the training bank")
def test_the_vectors_are_never_written() -> None:
    train, labels = clusters(200)
    bank = torch.from_numpy(train)
    before = bank.clone()
    KNN(20, centre=True).fit(bank, labels).leave_one_out()
    KNN(20).fit(bank, labels).evaluate(bank, labels)
    assert torch.equal(bank, before)


@pytest.mark.fault("one-hot of (batch·k·classes) floats")
def test_memory_does_not_grow_with_the_queries_or_k_times_classes(tmp_path: Path) -> None:
    """20,000 rows, 1,500 queries, k 200, 2,000 classes: a one-hot of the neighbours would be 2.4 GB."""
    code = """
import resource, numpy as np, torch
from instdisc.evaluation.knn import KNN
torch.set_num_threads(1)
train = np.random.default_rng(0).normal(size=(20000, 32)).astype(np.float32)
KNN(20).fit(train[:2000], np.arange(2000) % 10).score(train[:100], np.arange(100) % 10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
KNN(200).fit(train, np.arange(20000) % 2000).evaluate(train[:1500], np.arange(1500) % 2000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=500)
    assert float(ran.stdout) < 250  # MB


@pytest.mark.fault("all features on one device: out of memory")
def test_no_more_than_a_block_is_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a copy of all vectors, nor the scores of one query with all of them for all queries."""
    monkeypatch.setattr(knn_room, "_BLOCK_NUMBERS", 128 * 24)
    monkeypatch.setattr(knn_room, "_BATCH", 64)
    (train, labels), (tests, test_labels) = clusters(1500, dim=24), clusters(200, dim=24, seed=1)
    for centre in (False, True):
        with Allocations() as made:
            knn = KNN(20, centre=centre).fit(train, labels)
            knn.evaluate(tests, test_labels)
            knn.leave_one_out()
        assert made.largest <= 64 * 128 * 2 < min(train.size, 200 * 1500)


def test_centring_is_subtracting_the_training_mean() -> None:
    (train, labels), (tests, _) = clusters(300), clusters(50, seed=1)
    mean = train.mean(axis=0)
    found = KNN(20, centre=True).fit(train + 5, labels).votes(tests + 5)
    np.testing.assert_allclose(found, KNN(20).fit(train - mean, labels).votes(tests - mean), atol=1e-4)


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (1, 3), (955, 1000), (8080, 10000), (0, 1)])
def test_the_interval_is_wilsons(hits: int, count: int) -> None:
    from scipy.stats import binomtest

    low, high = wilson(hits, count)
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= hits / count <= high <= 1


def test_the_interval_without_trials() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.fault("k larger than the bank crashes")
def test_what_a_person_can_get_wrong() -> None:
    train, labels = clusters(100)
    with pytest.raises(InputError, match="only 100 labelled training pictures: choose at most 100"):
        KNN(200).fit(train, labels)
    with pytest.raises(InputError, match="choose at most 99"):
        KNN(100).fit(train, labels).leave_one_out()
    with pytest.raises(InputError, match="No training picture has a label"):
        KNN(1).fit(train, np.full(100, -1))
    with pytest.raises(InputError, match="No test picture has a label"):
        KNN(1).fit(train, labels).evaluate(train, np.full(100, -1))
    with pytest.raises(InputError, match="one label for each"):
        KNN(1).fit(train, labels[:99])
    with pytest.raises(InputError, match="whole numbers"):
        KNN(1).fit(train, labels.astype(float))
    with pytest.raises(InputError, match="5 dimensions, those in fit had 12"):
        KNN(1).fit(train, labels).predict(train[:, :5])
    with pytest.raises(InputError, match="shape"):
        KNN(1).fit(train.ravel(), labels)
    with pytest.raises(InputError, match="neighbours is 0"):
        KNN(0)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="temperature"):
            KNN(1, temperature)
    damaged = train.copy()
    damaged[50, 2] = np.nan
    with pytest.raises(InputError, match="NaN"):
        KNN(1).fit(damaged, labels).predict(train)


# ---------------------------------------------------------------------------------------------------------------------
# Two processes against one


def everything(train, labels, tests, test_labels, *, sharded: bool) -> list:
    knn = KNN(60).fit(train, labels, sharded=sharded)
    centred = KNN(60, centre=True).fit(train, labels, sharded=sharded)
    return [knn.votes(tests), knn.evaluate(tests, test_labels), knn.leave_one_out(), centred.leave_one_out()]


def shares(rank: int) -> tuple[slice, slice]:
    """Uneven: one rank holds fewer rows than there are neighbours, and two batches of queries against one."""
    return (slice(0, 40), slice(0, 1100)) if rank == 0 else (slice(40, 400), slice(1100, 1250))


@pytest.mark.fault("duplicates from sampler padding counted as neighbours")
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    (train, labels), (tests, test_labels) = clusters(400), clusters(1250, seed=1)
    labels[:40] = np.where(np.arange(40) % 3 == 0, -1, 3)  # rank 0 knows only one class
    np.savez(tmp_path / "data.npz", train=train, labels=labels, tests=tests, test_labels=test_labels)
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from pathlib import Path; import test_evaluation_knn;"
        "test_evaluation_knn.one_of_two(Path(sys.argv[1]))"
    )
    expected = everything(train, labels, tests, test_labels, sharded=True)  # a world of one: nothing to share
    two_processes([sys.executable, "-c", code, str(tmp_path)])
    for rank in range(2):
        found = np.load(tmp_path / f"rank-{rank}.npz")
        np.testing.assert_allclose(found["votes"], expected[0][shares(rank)[1]], atol=1e-5)
        for name, result in zip(("evaluated", "left_out", "centred"), expected[1:], strict=True):
            assert found[name].tolist() == [result.top1, result.top5, *result.interval, result.count]


def one_of_two(folder: Path) -> None:
    """What each process of the test above does."""
    from instdisc import ranks

    data = np.load(folder / "data.npz")
    with ranks.distributed():
        rows, tests = shares(ranks.rank())
        votes, *results = everything(
            data["train"][rows], data["labels"][rows], data["tests"][tests], data["test_labels"][tests], sharded=True
        )
        figures = [[result.top1, result.top5, *result.interval, result.count] for result in results]
        np.savez(
            folder / f"rank-{ranks.rank()}.npz",
            votes=votes,
            evaluated=figures[0],
            left_out=figures[1],
            centred=figures[2],
        )


# ---------------------------------------------------------------------------------------------------------------------
# Baselines


def digits() -> tuple[torch.Tensor, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy((data.images * 15).astype(np.uint8))[:, None].repeat(1, 3, 1, 1), data.target


def test_raw_pixels_of_digits_reach_the_known_figure() -> None:
    images, labels = digits()
    pixels = shrink(images, 32).flatten(1)
    plain = knn_accuracy(pixels, labels)
    assert plain.top1 == pytest.approx(0.954, abs=0.002)
    assert knn_accuracy(pixels, labels, centre=True).top1 > plain.top1


def test_accuracy_on_pixels_equals_scikit_learn_with_and_without_centring() -> None:
    images, labels = digits()
    train, tests = images[:800], images[800:1000]
    rows, test_rows = (part.flatten(1).numpy().astype(np.float32) for part in (train, tests))
    from sklearn.neighbors import KNeighborsClassifier

    for centre, mean in ((False, 0.0), (True, rows.mean(axis=0))):
        theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07))
        score = theirs.fit(rows - mean, labels[:800]).score(test_rows - mean, labels[800:1000])
        mine = knn_accuracy(
            train.flatten(1), labels[:800], tests.flatten(1), labels[800:1000], neighbours=20, centre=centre
        )
        assert mine.top1 == pytest.approx(score, abs=0.006)


def test_shrinking_takes_the_mean_of_the_covered_pixels() -> None:
    images = torch.randint(0, 256, (3, 3, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = images.float().unflatten(3, (16, 3)).unflatten(2, (16, 4)).mean(dim=(3, 5)).round()
    assert torch.equal(shrink(images, 16), expected.to(torch.uint8))
    assert shrink(images, 64) is images
    assert shrink(images, 50).shape == (3, 3, 50, 48)
    assert shrink(images[:0], 8).shape == (0, 3, 8, 8)
