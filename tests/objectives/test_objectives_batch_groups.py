"""Groups within a batch against slow loops, finite differences and scikit-learn's k-means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import agrees_with, ask, bank_of, tensor_of, unit_rows
from sklearn.cluster import KMeans
from tiny_runs import picture_folder, tiny

import instdisc
from instdisc import train
from instdisc.bank import MemoryBank
from instdisc.errors import InputError
from instdisc.objectives import BatchGroups
from instdisc.runs import RunFolder
from instdisc.training import Settings

PICTURES = np.array([7, 3, 9, 1, 5, 0])
BANK = bank_of(unit_rows(10, 4, 0))


def normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def grouped(rows: np.ndarray, groups: int) -> np.ndarray:
    """The group of each row: k-means by cosine from the first rows on, one row and one group at a time."""
    centres = [row.copy() for row in rows[:groups]]
    for _ in range(5):
        group = [int(np.argmax([row @ centre for centre in centres])) for row in rows]
        for number in range(groups):
            members = [row for row, own in zip(rows, group, strict=True) if own == number]
            total = np.sum(members, axis=0) if members else np.zeros(rows.shape[1])
            centres[number] = total / max(np.linalg.norm(total), 1e-12)
    return np.array([int(np.argmax([row @ centre for centre in centres])) for row in rows])


def slow_loss(weight: np.ndarray, pooled: np.ndarray, groups: int, temperature: float) -> float:
    """Two views of every picture, the second half the second views."""
    heads = np.split(normalised(pooled @ weight.T), 2)
    losses = []
    for asking, telling in (heads, heads[::-1]):
        group = grouped(telling, groups)
        means = {number: telling[group == number].mean(axis=0) for number in set(group.tolist())}
        for row, own in zip(asking, group.tolist(), strict=True):
            weights = {number: np.exp(row @ mean / temperature) for number, mean in means.items()}
            losses.append(-np.log(weights[own] / sum(weights.values())))
    return float(np.mean(losses))


@pytest.mark.parametrize("groups", [2, 3])
def test_loss_and_gradient_are_the_equations(groups: int) -> None:
    term = BatchGroups(6, groups, 0.3, dim=4, seed=1)
    weight = term.head.weight.detach().double().numpy()
    pooled = unit_rows(12, 6, 2) + 0.1
    agrees_with(
        lambda asked: slow_loss(weight, asked, groups, 0.3), term, pooled, np.concatenate([PICTURES, PICTURES]), BANK
    )


def test_groups_that_are_plain_to_see_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth = np.concatenate([np.arange(4), random.integers(0, 4, 60)])  # one of each group comes first
    rows = normalised(4 * np.eye(8)[truth] + 0.3 * random.standard_normal((64, 8)))
    group, means, empty = BatchGroups(8, 4)._grouped(tensor_of(rows), torch.tensor(len(rows)))
    assert not empty.any()
    own = KMeans(4, init=rows[:4], n_init=1).fit(rows)
    assert np.array_equal(group.numpy(), own.labels_)
    np.testing.assert_allclose(means.numpy(), own.cluster_centers_, atol=1e-5)


def test_it_does_not_matter_where_in_the_batch_views_stand() -> None:
    """As on several ranks, where each has its own first and second views."""
    term = BatchGroups(6, 3, seed=1)
    pooled = unit_rows(12, 6, 2)
    loss, gradient = ask(term, pooled, np.concatenate([PICTURES, PICTURES]), BANK)
    mixed = [0, 1, 6, 7, 2, 3, 4, 5, 8, 9, 10, 11]
    other, other_gradient = ask(term, pooled[mixed], np.concatenate([PICTURES, PICTURES])[mixed], BANK)
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    np.testing.assert_allclose(other_gradient, gradient[mixed], atol=1e-7)


def test_a_third_view_takes_no_part() -> None:
    term = BatchGroups(6, 3, seed=1)
    loss, _ = ask(term, unit_rows(12, 6, 2), np.tile(PICTURES, 2), BANK)
    more = np.concatenate([unit_rows(12, 6, 2), unit_rows(6, 6, 3)])
    again, gradient = ask(term, more, np.tile(PICTURES, 3), BANK)
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    assert not gradient[12:].any() and gradient[:12].any()


def test_alike_pictures_cost_less_in_a_group_than_apart() -> None:
    """Four kinds of pictures: with four groups each view finds its own, whichever picture of the kind it is."""
    kinds = np.eye(6)[np.tile([0, 1, 2, 3], 4)]
    term = BatchGroups(6, 4, 0.1, dim=6, seed=0)
    torch.nn.init.eye_(term.head.weight)
    pictures = np.tile(np.arange(16), 2)
    loss, _ = ask(term, np.concatenate([kinds, kinds]), pictures, MemoryBank(16, 4))
    wrong, _ = ask(term, np.concatenate([kinds, np.roll(kinds, 1, axis=0)]), pictures, MemoryBank(16, 4))
    assert loss < 0.001 and wrong > 5


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: BatchGroups(6, 1), "two groups or more"),
        (lambda: BatchGroups(6, 4, temperature=0), "temperature"),
        (lambda: ask(BatchGroups(6, 2), unit_rows(6, 6, 0), PICTURES, BANK), "set views to 2"),
        (lambda: Settings(groups=4), "set views to 2"),
        (lambda: Settings(groups=1, views=2), "2 or more, or 0"),
        (lambda: Settings(groups=4, views=2, group_from=1.0), "fraction of the run"),
        (lambda: Settings(groups=4, views=2, group_weight=-1.0), "must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(made, words: str) -> None:
    with pytest.raises(InputError, match=words):
        made()


def test_a_run_with_groups_begins_them_late(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "pictures", 60)
    settings = tiny(views=2, view_share=0.5, epochs=4, batch=20, groups=4, group_from=0.5, optimizer="muon", lr=0.02)
    whole = train(source, tmp_path / "whole", settings, say=None)
    values = [line["losses"]["groups"] for line in whole.metrics() if "losses" in line]
    half = len(values) // 2
    assert not any(values[:half]) and all(values[half:]), "from half of the run on"
    assert RunFolder(whole.path).read_config()["settings"]["groups"] == 4
    without = train(source, tmp_path / "without", replace(settings, groups=0), say=None)
    first, second = (instdisc.load(run.path).backbone.state_dict() for run in (whole, without))
    assert any(not torch.equal(first[name], second[name]) for name in first), "the backbone learns from it"
