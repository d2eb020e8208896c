"""NCE (eq 4 to 8) against slow loops, finite differences, Z in closed form, and one process against several."""

from __future__ import annotations

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from by_hand import agrees_with, ask, bank_of, tensor_of, unit_rows
from several_ranks import joined, tour

from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.objectives import NCE

INDICES = np.array([3, 49, 0, 3])
SHARED = np.array([3, 3, 7, 0, 12])
PRIVATE = np.array([[3, 3, 7, 0, 12], [49, 1, 2, 3, 4], [0, 0, 0, 1, 0], [5, 6, 7, 8, 9]])


def slow_loss(
    features: np.ndarray,
    rows: np.ndarray,
    drawn: np.ndarray,
    temperature: float,
    partitions: np.ndarray,
    mask_own: bool = False,
) -> float:
    """Eq 7, as it is written: h = P / (P + m P_n), P = exp(v . f / temperature) / Z, P_n = 1 / n."""
    instances, count = len(rows), drawn.shape[1]
    losses = []
    for feature, index, noise, partition in zip(features, INDICES, drawn, partitions, strict=True):

        def posterior(row: int, feature: np.ndarray = feature, partition: float = partition) -> float:
            chance = np.exp(rows[row] @ feature / temperature) / partition
            return chance / (chance + count / instances)

        loss = -np.log(posterior(index))
        for row in noise:
            if not (mask_own and row == index):
                loss -= np.log(1 - posterior(row))
        losses.append(loss)
    return float(np.mean(losses))


def slow_estimate(features: np.ndarray, rows: np.ndarray, drawn: np.ndarray, temperature: float) -> float:
    """Eq 8, averaged over the batch."""
    instances, count = len(rows), drawn.shape[1]
    each = [
        instances / count * sum(np.exp(rows[row] @ feature / temperature) for row in noise)
        for feature, noise in zip(features, drawn, strict=True)
    ]
    return float(np.mean(each))


def exact_partitions(features: np.ndarray, rows: np.ndarray, temperature: float) -> np.ndarray:
    return np.exp(features @ rows.T / temperature).sum(1)


@pytest.mark.parametrize("noise", ["shared", "private"])
@pytest.mark.parametrize("mask_own", [False, True])
@pytest.mark.parametrize("partition", ["first_batch", "moving_average", "exact"])
def test_loss_and_gradient_are_the_equations(noise: str, mask_own: bool, partition: str) -> None:
    """Z is a constant for the gradient, however it was found."""
    rows, features, temperature = unit_rows(50, 6, 0), unit_rows(4, 6, 1), 0.3
    drawn = np.tile(SHARED, (4, 1)) if noise == "shared" else PRIVATE
    if partition == "exact":
        partitions = exact_partitions(features, rows, temperature)
    else:
        partitions = np.full(4, slow_estimate(features, rows, drawn, temperature))
    objective = NCE(
        temperature,
        5,
        noise,
        partition,
        mask_own=mask_own,
        draw=lambda count: tensor_of(SHARED if noise == "shared" else PRIVATE.flatten())[:count],
    )
    agrees_with(
        lambda asked: slow_loss(asked, rows, drawn, temperature, partitions, mask_own),
        objective,
        features,
        INDICES,
        bank_of(rows),
    )


def test_log_space_holds_where_the_equation_as_written_does_not() -> None:
    """At a temperature of 0.005 exp(v . f / temperature) reaches e^200: the loss is linear in the score there."""
    rows = unit_rows(50, 6, 0)
    features = rows[[7, 7, 7, 7]]  # the noise row 7 is the feature itself
    objective = NCE(0.005, 1, partition="exact", draw=lambda count: torch.tensor([7]))
    loss, gradient = ask(objective, features, INDICES, bank_of(rows))
    assert np.isfinite(gradient).all()
    own = (rows[INDICES] * features).sum(1) / 0.005 - np.log(exact_partitions(features, rows, 0.005)) + np.log(50)
    noise = 1 / 0.005 - np.log(exact_partitions(features, rows, 0.005)) + np.log(50)
    np.testing.assert_allclose(loss, np.mean(np.logaddexp(0, -own) + np.logaddexp(0, noise)), rtol=1e-5)


# ------------------------------------------------------------ the partition


