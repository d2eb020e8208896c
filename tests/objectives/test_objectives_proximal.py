"""The proximal term (eq 9) against slow loops, finite differences, and one process against several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import CLOSE, agrees_with, ask, bank_of, unit_rows
from several_ranks import joined

from instdisc.errors import InputError
from instdisc.objectives import Proximal

INDICES = np.array([3, 49, 0, 3])


@pytest.mark.parametrize("weight", [0.0, 1.0, 30.0])
def test_loss_and_gradient_are_the_equations(weight: float) -> None:
    rows, features = unit_rows(50, 6, 0), unit_rows(4, 6, 1)

    def slow_loss(asked: np.ndarray) -> float:
        squares = [sum((x - y) ** 2 for x, y in zip(asked[i], rows[j], strict=True)) for i, j in enumerate(INDICES)]
        return float(weight * np.mean(squares))

    agrees_with(slow_loss, Proximal(weight), features, INDICES, bank_of(rows))


def test_on_unit_vectors_it_is_a_constant_pull_towards_the_own_row() -> None:
    """Along the sphere the gradient is that of -2 weight v_i . f: what is left is along f itself."""
    rows, features = unit_rows(50, 6, 0), unit_rows(4, 6, 1)
    _, gradient = ask(Proximal(30.0), features, INDICES, bank_of(rows))
    np.testing.assert_allclose(gradient, 2 * 30 / 4 * (features - rows[INDICES]), **CLOSE)
    assert ask(Proximal(), rows[INDICES], INDICES, bank_of(rows))[0] == 0


def test_doubles_pass_through() -> None:
    bank = bank_of(unit_rows(50, 6, 0))
    features = torch.from_numpy(unit_rows(4, 6, 1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda asked: Proximal(3.0)(asked, torch.from_numpy(INDICES), bank), features)


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_are_one(world: int) -> None:
    for what, tolerance in {"loss": 2e-6, "gradient": 2e-6, "rows": 0}.items():
        ours, one = joined(world)[f"proximal.{what}"], joined(1)[f"proximal.{what}"]
        torch.testing.assert_close(ours, one, rtol=tolerance, atol=tolerance)


def test_a_negative_weight_is_told() -> None:
    with pytest.raises(InputError, match="must not be negative"):
        Proximal(-1.0)
