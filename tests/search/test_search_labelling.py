"""What is proposed for labelling, against the greedy choice in slow NumPy; what proposals are worth against chance."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instdisc.jobs.label import proposals, vote
from instdisc.search import labelling
from instdisc.search.labelling import least_certain, least_covered


def unit(values) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(np.asarray(values), dtype=torch.float32), dim=1)


def slow_greedy(vectors: np.ndarray, labelled: list[int], among: list[int], count: int) -> list[int]:
    likeness = np.exp((vectors @ vectors.T - 1) / 0.07)
    chosen: list[int] = []
    for _ in range(count):
        sums = {one: np.max([likeness[[*labelled, *chosen, one]]], axis=1).sum() for one in among if one not in chosen}
        chosen.append(max(sums, key=lambda one: sums[one]))
    return chosen


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 30), asked=st.integers(1, 6), known=st.integers(0, 5))
def test_the_greedy_choice_is_that_of_slow_numpy(seed, count, asked, known) -> None:
    """Two sums at once, so that most are bounds from before."""
    random = np.random.default_rng(seed)
    vectors = unit(random.normal(size=(count, 4)))
    labelled = random.choice(count, min(known, count - 1), replace=False)
    among = np.setdiff1d(np.arange(count), labelled)
    with patch.object(labelling, "_AT_ONCE", 2):
        found = least_covered(vectors, labelled, asked)
    asked = min(asked, len(among))
    assert len(found) == asked == len(set(found.tolist()))
    expected = slow_greedy(vectors.double().numpy(), labelled.tolist(), among.tolist(), asked)
    worth = [
        np.exp((vectors.double().numpy()[[*labelled, *some]] @ vectors.double().numpy().T - 1) / 0.07).max(0).sum()
        for some in (found.tolist(), expected)
    ]
    assert worth[0] == pytest.approx(worth[1], rel=1e-5)  # the same, but for ties


def test_each_cluster_is_proposed_before_any_stranger() -> None:
    random = np.random.default_rng(0)
    centres = np.eye(8)[:4]
    crowd = np.repeat(centres, 50, axis=0) + random.normal(0, 0.05, (200, 8))
    strangers = np.eye(8)[4:]
    vectors = unit(np.concatenate([crowd, strangers]))
    first = least_covered(vectors, np.zeros(0, np.int64), 4)
    assert sorted(first // 50) == [0, 1, 2, 3]
    assert set(least_covered(vectors, first[:3], 1) // 50) == set(range(4)) - set(first[:3] // 50)


def test_many_pictures_are_stood_for_by_some(monkeypatch) -> None:
    monkeypatch.setattr(labelling, "_SAMPLE", 60)
    monkeypatch.setattr(labelling, "_CANDIDATES", 40)
    random = np.random.default_rng(1)
    vectors = unit(np.repeat(np.eye(5), 100, axis=0) + random.normal(0, 0.05, (500, 5)))
    assert sorted(least_covered(vectors, np.zeros(0, np.int64), 5) // 100) == [0, 1, 2, 3, 4]
    assert least_covered(vectors, np.arange(300), 2).min() >= 300


def test_the_least_certain_lie_between_the_classes() -> None:
    angles = np.linspace(0, np.pi / 2, 91)
    vectors = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    codes = np.full(91, -1)
    codes[[0, 1, 2]], codes[[88, 89, 90]] = 0, 1
    shares = torch.from_numpy(np.stack([1 - angles, angles], axis=1) / 1.0).float()
    found = least_certain(shares, vectors, np.flatnonzero(codes >= 0), 1)
    assert abs(float(shares[found[0], 0] - shares[found[0], 1])) < 0.25
    assert codes[found[0]] == -1


@pytest.mark.parametrize("by", ["covered", "uncertain", "mixed"])
def test_proposals_are_new_each_once_and_never_labelled(by) -> None:
    random = np.random.default_rng(2)
    vectors = unit(random.normal(size=(120, 6)))
    codes = np.full(120, -1)
    for _ in range(6):
        found = proposals(vectors, codes, 20, by=by)
        assert len(found) == 20 == len(set(found.tolist()))
        assert (codes[found] == -1).all()
        codes[found] = random.integers(0, 3, 20)
    assert not len(proposals(vectors, codes, 5, by=by))


def test_proposals_beat_chance_on_clusters_of_unequal_size() -> None:
    """Random choice sees the large ones only; a spread sees all from the start."""
    random = np.random.default_rng(3)
    sizes = [400, 200, 100, 40, 20, 10]
    truth = np.repeat(np.arange(6), sizes)
    vectors = unit(np.eye(12)[truth] + random.normal(0, 0.12, (len(truth), 12)))

    def right(chosen: np.ndarray) -> float:
        codes = np.full(len(truth), -1)
        codes[chosen] = truth[chosen]
        return float((vote(np.arange(len(truth)), vectors, codes, list("abcdef")).codes == truth).mean())

    by_chance = np.mean(
        [right(np.random.default_rng(seed).choice(len(truth), 12, replace=False)) for seed in range(10)]
    )
    assert right(proposals(vectors, np.full(len(truth), -1), 12)) > by_chance + 0.02
