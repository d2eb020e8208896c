"""A constant for Z from the first batch: when it is left behind, that this is said once, and what it costs."""

from __future__ import annotations

import math
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import unit_rows
from several_ranks import run_on_ranks
from tiny_runs import made_pictures, outcome, tiny, training_in
from torch.nn.functional import normalize

from instdisc import ranks
from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.jobs.train import train
from instdisc.objectives import NCE
from instdisc.training import Training

COUNT, DIM, TEMPERATURE, NEGATIVES, BATCH = 200, 16, 0.2, 64, 8
LEFT_BEHIND = "NCE's constant for Z is left behind"


def features_of(step: int, together: bool) -> torch.Tensor:
    """Unit features of a global batch: all near one place, or anywhere on the sphere."""
    spread = unit_rows(BATCH, DIM, step)
    rows = spread * 0.1 + unit_rows(1, DIM, 10_000) if together else spread
    return normalize(torch.from_numpy(rows).float(), dim=1)


def indices_of(step: int) -> torch.Tensor:
    return (torch.arange(BATCH) + BATCH * step) % COUNT


def steps(objective: NCE, bank: MemoryBank, first: int, last: int, together: bool) -> list[float]:
    """The loss of each of these steps, the bank renewed as the training loop does; each rank brings its share."""
    begin, end = ranks.share(BATCH)
    losses = []
    for step in range(first, last):
        features, indices = features_of(step, together)[begin:end], indices_of(step)[begin:end]
        losses.append(float(objective(features, indices, bank)))
        bank.update(indices, features)
    return losses


def fixed(partition: Any = "first_batch", **more: Any) -> tuple[NCE, MemoryBank]:
    return NCE(TEMPERATURE, NEGATIVES, partition=partition, **more), MemoryBank(COUNT, DIM, seed=1)


def slow_run(count: int, noise: list[np.ndarray]) -> tuple[list[float], list[float]]:
    """Eq 7 and 8 in float64: losses with the first batch's Z, and the estimate of Z of each step."""
    rows = MemoryBank(COUNT, DIM, seed=1).rows.double().numpy()
    losses, estimates = [], []
    for step in range(count):
        features, indices = features_of(step, True).double().numpy(), indices_of(step).numpy()
        drawn = np.exp(features @ rows[noise[step]].T / TEMPERATURE)
        estimates.append(float((COUNT / NEGATIVES * drawn.sum(1)).mean()))
        own = np.exp((features * rows[indices]).sum(1) / TEMPERATURE) / estimates[0]
        others, weight = drawn / estimates[0], NEGATIVES / COUNT
        h_own, h_others = own / (own + weight), others / (others + weight)
        losses.append(float(np.mean(-np.log(h_own) - np.log(1 - h_others).sum(1))))
        moved = 0.5 * rows[indices] + 0.5 * features
        rows[indices] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return losses, estimates


def test_it_is_watched_and_the_loss_does_not_know() -> None:
    """Every tenth estimate, averaged with weight 0.99 to the tenth; said at the hundredth step, and only there."""
    generator = np.random.default_rng(3)
    noise = [generator.integers(0, COUNT, NEGATIVES) for _ in range(201)]
    objective, bank = fixed(draw=lambda count: torch.from_numpy(noise[bank.updates]))
    found = steps(objective, bank, 0, 100, together=True)
    assert objective.left_behind_at == -1
    with pytest.warns(UserWarning, match=f"{LEFT_BEHIND} after 100 steps.*--set partition=moving_average") as said:
        found += steps(objective, bank, 100, 121, together=True)
    losses, estimates = slow_run(121, noise)
    np.testing.assert_allclose(found, losses, rtol=2e-5)
    average, momentum = estimates[0], 0.99**10
    for step in range(0, 121, 10):
        average = momentum * average + (1 - momentum) * estimates[step]
        if step == 100:
            assert f"the estimate is {average / estimates[0]:,.0f} times" in str(said[0].message)
    assert objective.recent_log_partition.exp().item() == pytest.approx(average, rel=1e-4)
    assert objective.log_partition.exp().item() == pytest.approx(estimates[0], rel=1e-5)
    assert len(said) == 1 and objective.left_behind_at == 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(objective, bank, 121, 201, together=True)


