"""The softmax among the views of a batch against slow loops, finite differences, and one process against several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import agrees_with, ask, bank_of, tensor_of, unit_rows
from several_ranks import joined

from instdisc import objectives
from instdisc.errors import InputError
from instdisc.objectives import NTXent

TWO_VIEWS = np.array([3, 49, 0, 3, 49, 0])
THREE_VIEWS = np.array([3, 3, 3, 49, 49, 0, 0])  # three of one picture, two of the others


def slow_loss(features: np.ndarray, indices: np.ndarray, noise: np.ndarray, temperature: float) -> float:
    """For each view f and each other view f' of its picture: -log of exp(f . f') among itself, the views of other
    pictures, and the noise rows that are not the picture's own; `noise` is a list of (owner, row)."""
    losses = []
    for place, (feature, index) in enumerate(zip(features, indices, strict=True)):
        against = [np.exp(features[k] @ feature / temperature) for k in range(len(features)) if indices[k] != index]
        against += [np.exp(row @ feature / temperature) for owner, row in noise if owner != index]
        positives = [
            np.exp(features[k] @ feature / temperature)
            for k in range(len(features))
            if indices[k] == index and k != place
        ]
        losses.append(np.mean([-np.log(positive / (positive + sum(against))) for positive in positives]))
    return float(np.mean(losses))


@pytest.mark.fault("a view of the same image counted as a negative by accident")
@pytest.mark.fault("the image's own row counted as a negative by accident")
@pytest.mark.parametrize("indices", [TWO_VIEWS, THREE_VIEWS], ids=["two", "three"])
@pytest.mark.parametrize("negatives", [0, 5])
def test_loss_and_gradient_are_the_equations(indices: np.ndarray, negatives: int) -> None:
    """The gradient reaches a feature as the one that asks, as the positive and as a negative of others."""
    rows, features = unit_rows(50, 6, 0), unit_rows(len(indices), 6, 1)
    drawn = np.array([3, 3, 7, 0, 12])[:negatives]
    agrees_with(
        lambda asked: 0.5 * slow_loss(asked, indices, [(row, rows[row]) for row in drawn], 0.2),
        NTXent(0.2, negatives, weight=0.5, draw=lambda count: tensor_of(drawn)),
        features,
        indices,
        bank_of(rows),
    )


def test_one_picture_alone_has_nothing_to_be_told_from() -> None:
    loss, gradient = ask(NTXent(0.2, 0), unit_rows(2, 6, 1), np.array([3, 3]), bank_of(unit_rows(50, 6, 0)))
    assert loss == 0
    assert np.array_equal(gradient, np.zeros((2, 6)))


def test_nor_has_one_that_drew_only_itself() -> None:
    alone = NTXent(0.2, 2, draw=lambda count: torch.full((count,), 3))
    loss, gradient = ask(alone, unit_rows(2, 6, 1), np.array([3, 3]), bank_of(unit_rows(50, 6, 0)))
    assert loss == 0
    assert np.array_equal(gradient, np.zeros((2, 6)))


def test_a_low_temperature_is_computed_in_log_space() -> None:
    features = unit_rows(6, 6, 1)
    features[3:] = -features[:3]  # the other view is as far away as can be: 400 nats
    loss, gradient = ask(NTXent(0.005, 0), features, TWO_VIEWS, bank_of(unit_rows(50, 6, 0)))
    assert np.isfinite(gradient).all()
    scores = features @ features.T / 0.005
    expected = []
    for place in range(6):
        others = scores[place, TWO_VIEWS[place] != TWO_VIEWS]
        expected.append(np.logaddexp.reduce([*others, scores[place, (place + 3) % 6]]) - scores[place, (place + 3) % 6])
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-6)


def test_one_view_a_picture_is_told() -> None:
    with pytest.raises(InputError, match="views to 2 or more"):
        ask(NTXent(0.2, 0), unit_rows(3, 6, 1), np.array([3, 3, 4]), bank_of(unit_rows(50, 6, 0)))


@pytest.mark.fault("`all_reduce` without a backward: gradient off by 1/world_size though the loss is right")
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("way", ["views", "views_alone"])
def test_several_ranks_are_one_though_views_stand_on_different_ranks(world: int, way: str) -> None:
    """A feature's gradient is the sum of what every rank's loss says of it."""
    for what, tolerance in {"loss": 3e-6, "gradient": 3e-6, "rows": 0}.items():
        ours, one = joined(world)[f"{way}.{what}"], joined(1)[f"{way}.{what}"]
        torch.testing.assert_close(ours, one, rtol=tolerance, atol=tolerance)


def test_its_former_name_still_works() -> None:
    assert objectives.ViewSoftmax is NTXent
