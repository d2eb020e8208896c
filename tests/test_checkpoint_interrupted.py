"""Every way in which a save can be cut off, and saves that several ranks make together."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from two_processes import two_processes

from instdisc import checkpoint, ranks
from instdisc.checkpoint import (
    Shard,
    latest,
    open_checkpoint,
    save,
)
from instdisc.errors import InputError


def small_save(folder: Path, step: int, **changes: Any) -> Path:
    tensors = {"encoder": {"weight": torch.full((3, 4), float(step))}, "optimizer": {"momentum": torch.ones(2)}}
    shard = Shard({"rows": torch.full((5, 2), float(step))}, 0, 5)
    return save(
        folder, **{"step": step, "tensors": tensors, "facts": {"epoch": step}, "shards": {"bank": shard}} | changes
    )


def whole_steps(folder: Path) -> list[int]:
    steps = []
    for path in sorted(folder.glob("step-*")):
        open_checkpoint(path)
        steps.append(int(path.name[5:]))
    return steps


# ---------------------------------------------------------------------------------------------------------------------
# Cut off


@pytest.mark.fault('half-written checkpoint after a kill becomes "the last"')
def test_kill_at_any_moment_leaves_a_whole_one(tmp_path: Path) -> None:
    """One process imports torch once; its forks save without end, and each is killed at a random moment."""
    program = """
import os, random, signal, sys, time, torch
from pathlib import Path
from instdisc.checkpoint import Shard, latest, save

torch.set_num_threads(1)
folder = Path(sys.argv[1])

def save_on(step):
    while True:
        step += 1
        rows = torch.full((20_000, 16), float(step))
        save(folder, step=step, tensors={"encoder": {"weight": rows[:500]}}, facts={"step": step},
             shards={"bank": Shard({"rows": rows}, 0, len(rows))}, keep=1)

def wrong(text):
    raise SystemExit(text)

