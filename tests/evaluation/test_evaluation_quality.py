"""Label-free health: against loops over all pairs, SciPy and cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from instdisc.errors import InputError
from instdisc.evaluation.quality import (
    alignment,
    drift,
    effective_rank,
    health,
    neighbour_stability,
    sample_rows,
    uniformity,
)


def random(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def unit(vectors: torch.Tensor) -> np.ndarray:
    array = vectors.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_alignment_is_the_mean_squared_distance_of_unit_rows() -> None:
    first, second = random(40, 7), random(40, 7, seed=1)
    expected = np.mean([np.sum((a - b) ** 2) for a, b in zip(unit(first), unit(second), strict=True)])
    assert alignment(first, second) == pytest.approx(expected, rel=1e-12)
    assert alignment(first, first * 3) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rows", [2, 3, 511, 513, 1200])
def test_uniformity_is_over_all_pairs(rows: int) -> None:
    vectors = random(rows, 5)
    expected = math.log(np.mean(np.exp(-2 * pdist(unit(vectors), "sqeuclidean"))))
    assert uniformity(vectors) == pytest.approx(expected, rel=1e-10)


def test_uniformity_of_known_sets() -> None:
    assert uniformity(torch.ones(10, 4)) == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.eye(16)) == pytest.approx(-4, abs=1e-12)  # d² = 2 for every pair
    assert uniformity(random(4096, 2)) > uniformity(random(4096, 128))


def test_effective_rank_is_the_entropy_of_the_singular_values() -> None:
    vectors = random(60, 9) * torch.linspace(0.1, 3, 9)
    # A second way to the singular values: the eigenvalues of the Gram matrix.
    values = np.sqrt(np.linalg.eigvalsh(vectors.double().numpy().T @ vectors.double().numpy()))
    shares = values / values.sum()
    assert effective_rank(vectors) == pytest.approx(math.exp(-np.sum(shares * np.log(shares))), rel=1e-9)
    assert effective_rank(torch.eye(12)) == pytest.approx(12)
    assert effective_rank(torch.ones(50, 12)) == pytest.approx(1)
    assert effective_rank(random(50, 2) @ random(2, 12)) <= 2 + 1e-9


def test_large_sets_are_sampled_by_the_seed_alone() -> None:
    vectors = torch.arange(20000.0)[:, None].repeat(1, 2)
    chosen = sample_rows(vectors, 100, seed=3)
    assert len(chosen) == 100 and (chosen[1:, 0] > chosen[:-1, 0]).all()
    assert torch.equal(chosen, sample_rows(vectors, 100, seed=3))
    assert not torch.equal(chosen, sample_rows(vectors, 100, seed=4))
    spread = random(20000, 16)
    assert uniformity(spread) == pytest.approx(uniformity(spread, seed=1), abs=0.02)
    assert health(spread).rows == 4096


def test_half_precision_is_widened() -> None:
    vectors = random(300, 16)
    assert health(vectors.half()).uniformity == pytest.approx(health(vectors).uniformity, abs=1e-3)


def test_health_gathers_the_figures() -> None:
    vectors, second = random(500, 32), random(500, 32, seed=1)
    found = health(vectors, vectors, second)
    assert found.alignment == pytest.approx(alignment(vectors, second))
    assert found.uniformity == pytest.approx(uniformity(vectors))
    assert found.effective_rank == pytest.approx(effective_rank(torch.from_numpy(unit(vectors))))
    cosines = unit(vectors) @ unit(vectors).T
    assert found.mean_cosine == pytest.approx((cosines.sum() - 500) / (500 * 499), abs=1e-12)
    assert not found.collapsed and "spread out" in found.sentence
    assert health(vectors).alignment is None


@pytest.mark.fault("collapse (all features equal) goes unnoticed")
@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (torch.ones(50, 16), "mean cosine of 1.000"),
        (torch.ones(50, 16) + 0.05 * random(50, 16), "nearly the same vector"),
        (random(200, 1) @ random(1, 16), "only 1.0 of 16 directions"),
        (torch.zeros(50, 16), "all of them are zero"),
    ],
)
def test_collapse_is_said_in_plain_words(vectors: torch.Tensor, words: str) -> None:
    found = health(vectors)
    assert found.collapsed
    assert words in found.sentence and "have collapsed" in found.sentence


@pytest.mark.parametrize(("rows", "dim"), [(2, 8), (30, 1), (30, 2), (3, 128), (1000, 128)])
def test_healthy_sets_of_any_shape_are_not_called_collapsed(rows: int, dim: int) -> None:
    vectors = torch.eye(rows, dim) if rows <= dim else random(rows, dim)
    assert not health(vectors).collapsed


def test_what_a_person_can_get_wrong() -> None:
    with pytest.raises(InputError, match="at least two pictures, and there is 1"):
        health(torch.ones(1, 4))
    damaged = torch.ones(5, 4)
    damaged[2, 1] = torch.nan
    for measure in (health, uniformity, effective_rank, lambda v: alignment(v, v)):
        with pytest.raises(InputError, match="NaN or infinity"):
            measure(damaged)
    with pytest.raises(InputError, match="at least one picture"):
        alignment(torch.zeros(0, 4), torch.zeros(0, 4))
    with pytest.raises(InputError, match="not defined"):
        effective_rank(torch.zeros(5, 4))


# ---------------------------------------------------------------------------------------------------------------------
# The bank


def test_drift_is_the_mean_of_one_less_the_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows, vectors = generator.normal(size=(2, 50, 6)).astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(vectors, axis=1)
    expected = np.mean(1 - (rows * vectors).sum(1) / lengths)
    assert drift(torch.from_numpy(rows), torch.from_numpy(vectors)) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr("instdisc.evaluation.quality._MOST_ROWS", 7)
    assert drift(torch.from_numpy(rows), torch.from_numpy(vectors)) == pytest.approx(expected, abs=1e-6)
    assert drift(torch.from_numpy(rows), torch.from_numpy(3 * rows)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="Drift compares"):
        drift(torch.zeros(3, 2), torch.zeros(4, 2))


def test_neighbour_stability_counts_shared_neighbours() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(2, 30, 5)).astype(np.float32)
    units = [bank / np.linalg.norm(bank, axis=1)[:, None] for bank in (first, second)]
    shared = []
    for row in range(30):
        nearest = []
        for bank in units:
            cosines = bank @ bank[row]
            cosines[row] = -np.inf
            nearest.append(set(np.argsort(-cosines)[:4].tolist()))
        shared.append(len(nearest[0] & nearest[1]) / 4)
    found = neighbour_stability(torch.from_numpy(first), torch.from_numpy(second), neighbours=4)
    assert found == pytest.approx(np.mean(shared))
    assert neighbour_stability(torch.from_numpy(first), torch.from_numpy(2 * first)) == 1.0
    with pytest.raises(InputError, match="same run"):
        neighbour_stability(torch.zeros(3, 2), torch.zeros(4, 2))
