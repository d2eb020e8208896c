"""A run that was killed, interrupted or refused: it goes on to the same bits, or says in one sentence why it can't."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import losses_of, made_pictures, picture_folder, saved_state, tiny

from instdisc.checkpoint import latest
from instdisc.errors import InputError
from instdisc.jobs import start as jobs_start
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.training import Training, read_metrics

# Two views, noise, an estimate of Z, a schedule and measurements: all that a resume could get wrong.
SETTINGS = {
    "width": 4,
    "dim": 8,
    "objective": "nce",
    "partition": "moving_average",
    "temperature": 0.3,
    "negatives": 32,
    "proximal": 1,
    "precision": "float32",
    "checkpoint_minutes": 0,
    "monitor_epochs": 2,
    "storage": "memory",
}
RECIPE = [
    "train",
    "digits",
    "--limit",
    "160",
    "--preset",
    "digits",
    "--device",
    "cpu",
    "--batch",
    "32",
    "--epochs",
    "8",
]
RECIPE += [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]

# One process imports torch once. Its forks run the command and are killed; the last one gets to the end.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import sklearn.datasets, torch, torch.utils.tensorboard
from instdisc import cli
from instdisc.jobs import train
torch.set_num_threads(1)
arguments, through, killed = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])

def start(out, *more):
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")
        sys.argv = ["instdisc", *arguments, "--out", str(out), *more]
        cli.main()
        os._exit(0)
    return child

began = time.monotonic()
assert os.waitpid(start(through), 0)[1] == 0
took = time.monotonic() - began
random.seed(5)
kills = in_save = 0
while True:
    started = (killed / "config.json").exists()
    child = start(killed, *(["--resume"] if started else []))
    time.sleep(random.uniform(0.2, 0.5) * took if kills % 3 else random.uniform(0.0, 0.2) * took)
    if kills < 10:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WIFSIGNALED(status), status
    kills += 1
    in_save += bool(list(killed.glob("checkpoints/.step-*")))
print(json.dumps({"kills": kills, "in_save": in_save}))
"""


