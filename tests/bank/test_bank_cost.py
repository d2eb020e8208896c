"""What the sums over the bank cost, by what torch is asked to do and not by the clock: operations and fresh numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import Work, bank_of, unit_rows

from instdisc.bank import MemoryBank
from instdisc.bank import partition as bank_room
from instdisc.objectives import NCE, NonParametricSoftmax, SampledSoftmax

BATCH, DIM = 64, 16
BLOCK = torch.get_num_threads() * bank_room._rows_at_once(BATCH, torch.get_num_threads(), True)


def work_of(objective: torch.nn.Module, bank: MemoryBank) -> Work:
    """Loss and gradient, counted."""
    features = MemoryBank(BATCH, DIM, seed=1).rows.requires_grad_()
    with Work() as work:
        objective(features, torch.arange(BATCH), bank).backward()
    return work


@pytest.mark.fault("a (batch, instances) matrix in every step")
@pytest.mark.fault("the whole bank is cloned every step (655 MB at ImageNet size)")
@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("temperature", "mask_own", "most"), [(0.07, False, 10), (0.07, True, 17), (0.005, False, 17)])
def test_a_block_more_is_some_operations_more_and_no_memory(
    rows: torch.dtype, products: torch.dtype, temperature: float, mask_own: bool, most: int
) -> None:
    objective = NonParametricSoftmax(temperature, mask_own=mask_own, products=products)
    few, many = (work_of(objective, MemoryBank(blocks * BLOCK, DIM, dtype=rows)) for blocks in (2, 12))
    assert sum(many.operations.values()) - sum(few.operations.values()) <= 10 * most
    # for each block: a number or two a picture, and one for every 64 rows; where the maximum runs the sums so far, anew
    scaled = torch.get_num_threads() * BATCH * DIM if temperature < 0.01 else 0
    assert (many.numbers - few.numbers) / 10 <= (16 + BLOCK / 64) * BATCH + scaled
    assert many.numbers - few.numbers < 10 * BLOCK * DIM / 2, "far less than the rows themselves"
    matmuls = sum(count for name, count in many.operations.items() if "bmm" in name)
    assert matmuls == 24, "two products a block, and none of them twice"


def test_what_is_held_is_one_block_whatever_the_number_of_rows() -> None:
    few, many = (work_of(NonParametricSoftmax(0.07), MemoryBank(blocks * BLOCK, DIM)) for blocks in (1, 12))
    assert few.numbers < BLOCK * (BATCH + DIM) + 64 * BATCH * DIM
    assert many.numbers < few.numbers * 1.2


@pytest.mark.parametrize("wide", [1, 128, 4096, 100_000])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_a_block_fits_in_the_memory_that_is_promised(wide: int, threads: int) -> None:
    """At most 67 MB of scores for a batch of 1024 on a CPU; a GPU's blocks are larger."""
    size = bank_room._rows_at_once(wide, threads, True)
    assert 256 <= size <= 2048
    assert size * threads <= 16_384
    assert bank_room._rows_at_once(wide, 1, False) >= 2048


@pytest.mark.parametrize("left_out", ["nothing", "one of the rows", "the drawn that are its own"])
def test_on_another_device_than_a_cpu_the_host_never_waits(left_out: str) -> None:
    """A tensor on "meta" has no values: whatever asks for one, as a branch on a length would, raises."""
    queries, rows = torch.empty(8, DIM, device="meta"), torch.empty(70_000, DIM, device="meta")
    own, drawn = (torch.empty(count, dtype=torch.int64, device="meta") for count in (8, 70_000))
    hide = {
        "nothing": lambda: None,
        "one of the rows": lambda: bank_room.hide_pairs(own, own, torch.float32),
        "the drawn that are its own": lambda: bank_room.hide_equal(drawn, own, torch.float32),
    }[left_out]()
    reference, sums, weighted = bank_room._sums_over_rows(queries, rows, hide)
    assert (reference.shape, sums.shape, weighted.shape) == ((8, 1), (8, 1), (8, DIM))
    with pytest.raises(RuntimeError):
        bool(queries.norm() < 1)  # the guard sees it


@pytest.mark.parametrize("objective", [NCE, SampledSoftmax])
def test_shared_negatives_are_one_product(objective: type[torch.nn.Module]) -> None:
    work = work_of(objective(0.5, 1000), MemoryBank(50_000, DIM))
    products = sum(count for name, count in work.operations.items() if "mm" in name)
    assert products == 2, "scores, and the gradient"
    assert work.numbers < 50_000 * DIM, "nothing of the size of the bank"


@pytest.mark.parametrize("mask_own", [False, True])
def test_no_matrix_of_scores_with_all_the_sampled_rows_is_kept(mask_own: bool) -> None:
    bank = MemoryBank(50_000, DIM)
    few, many = (work_of(SampledSoftmax(0.1, blocks * BLOCK, mask_own=mask_own), bank) for blocks in (2, 12))
    assert (many.numbers - few.numbers) / (10 * BLOCK) < BATCH, "a row that is drawn and copied, but not its scores"


@pytest.mark.parametrize("objective", [NCE, SampledSoftmax])
def test_private_negatives_are_gathered_once_and_never_kept(objective: type[torch.nn.Module]) -> None:
    negatives = 4096  # with 16 numbers each, 8 pictures fill a slice
    work = work_of(objective(0.5, negatives, "private"), MemoryBank(50_000, DIM))
    gathered = work.operations["aten.index_select.out"]  # the pictures' own rows come by another
    assert gathered == BATCH / 8, "in forward alone: backward sums the rows where they stand"
    assert work.operations["aten._embedding_bag_forward_only.default"] == 1
    assert work.numbers < BATCH * negatives * 40, "some numbers a pair; gathered rows would be 16 a pair and more twice"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_private_scores_whether_rows_are_gathered_or_not(dtype: torch.dtype) -> None:
    """Only float32 rows on a CPU are summed in place; equal indices, and an empty batch."""
    bank = bank_of(unit_rows(40, 5, 0), dtype=dtype)
    features = torch.from_numpy(unit_rows(3, 5, 1)).float().requires_grad_()
    indices = torch.tensor([[0, 39, 7, 7], [1, 1, 1, 1], [39, 38, 0, 1]])
    weights = torch.linspace(-1, 2, 12).reshape(3, 4)
    (bank.scores(features, indices) * weights).sum().backward()
    rows = bank.rows.double().numpy()
    expected = [sum(float(weights[i, k]) * rows[indices[i, k]] for k in range(4)) for i in range(3)]
    np.testing.assert_allclose(features.grad, expected, rtol=1e-5, atol=1e-6)
    nobody = torch.empty(0, 5, requires_grad=True)
    bank.scores(nobody, torch.empty(0, 4, dtype=torch.int64)).sum().backward()
    assert nobody.grad is not None and nobody.grad.shape == (0, 5)
