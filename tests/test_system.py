"""What the machine has to give, and how several processes on it share that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from instdisc.system import free_disk, free_memory, readable_bytes, usable_cores

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
