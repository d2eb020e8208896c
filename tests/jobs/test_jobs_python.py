"""`instdisc.train` from Python: tables that a run remembers, settings from a file, each line of the metrics."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
from sklearn.base import clone
from tiny_runs import TINY, made_pictures, picture_folder, tiny

import instdisc
from instdisc.errors import InputError
from instdisc.jobs.collection import Collection
from instdisc.jobs.index import recompute
from instdisc.jobs.purge import purge
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.training import Settings, read_metrics
from instdisc.training.config_file import read_recipe

COUNT = 20


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pandas.DataFrame:
    files = sorted(picture_folder(tmp_path_factory.mktemp("python") / "p", COUNT).glob("*/*.png"))
    return pandas.DataFrame({"path": list(map(str, files)), "label": [f"the {file.parent.name}" for file in files]})


@pytest.fixture(scope="module")
def remembered(frame: pandas.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(frame, tmp_path_factory.mktemp("python") / "run", tiny(epochs=1), say=None).path


def test_a_table_of_paths_is_remembered_with_its_labels(
    frame: pandas.DataFrame, remembered: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(remembered, tmp_path / "moved"))  # the labels stand inside
    c = instdisc.open(run, device="cpu")
    assert [one["path"] for one in c[:]] == frame.path.tolist() and c.labels == frame.label.tolist()
    assert c.search(3, k=4, label="the red")[0]["label"] == "the red"
    assert instdisc.open(run, train_source=frame).labels == frame.label.tolist()
    assert recompute(run, say=None) == COUNT
    gone = frame.path[4]
    assert purge(run, [gone], say=None) == 1
    assert not [file for file in run.rglob("*.csv") if gone in file.read_text()], "labels/given.csv forgets it too"
    assert instdisc.open(run).labels == frame.label.drop(4).tolist()


def test_lists_of_labels_are_remembered_too(frame: pandas.DataFrame, tmp_path: Path) -> None:
    labels = [f"class {row % 2}" for row in range(COUNT)]
    run = train(frame.path.to_numpy(), tmp_path / "run", tiny(epochs=1), labels=labels, say=None).path
    assert Collection(run).index.label_names == ["class 0", "class 1"] and instdisc.open(run).labels == labels


def test_pictures_in_memory_are_asked_for_again(tmp_path: Path) -> None:
    said: list[str] = []
    made, labels = made_pictures(COUNT), [row % 2 for row in range(COUNT)]
    table = pandas.DataFrame({"image": list(made), "label": labels})
    run = train(table, tmp_path / "run", tiny(epochs=1), say=said.append).path
    assert "DataFrame is in memory: later commands need the same pictures as train_source." in said
    with pytest.raises(InputError, match=r"in memory \(DataFrame\).*give the same as train_source"):
        Collection(run).training_source()
    c = instdisc.open(run, train_source=table)
    assert (c.picture(3) == made[3]).all() and c.labels == [str(label) for label in labels]
    vectors = instdisc.load(run).embed(table).numpy()
    np.testing.assert_allclose(vectors, instdisc.load(run).embed(made).numpy(), atol=1e-6)
    with pytest.raises(InputError, match="other pictures now"):
        Collection(run, train_source=table.assign(image=list(made_pictures(COUNT, seed=9)))).training_source()


# ---------------------------------------------------------------------------------------------------------------------
# settings from a file


def test_a_runs_own_settings_are_taken(frame: pandas.DataFrame, remembered: Path, tmp_path: Path) -> None:
    own = Settings.from_dict(json.loads((remembered / "config.json").read_text())["settings"])
    for file in (remembered / "config.json", remembered):
        assert read_recipe(file) == (own, {})
    run = train(frame, tmp_path / "run", config=remembered / "config.json", lr=0.05, say=None).path
    made = Settings.from_dict(json.loads((run / "config.json").read_text())["settings"])
    assert made.differences(own) == ["lr: 0.05 there, 0.1 here"]
    with pytest.raises(InputError, match="leave out preset"):
        train(frame, tmp_path / "other", "digits", config=remembered)


def test_settings_in_json_and_toml(tmp_path: Path, said: Callable[..., str], frame: pandas.DataFrame) -> None:
    settings = {name: value for name, value in TINY.items() if name != "precision"} | {"crop_scale": [0.3, 1.0]}
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    for name, text in (
        ("a.json", json.dumps(settings)),
        ("b.json", json.dumps({"settings": {"preset": "default", **settings}})),
        ("c.toml", lines),
        ("d.TOML", f'[settings]\npreset = "default"\n{lines}'),
    ):
        (tmp_path / name).write_text(text)
        recipe, values = read_recipe(tmp_path / name, {"epochs": 1})
        assert recipe == "default" and values["crop_scale"] == (0.3, 1.0) and values["epochs"] == 1
    (tmp_path / "hour.toml").write_text("minutes = 60\nlr = 1\n")
    assert read_recipe(tmp_path / "hour.toml", {"epochs": 2})[1] == {"lr": 1.0, "epochs": 2}, (
        "it does not go by the clock"
    )
    words = ("train", Path(frame.path[0]).parents[1], "--out", tmp_path / "run", "--device", "cpu")
    said(*words, "--config", tmp_path / "c.toml", "--set", "dim=6", "--epochs", "1")
    made = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (made["dim"], made["epochs"], made["width"], made["crop_scale"]) == (6, 1, 4, [0.3, 1.0])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.json", '{"lrr": 1}', '"lrr" is no setting of a run. Did you mean lr'),
        ("x.json", '{"batch": 1.5}', 'batch is a whole number, not "1.5"'),
        ("x.json", '{"batch": true}', 'batch is a whole number, not "true"'),
        ("x.json", '{"lr": [1]}', 'lr is a number, not "[1]"'),
        ("x.json", '{"crop_scale": 3}', "crop_scale is a list of numbers"),
        ("x.json", '{"settings": 3}', "settings is a int, not a section"),
        ("x.json", '{"preset": 3}', "preset is a name as default, not 3"),
        ("x.json", "[1]", "holds a list, not settings"),
        ("x.json", "{", "is no JSON"),
        ("x.toml", "lr = ", "is no TOML"),
        ("x.toml", "lr = 1979-05-27", 'lr is a number, not "1979-05-27"'),
        ("x.json", '{"instdisc": "0.2", "settings": {"lr": "high"}}', 'lr is a number, not "high"'),
        ("none.json", None, "can't be read (No such file or directory)"),
    ],
)
def test_a_wrong_file_is_one_sentence(
    name: str, text: str | None, words: str, tmp_path: Path, said: Callable[..., str], frame: pandas.DataFrame
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    folder = Path(frame.path[0]).parents[1]
    told = said("train", folder, "--out", tmp_path / "run", "--config", tmp_path / name, code=1)
    assert words in told and name in told and "Traceback" not in told and len(told.splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------------------
# a call for each line


def test_on_log_is_given_each_line(frame: pandas.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, Any]] = []

    def log(line: dict[str, Any]) -> None:
        lines.append(json.loads(json.dumps(line)))
        line.clear()  # its own

    run = train(frame, tmp_path / "run", tiny(epochs=2, monitor_epochs=1), say=None, on_log=log)
    assert lines == run.metrics() and {"loss", "measured"} <= {key for line in lines for key in line}
    assert capsys.readouterr().out == "", "say=None is silence"


def test_on_log_that_fails_does_not_end_the_training(frame: pandas.DataFrame, tmp_path: Path) -> None:
    said: list[str] = []
    calls: list[int] = []

    def log(line: dict[str, Any]) -> None:
        calls.append(line["step"])
        raise ConnectionError("no route to the tracker")

    run = train(frame, tmp_path / "run", tiny(epochs=2), say=said.append, on_log=log)
    assert run.finished and len(run.metrics()) > 1 and len(calls) == 1
    (told,) = [line for line in said if "on_log failed" in line]
    assert told.strip().startswith("on_log failed (ConnectionError: no route to the tracker) and is not called again.")


def stopping() -> Callable[[dict[str, Any]], None]:
    """Sends one Ctrl-C."""
    left = [signal.SIGINT]

    def log(line: dict[str, Any]) -> None:
        if left:
            signal.raise_signal(left.pop())

    return log


def test_on_log_may_stop_the_training_as_ctrl_c_does(frame: pandas.DataFrame, tmp_path: Path) -> None:
    run = train(frame, tmp_path / "run", tiny(epochs=3), say=None, on_log=stopping())
    assert not run.finished and run.epochs < 3
    lines: list[dict[str, Any]] = []
    again = train(frame, tmp_path / "run", tiny(epochs=3), resume=True, say=None, on_log=lines.append)
    assert again.finished and read_metrics(RunFolder(run.path))[-len(lines) :] == lines


# ---------------------------------------------------------------------------------------------------------------------
# scikit-learn


def test_the_estimator_takes_tables_and_names_its_columns(frame: pandas.DataFrame, tmp_path: Path) -> None:
    whole = tiny(epochs=1)
    model = instdisc.InstanceDiscrimination(whole, device="cpu", settings={"limit": 18}, out=tmp_path / "run")
    assert clone(model).get_params() == model.get_params()
    model.set_output(transform="pandas").fit(frame)
    assert json.loads((model.run_ / "config.json").read_text())["source"]["limit"] == 18
    twice = frame.set_index(frame.path.str[-8:]).iloc[[3, 3, 19]]
    vectors = model.transform(twice)
    assert vectors.columns.tolist() == model.get_feature_names_out().tolist() and vectors.index.equals(twice.index)
    assert vectors.columns[1] == "instancediscrimination1" and vectors.shape[1] == model.encoder_.dimensions()
    np.testing.assert_allclose(vectors, model.encoder_.embed(twice.path.tolist()).numpy(), atol=1e-6)
    table = pa.table({"image": [Path(path).read_bytes() for path in frame.path]})
    np.testing.assert_allclose(model.transform(table).iloc[[3, 3, 19]], vectors, atol=1e-6)


def test_an_interrupted_fit_raises_and_leaves_the_estimator_as_it_was(frame: pandas.DataFrame, tmp_path: Path) -> None:
    model = instdisc.InstanceDiscrimination(tiny(epochs=1), device="cpu").fit(frame)
    before = model.encoder_
    model.set_params(settings={"epochs": 3, "on_log": stopping()})
    with pytest.raises(KeyboardInterrupt):
        model.fit(frame)
    assert model.encoder_ is before
