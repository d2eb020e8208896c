"""Fine-tuning on a few labels: it learns what it is given, leaves the encoder alone, and is the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoders import tiny
from tiny_runs import picture_folder

from instdisc.data.augment import Augmentation
from instdisc.data.loading.dataset import Pictures, open_pictures
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.evaluation.semi import FineTuning

VIEW = Augmentation(size=32, scale=(0.5, 1.0), flip=0.5, jitter=0.0, grey=0.0, blur=0.0)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pictures, np.ndarray]:
    """Pictures of a few classes, which their colours tell apart, and the class of each."""
    source = open_source(picture_folder(tmp_path_factory.mktemp("semi") / "pictures", 90))
    assert source.labels is not None
    pictures = open_pictures(source, 32, "cpu", storage="memory")
    return pictures, source.labels[pictures.rows]


def test_it_learns_from_the_labelled_pictures_alone(collection: tuple[Pictures, np.ndarray]) -> None:
    pictures, labels = collection
    encoder = tiny()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    some = np.sort(np.random.default_rng(0).permutation(90)[:45])
    rest = np.setdiff1d(np.arange(90), some)
    tuned = FineTuning(VIEW, epochs=15, rate=3e-3).fit(encoder, pictures, some, labels[some])
    asked = np.full(90, -1)
    asked[rest] = labels[rest]
    assert tuned.accuracy(pictures, asked) > 0.9, "colours are easy"
    assert np.array_equal(tuned.predict(pictures, rest), tuned.predict(pictures, rest[::-1].copy())[::-1])
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), "the encoder that was given is left as it is"
    wrong = FineTuning(VIEW, epochs=15, rate=3e-3).fit(encoder, pictures, some, (labels[some] + 1) % (labels.max() + 1))
    assert wrong.accuracy(pictures, asked) < 0.1, "it says what it was taught"


def test_a_label_that_is_not_sure_teaches_less(collection: tuple[Pictures, np.ndarray]) -> None:
    """Half of the names are wrong, and say so by their weight: as if they were not there."""
    pictures, labels = collection
    order = np.random.default_rng(0).permutation(90)
    wrong = order[45:]
    names, sure = labels.copy(), np.ones(90)
    names[wrong] = (labels[wrong] + 1) % (labels.max() + 1)
    sure[wrong] = 0.02
    reached = [
        FineTuning(VIEW, epochs=15, rate=3e-3).fit(tiny(), pictures, order, names[order], weights)
        for weights in (sure[order], np.ones(90))
    ]
    believing, doubting = (tuned.accuracy(pictures, labels) for tuned in reversed(reached))
    assert doubting > 0.9 > believing


def test_in_half_precision_it_learns_as_well(collection: tuple[Pictures, np.ndarray]) -> None:
    """Pictures are cut and resized in float32; only the network is in half precision."""
    pictures, labels = collection
    some = np.arange(0, 90, 2)
    tuned = FineTuning(VIEW, epochs=15, rate=3e-3, precision="bfloat16").fit(tiny(), pictures, some, labels[some])
    assert tuned.accuracy(pictures, labels) > 0.9


def test_the_same_again(collection: tuple[Pictures, np.ndarray]) -> None:
    pictures, labels = collection
    some = np.arange(0, 90, 3)
    first, second = (FineTuning(VIEW, epochs=2).fit(tiny(), pictures, some, labels[some]) for _ in range(2))
    for one, other in zip(first.network_.parameters(), second.network_.parameters(), strict=True):
        assert torch.equal(one, other)
    other_draws = FineTuning(VIEW, epochs=2, seed=1).fit(tiny(), pictures, some, labels[some])
    assert not torch.equal(first.network_.top.weight, other_draws.network_.top.weight)


@pytest.mark.fault("labels that are not 0..C-1 crash or give wrong counts")
def test_labels_may_be_any_whole_numbers(collection: tuple[Pictures, np.ndarray]) -> None:
    pictures, labels = collection
    some = np.arange(0, 90, 2)
    named = labels[some] * 7 + 3
    tuned = FineTuning(VIEW, epochs=1).fit(tiny(), pictures, some, named)
    assert set(tuned.predict(pictures, np.arange(90)).tolist()) <= set(named.tolist())


@pytest.mark.parametrize(
    ("settings", "labels", "words"),
    [
        ({"rate": 0.0}, [0, 1, 0], "positive rate"),
        ({"epochs": 0}, [0, 1, 0], "at least one epoch"),
        ({}, [2, 2, 2], "fewer than two"),
    ],
)
def test_what_cannot_be_is_refused(
    collection: tuple[Pictures, np.ndarray], settings: dict[str, float], labels: list[int], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        FineTuning(VIEW, **settings).fit(tiny(), collection[0], np.arange(3), np.array(labels))


def test_no_label_no_accuracy(collection: tuple[Pictures, np.ndarray], tmp_path: Path) -> None:
    pictures, labels = collection
    tuned = FineTuning(VIEW, epochs=1).fit(tiny(), pictures, np.arange(90), labels)
    with pytest.raises(InputError, match="No test picture has a label"):
        tuned.accuracy(pictures, np.full(90, -1))