@pytest.mark.parametrize("noise", ["shared", "private"])
def test_where_vectors_stay_apart_nothing_is_said(noise: Any) -> None:
    """Nor by any other way to know Z, nor in evaluation, whatever happens."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(*fixed(noise=noise), 0, 201, together=False)
        for partition in ("moving_average", "exact"):
            steps(*fixed(partition, noise=noise), 0, 101, together=True)
        objective, bank = fixed(noise=noise)
        steps(objective, bank, 0, 100, together=True)
        before = {name: value.clone() for name, value in objective.state_dict().items()}
        steps(objective.eval(), bank, 100, 101, together=True)
        assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())


def test_the_parts_of_one_step_are_watched_once() -> None:
    objective, bank = fixed()
    steps(objective, bank, 0, 20, together=True)
    objective(features_of(20, True), indices_of(20), bank)
    once = objective.recent_log_partition.clone()
    objective(features_of(21, True), indices_of(21), bank)
    assert torch.equal(objective.recent_log_partition, once)


@pytest.mark.fault("a counter beside the bank is not saved: resume starts from noise")
@pytest.mark.parametrize("at", [55, 100, 101, 130])
def test_a_resumed_objective_watches_on_and_says_it_once_in_all(at: int) -> None:
    said = []
    states = []
    for stopped in (True, False):
        objective, bank = fixed()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses = steps(objective, bank, 0, at, together=True)
            if stopped:
                state = {name: value.clone() for name, value in objective.state_dict().items()}
                objective = fixed()[0]
                objective.load_state_dict(state)
            losses += steps(objective, bank, at, 201, together=True)
        said.append([str(one.message) for one in caught])
        states.append((losses, {name: value.item() for name, value in objective.state_dict().items()}))
    assert said[0] == said[1] and len(said[0]) == 1
    assert states[0] == states[1]


def test_a_checkpoint_from_before_the_watch_is_taken() -> None:
    objective, bank = fixed()
    steps(objective, bank, 0, 55, together=True)
    old = {name: objective.state_dict()[name] for name in ("log_partition", "estimated_at")}
    resumed = fixed()[0]
    resumed.load_state_dict(old)
    assert math.isnan(resumed.recent_log_partition) and resumed.left_behind_at == -1
    with pytest.warns(UserWarning, match=LEFT_BEHIND):
        assert steps(resumed, bank, 55, 201, together=True)
    assert resumed.log_partition == objective.log_partition
    with pytest.raises(RuntimeError, match="log_partition"):
        fixed()[0].load_state_dict({})


def by_this_rank() -> dict[str, Any]:
    objective, bank = fixed()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps(objective, bank, 0, 101, together=True)
    return {
        "said": len(caught),
        "at": objective.left_behind_at,
        "recent": objective.recent_log_partition,
        "constant": objective.log_partition,
    }


def test_two_ranks_watch_as_one_and_one_of_them_says_it() -> None:
    one, two = by_this_rank(), run_on_ranks(2, by_this_rank)
    assert [facts["said"] for facts in two] == [1, 0] and one["said"] == 1
    for facts in two:
        assert facts["at"] == one["at"] == 100
        for name in ("recent", "constant"):
            assert torch.equal(facts[name], two[0][name])
            torch.testing.assert_close(facts[name], one[name], rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------ in a run


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_with_a_constant_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    settings = tiny(objective="nce", partition="first_batch", temperature=0.3, epochs=6, accumulate=accumulate)
    training = training_in(tmp_path / "run", settings)
    step = training.step

    def pressed(*arguments: Any) -> dict[str, torch.Tensor]:
        if training.step_number == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(training, "step", pressed)
    training.fit()
    again, through = training_in(tmp_path / "run", settings), training_in(tmp_path / "through", settings)
    assert again.resume()
    for run in (again, through):
        run.fit()
    for name, values in outcome(through).items():
        assert torch.equal(outcome(again)[name], values), name
    states = [{name: value.item() for name, value in run.terms.state_dict().items()} for run in (again, through)]
    assert states[0] == states[1] and states[0]["nce.estimated_at"] == 0


def test_metrics_hold_the_constant_and_where_z_is_now(tmp_path: Path) -> None:
    for partition in ("first_batch", "moving_average", "exact"):
        settings = tiny(objective="nce", partition=partition, temperature=0.3)
        run = train(made_pictures(67), tmp_path / partition, settings, say=None)
        lines = [line for line in run.metrics() if "loss" in line]
        constants = {line.get("log_partition") for line in lines}
        assert len(constants) == {"first_batch": 1, "moving_average": len(lines), "exact": 1}[partition]
        assert (None in constants) == (partition == "exact")
        watched = [line["recent_log_partition"] for line in lines if "recent_log_partition" in line]
        assert len(watched) == (len(lines) if partition == "first_batch" else 0)


@pytest.mark.parametrize("objective", ["nce", "softmax"])
def test_a_run_from_when_the_constant_was_the_default_goes_on_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """The command of such a run names no partition; what it names is compared as any other setting."""
    step, pictures = Training.step, made_pictures(67)
    plain = tiny(objective=objective, temperature=0.3).to_dict()
    del plain["partition"], plain["preset"], plain["minutes"]

    def stopping(training: Training, *arguments: Any) -> Any:
        if training.step_number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(training, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", stopping)
        train(pictures, tmp_path / "run", "paper_cifar10", partition="first_batch", say=None, **plain)
    with pytest.raises(InputError, match="partition: first_batch there, moving_average here"):
        train(pictures, tmp_path / "run", "paper_cifar10", resume=True, partition="moving_average", say=None, **plain)
    said: list[str] = []
    run = train(pictures, tmp_path / "run", "paper_cifar10", resume=True, say=said.append, **plain)
    assert run.finished
    assert any("Z by first_batch" in line for line in said) == (objective == "nce")
    if objective == "nce":
        assert len({line["log_partition"] for line in run.metrics() if "loss" in line}) == 1


# ------------------------------------------------------------ what it costs


def learned(partition: Any, seed: int) -> tuple[float, float]:
    """The last loss, and how many pictures' ten nearest rows vote for their class, after ten epochs of SGD.

    Six classes of 100, seen through one linear layer whose outputs start close together, as a fresh network's do.
    """
    generator = torch.Generator().manual_seed(seed)
    labels, centres = torch.arange(600) % 6, 0.5 * torch.randn(6, 24, generator=generator)
    inputs = 2 * torch.randn(24, generator=generator) + centres[labels]
    weight = (torch.randn(24, 16, generator=generator) / 24**0.5).requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=0.03, momentum=0.9)
    bank, objective = MemoryBank(600, 16, momentum=0.5, seed=seed), NCE(0.1, 256, partition=partition, seed=seed)
    for _ in range(10):
        for indices in torch.randperm(600, generator=generator).split(32):
            noise = 0.6 * torch.randn(len(indices), 24, generator=generator)
            features = normalize((inputs[indices] + noise) @ weight, dim=1)
            loss = objective(features, indices, bank)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bank.update(indices, features.detach())
    nearest = (bank.rows @ bank.rows.T).fill_diagonal_(-1).topk(10).indices
    return float(loss.detach()), float((labels[nearest].mode(1).values == labels).float().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_sgd_learns_where_z_is_followed_and_not_where_it_is_left_behind(seed: int) -> None:
    loss, accuracy = learned("moving_average", seed)
    assert loss < 10 and accuracy > 0.95
    with pytest.warns(UserWarning, match=LEFT_BEHIND):
        loss, accuracy = learned("first_batch", seed)
    assert loss > 50 and accuracy < 0.75
