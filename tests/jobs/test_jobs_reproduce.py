"""The harness that makes the paper's tables: its numbers, what is published, and going on after a stop."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import instdisc
from instdisc.data.decoding.decode import decode
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.jobs import reproduce as jobs_reproduce
from instdisc.jobs.reproduce import markdown, reproduce
from instdisc.jobs.tables import SCALES, TABLES
from instdisc.training.precision import Choice
from instdisc.training.presets import paper_cifar10

QUICK: dict[str, Any] = {"epochs": 1, "width": 4, "batch": 256, "say": lambda _: None}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The table `proximal` with two seeds."""
    folder = tmp_path_factory.mktemp("table")
    return folder, reproduce("proximal", folder, scale="tiny", seeds=2, **QUICK)


@pytest.mark.slow
def test_a_table_holds_what_its_runs_reach(made: tuple[Path, dict[str, Any]]) -> None:
    folder, result = made
    assert [row["name"] for row in result["rows"]] == ["λ = 0", "λ = 10", "λ = 30", "λ = 50"]
    assert json.loads((folder / "table.json").read_text()) == json.loads(json.dumps(result))
    source = open_source("digits")
    pictures, labels = [decode(source.read(row)) for row in range(len(source))], source.labels
    assert labels is not None
    cut = len(labels) - len(labels) // 4
    for row in result["rows"]:
        values = row["knn"]["values"]
        assert row["knn"]["mean"] == pytest.approx(np.mean(values))
        assert row["knn"]["std"] == pytest.approx(np.std(values, ddof=1))
        assert row["published"] == {"knn": None, "svm": None}
    encoder = instdisc.load(next((folder / "runs").glob("*30-1")))
    known, asked = (encoder.embed(part, vectors="embedding") for part in (pictures[:cut], pictures[cut:]))
    alone = instdisc.KNN(200).fit(known, labels[:cut]).score(asked, labels[cut:])
    assert result["rows"][2]["knn"]["values"][1] == pytest.approx(100 * alone, abs=1e-3)


@pytest.mark.slow
def test_the_table_can_be_read_and_seen(made: tuple[Path, dict[str, Any]]) -> None:
    folder, result = made
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[2].startswith("| Weight of the proximal term | kNN | published | linear SVM | published |")
    assert len(lines) == 8 and len({line.count("|") for line in lines[2:]}) == 1
    assert re.search(r"\| λ = 30 \| \d+\.\d ± \d+\.\d \|", lines[6])
    picture = np.asarray(Image.open(folder / "table.png").convert("L"))
    assert picture.shape[1] > picture.shape[0] and (picture < 128).mean() > 0.002
    assert "<svg" in (folder / "table.svg").read_text()
    assert markdown(result | {"seeds": [0]}).startswith("1 seed(s), 1,348 pictures")