def test_the_estimate_of_the_first_batch_is_kept() -> None:
    rows = unit_rows(50, 6, 0)
    objective = NCE(0.3, 5, partition="first_batch", draw=lambda count: tensor_of(SHARED))
    bank = bank_of(rows)
    first = unit_rows(4, 6, 1)
    ask(objective, first, INDICES, bank)
    expected = math.log(slow_estimate(first, rows, np.tile(SHARED, (4, 1)), 0.3))
    assert objective.log_partition.item() == pytest.approx(expected, abs=1e-6)
    for seed in (2, 3):
        bank.update(tensor_of(INDICES), tensor_of(unit_rows(4, 6, seed)))
        ask(objective, unit_rows(4, 6, seed), INDICES, bank)
    assert objective.log_partition.item() == pytest.approx(expected, abs=1e-6)
    assert objective.estimated_at.item() == 0


@pytest.mark.parametrize(("temperature", "published"), [(0.1, 1.478), (0.07, 2.219)])
@pytest.mark.parametrize("noise", ["shared", "private"])
def test_first_batch_partition_of_a_random_bank(temperature: float, published: float, noise: str) -> None:
    """exp(1 / (2 d temperature^2)) n, whatever the data: 1.478 n and 2.219 n for 128 dimensions. To first order: the
    exact mean over the sphere is 0.2 and 0.5 % lower, and the draw adds about 0.5 %."""
    instances, dim = 20_000, 128
    assert math.exp(1 / (2 * dim * temperature**2)) == pytest.approx(published, abs=5e-4)
    bank = MemoryBank(instances, dim, seed=1)
    objective = NCE(temperature, 4096, noise)
    features = tensor_of(unit_rows(64, dim, 5))
    objective(features, torch.arange(64), bank)
    estimate = objective.log_partition.exp().item() / instances
    assert estimate == pytest.approx(published, rel=0.015)
    exact = bank.log_partition(features, temperature).exp().mean().item() / instances
    assert exact == pytest.approx(published, rel=0.015)


def test_moving_average_is_the_weighted_mean_of_the_estimates() -> None:
    rows = unit_rows(50, 6, 0)
    objective = NCE(0.3, 5, partition="moving_average", draw=lambda count: tensor_of(SHARED), partition_momentum=0.9)
    bank, average = bank_of(rows), None
    for seed in range(1, 5):
        features = unit_rows(4, 6, seed)
        estimate = slow_estimate(features, bank.rows.double().numpy(), np.tile(SHARED, (4, 1)), 0.3)
        average = estimate if average is None else 0.9 * average + 0.1 * estimate
        loss, _ = ask(objective, features, INDICES, bank)
        assert objective.log_partition.exp().item() == pytest.approx(average, rel=1e-5)
        expected = slow_loss(
            features, bank.rows.double().numpy(), np.tile(SHARED, (4, 1)), 0.3, np.full(4, average), False
        )
        assert loss == pytest.approx(expected, rel=1e-5), "this step's loss uses this step's average"
        bank.update(tensor_of(INDICES), tensor_of(features))


def test_the_average_weighs_99_to_1_as_reported_to_work_and_is_what_nce_does() -> None:
    assert NCE().partition_momentum == 0.99
    assert NCE().partition == "moving_average"


@pytest.mark.fault("gradient accumulation writes twice")
@pytest.mark.fault("evaluation writes the bank, or what an objective keeps beside it")
def test_moving_average_goes_on_once_a_bank_update_and_never_in_evaluation() -> None:
    objective, bank = NCE(0.3, 5, partition="moving_average"), bank_of(unit_rows(50, 6, 0))
    ask(objective, unit_rows(4, 6, 1), INDICES, bank)
    bank.update(tensor_of(INDICES), tensor_of(unit_rows(4, 6, 1)))
    first = objective.log_partition.item()
    ask(objective, unit_rows(4, 6, 2), INDICES, bank)
    second = objective.log_partition.item()
    assert second != first
    for seed in (3, 4):  # more micro-batches of the same step
        ask(objective, unit_rows(4, 6, seed), INDICES, bank)
        assert objective.log_partition.item() == second
    bank.update(tensor_of(INDICES), tensor_of(unit_rows(4, 6, 1)))
    objective.eval()
    ask(objective, unit_rows(4, 6, 5), INDICES, bank)
    assert objective.log_partition.item() == second
    objective.train()
    ask(objective, unit_rows(4, 6, 5), INDICES, bank)
    assert objective.log_partition.item() != second


@pytest.mark.fault("evaluation writes the bank, or what an objective keeps beside it")
def test_evaluation_before_any_training_is_answered_without_keeping_an_estimate() -> None:
    objective, bank = NCE(0.3, 5).eval(), bank_of(unit_rows(50, 6, 0))
    loss, gradient = ask(objective, unit_rows(4, 6, 1), INDICES, bank)
    assert math.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert objective.estimated_at.item() == -1
    assert math.isnan(objective.log_partition.item())


