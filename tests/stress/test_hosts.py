"""Several hosts with a network between them: torchrun across, the same results as one process, and hosts that die."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import work_on_hosts
from pretend_hosts import Host, hosts, torchrun
from tiny_runs import picture_folder

from instdisc.checkpoint import latest
from instdisc.data.sources.open import open_source
from instdisc.embeddings import open_embeddings
from instdisc.jobs.embed import embed
from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.training import read_metrics

pytestmark = pytest.mark.slow
WORK = work_on_hosts.__file__
RUNS = Path(__file__).resolve().parents[2] / "runs"


def finish(everyone: list[Host], processes: list[subprocess.Popen[bytes]], seconds: float = 300) -> None:
    """Wait for all of them; what a host said is shown where one failed."""
    until = time.monotonic() + seconds
    for host, process in zip(everyone, processes, strict=True):
        try:
            assert process.wait(max(1.0, until - time.monotonic())) == 0, host.said()[-3000:]
        except subprocess.TimeoutExpired:
            pytest.fail(f"still at work after {seconds} seconds: {host.said()[-3000:]}")


def losses(run: Path) -> torch.Tensor:
    """(steps, 2) float64: the number of each logged step and its loss."""
    lines = [line for line in read_metrics(RunFolder(run)) if "loss" in line]
    return torch.tensor([[line["step"], line["loss"]] for line in lines], dtype=torch.float64)


def bank(run: Path, count: int) -> torch.Tensor:
    saved = latest(RunFolder(run).checkpoints)
    assert saved is not None
    return saved.rows("bank", 0, count)["rows"]


def test_three_hosts_do_what_one_process_does(tmp_path: Path) -> None:
    """Training, evaluation and embedding; 50 pictures in 4 batches: three does not divide them."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        picture_folder(folder / "pictures", 50)
    with hosts(3) as everyone:
        processes = torchrun(everyone, "3", [WORK, "whole_life", str(there)])
        run = here / "run"
        train(here / "pictures", run, "paper_cifar10", device="cpu", say=None, **work_on_hosts.RECIPE)
        finish(everyone, processes)
        assert all(host.sent() > 12 * 800_000 for host in everyone), "the gradients of 12 steps went over the links"
    assert json.loads((there / "run" / "config.json").read_text())["chosen"]["ranks"] == 3
    torch.testing.assert_close(losses(there / "run"), losses(run), rtol=1e-3, atol=0)
    torch.testing.assert_close(bank(there / "run", 50), bank(run, 50), rtol=0, atol=2e-3)
    # By the weights that three hosts made, one process says what three say.
    report = evaluate(there / "run", device="cpu", neighbours=5, say=None)
    assert json.loads((there / "report.json").read_text()) == report["knn"]
    embed(there / "run", there / "pictures", here / "vectors.parquet", device="cpu", say=None)
    one, three = (open_embeddings(folder / "vectors.parquet") for folder in (here, there))
    np.testing.assert_allclose(three.vectors, one.vectors, atol=1e-5)
    ids = [pq.read_table(folder / "vectors.parquet")["id"].to_pylist() for folder in (here, there)]
    assert ids[0] == ids[1] == open_source(there / "pictures").fetch_table()["id"].to_pylist()


def test_two_hosts_look_through_a_collection_as_one_process_does(tmp_path: Path) -> None:
    """Pictures that stand there twice, near ties, and one that can't be read any more."""
    here, there = tmp_path / "here", tmp_path / "there"
    picture_folder(there / "pictures", 50)
    for number in (3, 30):
        shutil.copy(there / "pictures" / "red" / f"{number:04d}.png", there / "pictures" / "red" / f"9{number:03d}.png")
    train(there / "pictures", there / "run", "paper_cifar10", device="cpu", say=None, **work_on_hosts.RECIPE)
    shutil.copy(there / "pictures" / "red" / "0003.png", there / "query.png")
    damaged = there / "pictures" / "red" / "0015.png"  # none of those that tell whether the collection has changed
    damaged.write_bytes(bytes(damaged.stat().st_size))
    shutil.copytree(there, here)
    with hosts(2) as everyone:
        processes = torchrun(everyone, "2", [WORK, "look_through", str(there)])
        work_on_hosts.look_through(here)
        finish(everyone, processes)
        assert all(host.sent() > 10_000 for host in everyone)
    found = [json.loads((folder / "search.json").read_text()) for folder in (here, there)]
    assert {one[0] for one in found[0]} == {one[0] for one in found[1]}  # copies stand in either order
    np.testing.assert_allclose([one[1] for one in found[0]], [one[1] for one in found[1]], atol=1e-5)
    tables = ("run/duplicates/duplicates.csv", "run/duplicates/look_alikes.csv", "run/outliers/outliers.csv")
    for table in (*tables, "leaks/leaks.csv"):
        texts = [(folder / table).read_text().replace(str(here), str(there)) for folder in (here, there)]
        one, two = (list(csv.DictReader(text.splitlines())) for text in texts)
        assert len(one) == len(two) > 3
        if "outliers" in table:  # copies are as strange as each other, but for the rounding of sums in another order
            one, two = (sorted(lines, key=lambda line: line["path"]) for lines in (one, two))
        for line, other in zip(one, two, strict=True):
            for name in line.keys() - {"nearest_path"}:
                same = line[name] == other[name]
                assert same or float(line[name]) == pytest.approx(float(other[name]), abs=2e-4), (table, line, other)


