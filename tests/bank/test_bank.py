"""The memory bank: random rows, lookup, scores and updates against slow NumPy, in shards, and by what they allocate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import Allocations, bank_of, tensor_of, unit_rows
from several_ranks import INSTANCES, joined, tour

from instdisc.bank import MemoryBank
from instdisc.errors import InputError

WORLDS = (2, 3)


def slow_update(rows: np.ndarray, indices: list[int], features: np.ndarray, momentum: float) -> np.ndarray:
    """normalise(momentum v + (1 - momentum) f), f the mean of what an instance brought."""
    renewed = rows.copy()
    for index in set(indices):
        feature = np.mean([features[place] for place, other in enumerate(indices) if other == index], axis=0)
        row = momentum * rows[index] + (1 - momentum) * feature
        renewed[index] = row / np.linalg.norm(row)
    return renewed


# ------------------------------------------------------------ random rows


@pytest.mark.fault("the bank is normalised along the wrong axis")
@pytest.mark.parametrize("dim", [1, 2, 7, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_random_rows_are_unit_vectors(dim: int, dtype: torch.dtype) -> None:
    bank = MemoryBank(3000, dim, dtype=dtype)
    assert bank.rows.shape == (3000, dim)
    assert bank.rows.dtype == dtype
    lengths = bank.rows.double().norm(dim=1)
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert (lengths - 1).abs().max() < tolerance


def test_random_rows_are_uniform_on_the_sphere() -> None:
    """Mean 0, covariance 1/d, fourth moments 3/(d(d+2)) and 1/(d(d+2)); projections on any direction alike."""
    count, dim = 40_000, 6
    rows = MemoryBank(count, dim, seed=11).rows.double()
    deviation = 1 / np.sqrt(count)
    assert rows.mean(0).abs().max() < 5 * deviation * np.sqrt(1 / dim)
    covariance = rows.T @ rows / count
    assert (covariance - torch.eye(dim) / dim).abs().max() < 5 * deviation * np.sqrt(3 / (dim * (dim + 2)))
    squares = rows.square()
    fourth = squares.T @ squares / count
    expected = (torch.ones(dim, dim) + 2 * torch.eye(dim)) / (dim * (dim + 2))
    assert (fourth - expected).abs().max() < 5 * deviation * 0.2
    # in three dimensions a coordinate of a uniform direction is uniform in [-1, 1] (Archimedes)
    heights = MemoryBank(count, 3, seed=12).rows.double()
    for column in heights.T:
        quantiles = column.sort().values
        gap = (quantiles - torch.linspace(-1, 1, count)).abs().max() / 2
        assert gap < 1.95 * deviation, "Kolmogorov and Smirnov, one in a thousand"
    # neighbours in the bank are unrelated
    assert (rows[1:] * rows[:-1]).sum(1).mean().abs() < 5 * deviation * np.sqrt(1 / dim)


def test_random_rows_are_a_function_of_the_seed_and_the_row() -> None:
    torch.manual_seed(1)
    one = MemoryBank(70_000, 4, seed=1)
    torch.manual_seed(2)
    assert torch.equal(one.rows, MemoryBank(70_000, 4, seed=1).rows)
    assert torch.equal(one.rows[:100], MemoryBank(100, 4, seed=1).rows), "a larger collection keeps the first rows"
    assert (one.rows * MemoryBank(70_000, 4, seed=2).rows).sum(1).mean().abs() < 0.01


@pytest.mark.fault("the bank is drawn with a different seed on every rank and averaged without renormalising")
@pytest.mark.fault("the bank depends on the number of ranks")
@pytest.mark.parametrize("world", WORLDS)
def test_random_rows_do_not_depend_on_the_number_of_ranks(world: int) -> None:
    assert torch.equal(joined(world)["bank.random"], joined(1)["bank.random"])
    lengths = [len(facts["bank.random"]) for facts in tour(world)]
    assert sum(lengths) == INSTANCES
    assert max(lengths) - min(lengths) == 1, "shares are uneven here, and nobody holds all rows"


# ------------------------------------------------------------ lookup and scores


def test_lookup_is_a_float32_copy_of_any_shape() -> None:
    bank = MemoryBank(50, 6, dtype=torch.float16)
    table = bank.lookup(torch.tensor([[1, 2, 3], [3, 49, 0]]))
    assert table.shape == (2, 3, 6)
    assert table.dtype == torch.float32
    assert torch.equal(table[1, 1], bank.rows[49].float())
    before = bank.rows.clone()
    bank.lookup(torch.arange(50)).zero_()
    MemoryBank.lookup(bank, torch.tensor(3)).zero_()
    assert torch.equal(bank.rows, before)
    assert bank.lookup(torch.empty(0, dtype=torch.int64)).shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_shared_private_and_of_the_own_row(dtype: torch.dtype) -> None:
    bank = bank_of(unit_rows(40, 5, 0), dtype=dtype)
    rows, features = bank.rows.double().numpy(), unit_rows(3, 5, 1)
    shared, private, own = np.array([7, 0, 39, 7]), np.array([[1, 2], [3, 3], [39, 0]]), np.array([4, 4, 9])
    asked = tensor_of(features)
    expected = [[features[i] @ rows[j] for j in shared] for i in range(3)]
    np.testing.assert_allclose(bank.scores(asked, tensor_of(shared)), expected, atol=1e-6)
    expected = [[features[i] @ rows[j] for j in private[i]] for i in range(3)]
    np.testing.assert_allclose(bank.scores(asked, tensor_of(private)), expected, atol=1e-6)
    expected = [features[i] @ rows[own[i]] for i in range(3)]
    np.testing.assert_allclose(bank.positives(asked, tensor_of(own)), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["shared", "private", "own"])
def test_gradients_of_scores_are_those_of_plain_autograd(kind: str) -> None:
    bank = bank_of(unit_rows(40, 5, 0))
    features = tensor_of(unit_rows(3, 5, 1)).requires_grad_()
    indices = {"shared": torch.arange(8), "private": torch.arange(24).reshape(3, 8), "own": torch.tensor([5, 5, 39])}
    weights = torch.linspace(-1, 2, 24).reshape(3, 8)
    if kind == "own":
        answer, plain = bank.positives(features, indices[kind]), (features * bank.rows[indices[kind]]).sum(1)
        weights = weights[:, 0]
    else:
        rows = bank.rows[indices[kind]].expand(3, 8, 5)
        answer, plain = bank.scores(features, indices[kind]), (features[:, None] * rows).sum(2)
    (ours,) = torch.autograd.grad((answer * weights).sum(), features)
    (theirs,) = torch.autograd.grad((plain * weights).sum(), features)
    torch.testing.assert_close(ours, theirs)


def test_private_scores_never_hold_the_rows_of_the_whole_batch() -> None:
    batch, negatives, dim = 24, 8192, 128  # 25 million numbers if all were gathered at once
    bank = MemoryBank(500, dim)
    features = bank.rows[:batch].clone().requires_grad_()
    indices = torch.randint(0, 500, (batch, negatives), generator=torch.Generator().manual_seed(0))
    with Allocations() as made:
        scores = bank.scores(features, indices)
        scores.sum().backward()
    assert made.largest <= 1 << 23
    expected = torch.stack([bank.rows[row].sum(0) for row in indices])
    torch.testing.assert_close(features.grad, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("what", ["lookup", "table", "positives", "scores", "private", "empty_lookup", "empty_private"])
def test_rows_are_found_whichever_rank_holds_them(world: int, what: str) -> None:
    torch.testing.assert_close(joined(world)[f"bank.{what}"], joined(1)[f"bank.{what}"], rtol=0, atol=5e-7)


# ------------------------------------------------------------ update


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_update_is_the_equation_and_touches_no_other_row(momentum: float) -> None:
    rows, features, indices = unit_rows(30, 5, 0), unit_rows(6, 5, 1), [3, 29, 3, 0, 7, 7]
    bank = bank_of(rows, momentum=momentum)
    bank.update(tensor_of(indices), tensor_of(features))
    expected = slow_update(rows, indices, features, momentum)
    np.testing.assert_allclose(bank.rows, expected, atol=3e-7)
    others = [row for row in range(30) if row not in indices]
    assert np.array_equal(bank.rows[others].numpy(), rows[others])
    assert bank.updates == 1


def test_momentum_zero_replaces_the_row() -> None:
    bank, features = MemoryBank(30, 5, momentum=0), unit_rows(2, 5, 1)
    bank.update(torch.tensor([4, 9]), tensor_of(features))
    np.testing.assert_allclose(bank.rows[[4, 9]], features, atol=2e-7)


def test_the_published_default_is_one_half() -> None:
    assert MemoryBank(2, 3).momentum == 0.5


@pytest.mark.fault("padded samples of the distributed sampler write a row twice, in no fixed order")
def test_equal_indices_are_renewed_once_whatever_their_order() -> None:
    features, indices = tensor_of(unit_rows(8, 5, 1)), torch.tensor([3, 1, 3, 2, 2, 9, 1, 0])
    answers = []
    for seed in range(6):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        bank = MemoryBank(10, 5)
        bank.update(indices[order], features[order])
        answers.append(bank.rows)
    assert all(torch.equal(answer, answers[0]) for answer in answers), "to the last bit"


def test_three_equal_indices_agree_but_for_rounding() -> None:
    features, indices = tensor_of(unit_rows(4, 5, 1)), torch.tensor([3, 3, 3, 3])
    one, two = MemoryBank(10, 5), MemoryBank(10, 5)
    one.update(indices, features)
    two.update(indices, features.flip(0))
    torch.testing.assert_close(one.rows, two.rows, rtol=0, atol=2e-7)
    np.testing.assert_allclose(
        one.rows,
        slow_update(MemoryBank(10, 5).rows.double().numpy(), [3] * 4, features.double().numpy(), 0.5),
        atol=3e-7,
    )


def test_one_update_with_two_views_is_not_two_updates() -> None:
    views = tensor_of(unit_rows(2, 5, 1))
    once, twice = MemoryBank(10, 5), MemoryBank(10, 5)
    once.update(torch.tensor([3, 3]), views)
    for view in views:
        twice.update(torch.tensor([3]), view[None])
    assert (once.rows[3] - twice.rows[3]).abs().max() > 1e-3


@pytest.mark.fault("normalise without an epsilon: NaN on a zero vector")
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_zero_feature_or_an_opposite_one_makes_no_nan(momentum: float) -> None:
    bank = MemoryBank(10, 5, momentum=momentum)
    opposite = -bank.rows[4]
    bank.update(torch.tensor([3, 4]), torch.stack([torch.zeros(5), opposite]))
    assert torch.isfinite(bank.rows).all()
    features = MemoryBank(2, 5, seed=1).rows.requires_grad_()
    loss = bank.log_partition(features, 0.07).sum() + bank.positives(features, torch.tensor([3, 4])).sum()
    (gradient,) = torch.autograd.grad(loss, features)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_rows_stay_unit_vectors_whatever_comes(momentum: float) -> None:
    bank = MemoryBank(10, 5, momentum=momentum)
    before = bank.rows.clone()
    # nothing, what cancels the row exactly where momentum is one half, and no number
    bank.update(torch.tensor([3, 4, 5]), torch.stack([torch.zeros(5), -before[4], torch.full((5,), torch.nan)]))
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(10))
    torch.testing.assert_close(bank.rows[[3, 5]], before[[3, 5]])
    torch.testing.assert_close(bank.rows[4], before[4] if momentum else -before[4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_renewed_in_float32(dtype: torch.dtype) -> None:
    bank = MemoryBank(30, 64, dtype=dtype)
    rows, features = bank.rows.double().numpy(), unit_rows(4, 64, 1)
    bank.update(torch.tensor([0, 5, 9, 5]), tensor_of(features))
    expected = torch.from_numpy(slow_update(rows, [0, 5, 9, 5], features, 0.5)).to(dtype)
    assert bank.rows.dtype == dtype
    torch.testing.assert_close(bank.rows, expected, rtol=2**-7 if dtype == torch.bfloat16 else 2**-10, atol=1e-6)


@pytest.mark.fault("the whole bank is cloned every step (655 MB at ImageNet size)")
def test_no_copy_of_the_bank_in_a_step() -> None:
    bank = MemoryBank(100_000, 32)
    features, indices = bank.rows[:64].clone(), torch.arange(64) * 1000
    place = bank.rows.data_ptr()
    with Allocations() as made:
        bank.update(indices, features)
        bank.lookup(indices)
        bank.positives(features, indices)
    assert made.largest <= 64 * 32, "nothing larger than the batch's own rows"
    assert bank.rows.data_ptr() == place
    with Allocations() as made:
        bank.rows.clone()
    assert made.largest == 100_000 * 32, "the recorder sees a copy"


def test_update_carries_no_graph() -> None:
    bank, features = MemoryBank(10, 5), torch.ones(1, 5, requires_grad=True)
    bank.update(torch.tensor([1]), features)
    assert not bank.rows.requires_grad
    assert bank.rows.grad_fn is None


@pytest.mark.fault("a partial last batch written to wrong rows")
def test_batches_of_any_size_are_written_to_their_rows() -> None:
    rows, features = unit_rows(30, 5, 0), unit_rows(30, 5, 1)
    order = np.random.default_rng(0).permutation(30)
    bank = bank_of(rows, momentum=0)
    for first in range(0, 30, 8):  # 8, 8, 8 and 6
        part = order[first : first + 8]
        bank.update(tensor_of(part), tensor_of(features[part]))
    np.testing.assert_allclose(bank.rows, features, atol=2e-7)
    bank.update(torch.empty(0, dtype=torch.int64), torch.empty(0, 5))
    np.testing.assert_allclose(bank.rows, features, atol=2e-7)


@pytest.mark.fault("the bank differs between ranks (updates not exchanged)")
@pytest.mark.fault("the bank depends on the number of ranks")
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("what", ["once", "twice", "half"])
def test_updates_on_several_ranks_write_the_rows_of_one_process(world: int, what: str) -> None:
    """Equal indices stand on different ranks, parts are uneven, and in the second update one rank brings everything."""
    assert torch.equal(joined(world)[f"bank.{what}"], joined(1)[f"bank.{what}"])
    changed = (joined(1)["bank.once"] != joined(1)["bank.random"]).any(1).nonzero()[:, 0].tolist()
    assert changed == [0, 10, 77, 2501, 4000, 5002]


# ------------------------------------------------------------ the rest


def test_state_says_what_the_rows_do_not() -> None:
    bank = MemoryBank(10, 5, momentum=0.25, seed=4, dtype=torch.bfloat16)
    bank.update(torch.tensor([1]), torch.ones(1, 5))
    assert bank.state() == {
        "instances": 10,
        "dim": 5,
        "momentum": 0.25,
        "seed": 4,
        "updates": 1,
        "dtype": "bfloat16",
    }
    assert "10, 5" in repr(bank)
    assert bank.to("cpu") is bank


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"instances": 0}, "at least one instance"),
        ({"instances": 5, "dim": 0}, "at least one instance and one dimension"),
        ({"instances": 5, "momentum": 1.0}, "no row would ever change"),
        ({"instances": 5, "momentum": -0.1}, "momentum"),
        ({"instances": 5, "storage": "tape"}, '"memory", "host" or "disk", not "tape"'),
        ({"instances": 5, "dtype": torch.float64}, "bfloat16 or int8"),
    ],
)
def test_mistakes_are_told(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        MemoryBank(**settings)
