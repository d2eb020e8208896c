"""experiments/gpu.py before a GPU is asked for: all stages in small, what a borrowed machine lacks, being stopped."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import gpu
import gpu_equality
import gpu_stages

from instdisc.training import Training

CPU = torch.device("cpu")
EXPERIMENTS = Path(gpu.__file__).parent

# All stages in one process, in which nothing can be imported that a borrowed machine lacks.
ON_A_BORROWED_MACHINE = """
import json, sys
from pathlib import Path

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("simplejpeg", "fastapi", "pydantic", "uvicorn", "starlette"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Lacking())
sys.path.insert(0, sys.argv[1])
import gpu, gpu_stages
import torch
given = gpu_stages.Given(Path(sys.argv[2]), torch.device("cpu"), dry=True)
for name in gpu.STAGES:
    gpu.write(given.work / "results" / f"{name}.json", gpu_stages.stage(given, name))
"""


@pytest.mark.slow
def test_every_stage_runs_where_simplejpeg_fastapi_and_pydantic_are_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_A_BORROWED_MACHINE, str(EXPERIMENTS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = {name: gpu.read(tmp_path / "results" / f"{name}.json") for name in gpu.STAGES}
    assert {one["state"] for one in found.values()} == {"done"}
    assert found["pictures"]["pictures"] == {"train": 512, "test": 128}
    assert found["equality"]["all_within"] and len(found["equality"]["checks"]) > 30
    for recipe in found["steps"]["recipes"].values():
        assert 0 < max(recipe["floor"]["operations_ms"], recipe["floor"]["bytes_ms"]) < recipe["ways"]["eager"]["ms"]
    for name, stage in gpu.STAGES.items():
        if stage.recipe:
            # Four classes by their brightness: any encoder that sees brightness tells most of them apart.
            assert found[name]["knn_embedding_percent"] > 60 and found[name]["epochs"] == 1
    heads = found["loss_head"]["rows"]
    assert list(heads) == ["2000", "5000"] and all(head["exact, float32"]["ms"] > 0 for head in heads.values())


def test_floors_are_those_of_arithmetic_by_hand(tmp_path: Path) -> None:
    """One convolution of 3x3 from 2 to 5 channels without padding, 32 px, a picture; the bank's 7 rows of 4 numbers."""
    given = gpu_stages.Given(tmp_path, CPU, dry=True)
    settings = given.settings("paper_cifar10", 7, batch=1, dim=4)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, bias=False), torch.nn.ReLU())
    limits = {"float32_flop_per_second": 1e9, "bytes_per_second": 1e6}
    floor = gpu_stages.floors(network, settings, given, rows=7, limits=limits)
    one_way = 2 * 5 * 3 * 9 * 30 * 30
    assert floor["operations"] == 2 * one_way + 4 * 4 * 7  # nobody asks for the slope of the pictures
    moved = 3 * 3 * 32 * 32 + 2 * 5 * 30 * 30
    assert floor["bytes"] == 4 * moved + 4 * 4 * 7 + 5 * 4 * (5 * 3 * 9)
    assert floor["operations_ms"] == pytest.approx(1e3 * floor["operations"] / 1e9)
    assert floor["bytes_ms"] == pytest.approx(1e3 * floor["bytes"] / 1e6)


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number in a thousand of the bank's features is off by a thousandth."""
    true = gpu_equality.of_bank(CPU)
    assert all(error <= gpu_equality.MOST for _, error in true)
    partition = gpu_equality.MemoryBank.log_partition
    calls = iter(range(100))

    def wrong(*words: Any, **named: Any) -> torch.Tensor:
        return partition(*words, **named) * (1 + 1e-3 * (next(calls) % 2))

    monkeypatch.setattr(gpu_equality.MemoryBank, "log_partition", wrong)
    assert [name for name, error in gpu_equality.of_bank(CPU) if error > gpu_equality.MOST] == [
        "bank, float32: log Z",
        "bank, float16: log Z",
        "bank, int8: log Z",
    ]
    assert gpu_equality.off(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")


def test_a_training_that_is_stopped_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = gpu_stages.Given(tmp_path, CPU, dry=True)
    gpu_stages.pictures(given)
    step = Training.step

    def stopping(training: Training, *words: Any) -> Any:
        if training.step_number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(training, *words)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "step", stopping)
        found = gpu_stages.stage(given, "paper_nce")
    assert found["state"].startswith("cut off") and "knn_embedding_percent" not in found
    assert 0 < found["epochs"] < 1
    found = gpu_stages.stage(given, "paper_nce")
    assert found["state"] == "done" and found["epochs"] == 1 and found["knn_embedding_percent"] > 50