random.seed(0)
last, leftovers = 0, 0
for _ in range(12):
    child = os.fork()
    if child == 0:
        save_on(last)
    while not last and not list(folder.glob("step-*")):
        time.sleep(0.001)
    time.sleep(random.uniform(0.01, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    leftovers += len(list(folder.glob(".step-*")))
    found = latest(folder, warn=wrong)
    assert found.step >= last and found.facts == {"step": found.step}
    assert (found.rows("bank", 0, 20_000)["rows"] == found.step).all()
    last = found.step
assert last > 12, "the saves did not go on"
assert leftovers, "no kill fell into a save: nothing was shown"
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=500)


@pytest.mark.fault('half-written checkpoint after a full disk becomes "the last"')
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_at_any_call_leaves_the_last_good_one(
    code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls, failing = 0, 0

    def counted(function: Callable, error: type[Exception]) -> Callable:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == failing:
                if error is OSError:
                    raise OSError(code, os.strerror(code))
                raise error(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")
            return function(*arguments, **options)

        return wrapped

    monkeypatch.setattr(checkpoint, "save_file", counted(checkpoint.save_file, SafetensorError))
    monkeypatch.setattr(os, "fsync", counted(os.fsync, OSError))
    monkeypatch.setattr(os, "rename", counted(os.rename, OSError))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir, OSError))
    monkeypatch.setattr(Path, "write_bytes", counted(Path.write_bytes, OSError))

    small_save(tmp_path, 1)
    before = calls
    small_save(tmp_path, 2)
    needed = calls - before
    assert needed == 14, "a folder made, four files and the state written and synced, two folders synced, a rename"
    for number in range(1, needed + 1):
        folder = tmp_path / str(number)
        calls, failing = 0, 0
        small_save(folder, 1)
        calls, failing = 0, number
        with pytest.raises(InputError, match="the disk is full" if code == errno.ENOSPC else "Input/output error"):
            small_save(folder, 2)
        after_the_rename = number == needed
        assert whole_steps(folder) == ([1, 2] if after_the_rename else [1])
        assert not list(folder.glob(".*")), "nothing half-written is left"
        calls, failing = 0, 0
        small_save(folder, 3)
        found = latest(folder)
        assert found is not None
        assert found.step == 3


@pytest.mark.fault('half-written checkpoint after a full disk becomes "the last"')
def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    """The same with a write that the kernel itself refuses, inside safetensors' own code."""
    small_save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(InputError, match="The checkpoint of step 2 .* the disk is full"):
            small_save(tmp_path, 2, tensors={"encoder": {"weight": torch.zeros(100_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


@pytest.mark.fault("temp file on another filesystem")
def test_a_checkpoint_is_filled_in_the_folder_where_it_will_stand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A rename to another file system is none: it would copy, and a kill would leave a part."""
    written, renamed, rename = [], [], os.rename
    monkeypatch.setattr(checkpoint, "sync_file", written.append)
    monkeypatch.setattr(os, "rename", lambda old, new: (renamed.append((Path(old), Path(new))), rename(old, new)))
    final = small_save(tmp_path / "run" / "checkpoints", 1)
    ((aside, new),) = renamed
    assert new == final and aside.parent == final.parent
    assert len(written) == 5 and {file.parent for file in written} == {aside}


def test_a_fault_of_the_program_keeps_its_own_error_and_leaves_nothing(tmp_path: Path) -> None:
    small_save(tmp_path, 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        small_save(tmp_path, 2, facts={"thing": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


# ---------------------------------------------------------------------------------------------------------------------
# Several ranks


class RanksInThreads:
    """Stands in for `instdisc.ranks`: every rank a thread, what they send each other a list behind a barrier."""

    share = staticmethod(ranks.share)

    def __init__(self, world: int) -> None:
        self.count = world
        self.own = threading.local()
        self.meeting = threading.Barrier(world)
        self.sent: list[Any] = [None] * world

    def run(self, act: Callable[[int], Any]) -> list[Any]:
        answers: list[Any] = [None] * self.count

        def one(rank: int) -> None:
            self.own.rank = rank
            try:
                answers[rank] = act(rank)
            except Exception as error:
                answers[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    def exchange(self, value: Any) -> list[Any]:
        self.sent[self.rank()] = value
        self.meeting.wait(20)
        everyone = list(self.sent)
        self.meeting.wait(20)
        return everyone

    def rank(self) -> int:
        return self.own.rank

    def world(self) -> int:
        return self.count

    def is_main(self) -> bool:
        return self.rank() == 0

    def any_rank(self, flag: bool) -> bool:
        return any(self.exchange(flag))

    def broadcast_object(self, value: Any) -> Any:
        return self.exchange(value)[0]


def save_shared(folder: Path, step: int, world: int, rows: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    together = RanksInThreads(world)
    monkeypatch.setattr(checkpoint, "ranks", together)

    def one(rank: int) -> Path:
        start, stop = ranks.share(len(rows), rank, world)
        shard = Shard({"rows": rows[start:stop], "seen": torch.arange(start, stop)}, start, stop)
        return save(folder, step=step, tensors={"encoder": {"weight": rows[0]}}, facts={}, shards={"bank": shard})

    answers = together.run(one)
    monkeypatch.undo()
    return answers


@pytest.mark.fault("the bank depends on the number of ranks")
def test_a_bank_moves_from_two_ranks_to_three_to_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint, "_BLOCK", 4)
    rows = torch.randn(23, 5)
    held = rows
    for step, (world, following) in enumerate([(2, 3), (3, 1), (1, 2), (5, 4)], start=1):
        with monkeypatch.context() as patch:
            answers = save_shared(tmp_path, step, world, held, patch)
        assert answers == [tmp_path / f"step-00000000{step}"] * world
        found = latest(tmp_path)
        assert found is not None
        assert len(list(found.path.glob("bank-*"))) == len(list(found.path.glob("random-*"))) == world
        parts = [found.rows("bank", *ranks.share(23, rank, following)) for rank in range(following)]
        held = torch.cat([part["rows"] for part in parts])
        assert torch.equal(held, rows)
        assert torch.cat([part["seen"] for part in parts]).tolist() == list(range(23))
    assert found.rows("bank", 7, 7)["rows"].shape == (0, 5)
    assert torch.equal(found.rows("bank", 4, 20)["rows"], rows[4:20])
    for start, stop in ((20, 24), (-1, 3)):
        with pytest.raises(InputError, match="does not hold rows"):
            found.rows("bank", start, stop)
    with pytest.raises(InputError, match="does not hold rows"):
        found.rows("weights", 0, 1)


def test_one_rank_that_cannot_write_stops_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_shared(tmp_path, 1, 3, torch.zeros(9, 2), monkeypatch)
    real = checkpoint.save_file

    def full_on_rank_2(tensors: Any, file: Path, metadata: dict[str, str] | None) -> None:
        if file.name.startswith("bank-00002"):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, file, metadata)

    monkeypatch.setattr(checkpoint, "save_file", full_on_rank_2)
    answers = save_shared(tmp_path, 2, 3, torch.zeros(9, 2), monkeypatch)
    assert all(isinstance(answer, InputError) for answer in answers)
    assert "another process" in str(answers[0])
    assert "the disk is full" in str(answers[2])
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_two_real_processes(tmp_path: Path) -> None:
    program = """
import sys, torch
from pathlib import Path
from instdisc import ranks
from instdisc.checkpoint import Shard, latest, save
folder = Path(sys.argv[1])
with ranks.distributed():
    torch.manual_seed(ranks.rank())
    start, stop = ranks.share(7)
    shard = Shard({"rows": torch.arange(start, stop).float()[:, None]}, start, stop)
    save(folder, step=1, tensors={"encoder": {}}, facts={}, shards={"bank": shard})
    drawn = torch.rand(3)
    found = latest(folder)
    found.restore_random()
    assert torch.equal(torch.rand(3), drawn)
    assert found.rows("bank", 0, 7)["rows"].flatten().tolist() == list(range(7))
"""
    two_processes([sys.executable, "-c", program, str(tmp_path)])
    states = [
        checkpoint.load_file(tmp_path / f"step-000000001/random-0000{rank}-of-00002.safetensors")["cpu"]
        for rank in (0, 1)
    ]
    assert not torch.equal(*states)
