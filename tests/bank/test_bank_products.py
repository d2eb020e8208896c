"""Products in bfloat16: how far they are from float64, that nothing but the argument chooses them, and the threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from by_hand import bank_of, tensor_of, unit_rows
from torch.nn.functional import normalize

from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.objectives import NonParametricSoftmax

HALF = torch.bfloat16


def slow(
    features: torch.Tensor, bank: MemoryBank, own: torch.Tensor, temperature: float, masked: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """log Z and its gradient by the whole matrix in float64."""
    rows = bank.rows.double().numpy()
    scores = features.detach().double().numpy() @ rows.T / temperature
    if masked:
        scores[np.arange(len(own)), own] = -np.inf
    highest = scores.max(1, keepdims=True)
    powers = np.exp(scores - highest)
    sums = powers.sum(1, keepdims=True)
    return (highest + np.log(sums))[:, 0], powers / sums @ rows / temperature


def near(bank: MemoryBank, own: torch.Tensor, cosine: float) -> torch.Tensor:
    """Unit features with this cosine to the rows `own`."""
    rows, other = bank.lookup(own), MemoryBank(len(own), bank.dim, seed=8).rows
    side = normalize(other - (other * rows).sum(1, keepdim=True) * rows, dim=1)
    return cosine * rows + (1 - cosine**2) ** 0.5 * side


@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("temperature", "cosine", "log_z", "gradient"),
    [
        (0.07, 0.0, 4e-3, 1e-3),  # as at the start: no row stands out
        (0.1, 0.8, 1e-2, 5e-3),
        (0.07, 0.95, 8e-2, 6e-2),  # the own row has nearly all the weight
        (0.01, 0.0, 0.4, 0.3),  # past the fixed range: the running maximum
    ],
)
def test_bfloat16_products_are_as_far_off_as_is_said(
    rows: torch.dtype, masked: bool, temperature: float, cosine: float, log_z: float, gradient: float
) -> None:
    bank, own = MemoryBank(20_000, 128, dtype=rows), torch.arange(32) * 600
    features = near(bank, own, cosine).requires_grad_()
    without = own if masked else None
    found = bank.log_partition(features, temperature, without=without, products=HALF)
    found.sum().backward()
    exact, exact_gradient = slow(features, bank, own, temperature, masked)
    np.testing.assert_allclose(found.detach(), exact, rtol=0, atol=log_z)
    off = np.linalg.norm(features.grad.double().numpy() - exact_gradient)
    assert off < gradient * np.linalg.norm(exact_gradient - bank.rows[own].double().numpy() / temperature)
    same = bank.log_partition(features, temperature, without=without)
    assert not torch.equal(found, same), "they were taken at all"


@pytest.mark.parametrize("cosine", [0.0, 0.95])
def test_float32_products_are_exact_where_bfloat16_ones_are_not(cosine: float) -> None:
    bank, own = MemoryBank(20_000, 128), torch.arange(32) * 600
    features = near(bank, own, cosine).requires_grad_()
    NonParametricSoftmax(0.07)(features, own, bank).mul(32).backward()
    expected = slow(features, bank, own, 0.07)[1] - bank.rows[own].double().numpy() / 0.07
    off = np.linalg.norm(features.grad.double().numpy() - expected, axis=1)
    assert (off < 2e-5 * np.linalg.norm(expected, axis=1)).all()


def test_only_the_argument_chooses_them() -> None:
    bank, own = MemoryBank(5000, 16), torch.arange(8)
    features = near(bank, own, 0.5)
    exact = NonParametricSoftmax(0.07)(features, own, bank)
    coarse = NonParametricSoftmax(0.07, products=HALF)(features, own, bank)
    assert coarse != exact
    with torch.autocast("cpu", dtype=HALF):
        assert torch.equal(NonParametricSoftmax(0.07)(features, own, bank), exact)
        assert torch.equal(NonParametricSoftmax(0.07, products=HALF)(features, own, bank), coarse)
    bank.rows = bank.rows.to(HALF)
    rounded = slow(features, bank, own, 0.07)[0]
    np.testing.assert_allclose(bank.log_partition(features, 0.07), rounded, rtol=2e-6, atol=3e-6)


@pytest.mark.parametrize("products", [torch.float16, torch.float64])
def test_other_products_are_refused(products: torch.dtype) -> None:
    with pytest.raises(InputError, match="float32 or bfloat16"):
        MemoryBank(5, 3).log_partition(torch.ones(1, 3), 0.1, products=products)


@pytest.fixture
def threads() -> Iterator[None]:
    """Sets the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("temperature", [0.07, 0.005])
@pytest.mark.parametrize("products", [torch.float32, HALF])
def test_any_number_of_threads_gives_the_same(temperature: float, products: torch.dtype) -> None:
    """Each thread has a chunk of every block; what fills no block is one chunk."""
    rows, features = unit_rows(9000, 6, 0), unit_rows(5, 6, 1)
    bank, own = bank_of(rows), torch.tensor([0, 8999, 4096, 2047, 2048])
    answers = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        leaf = tensor_of(features).requires_grad_()
        found = bank.log_partition(leaf, temperature, without=own, products=products)
        found.sum().backward()
        answers.append((found.detach(), leaf.grad))
    exact = slow(tensor_of(features), bank, own, temperature, masked=True)
    for found, gradient in answers:
        error = 1.0 if products == HALF else 2e-5
        np.testing.assert_allclose(found, exact[0], rtol=0, atol=error)
        np.testing.assert_allclose(gradient, exact[1], atol=error * np.abs(exact[1]).max())