@pytest.mark.fault("optimizer missing from a checkpoint")
@pytest.mark.fault("schedule missing from a checkpoint")
@pytest.mark.fault("sampler position missing from a checkpoint")
@pytest.mark.fault("bank missing from a checkpoint")
@pytest.mark.fault("resume repeats or skips an epoch")
@pytest.mark.fault("the bank is not saved: resume starts from noise")
@pytest.mark.fault("a counter beside the bank is not saved: resume starts from noise")
@pytest.mark.fault('half-written checkpoint after a kill becomes "the last"')
@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    through, killed = tmp_path / "through", tmp_path / "killed"
    command = [sys.executable, "-c", KILLER, json.dumps(RECIPE), str(through), str(killed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] >= 3, "it was hardly ever killed: nothing was shown"
    assert saved_state(killed) == saved_state(through)
    steps = [line["step"] for line in read_metrics(RunFolder(killed)) if "loss" in line]
    assert steps == list(range(1, 41)), "each step once, in order"


def python_m_instdisc(*words: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "instdisc", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 500
    while len(read_metrics(RunFolder(run))) < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_ctrl_c_in_a_shell(tmp_path: Path) -> None:
    """SIGINT to the real command: it saves, says how to go on, exits as shells expect; then kill -9, and on again."""
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    reference = python_m_instdisc(*RECIPE, "--out", through)
    process = python_m_instdisc(*RECIPE, "--out", stopped)
    wait_for_steps(stopped, 5, process)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=500)
    assert process.returncode == 130, errors
    assert "Stopping after this step, and saving." in said
    assert "go on with --resume" in said
    assert "Next:" not in said
    assert "Traceback" not in errors
    steps = latest(RunFolder(stopped).checkpoints).step  # type: ignore[union-attr]
    assert 5 <= steps < 40

    process = python_m_instdisc(*RECIPE, "--out", stopped, "--resume")
    wait_for_steps(stopped, steps + 4, process)
    process.kill()
    process.communicate()
    process = python_m_instdisc(*RECIPE, "--out", stopped, "--resume")
    said, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    assert "Resumed at epoch" in said
    reference.communicate(timeout=500)
    assert saved_state(stopped) == saved_state(through)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.fixture
def half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder of pictures, and a run on it that was stopped at step 3."""
    pictures = picture_folder(tmp_path / "pictures", 67)
    step = Training.step

    def stopping(training: Training, *arguments: Any) -> Any:
        if training.step_number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(training, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", stopping)
        run = train(pictures, tmp_path / "run", tiny(), say=None)
    assert not run.finished
    return pictures, run.path


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        train(*arguments, **{"say": None, **options})
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.fault("resume with other settings silently mixes two runs")
def test_other_settings_are_refused_with_the_differences(half_done: tuple[Path, Path]) -> None:
    pictures, run = half_done
    before = saved_state(run)
    sentence = refused(pictures, run, tiny(lr=0.2, flip=0.5, drops="0.5"), resume=True)
    assert "started with other settings (" in sentence
    for difference in ("lr: 0.1 there, 0.2 here", "flip: 0.0 there, 0.5 here", "drops: [0.6, 0.8] there, [0.5] here"):
        assert difference in sentence
    assert "momentum" not in sentence
    assert saved_state(run) == before
    # What only changes the cost may change.
    done = train(pictures, run, tiny(storage="cache", workers=0, keep_checkpoints=1), resume=True, say=None)
    assert done.finished


def test_resumed_in_other_storage_it_gives_the_same(half_done: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = half_done
    train(pictures, tmp_path / "through", tiny(), say=None)
    train(pictures, run, tiny(storage="workers", workers=0), resume=True, say=None)
    assert saved_state(run) == saved_state(tmp_path / "through")


@pytest.mark.fault("ids that change when the folder is scanned again, so that bank rows belong to other pictures")
@pytest.mark.parametrize("change", ["removed", "renamed", "replaced", "broken"])
def test_other_pictures_are_refused(half_done: tuple[Path, Path], change: str) -> None:
    pictures, run = half_done
    first = pictures / "red" / "0000.png"
    if change == "removed":
        first.unlink()
    elif change == "renamed":
        first.rename(pictures / "red" / "1000.png")
    elif change == "replaced":
        picture_folder(pictures, 67, seed=1)
    else:
        (pictures / "green" / "0004.png").write_bytes(b"no picture")
    sentence = refused(pictures, run, tiny(), resume=True)
    assert "restore them, or start a new run" in sentence
    assert "has other pictures now" in sentence if change == "replaced" else "can be read now" in sentence


def test_a_new_picture_beside_the_old_ones_changes_nothing(half_done: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = half_done
    train(pictures, tmp_path / "through", tiny(), say=None)
    shutil.copy(pictures / "red" / "0000.png", pictures / "red" / "0000a.png")  # all that follow get another place
    told: list[str] = []
    train(pictures, run, tiny(), resume=True, say=told.append)
    assert any(f"1 new picture in {pictures}" in line and f"train {run} --add" in line for line in told)
    assert saved_state(run) == saved_state(tmp_path / "through")


def test_other_arrays_of_the_same_length_are_refused(tmp_path: Path) -> None:
    train(made_pictures(67), tmp_path / "run", tiny(epochs=1), say=None)
    assert "has other pictures now" in refused(made_pictures(67, seed=1), tmp_path / "run", tiny(epochs=1), resume=True)
    assert train(made_pictures(67), tmp_path / "run", tiny(epochs=1), resume=True, say=None).finished


def test_a_run_is_never_overwritten(half_done: tuple[Path, Path]) -> None:
    pictures, run = half_done
    before = saved_state(run)
    assert "holds a run already: add --resume" in refused(pictures, run, tiny())
    assert saved_state(run) == before


def test_nothing_to_resume(tmp_path: Path) -> None:
    pictures = made_pictures(67)
    assert "There is no run in" in refused(pictures, tmp_path / "none", tiny(), resume=True)
    assert not (tmp_path / "none").exists()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    pictures = made_pictures(67)
    for name in ("thesis.tex", ".hidden"):
        foreign = tmp_path / name.strip(".")
        foreign.mkdir()
        (foreign / name).write_text("mine")
        (foreign / "quarantine.csv").write_text("id,path,reason\n")
        assert "is not empty and holds no run" in refused(pictures, foreign, tiny())
        assert sorted(path.name for path in foreign.iterdir()) == sorted([name, "quarantine.csv"])
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused(pictures, tmp_path / "file", tiny())
    assert "Can't make the run folder" in refused(pictures, tmp_path / "file" / "run", tiny())
    (tmp_path / "empty").mkdir()
    assert train(pictures, tmp_path / "empty", tiny(epochs=0.2), say=None).finished


def test_a_start_that_failed_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once before config.json (no run yet: start again), once before the first checkpoint (a run: resume)."""
    pictures = picture_folder(tmp_path / "pictures", 67)
    broken = pictures / "red" / "0500.png"
    broken.write_bytes(b"no picture")

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("a failing start")

    with monkeypatch.context() as patch:
        patch.setattr(jobs_start, "write_json", fails)
        with pytest.raises(RuntimeError, match="a failing start"):
            train(pictures, tmp_path / "run", tiny(), say=None)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["instances.arrow", "quarantine.csv", "train.lock"]
    broken.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", fails)
        with pytest.raises(RuntimeError, match="a failing start"):
            train(pictures, tmp_path / "run", tiny(), say=None)
    assert "add --resume" in refused(pictures, tmp_path / "run", tiny())
    said: list[str] = []
    run = train(pictures, tmp_path / "run", tiny(), resume=True, say=said.append)
    assert run.finished
    assert run.quarantined == 0, "the list of the failed start is not this run's"
    assert "There is no checkpoint yet: from the start." in said
    train(pictures, tmp_path / "through", tiny(), say=None)
    assert saved_state(tmp_path / "run") == saved_state(tmp_path / "through")


def test_a_finished_run_may_be_resumed_and_stays_as_it_is(tmp_path: Path) -> None:
    pictures = made_pictures(67)
    train(pictures, tmp_path / "run", tiny(epochs=1), say=None)
    before = saved_state(tmp_path / "run")
    again = train(pictures, tmp_path / "run", tiny(epochs=1), resume=True, say=None)
    assert again.finished
    assert saved_state(tmp_path / "run") == before


def test_a_newer_run_folder_is_refused(half_done: tuple[Path, Path]) -> None:
    pictures, run = half_done
    config = RunFolder(run).config
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 99}))
    assert "made by a newer version of instdisc (format 99" in refused(pictures, run, tiny(), resume=True)