def test_what_a_step_sends_does_not_grow_with_the_bank(tmp_path: Path) -> None:
    with hosts(2) as everyone:
        finish(everyone, torchrun(everyone, "2", [WORK, "traffic", str(tmp_path)]))
    sent = json.loads((tmp_path / "bytes.json").read_text())
    few, many = work_on_hosts.ROWS
    batch = work_on_hosts.BATCH * 128 * 4  # bytes of this host's features
    for name in ("softmax", "sampled"):
        assert sent[f"{name} {few}"] > batch, "what is counted includes the features"
        assert sent[f"{name} {many}"] < 1.2 * sent[f"{name} {few}"]
    assert sent[f"softmax {many}"] < 12 * batch


@pytest.mark.fault("a worker that dies leaves the run hanging")
def test_hosts_die_and_the_rest_go_on(tmp_path: Path) -> None:
    """Four hosts, then three, then two: every step once, the bank's rows shared anew, and the same end as in peace.

    The second to die is rank 0, which prints and writes; the place where they meet is another.
    """
    pictures, run = picture_folder(tmp_path / "pictures", 50), tmp_path / "run"
    recipe = work_on_hosts.RECIPE | {"epochs": 40, "lr": 0.01, "checkpoint_minutes": 0}
    settings = [word for name, value in recipe.items() for word in ("--set", f"{name}={value}")]
    words = [
        "-m",
        "instdisc",
        "train",
        str(pictures),
        "--out",
        str(run),
        "--preset",
        "paper_cifar10",
        "--device",
        "cpu",
    ]
    with hosts(4) as everyone:
        processes = torchrun(everyone, "2:4", [*words, *settings, "--auto-resume"], meeting=1)
        for dies, step in ((3, 20), (0, 70)):
            wait_for_step(run, step, everyone)
            everyone[dies].pull_the_plug()
        finish(everyone[1:3], processes[1:3])
        said = "".join(host.said() for host in everyone)
    for world in (4, 3, 2):
        assert f"on each of {world} ranks" in said
    assert said.count("Resumed at epoch") == 2
    assert losses(run)[:, 0].tolist() == list(range(1, 161))
    train(pictures, tmp_path / "peace", "paper_cifar10", device="cpu", say=None, **recipe)
    torch.testing.assert_close(losses(run)[-8:], losses(tmp_path / "peace")[-8:], rtol=0.02, atol=0)
    cosines = (bank(run, 50) * bank(tmp_path / "peace", 50)).sum(1)
    assert cosines.min() > 0.98


# What the two scripts call, in the place of a cluster: each finds the namespace of an address by its last number.
ON = 'ip netns exec "$MARK-${host##*.}"'
FAKES = {
    "ssh": f'host=$1; exec {ON} bash -c "$2"',
    "scontrol": "printf '%s\\n' $SLURM_JOB_NODELIST",
    "srun": f"""shift; pids=()
for host in $SLURM_JOB_NODELIST; do SLURMD_NODENAME=$host {ON} "$@" & pids+=($!); done
for pid in "${{pids[@]}}"; do wait "$pid"; done""",
}


@pytest.mark.parametrize("script", ["on_hosts.sh", "slurm.sbatch"])
def test_the_submit_scripts_start_one_run_on_all_hosts(script: str, tmp_path: Path) -> None:
    pictures, run = picture_folder(tmp_path / "pictures", 50), tmp_path / "run with a space"
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\nset -eu\n{text}\n")
        (tmp_path / name).chmod(0o755)
    recipe = work_on_hosts.RECIPE | {"epochs": 1}
    settings = [word for name, value in recipe.items() for word in ("--set", f"{name}={value}")]
    words = ["train", str(pictures), "--out", str(run), "--preset", "paper_cifar10", "--device", "cpu", *settings]
    with hosts(2) as everyone:
        addresses = [host.address for host in everyone]
        (tmp_path / "hosts.txt").write_text("# ours\n" + "\n".join(addresses) + "\n\n")
        told = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "MARK": everyone[0].name.rpartition("-")[0],
            "GLOO_SOCKET_IFNAME": "eth0",
            "PYTHON": sys.executable,
            "PROCESSES": "1",
            "SSH": str(tmp_path / "ssh"),
            "SLURM_JOB_NODELIST": " ".join(addresses),
            "SLURM_JOB_ID": "17",
        }
        command = [str(RUNS / script), *([str(tmp_path / "hosts.txt")] if script == "on_hosts.sh" else []), *words]
        done = subprocess.run(
            ["bash", *command], env=os.environ | told, capture_output=True, text=True, timeout=500, cwd=tmp_path
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("on each of 2 ranks") == 1
    assert losses(run)[:, 0].tolist() == [1, 2, 3, 4]


def test_a_list_without_hosts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts.txt").write_text("# nobody\n")
    command = ["bash", str(RUNS / "on_hosts.sh"), str(tmp_path / "hosts.txt"), "train", "pictures", "--out", "run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the list of hosts is empty" in done.stderr


def wait_for_step(run: Path, step: int, everyone: list[Host], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not run.is_dir() or len(read_metrics(RunFolder(run))) < step:
        assert time.monotonic() < until, "\n".join(host.said()[-2000:] for host in everyone)
        time.sleep(0.05)
