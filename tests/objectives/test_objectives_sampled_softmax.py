"""The sampled softmax against slow loops, finite differences and the exact one, and one process against several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import agrees_with, ask, bank_of, tensor_of, unit_rows
from several_ranks import joined
from torch.nn.functional import normalize

from instdisc.bank import MemoryBank
from instdisc.objectives import NonParametricSoftmax, SampledSoftmax

INDICES = np.array([3, 49, 0, 3])


def slow_loss(
    features: np.ndarray,
    drawn: np.ndarray,
    rows: np.ndarray,
    temperature: float,
    mask_own: bool,
    decoupled: bool,
) -> float:
    """The mean of -log of the positive's share among itself (unless decoupled) and its negatives `drawn` (batch, m)."""
    losses = []
    for feature, index, negatives in zip(features, INDICES, drawn, strict=True):
        positive = float(rows[index] @ feature) / temperature
        terms = [] if decoupled else [np.exp(positive)]
        terms += [np.exp(float(rows[row] @ feature) / temperature) for row in negatives if row != index or not mask_own]
        losses.append(np.log(sum(terms)) - positive)
    return float(np.mean(losses))


@pytest.mark.fault("the image's own row counted as a negative by accident")
@pytest.mark.parametrize("mask_own", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("noise", ["shared", "private"])
def test_loss_and_gradient_are_the_equations(noise: str, mask_own: bool, decoupled: bool) -> None:
    """The noise hits the own rows of several pictures, some of them twice."""
    rows, features = unit_rows(50, 6, 0), unit_rows(4, 6, 1)
    shared = np.array([3, 3, 7, 0, 12])
    private = np.array([[3, 3, 7, 0, 12], [49, 1, 2, 3, 4], [0, 0, 0, 1, 0], [5, 6, 7, 8, 9]])
    drawn = np.tile(shared, (4, 1)) if noise == "shared" else private
    objective = SampledSoftmax(
        0.1,
        5,
        noise,
        mask_own=mask_own,
        decoupled=decoupled,
        draw=lambda count: tensor_of(shared if noise == "shared" else private.flatten())[:count],
    )
    agrees_with(
        lambda asked: slow_loss(asked, drawn, rows, 0.1, mask_own, decoupled),
        objective,
        features,
        INDICES,
        bank_of(rows),
    )


def test_all_rows_as_negatives_are_the_exact_softmax() -> None:
    rows, features = unit_rows(50, 6, 0), unit_rows(4, 6, 1)
    everything = SampledSoftmax(0.1, 50, draw=torch.arange)
    loss, gradient = ask(everything, features, INDICES, bank_of(rows))
    exact_loss, exact_gradient = ask(NonParametricSoftmax(0.1), features, INDICES, bank_of(rows))
    np.testing.assert_allclose(loss, exact_loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, exact_gradient, atol=1e-6)
    decoupled = SampledSoftmax(0.1, 50, draw=torch.arange, decoupled=True)
    masked = NonParametricSoftmax(0.1, mask_own=True)
    np.testing.assert_allclose(
        ask(decoupled, features, INDICES, bank_of(rows))[1], ask(masked, features, INDICES, bank_of(rows))[1], atol=1e-6
    )


def test_random_noise_is_the_equation_for_the_rows_it_drew() -> None:
    rows, features = unit_rows(50, 6, 0), unit_rows(4, 6, 1)
    for noise in ("shared", "private"):
        objective, bank = SampledSoftmax(0.1, 30, noise, seed=4), bank_of(rows)
        drawn = objective.noise.indices(tensor_of(INDICES), bank).expand(4, 30).numpy()
        agrees_with(
            lambda asked, drawn=drawn: slow_loss(asked, drawn, rows, 0.1, True, False),
            objective,
            features,
            INDICES,
            bank,
        )


def test_noise_that_is_only_the_picture_itself_gives_a_finite_loss() -> None:
    rows, features = unit_rows(50, 6, 0), unit_rows(4, 6, 1)
    objective = SampledSoftmax(0.1, 2, draw=lambda count: torch.tensor([3, 3]))
    loss, gradient = ask(objective, features, INDICES, bank_of(rows))
    assert np.isfinite(loss)
    assert np.array_equal(gradient[[0, 3]], np.zeros((2, 6))), "nothing to be told from"
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("way", ["sampled", "sampled_private", "sampled_decoupled"])
def test_several_ranks_are_one(world: int, way: str) -> None:
    for what, tolerance in {"loss": 3e-6, "gradient": 3e-6, "rows": 0}.items():
        ours, one = joined(world)[f"{way}.{what}"], joined(1)[f"{way}.{what}"]
        torch.testing.assert_close(ours, one, rtol=tolerance, atol=tolerance)


def test_a_picture_that_drew_only_itself_is_only_attracted() -> None:
    bank = MemoryBank(6, 4)
    features = normalize(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_()
    objective = SampledSoftmax(0.5, 3, decoupled=True, draw=lambda count: torch.full((count,), 2))
    loss = objective(features, torch.tensor([2, 4]), bank)
    loss.backward()
    with torch.no_grad():
        positive = (features * bank.rows[[2, 4]]).sum(1) / 0.5
        repelled = torch.stack([torch.zeros(()), features[1] @ bank.rows[2] / 0.5 + np.log(3)])
    torch.testing.assert_close(loss.detach(), (repelled - positive).mean())
    assert features.grad is not None and torch.isfinite(features.grad).all()
    torch.testing.assert_close(features.grad[0], -bank.rows[2] / 0.5 / 2)
