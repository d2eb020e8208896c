"""The second way of knowing for the bank and the objectives: slow float64 NumPy, and what an operation allocates.

Everything here is written from the equations of the paper, one picture and one row at a time where speed allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from instdisc.bank import MemoryBank

# float32 sums of some hundred terms, scaled by 1 / temperature, against float64
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def unit_rows(count: int, dim: int, seed: int) -> np.ndarray:
    """Random unit vectors (count, dim) in float64, every value exact in float32 too."""
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32).astype(np.float64)


def are_the_best(found: Sequence[int], scores: np.ndarray) -> None:
    """Rows found, best first, each once; those whose scores differ by rounding alone may stand in either order."""
    assert len(set(found)) == len(found)
    np.testing.assert_allclose(scores[list(found)], -np.sort(-scores)[: len(found)], atol=1e-5)


def bank_of(rows: np.ndarray, **settings: Any) -> MemoryBank:
    """A bank of one process that holds these rows."""
    bank = MemoryBank(*rows.shape, **settings)
    bank.rows.copy_(torch.from_numpy(rows))
    return bank


def tensor_of(values: Any) -> torch.Tensor:
    """float32 or int64, as the training loop hands them over."""
    values = np.asarray(values)
    return torch.from_numpy(values).to(torch.float32 if values.dtype.kind == "f" else torch.int64)


def ask(objective: Any, features: np.ndarray, indices: Any, bank: MemoryBank) -> tuple[float, np.ndarray]:
    """The loss and its gradient for the features (float64 copies), by the code under test."""
    leaf = tensor_of(features).requires_grad_()
    loss = objective(leaf, tensor_of(indices), bank)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient.double().numpy()


def finite_differences(loss: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of a float64 function by central differences: exact to about 1e-8 for the losses here."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        beside = at.copy()
        beside[place] = at[place] + step
        above = loss(beside)
        beside[place] = at[place] - step
        gradient[place] = (above - loss(beside)) / (2 * step)
    return gradient


def agrees_with(
    slow_loss: Callable[[np.ndarray], float], objective: Any, features: np.ndarray, indices: Any, bank: MemoryBank
) -> None:
    """Assert that loss and gradient of the code are those of the slow loss and of its finite differences."""
    loss, gradient = ask(objective, features, indices, bank)
    np.testing.assert_allclose(loss, slow_loss(features), **CLOSE)
    slow_gradient = finite_differences(slow_loss, features)
    np.testing.assert_allclose(gradient, slow_gradient, rtol=1e-4, atol=1e-5 * np.abs(slow_gradient).max() + 1e-7)


class Allocations(TorchDispatchMode):
    """Records how many numbers the largest fresh tensor holds that any operation makes, forward or backward.

    Views of what was handed in are not fresh. torch allocates outside Python's heap, where tracemalloc sees nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_place(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _place(leaf) not in given:
                self.largest = max(self.largest, leaf.numel())
        return result


class Work(TorchDispatchMode):
    """Counts operations that compute or copy (views do neither), and all numbers for which they took fresh memory.

    `Allocations` sees the largest tensor alone; a buffer made anew for every block shows in the sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: dict[str, int] = {}
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_place(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and _place(leaf) not in given]
        self.numbers += sum(leaf.numel() for leaf in made)
        if made or func._schema.is_mutable:
            self.operations[str(func)] = self.operations.get(str(func), 0) + 1
        return result


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
