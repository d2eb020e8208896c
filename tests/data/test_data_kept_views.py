"""Features in the place of pixels: which part of a row a step is given."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from instdisc.data.loading.kept import KeptViews
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.sources.open import open_source

COUNT, VIEWS, CHANNELS = 12, 3, 2
LEVELS = {"stage std": 3, "backbone": CHANNELS}


def kept() -> KeptViews:
    """Row i: levels i.1 and i.2, then views i.4, i.5 and i.6, each number as often as its level is wide."""
    tenths = np.repeat([0.1, 0.2, 0.4, 0.5, 0.6], [3, CHANNELS, CHANNELS, CHANNELS, CHANNELS])
    features = (np.arange(COUNT)[:, None] + tenths).astype(np.float32)
    source = open_source(np.zeros((COUNT, 4, 4, 3), np.uint8))
    cpu, rows = torch.device("cpu"), np.arange(COUNT)
    return KeptViews(source, Quarantine(), "made", cpu, rows, features, levels=LEVELS, views=VIEWS)


def test_a_batch_has_its_pictures_whole_and_in_views() -> None:
    pictures = kept()
    order = [np.array([7, 2, 11]), np.array([0])]
    first, second = pictures.batches(order)
    assert first.indices.tolist() == [7, 2, 11] and second.indices.tolist() == [0]
    torch.testing.assert_close(pictures.whole(first), torch.tensor([[7.2], [2.2], [11.2]]).expand(3, 2))
    torch.testing.assert_close(pictures.whole_levels(second), torch.tensor([[0.1, 0.1, 0.1, 0.2, 0.2]]))
    pictures.close()


def test_a_steps_views_of_a_picture_are_different_ones_and_each_comes_as_often() -> None:
    pictures = kept()
    (batch,) = pictures.batches([np.arange(COUNT)])
    (alone,) = pictures.batches([np.array([5])])
    seen: Counter[float] = Counter()
    for step in range(200):
        views = torch.stack([pictures.random_view(batch, seed=1, step=step, view=view) for view in range(VIEWS)])
        assert torch.equal(views.floor()[..., 0], torch.arange(COUNT).expand(VIEWS, COUNT).float()), "its own"
        tenths = (views - views.floor()).mul(10).round()
        assert (tenths.sort(0).values[:, :, 0] == torch.tensor([4.0, 5.0, 6.0])[:, None]).all()
        seen.update(tenths[0, :, 0].tolist())
        assert torch.equal(pictures.random_view(alone, seed=1, step=step, view=0), views[0, 5:6]), "in any batch"
    expected, spread = 200 * COUNT / VIEWS, (200 * COUNT * (1 / 3) * (2 / 3)) ** 0.5
    assert all(abs(seen[tenth] - expected) < 4 * spread for tenth in (4.0, 5.0, 6.0))
    pictures.close()