@pytest.mark.parametrize("damage", ["instances.arrow", "checkpoint"])
def test_a_damaged_run(half_done: tuple[Path, Path], damage: str, tmp_path: Path) -> None:
    pictures, run = half_done
    if damage == "instances.arrow":
        RunFolder(run).instances.write_bytes(b"ARROW1")
        assert "the run folder is damaged" in refused(pictures, run, tiny(), resume=True)
    else:  # nothing whole is left: from the start again, and the metrics too
        for file in RunFolder(run).checkpoints.glob("*/encoder.safetensors"):
            file.write_bytes(file.read_bytes()[:-8])
        train(pictures, run, tiny(), resume=True, say=None)
        train(pictures, tmp_path / "through", tiny(), say=None)
        assert losses_of(run) == losses_of(tmp_path / "through")


@pytest.mark.fault("training reaches labels")
@pytest.mark.fault("best epoch picked on the test set and reported as the result")
def test_labels_never_reach_training(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", 67)
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in pictures.glob("*/*.png"):
        shutil.copy(file, flat)
    wrong = tmp_path / "labels.csv"
    names = sorted(path.name for path in flat.iterdir())
    random = np.random.default_rng(0)
    wrong.write_text("path,label\n" + "".join(f"{name},{random.choice(['red', 'green', 'mauve'])}\n" for name in names))
    settings = tiny(monitor_epochs=1)
    without = train(flat, tmp_path / "without", settings, say=None)
    labelled = train(flat, tmp_path / "with", settings, labels=wrong, test=str(pictures), say=None)
    measured = [set(line["measured"]) for run in (without, labelled) for line in run.metrics() if "measured" in line]
    assert "knn" not in measured[0]
    assert {"knn", "knn_test"} <= measured[-1]
    states = [saved_state(run.path) for run in (without, labelled)]
    for state in states:
        state.pop("metrics")
    assert states[0] == states[1]