@pytest.mark.slow
def test_what_is_finished_is_not_made_again(made: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, result = made

    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run was made again")

    monkeypatch.setattr(jobs_reproduce, "train", trained)
    again = reproduce("proximal", folder, scale="tiny", seeds=2, **QUICK)
    assert again["rows"] == result["rows"]
    one = reproduce("proximal", folder, scale="tiny", seeds=1, **QUICK)
    assert [row["knn"]["values"] for row in one["rows"]] == [row["knn"]["values"][:1] for row in result["rows"]]
    with pytest.raises(InputError, match="made with another lr"):
        reproduce("proximal", folder, scale="tiny", seeds=2, lr=0.01, **QUICK)


@pytest.mark.slow
def test_a_stopped_table_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = QUICK | {"precision": "float32"}
    whole = reproduce("partition", tmp_path / "whole", scale="tiny", seeds=1, **exact)
    original, calls = jobs_reproduce.train, []

    def trained(given: Any, path: Path, *rest: Any, **more: Any) -> Any:
        calls.append(path.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(given, path, *rest, **more)

    monkeypatch.setattr(jobs_reproduce, "train", trained)
    with pytest.raises(KeyboardInterrupt):
        reproduce("partition", tmp_path / "stopped", scale="tiny", seeds=1, **exact)
    assert not (tmp_path / "stopped/table.json").exists()
    resumed = reproduce("partition", tmp_path / "stopped", scale="tiny", seeds=1, **exact)
    assert calls == ["first_batch-0", "moving_average-0", "moving_average-0", "exact-0"]
    assert [row["knn"] for row in resumed["rows"]] == [row["knn"] for row in whole["rows"]]


@pytest.mark.slow
def test_a_trial_decides_the_precision_of_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["bfloat16", "float32"]
    monkeypatch.setattr(jobs_reproduce, "choose_precision", lambda *_: Choice(answers.pop(0), ""))
    for _ in range(2):
        made = reproduce("dimension", tmp_path, scale="tiny", seeds=1, **QUICK)
        assert made["settings"]["precision"] == "bfloat16"
    config = json.loads((tmp_path / "runs/256-0/config.json").read_text())
    assert config["chosen"]["precision"] == "bfloat16" and answers == ["float32"]


def test_shares_of_the_pictures(tmp_path: Path) -> None:
    said: list[str] = []
    result = reproduce("size", tmp_path, scale="tiny", seeds=1, **QUICK | {"say": said.append, "batch": 64})
    assert [row["name"] for row in result["rows"]] == ["10 %", "30 %", "100 %"]
    assert any("Left out: 0.1 %" in line for line in said) and any("Left out: 1 %" in line for line in said)
    config = json.loads((tmp_path / "runs/10-0/config.json").read_text())
    assert config["data"]["rows"] == 135


def test_every_row_of_every_table_is_a_run() -> None:
    for table in TABLES.values():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        for scale in SCALES.values():
            for row in table.rows:
                paper_cifar10().with_overrides(scale.settings(published=False) | row.overrides)
    full = paper_cifar10().with_overrides(SCALES["full"].settings(published=False))
    assert full.differences(paper_cifar10()), "bf16 and compiled"
    published = {row.name: (row.knn, row.svm) for row in TABLES["objectives"].rows}
    assert published["non-parametric softmax"] == (80.8, 75.4) and published["NCE, 4096 negatives"] == (80.4, 70.2)


@pytest.mark.parametrize(("published", "name"), [(False, "partition-cpu"), (True, "partition-cpu-published")])
def test_a_table_by_the_published_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool, name: str
) -> None:
    """What it would train with, where it goes, and what it says; the tables mean NCE whose Z is followed."""
    from tiny_runs import picture_folder

    begun: list[Any] = []

    def trained(given: Any, path: Path, settings: Any, **more: Any) -> Any:
        begun.append((path, settings, more["partition"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs_reproduce, "train", trained)
    monkeypatch.chdir(tmp_path)
    pictures, tests = picture_folder(tmp_path / "pictures", 60), picture_folder(tmp_path / "tests", 21, seed=5)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        reproduce(
            "partition",
            published_optimizer=published,
            source=str(pictures),
            test=str(tests),
            precision="float32",
            epochs=3,
            say=said.append,
        )
    ((path, settings, partition),) = begun
    assert path == Path("runs") / name / "runs/first_batch-0" and settings.preset == name
    assert partition == "first_batch" and (settings.width, settings.epochs) == (32, 3)
    paper = paper_cifar10()
    expected = ("sgd", paper.lr) if published else ("muon", 0.02)
    assert (settings.optimizer, settings.lr) == expected
    assert (
        f"20 epochs, under 90 minutes a table on two cores, {'the published SGD' if published else 'Muon'}" in said[0]
    )
    assert "precision float32, epochs 3" in said[0]
    for table in ("objectives", "proximal"):
        for row in TABLES[table].rows:
            chosen = paper.with_overrides(SCALES["cpu"].settings(published) | row.overrides)
            assert chosen.partition == "moving_average"
    assert jobs_reproduce.name_of("partition", "tiny", published) == "partition-tiny", "its own is the published one"


def test_a_table_begun_when_the_constant_was_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose objective has no Z are taken as they are; of NCE the two are not mixed."""
    found = {}
    exact = QUICK | {"precision": "float32"}

    def trained(given: Any, path: Path, settings: Any, **more: Any) -> Any:
        found[path.name] = settings.to_dict()
        old = {"settings": settings.to_dict() | {"partition": "first_batch"}, "knn": 1.0, "svm": 2.0}
        path.mkdir(parents=True)
        (path / "measured.json").write_text(json.dumps(old | {"minutes": 1, "device": "cpu"}))
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs_reproduce, "train", trained)
    for _ in range(2):  # the parametric row, then the first of NCE
        with pytest.raises(KeyboardInterrupt):
            reproduce("objectives", tmp_path, scale="tiny", seeds=1, **exact)
    assert list(found) == ["parametric_softmax-0", "NCE_1_negative-0"]
    with pytest.raises(InputError, match="made with another partition"):
        reproduce("objectives", tmp_path, scale="tiny", seeds=1, **exact)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"table": "objective"}, "no table"),
        ({"scale": "huge"}, "no scale"),
        ({"seeds": 0}, "at least one seed"),
        ({"source": "digits", "test": None, "epochs": 0}, "epochs must be positive"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    options = {"table": "partition", "out": tmp_path, "scale": "tiny", **QUICK, **given}
    with pytest.raises(InputError, match=words):
        reproduce(**options)
    assert not list(tmp_path.iterdir())


def test_pictures_of_ones_own_need_test_pictures(tmp_path: Path) -> None:
    from tiny_runs import picture_folder

    pictures, tests = picture_folder(tmp_path / "pictures", 60), picture_folder(tmp_path / "tests", 21, seed=5)
    with pytest.raises(InputError, match="--test"):
        reproduce("partition", tmp_path / "table", scale="tiny", source=str(pictures), **QUICK)
    result = reproduce(
        "partition", tmp_path / "table", scale="tiny", seeds=1, source=str(pictures), test=str(tests), **QUICK
    )
    assert result["pictures"] == 60 and "on 21 test pictures" in result["unit"]
