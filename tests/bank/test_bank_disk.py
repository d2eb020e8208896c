"""Rows in a memory-mapped file: bit for bit those in memory, nothing left behind; and in what rows are kept by size."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from several_ranks import run_on_ranks
from tiny_runs import made_pictures, outcome, tiny, training_in

from instdisc import ranks
from instdisc.bank import MemoryBank, choose_rows
from instdisc.errors import InputError
from instdisc.jobs.train import train
from instdisc.objectives import NCE, NonParametricSoftmax, SampledSoftmax
from instdisc.runs import RunFolder

CPU = torch.device("cpu")


def steps(bank: MemoryBank) -> list[torch.Tensor]:
    """Losses, gradients and rows over some steps of every kind of objective; every rank brings its part."""
    found = []
    for number, objective in enumerate((NonParametricSoftmax(0.1), SampledSoftmax(0.1, 50), NCE(0.3, 40, "private"))):
        part = slice(*ranks.share(9))
        generator = torch.Generator().manual_seed(number)
        indices = torch.randint(bank.instances, (9,), generator=generator)[part]
        features = torch.nn.functional.normalize(torch.randn(9, bank.dim, generator=generator), dim=1)[part]
        loss = objective(features.requires_grad_(), indices, bank)
        loss.backward()
        assert features.grad is not None
        bank.update(indices, features.detach())
        found += [loss.detach(), features.grad]
    return [*found, bank.lookup(torch.arange(0, bank.instances, 7)), *bank.tensors().values()]


def both(folder: str, dtype: str) -> list[bool]:
    """Whether each answer of rows on disk is that of rows in memory, to the bit."""
    settings = {"dim": 24, "seed": 2, "dtype": getattr(torch, dtype)}
    answers = [steps(MemoryBank(1003, **settings, **way)) for way in ({}, {"storage": "disk", "folder": folder})]
    return [torch.equal(one, other) for one, other in zip(*answers, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_on_disk_it_is_bit_for_bit_what_it_is_in_memory(dtype: str, tmp_path: Path) -> None:
    assert all(both(str(tmp_path), dtype))
    assert list(tmp_path.iterdir()) == [], "the file has no name: a kill leaves nothing"


def test_on_disk_on_two_ranks(tmp_path: Path) -> None:
    assert all(all(found) for found in run_on_ranks(2, both, str(tmp_path), "int8"))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call on this system")
def test_the_rows_are_in_the_file_and_its_room_is_taken_at_once(tmp_path: Path) -> None:
    bank = MemoryBank(40_000, 128, storage="disk", folder=tmp_path)
    own = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and str(tmp_path) in os.readlink(path)]
    assert len(own) == 1
    assert own[0].stat().st_blocks * 512 >= bank.rows.nbytes
    lines = Path("/proc/self/maps").read_text().splitlines()
    held = [line.split() for line in lines if str(tmp_path) in line]
    ranges = [[int(end, 16) for end in words[0].split("-")] for words in held]
    assert any(first <= bank.rows.data_ptr() < last for first, last in ranges)
    assert all("s" in words[1] for words in held), "shared with the file, so the system may write it back"
    with (
        mock.patch("os.posix_fallocate", side_effect=OSError(errno.ENOSPC, "No space left on device")),
        pytest.raises(InputError, match=r"rows of the bank need 512 kB of disk .*: make room there"),
    ):
        MemoryBank(1000, 128, storage="disk", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("private", [False, True])
def test_a_sampled_step_asks_for_the_pages_that_it_touches_and_no_others(private: bool, tmp_path: Path) -> None:
    bank = MemoryBank(40_000, 128, storage="disk", folder=tmp_path)  # eight rows a page
    assert bank._disk is not None
    wanted: set[int] = set()
    with mock.patch.object(bank._disk, "_map") as mapped:
        mapped.madvise.side_effect = lambda _, start, length: wanted.add(start // mmap.PAGESIZE)
        touched = torch.tensor([0, 1, 77, 39_999, 5000])
        if private:
            bank.scores(torch.zeros(1, 128), touched[None])
        else:
            bank.lookup(touched)
        bank.update(torch.tensor([801]), torch.ones(1, 128))
    rows = mmap.PAGESIZE // 512
    assert wanted == {row // rows for row in (0, 77, 39_999, 5000, 801)}


@pytest.mark.parametrize("objective", ["softmax", "nce", "sampled"])
@pytest.mark.parametrize("noise", ["shared", "private"])
def test_a_step_has_the_rows_that_it_will_touch_read_before_the_encoder_works(
    objective: str, noise: str, tmp_path: Path
) -> None:
    more = {"views": 2, "view_share": 0.5, "accumulate": 1, "epochs": 2, "fill_epochs": 1}
    settings = tiny(bank_storage="disk", objective=objective, noise=noise, negatives=3, **more)
    training = training_in(tmp_path / "run", settings)
    asked: list[str] = []  # in order: pages, and "encoder" where it worked
    rows = training.bank._disk
    assert rows is not None
    rows._width = mmap.PAGESIZE  # as if each row had a page of its own
    training.encoder.register_forward_pre_hook(lambda *_: asked.append("encoder"))
    sizes: list[list[int]] = [[], []]
    with mock.patch.object(rows, "_map") as mapped:
        mapped.madvise.side_effect = lambda _, start, length: asked.append(str(start // mmap.PAGESIZE))
        for epoch in (0, 1):
            for parts, planned in training._steps_of(epoch, 0):
                asked.clear()
                (batch,) = parts
                training.step(iter([batch]), planned)
                *before, last = asked
                assert last == "encoder", "none is asked for when it is touched"
                assert len(before) == len(set(before)) and set(before) >= set(map(str, batch.indices.tolist()))
                sizes[epoch].append(len(before) - planned)
    assert 0 < max(sizes[0]) <= 3, "the views are compared with some rows while the bank fills"
    assert max(sizes[1]) <= {"shared": 6, "private": 3 + 3 * 14}[noise]
    assert max(sizes[1]) > 3 or objective == "softmax" or noise == "shared"


def test_a_run_with_rows_on_disk_ends_as_one_in_memory_and_resumes_in_either(tmp_path: Path) -> None:
    memory = training_in(tmp_path / "memory", tiny(bank_storage="memory"))
    memory.fit()
    half = training_in(tmp_path / "half", tiny(bank_storage="disk"))
    assert half.rows.storage == "disk"
    for parts, planned in half._steps_of(0, 0):
        half._agree(half.step(parts, planned), due=False)
    half.save()
    for storage in ("disk", "memory"):
        resumed = training_in(tmp_path / "half", tiny(bank_storage=storage, keep_checkpoints=9))
        assert resumed.resume() and resumed.step_number < memory.step_number
        resumed.fit()
        for name, values in outcome(resumed).items():
            assert name == "losses" or torch.equal(values, outcome(memory)[name]), (storage, name)
        for path in (tmp_path / "half" / "checkpoints").iterdir():  # back to where it stood still
            if path.name != f"step-{half.step_number:09d}":
                path.rename(tmp_path / f"{storage}-{path.name}")


# ------------------------------------------------------------ the choice


@pytest.mark.parametrize(
    ("dtype", "storage", "free", "expected"),
    [
        ("float32", "auto", 2.0, ("float32", "memory")),
        ("float32", "auto", 1.9, ("float32", "disk")),
        ("float32", "memory", 0.1, ("float32", "memory")),
        ("auto", "auto", 2.0, ("float32", "memory")),
        ("auto", "auto", 1.9, ("float16", "memory")),
        ("auto", "auto", 0.9, ("float32", "disk")),
        ("auto", "memory", 0.9, ("float16", "memory")),
        ("auto", "disk", 9.0, ("float32", "disk")),
        ("int8", "auto", 0.6, ("int8", "memory")),
        ("int8", "auto", 0.4, ("int8", "disk")),
    ],
)
def test_rows_are_chosen_by_size(dtype: str, storage: str, free: float, expected: tuple[str, str]) -> None:
    """free: in sizes of the float32 rows; half of it is used at most."""
    with mock.patch("instdisc.bank.choice.free_memory", return_value=int(free * 1000 * 128 * 4)):
        found = choose_rows(1000, 128, CPU, dtype, storage)
    assert (str(found.dtype).removeprefix("torch."), found.storage) == expected
    assert f"in {expected[0]}" in found.why and found.why.endswith(".")
    assert ("free" in found.why) == ((expected[1] == "disk" and storage == "auto") or "float16" in expected)


@pytest.mark.parametrize(
    ("dtype", "storage", "gpu", "host", "expected"),
    [
        ("auto", "auto", 2.0, 0.1, ("float32", "memory")),
        ("auto", "auto", 1.0, 9.0, ("float16", "memory")),
        ("auto", "auto", 0.6, 9.0, ("int8", "memory")),
        ("auto", "auto", 0.4, 2.0, ("float32", "host")),
        ("auto", "auto", 0.4, 1.0, ("float16", "host")),
        ("auto", "auto", 0.4, 0.9, ("float32", "disk")),
        ("float32", "auto", 1.9, 2.0, ("float32", "host")),
        ("auto", "host", 9.0, 1.0, ("float16", "host")),
        ("int8", "host", 9.0, 0.1, ("int8", "host")),
        ("auto", "disk", 9.0, 9.0, ("float32", "disk")),
    ],
)
def test_beside_a_gpu_the_host_and_the_disk_come_last(
    dtype: str, storage: str, gpu: float, host: float, expected: tuple[str, str]
) -> None:
    free = {"cuda": gpu, "cpu": host}
    with mock.patch("instdisc.bank.choice.free_memory", lambda device: int(free[device.type] * 1000 * 128 * 4)):
        found = choose_rows(1000, 128, torch.device("cuda"), dtype, storage)
    assert (str(found.dtype).removeprefix("torch."), found.storage) == expected
    assert {"memory": "in memory", "host": "in the host's memory", "disk": "mapped file"}[expected[1]] in found.why


def test_a_cpu_has_no_other_memory() -> None:
    with pytest.raises(InputError, match="for training on a GPU"):
        choose_rows(1000, 128, CPU, "auto", "host")


def test_the_run_says_what_it_chose_and_a_resumed_one_keeps_the_dtype(tmp_path: Path) -> None:
    said: list[str] = []
    tight = mock.patch("instdisc.bank.choice.free_memory", return_value=48 * 8 * 4)
    with tight:
        run = train(made_pictures(48), tmp_path / "run", tiny(bank_dtype="auto", epochs=1), say=said.append).path
    (line,) = [line for line in said if line.startswith("Bank: ")]
    assert line.startswith("Bank: 48 rows in float16") and "as float32 in memory would take 1.5 kB" in line
    chosen = RunFolder(run).read_config()["chosen"]
    assert (chosen["bank_dtype"], chosen["bank_storage"]) == ("float16", "memory")
    train(made_pictures(48), run, tiny(bank_dtype="auto", epochs=1), resume=True, say=said.append)
    assert said[-1] != line and any(
        other.startswith("Bank: 48 rows in float16") for other in said[said.index(line) + 1 :]
    )
