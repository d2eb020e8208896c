"""The exact softmax (eq 2 and 3) against slow loops, finite differences, and one process against several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import CLOSE, Allocations, agrees_with, ask, bank_of, tensor_of, unit_rows
from several_ranks import joined

from instdisc.errors import InputError
from instdisc.objectives import OBJECTIVES, TERMS, NonParametricSoftmax

INDICES = np.array([3, 49, 0, 3])  # one picture twice

ALL = {**OBJECTIVES, **TERMS}


def slow_loss(
    features: np.ndarray, indices: np.ndarray, rows: np.ndarray, temperature: float, mask_own: bool = False
) -> float:
    """The mean of -log P(i | f), P(i | f) = exp(v_i . f / temperature) / sum_j exp(v_j . f / temperature)."""
    losses = []
    for feature, index in zip(features, indices, strict=True):
        scores = {row: float(rows[row] @ feature) / temperature for row in range(len(rows))}
        among = [score for row, score in scores.items() if not (mask_own and row == index)]
        largest = max(among)
        losses.append(largest + np.log(sum(np.exp(score - largest) for score in among)) - scores[index])
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.07, 0.02])
@pytest.mark.parametrize("mask_own", [False, True])
def test_loss_and_gradient_are_the_equations(temperature: float, mask_own: bool) -> None:
    rows, features = unit_rows(50, 6, 0), unit_rows(4, 6, 1)
    agrees_with(
        lambda asked: slow_loss(asked, INDICES, rows, temperature, mask_own),
        NonParametricSoftmax(temperature, mask_own=mask_own),
        features,
        INDICES,
        bank_of(rows),
    )


def test_gradient_is_the_expected_row_less_the_own_one() -> None:
    """(sum_j p_j v_j - v_i) / temperature for each picture, over the batch."""
    rows, features = unit_rows(50, 6, 0), unit_rows(4, 6, 1)
    scores = features @ rows.T / 0.1
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = (chances @ rows - rows[INDICES]) / 0.1 / 4
    _, gradient = ask(NonParametricSoftmax(0.1), features, INDICES, bank_of(rows))
    np.testing.assert_allclose(gradient, expected, **CLOSE)


@pytest.mark.fault("`exp(1/τ)` in half precision: inf")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_bank_at_a_low_temperature(dtype: torch.dtype) -> None:
    bank = bank_of(unit_rows(50, 6, 0), dtype=dtype)
    rows, features = bank.rows.double().numpy(), unit_rows(4, 6, 1)
    features[0] = rows[3] / np.linalg.norm(rows[3])
    agrees_with(
        lambda asked: slow_loss(asked, INDICES, rows, 0.07), NonParametricSoftmax(0.07), features, INDICES, bank
    )


@pytest.mark.fault("`exp(1/τ)` in half precision: inf")
@pytest.mark.parametrize("name", [name for name in ALL if name != "parametric"])
def test_every_objective_computes_in_float32_inside_a_callers_autocast(name: str) -> None:
    rows = unit_rows(500, 6, 0)
    indices = torch.tensor([3, 3, 49, 49])
    answers = []
    for enabled in (False, True):
        features = tensor_of(unit_rows(4, 6, 1)).requires_grad_()
        objective = ALL[name](*{"groups": (6, 2), "proximal": ()}.get(name, (0.5,)))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = objective(features, indices, bank_of(rows))
        loss.backward()
        answers.append((loss.detach(), features.grad))
    torch.testing.assert_close(answers[1], answers[0])


@pytest.mark.fault("the bank is written inside `backward()` or `forward()`: two forwards then one backward raises")
@pytest.mark.fault("evaluation writes the bank, or what an objective keeps beside it")
@pytest.mark.parametrize("name", list(ALL))
def test_no_objective_writes_the_bank_and_forwards_may_be_summed(name: str) -> None:
    """Two forwards and one backward give the mean of two gradients; nothing in the bank has moved."""
    bank = bank_of(unit_rows(500, 6, 0))
    rows, place, updates = bank.rows.clone(), bank.rows.data_ptr(), bank.updates
    objective = ALL[name](*{"parametric": (500, 6), "groups": (6, 2), "proximal": ()}.get(name, (0.5,)))
    halves = [(tensor_of(unit_rows(4, 6, seed)), torch.tensor([3, 3, seed, seed])) for seed in (1, 2)]

    def gradients(together: bool) -> list[torch.Tensor]:
        leaves = [features.clone().requires_grad_() for features, _ in halves]
        losses = [objective(leaf, indices, bank) / 2 for leaf, (_, indices) in zip(leaves, halves, strict=True)]
        if together:
            sum(losses).backward()
        else:
            for loss in losses:
                loss.backward()
        return [leaf.grad for leaf in leaves]

    torch.testing.assert_close(gradients(together=True), gradients(together=False))
    objective.eval()
    with torch.no_grad():
        objective(*halves[0], bank)
    assert torch.equal(bank.rows, rows)
    assert (bank.rows.data_ptr(), bank.updates) == (place, updates)
    assert not bank.rows.requires_grad


@pytest.mark.fault("a (batch, instances) matrix in every step")
def test_there_is_no_matrix_of_batch_and_instances() -> None:
    bank = bank_of(unit_rows(20_000, 6, 0))
    features = tensor_of(unit_rows(32, 6, 1)).requires_grad_()
    with Allocations() as made:
        NonParametricSoftmax(0.1)(features, torch.arange(32), bank).backward()
    assert made.largest < 32 * 20_000 / 8


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("way", ["softmax", "softmax_masked", "softmax_cold"])
def test_several_ranks_are_one(world: int, way: str) -> None:
    for what, tolerance in {"loss": 3e-6, "gradient": 3e-6, "rows": 0}.items():
        ours, one = joined(world)[f"{way}.{what}"], joined(1)[f"{way}.{what}"]
        torch.testing.assert_close(ours, one, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none_is_told(temperature: float) -> None:
    with pytest.raises(InputError, match="must be positive"):
        NonParametricSoftmax(temperature)