@pytest.mark.fault("a counter beside the bank is not saved: resume starts from noise")
@pytest.mark.parametrize("partition", ["first_batch", "moving_average"])
def test_a_resumed_objective_goes_on_as_the_first_would_have(partition: str) -> None:
    bank, one = bank_of(unit_rows(50, 6, 0)), NCE(0.3, 5, partition=partition)
    ask(one, unit_rows(4, 6, 1), INDICES, bank)
    two = NCE(0.3, 5, partition=partition)
    assert {name for name, _ in one.named_buffers()} == one.state_dict().keys() != set()
    two.load_state_dict(one.state_dict())
    for resumed in (False, True):  # within the same step, and after the next update of the bank
        if resumed:
            bank.update(tensor_of(INDICES), tensor_of(unit_rows(4, 6, 1)))
        first, second = (ask(objective, unit_rows(4, 6, 2), INDICES, bank) for objective in (one, two))
        assert first[0] == second[0]
        assert np.array_equal(first[1], second[1])
        assert one.log_partition == two.log_partition
        assert one.estimated_at == two.estimated_at


@pytest.mark.fault("Z estimated from a collapsed first batch: NCE must say so, or not be hurt")
@pytest.mark.fault("Z estimated from a tiny first batch (700 images gave 1.2e14): NCE must say so, or not be hurt")
@pytest.mark.parametrize("partition", ["first_batch", "moving_average"])
def test_a_strange_first_estimate_is_said(partition: str) -> None:
    dim = 128
    one_row = np.tile(unit_rows(1, dim, 0), (700, 1))
    with pytest.warns(UserWarning, match="NCE learns badly"):
        ask(NCE(0.03, 512, partition=partition), one_row[:4], INDICES, bank_of(one_row))
    # a single negative that happens to be the picture itself
    rows = unit_rows(700, dim, 0)
    itself = NCE(0.07, 1, partition=partition, draw=lambda count: torch.tensor([3]))
    with pytest.warns(UserWarning, match="Take more negatives"):
        ask(itself, rows[[3, 3, 3, 3]], [3, 3, 3, 3], bank_of(rows))


@pytest.mark.fault("Z estimated from a collapsed first batch: NCE must say so, or not be hurt")
def test_the_exact_partition_of_a_collapsed_bank_is_not_hurt() -> None:
    rows = np.tile(unit_rows(1, 128, 0), (700, 1))
    objective = NCE(0.07, 512, partition="exact")
    loss, _ = ask(objective, rows[:4], INDICES, bank_of(rows))
    # every row is equally likely: P = 1/n, the logit is -log m
    assert loss == pytest.approx(math.log1p(512) + 512 * math.log1p(1 / 512), rel=1e-4)


@pytest.mark.parametrize("dim", [2, 8, 32, 128])
@pytest.mark.parametrize("temperature", [0.05, 0.07, 0.1, 0.3])
def test_an_ordinary_start_warns_of_nothing(dim: int, temperature: float) -> None:
    bank = MemoryBank(5000, dim, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NCE(temperature, 4096)(tensor_of(unit_rows(64, dim, 1)), torch.arange(64), bank)


# ------------------------------------------------------------ several ranks


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("way", ["nce", "nce_average", "nce_private", "nce_exact"])
def test_several_ranks_are_one(world: int, way: str) -> None:
    for what, tolerance in {"loss": 3e-6, "gradient": 3e-6, "rows": 0}.items():
        ours, one = joined(world)[f"{way}.{what}"], joined(1)[f"{way}.{what}"]
        torch.testing.assert_close(ours, one, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("way", ["nce", "nce_average", "nce_private"])
def test_every_rank_has_the_partition_of_the_global_batch(world: int, way: str) -> None:
    (one,) = tour(1)
    every = tour(world)
    for facts in every:
        assert torch.equal(facts[f"{way}.log_partition"], every[0][f"{way}.log_partition"])
        torch.testing.assert_close(facts[f"{way}.log_partition"], one[f"{way}.log_partition"], rtol=1e-6, atol=1e-6)
        assert facts[f"{way}.estimated_at"] == one[f"{way}.estimated_at"] == (0 if way == "nce" else 2)


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match="temperature"):
        NCE(0.0)
    with pytest.raises(InputError, match="at least one negative"):
        NCE(0.1, 0)
    unchecked = inspect.unwrap(NCE.__init__)  # under pytest the type checker would speak first
    with pytest.raises(InputError, match="first_batch, moving_average or exact"):
        unchecked(NCE(), partition="guess")
