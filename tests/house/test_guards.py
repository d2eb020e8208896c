"""Hot paths against slipping: how many numbers they take fresh memory for, and how many operations they are.

Counted, not timed, so that they hold on any machine. Each bound is what was counted when it was written and a half: a
copy of the batch more is a whole. Who makes a path cheaper writes the new bound here; test_bank_cost.py has the sums
over the bank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from by_hand import Work
from tiny_runs import tiny, training_in
from torch.nn.functional import normalize

from instdisc import neighbours
from instdisc.bank import MemoryBank
from instdisc.data import augment
from instdisc.data.augment import Augmentation
from instdisc.search import pairs


@pytest.fixture(autouse=True)
def the_same_way_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (neighbours, pairs):
        monkeypatch.setattr(module, "fp16_is_faster", lambda device: False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(count: int, dim: int = 128) -> torch.Tensor:
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(count)), dim=1)


def augmented(size: int, stored: int, batch: int) -> Callable[[], torch.Tensor]:
    images = torch.randint(0, 256, (batch, 3, stored, stored), dtype=torch.uint8)
    if size > 48:
        images = images.contiguous(memory_format=torch.channels_last)
    augmentation = Augmentation(size)
    return lambda: augmentation(images, torch.arange(batch), torch.ones(batch), seed=0, step=0)


def by_torch(make: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The augmentation as it goes where Numba is not installed."""

    def run() -> torch.Tensor:
        with patch.object(augment, "_fused", lambda: None):
            return make()

    return run


def updated(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    bank, features = MemoryBank(20_000, dtype=dtype), rows(64)
    return lambda: (bank.update(torch.arange(64), features), features)[1]


def asked(queries: int) -> Callable[[], torch.Tensor]:
    """A block of rows looked at by some queries. The result stands for their scores."""
    among = rows(16_384)
    scores = torch.empty(queries, len(among))
    return lambda: (neighbours.top_k(among[:queries], among, 10), scores)[1]


def paired() -> Callable[[], torch.Tensor]:
    """All pairs of a block of rows. The result stands for their scores."""
    own, scores = pairs.Vectors.of(rows(4096)), torch.empty(4096, 4096)
    return lambda: (pairs.similar_pairs(own, 0.95), scores)[1]


# What is done -> numbers that torch made for each number of the result, operations.
PATHS: dict[str, tuple[Callable[[], Callable[[], torch.Tensor]], float, int]] = {
    "augment 32 px": (lambda: augmented(32, 32, 64), 5.05, 171),
    "augment 32 px by torch": (lambda: by_torch(augmented(32, 32, 64)), 13.75, 416),
    "augment 96 px": (lambda: augmented(96, 110, 32), 3.03, 182),
    "augment 96 px by torch": (lambda: by_torch(augmented(96, 110, 32)), 12.3, 671),
    "augment 224 px": (lambda: augmented(224, 256, 8), 3.0, 134),
    "augment 224 px by torch": (lambda: by_torch(augmented(224, 256, 8)), 7.0, 656),
    "update": (lambda: updated(torch.float32), 10.1, 27),
    "update int8": (lambda: updated(torch.int8), 16.2, 43),
    "one query": (lambda: asked(1), 1.1, 26),
    "many queries": (lambda: asked(300), 1.1, 72),
    "all pairs": (paired, 2.1, 143),
}


@pytest.mark.parametrize("name", PATHS)
def test_no_copy_more_and_no_operation_more(name: str) -> None:
    make, numbers, operations = PATHS[name]
    act = make()
    act()  # what is made once stands now
    with Work() as work:
        result = act()
    made, done = work.numbers / result.numel(), sum(work.operations.values())
    assert numbers - 0.5 < made < numbers + 0.5
    assert 0.8 * operations <= done <= 1.2 * operations


def test_the_guards_see_a_copy_more(monkeypatch: pytest.MonkeyPatch) -> None:
    true = neighbours._products
    monkeypatch.setattr(neighbours, "_products", lambda queries, rows: true(queries, rows).clone())
    for name in ("one query", "many queries"):
        with pytest.raises(AssertionError):
            test_no_copy_more_and_no_operation_more(name)


OBJECTIVES = [
    {"objective": "softmax"},
    {"objective": "sampled"},
    {"objective": "nce", "partition": "moving_average"},
    {"objective": "nce", "proximal": 1, "views": 2},
]


@pytest.mark.parametrize("recipe", OBJECTIVES, ids=lambda recipe: "-".join(map(str, recipe.values())))
def test_a_step_has_no_operation_for_each_picture_of_the_batch_or_of_the_bank(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    """The fault of peers: a loop over the pictures of the batch, a matrix for each instance."""
    done, made = {}, {}
    for count, batch in ((64, 16), (64, 32), (640, 32)):
        settings = tiny(batch=batch, fill_epochs=0, **recipe)
        training = training_in(tmp_path / f"{count}-{batch}", settings, count)
        steps = training._steps_of(0, 0)
        training.step(*next(steps))
        with Work() as work:
            training.step(*next(steps))
        done[count, batch], made[count, batch] = sum(work.operations.values()), work.numbers
    assert done[64, 16] == done[64, 32] == done[640, 32]
    assert made[64, 32] < 2.1 * made[64, 16]
    # The bank has 576 rows more: at most a few scores of each with the batch, and no copy of a row for each picture.
    assert made[640, 32] - made[64, 32] <= 576 * 32 * 4