def test_minutes_are_predicted_from_the_measured_step_and_what_is_done(tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert gpu.predicted("equality", results) == gpu.STAGES["equality"].minutes
    assert gpu.predicted("paper_softmax", results) == float("inf"), "nobody knows before the steps were measured"
    ways = {"eager": {"ms": 9.0}, "compiled": {"ms": 5.0}}
    gpu.write(results / "steps.json", {"recipes": {"paper_cifar10": {"ways": ways, "steps_an_epoch": 391}}})
    whole = gpu.predicted("paper_softmax", results)
    assert whole == pytest.approx(78_200 * 5.0 / 60_000, abs=0.5) and whole > 78_200 * 5.0 / 60_000
    (tmp_path / "paper_softmax").mkdir()
    (tmp_path / "paper_softmax" / "metrics.jsonl").write_text('{"step": 1, "epoch": 150.0}\n{"step": 2, "ep')
    assert gpu.predicted("paper_softmax", results) < 0.35 * whole


def asked_for(tmp_path: Path, *stages: str) -> argparse.Namespace:
    return argparse.Namespace(
        stages=list(stages), work=tmp_path / "work", out=tmp_path / "out", device="cpu", dry_run=True, later=0.0,
        train=None, test=None,
    )  # fmt: skip


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_what_was_cut_off_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = 3_600
    asked = asked_for(tmp_path, "pictures", "paper_nce")
    gpu.work_through(asked, time.monotonic() - 1)
    assert gpu.read(tmp_path / "out" / "pictures.json")["state"].startswith("not begun")
    gpu.work_through(asked_for(tmp_path, "pictures"), time.monotonic() + hour)
    assert gpu.read(tmp_path / "out" / "pictures.json")["state"] == "done"
    with monkeypatch.context() as patched:  # whatever time it is given is over when it starts
        run_stage = gpu.run_stage
        patched.setattr(gpu, "run_stage", lambda words, minutes: run_stage(words, 0.0))
        gpu.work_through(asked_for(tmp_path, "paper_nce"), time.monotonic() + hour)
    assert gpu.read(tmp_path / "out" / "paper_nce.json")["state"].startswith("cut off")
    capsys.readouterr()
    gpu.work_through(asked, time.monotonic() + hour)
    assert "pictures: done before." in capsys.readouterr().out
    whole = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert whole["stages"]["paper_nce"]["state"] == "done" and whole["stages"]["paper_nce"]["epochs"] == 1


def test_real_pictures_come_from_parquet_or_npz(tmp_path: Path, shared_data: Path) -> None:
    parquet = gpu_stages.Given(
        tmp_path / "a", CPU, False, *(shared_data / f"cifar10-{part}.parquet" for part in ("test", "test"))
    )
    assert gpu_stages.pictures(parquet)["pictures"] == {"train": 10_000, "test": 10_000}
    images, labels = gpu_stages.arrays(parquet, "train")
    assert images.shape == (10_000, 32, 32, 3) and np.bincount(labels).tolist() == [1_000] * 10
    np.savez_compressed(tmp_path / "b.npz", images=images[:600], labels=labels[:600])
    npz = gpu_stages.Given(tmp_path / "b", CPU, False, tmp_path / "b.npz", tmp_path / "b.npz")
    assert gpu_stages.pictures(npz)["pictures"] == {"train": 600, "test": 600}
    assert np.array_equal(gpu_stages.arrays(npz, "test")[0], images[:600])


def test_a_wrong_command_is_one_sentence(tmp_path: Path) -> None:
    for words, says in (
        (["--stages", "all"], "there is no stage all"),
        ([], "give --train and --test, or --dry-run"),
        (["--train", "none.parquet", "--test", "none.parquet"], "there is no file none.parquet"),
    ):
        command = [sys.executable, str(EXPERIMENTS / "gpu.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2 and says in done.stderr.splitlines()[-1]
