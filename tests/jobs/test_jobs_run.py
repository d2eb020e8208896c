"""One opened run: what its folder says is read once, and never again by whoever is handed it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import picture_folder, tiny

import instdisc
from instdisc.errors import InputError
from instdisc.jobs.collection import Collection
from instdisc.jobs.label import assign
from instdisc.jobs.run import Run
from instdisc.jobs.train import train

COUNT = 24


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("run")
    pictures = picture_folder(folder / "pictures", COUNT)
    return pictures, train(pictures, folder / "run", tiny(epochs=2), say=None).path


def test_it_gives_what_the_files_say(run: Path) -> None:
    opened = Run(run)
    assert opened.source().location(int(opened.rows[3])) == Collection(run).location(3)
    assert len(opened.rows) == COUNT and opened.facts["data"]["rows"] == COUNT
    state = instdisc.load(run).state_dict()
    assert all(torch.equal(values, state[name]) for name, values in opened.encoder("cpu").state_dict().items())
    assert opened.checkpoint.step == max(
        int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")
    )
    assert not opened.given and opened.path == run


def test_what_was_read_stays_though_the_folder_goes(run: Path) -> None:
    opened = Run(run)
    rows, encoder = opened.rows, opened.encoder("cpu")
    vectors = Collection(opened).index.vectors(np.arange(COUNT))
    shutil.rmtree(run)
    again = Collection(opened)
    assert again.saved is opened.checkpoint and again.encoder("cpu") is encoder and again.rows is rows
    assert len(vectors) == COUNT
    with pytest.raises(InputError, match="There is no run folder at"):
        Run(run)


def test_labels_by_hand_are_those_of_now(run: Path) -> None:
    """They change while a run is open: the page, and `instdisc label` beside it."""
    opened = Run(run)
    assert opened.hand_labels() == {}
    path = Collection(opened).location(0)
    assign(run, {path: "cat"}, say=None)
    with open(run / "labels" / "hand.csv", newline="") as lines:
        expected = {line["path"]: (line["label"], line["time"]) for line in csv.DictReader(lines)}
    assert opened.hand_labels() == expected and expected[path][0] == "cat"


def test_a_run_without_a_checkpoint_says_so(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    opened = Run(run)
    assert opened.last_checkpoint is None
    for asked in (lambda: opened.checkpoint, lambda: opened.encoder("cpu"), lambda: Collection(opened)):
        with pytest.raises(InputError, match="holds no whole checkpoint yet: train it first, or resume it"):
            asked()


def test_pictures_that_have_gone_are_not_looked_for_at_once_again(run: Path, tmp_path: Path) -> None:
    opened = Run(run, train_source=str(tmp_path / "nowhere"))
    for _ in range(2):
        with pytest.raises(InputError, match="nowhere"):
            opened.source()
    with pytest.raises(InputError, match="nowhere"):
        opened.has_pictures()  # the person named the place: that it is wrong must be seen


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        Run(tmp_path)
