"""Muon against its formulas in NumPy, and which weights it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny
from torch import nn

from instdisc.objectives import ParametricSoftmax
from instdisc.training.optimizers import Muon, make_optimizer, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (12, 108), (64, 27), (1, 5)])
def test_orthogonal_keeps_the_singular_vectors_and_levels_the_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrix).double().numpy()
    u, values, v = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    inside = u.T @ found @ v.T  # diagonal where the singular vectors are those of the matrix
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 1e-4
    np.testing.assert_allclose(u @ inside @ v, found, atol=1e-4)
    levelled = np.diag(inside)[values > 0.02 * np.linalg.norm(values)]  # five rounds do not lift the very smallest
    assert levelled.min() > 0.6 and levelled.max() < 1.25
    torch.testing.assert_close(orthogonal(1000 * matrix), orthogonal(matrix), atol=1e-4, rtol=0)


def test_orthogonal_of_nothing_is_nothing() -> None:
    assert torch.equal(orthogonal(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_steps_equal_the_formulas() -> None:
    generator = torch.Generator().manual_seed(1)
    kernel, bias = (nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((6, 2, 3, 3), (5,)))
    groups: list[dict[str, Any]] = [
        {"params": [kernel], "lr": 0.02, "orthogonal": True, "weight_decay": 0.5},
        {"params": [bias], "lr": 0.05, "orthogonal": False, "weight_decay": 0.1},
    ]
    optimizer = Muon(groups, momentum=0.9)
    weights = [kernel.detach().numpy().copy(), bias.detach().numpy().copy()]
    buffers = [np.zeros_like(weight) for weight in weights]
    for _ in range(3):
        gradients = [torch.randn(weight.shape, generator=generator) for weight in weights]
        kernel.grad, bias.grad = gradients[0].clone(), gradients[1].clone()
        optimizer.step()
        for place, (rate, decay) in enumerate(((0.02, 0.5), (0.05, 0.1))):
            gradient = gradients[place].numpy()
            buffers[place] = 0.9 * buffers[place] + gradient
            update = gradient + 0.9 * buffers[place]
            if place == 0:
                level = orthogonal(torch.from_numpy(update.reshape(6, 18))).numpy()
                update = level.reshape(update.shape)  # wider than tall: no stretch
            weights[place] = (1 - rate * decay) * weights[place] - rate * update
    np.testing.assert_allclose(kernel.detach().numpy(), weights[0], atol=1e-6)
    np.testing.assert_allclose(bias.detach().numpy(), weights[1], atol=1e-6)


def test_a_tall_matrix_is_stretched() -> None:
    weight = nn.Parameter(torch.zeros(16, 4))
    weight.grad = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))
    Muon([{"params": [weight], "lr": 1.0, "orthogonal": True}], momentum=0.0).step()
    torch.testing.assert_close(weight.detach(), -2.0 * orthogonal(weight.grad))  # the root of 16 / 4


def test_matrices_of_the_encoder_are_orthogonalised_and_nothing_else() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 8))
    terms = nn.ModuleDict({"parametric": ParametricSoftmax(10, 8)})
    optimizer = make_optimizer(tiny(optimizer="muon", lr=0.02, vector_lr=0.3, weight_decay=0.1), encoder, terms)
    matrices, others = optimizer.param_groups
    assert [parameter.ndim for parameter in matrices["params"]] == [4, 2]
    assert (matrices["lr"], matrices["weight_decay"], matrices["orthogonal"]) == (0.02, 0.1, True)
    # the weights of eq 1 are one row an instance, each a vector of its own
    assert any(parameter is terms["parametric"].weight for parameter in others["params"])
    assert (others["lr"], others["weight_decay"], others["orthogonal"]) == (0.3, 0.0, False)
    everything = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert everything == {id(parameter) for parameter in [*encoder.parameters(), *terms.parameters()]}
