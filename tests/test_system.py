"""What the machine has to give, and how several processes on it share that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import tiny

from instdisc.jobs.train import train
from instdisc.system import (
    Rivals,
    beside_others,
    fitting_threads,
    free_disk,
    free_memory,
    readable_bytes,
    usable_cores,
)

CPU = torch.device("cpu")


def test_what_the_machine_has() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert free_memory(CPU) > 1 << 20
    assert free_disk(Path("/no/such/folder")) > 0
    assert [readable_bytes(b) for b in (153_600_000, 2_530_000_000, 15_000, 1.28e13)] == [
        "154 MB",
        "2.5 GB",
        "15 kB",
        "13 TB",
    ]


def test_ranks_of_one_machine_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = free_memory(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) < whole / 2
    assert usable_cores() >= 1


def test_rivals_are_what_is_busy_beside_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: clock, seconds for which cores were busy, seconds of this process."""
    looks = iter([(0.0, 50.0, 3.0), (2.0, 54.0, 4.0), (4.0, 54.0, 5.9)])
    monkeypatch.setattr(Rivals, "_look", staticmethod(lambda: next(looks)))
    rivals = Rivals(every=0)
    assert rivals.cores() == pytest.approx((4 - 1) / 2)
    assert rivals.cores() == 0, "this process alone was busy"
    monkeypatch.setattr(Rivals, "_look", staticmethod(lambda: None))
    assert Rivals(every=0).cores() == 0, "where nobody counts"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts")
def test_a_process_that_computes_is_a_rival() -> None:
    rivals = Rivals(every=0.5)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            until = time.monotonic() + 60
            while rivals.cores() < 0.2 and time.monotonic() < until:
                time.sleep(0.1)
        finally:
            other.kill()
    assert rivals.cores() >= 0.2


def test_fewer_threads_beside_others_and_as_many_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        def __init__(self, busy: float) -> None:
            self.cores = lambda: busy

    monkeypatch.setattr("instdisc.system.usable_cores", lambda: 4)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for busy, threads in ((0.0, 4), (0.4, 4), (1.1, 3), (9.0, 1)):
            monkeypatch.setattr("instdisc.system._rivals", Busy(busy))
            with beside_others():
                assert torch.get_num_threads() == threads
            assert torch.get_num_threads() == 4
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # the other rank is no stranger
        assert fitting_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_a_training_beside_other_programs_says_once_what_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rivals, "cores", lambda _: 1.0)
    monkeypatch.setattr("instdisc.training.metrics.usable_cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    said: list[str] = []
    pictures = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)
    try:
        train(pictures, tmp_path / "run", tiny(epochs=2), say=said.append, device="cpu")
    finally:
        torch.set_num_threads(before)
    (told,) = [line for line in said if "Other programs" in line]
    assert "1.0 of 2 cores" in told and "OMP_NUM_THREADS=1" in told and "--resume" in told
