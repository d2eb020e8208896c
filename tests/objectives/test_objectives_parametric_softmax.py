"""The parametric softmax (eq 1) against slow loops, finite differences, and one process against several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import CLOSE, agrees_with, finite_differences, tensor_of, unit_rows
from several_ranks import joined

from instdisc.bank import MemoryBank
from instdisc.objectives import ParametricSoftmax

INDICES = np.array([3, 19, 0, 3])


def slow_loss(features: np.ndarray, weights: np.ndarray) -> float:
    """The mean of -log P(i | f), P(i | f) = exp(w_i . f) / sum_j exp(w_j . f)."""
    losses = []
    for feature, index in zip(features, INDICES, strict=True):
        scores = [float(weight @ feature) for weight in weights]
        losses.append(-np.log(np.exp(scores[index]) / sum(np.exp(score) for score in scores)))
    return float(np.mean(losses))


def test_loss_and_both_gradients_are_the_equations() -> None:
    objective = ParametricSoftmax(20, 6, seed=1)
    features, weights = unit_rows(4, 6, 1), objective.weight.detach().double().numpy()
    agrees_with(lambda asked: slow_loss(asked, weights), objective, features, INDICES, MemoryBank(20, 6))
    objective(tensor_of(features), tensor_of(INDICES)).backward()
    np.testing.assert_allclose(
        objective.weight.grad, finite_differences(lambda asked: slow_loss(features, asked), weights), **CLOSE
    )


def test_gradients_in_double_precision() -> None:
    """Doubles pass through, so torch's own finite differences can be taken of both arguments."""
    objective = ParametricSoftmax(7, 3).double()
    features = torch.from_numpy(unit_rows(4, 3, 1)).requires_grad_()
    indices = torch.tensor([0, 6, 2, 2])
    weight = objective.weight

    def loss(asked: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(objective, {"weight": weight}, (asked, indices))

    assert torch.autograd.gradcheck(loss, (features, weight))


def test_autocast_does_not_reach_it() -> None:
    objective, features, indices = ParametricSoftmax(20, 6), tensor_of(unit_rows(4, 6, 1)), tensor_of(INDICES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = objective(features, indices)
    assert torch.equal(within, objective(features, indices))


def test_weights_start_as_a_linear_layer_does_and_from_the_seed() -> None:
    weight = ParametricSoftmax(20_000, 16, seed=2).weight
    bound = torch.nn.Linear(16, 1).weight.new_tensor(0.25)  # 1 / sqrt(16)
    assert weight.abs().max() <= bound
    assert weight.mean().abs() < 0.002
    assert weight.var().item() == pytest.approx(bound.item() ** 2 / 3, rel=0.01)
    assert torch.equal(weight[:10], ParametricSoftmax(10, 16, seed=2).weight)
    assert not torch.equal(weight[:10], ParametricSoftmax(10, 16, seed=3).weight)
    assert weight.requires_grad


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_are_one(world: int) -> None:
    for what in ("loss", "gradient", "weight.loss", "rows"):
        ours, one = joined(world)[f"parametric.{what}"], joined(1)[f"parametric.{what}"]
        torch.testing.assert_close(ours, one, rtol=3e-6, atol=3e-6 * one.abs().max().item())
