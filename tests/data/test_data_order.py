"""The order of an epoch: every picture once, whatever the ranks; each rank reads its own part of the storage."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from several_ranks import run_on_ranks
from test_data_sources import sample, tar_bytes
from tiny_runs import saved_state, tiny

from instdisc import draws, ranks
from instdisc.data.loading.batches import Batch
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.loading.sampler import Order, choose_order
from instdisc.data.sources import tar as tar_room
from instdisc.data.sources.open import open_source
from instdisc.data.sources.parquet import ParquetSource
from instdisc.data.sources.subset import Subset
from instdisc.data.sources.tar import TarSource
from instdisc.errors import InputError
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.training import Training

CPU = torch.device("cpu")
COUNT, GROUP = 600, 20
STARTS = np.arange(0, COUNT, GROUP)


def by_shards(lanes: int = 4, window: int = 40, starts: np.ndarray = STARTS) -> Order:
    return Order("shards", lanes, window, starts)


def parquet_files(folder: Path, files: int = 3, groups: int = 10) -> Path:
    folder.mkdir()
    for file in range(files):
        pictures = []
        for number in range(groups * GROUP):
            pictures.append(picture_of(file * groups * GROUP + number))
        table = pa.table({"image": pa.array(pictures, pa.binary())})
        pq.write_table(table, folder / f"train-{file}.parquet", row_group_size=GROUP)
    return folder


def picture_of(number: int) -> bytes:
    """A PNG whose one colour tells its number."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("count", [1, 7, COUNT, 601])
@pytest.mark.parametrize("lanes", [1, 3, 4])
@pytest.mark.parametrize("number", [1, 5, 13])
def test_every_picture_once_in_batches_of_nearly_one_size(count: int, lanes: int, number: int) -> None:
    starts = np.unique(np.append(0, np.random.default_rng(count).integers(0, count, 9)))
    batches = by_shards(min(lanes, count), 30, starts).batches(count, number, seed=3, epoch=2)
    assert len(batches) == number and np.array_equal(np.sort(np.concatenate(batches)), np.arange(count))
    assert np.ptp([len(batch) for batch in batches]) <= 1


def test_by_pictures_it_is_the_permutation_that_runs_were_made_with() -> None:
    expected = np.array_split(draws.permutation(50, seed=1, step=4), 6)
    for batch, other in zip(Order().batches(50, 6, seed=1, epoch=4), expected, strict=True):
        assert np.array_equal(batch, other)


def slow(lanes: int, window: int, count: int, number: int, seed: int, epoch: int) -> list[list[int]]:
    """The sentence of order.py, picture by picture."""
    line: list[int] = []
    for group in draws.permutation(len(STARTS), seed=seed, step=epoch, stream=101):
        line += range(STARTS[group], STARTS[group] + GROUP)
    each = [count // lanes + (lane < count % lanes) for lane in range(lanes)]
    stood = []
    for lane, length in enumerate(each):
        part = line[sum(each[:lane]) : sum(each[:lane]) + length]
        moved = []
        for place, picture in enumerate(part):
            random = float(draws.uniforms(torch.tensor([picture]), 1, seed=seed, step=epoch, stream=102))
            moved.append((place + window * random, place, picture))
        stood.append([picture for _, _, picture in sorted(moved)])
    batches, at = [], 0
    for batch in range(number):
        length = count // number + (batch < count % number)
        taken = [(place % lanes, place // lanes) for place in range(at, at + length)]
        batches.append([stood[lane][place] for lane, place in sorted(taken)])
        at += length
    return batches


@pytest.mark.parametrize(("lanes", "window"), [(1, 1), (4, 40), (7, 1000)])
def test_as_in_slow_python(lanes: int, window: int) -> None:
    found = by_shards(lanes, window).batches(COUNT, 11, seed=5, epoch=1)
    assert [batch.tolist() for batch in found] == slow(lanes, window, COUNT, 11, seed=5, epoch=1)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_a_rank_reads_its_own_part(world: int) -> None:
    """Counted: the parts of all ranks are an epoch, and few groups are read by more than one of them."""
    seen: Counter[int] = Counter()
    groups: list[set[int]] = [set() for _ in range(world)]
    for batch in by_shards(lanes=12, window=20).batches(COUNT, 10, seed=0, epoch=0):
        sizes = []
        for rank in range(world):
            begin, end = ranks.share(len(batch), rank, world)
            seen.update(batch[begin:end].tolist())
            groups[rank] |= set((batch[begin:end] // GROUP).tolist())
            sizes.append(end - begin)
        assert max(sizes) - min(sizes) <= 1
    assert set(seen.values()) == {1} and len(seen) == COUNT
    read = sum(len(mine) for mine in groups)
    # By pictures every rank would read from all 30; at the two edges of a part a lane or two are shared.
    assert read <= 30 + (0 if world == 1 else 30 // 12 * 4 * world), read


def test_pictures_of_a_group_part_and_epochs_differ() -> None:
    order = by_shards(lanes=4, window=100)
    first, again, second = (order.batches(COUNT, 20, seed=0, epoch=epoch) for epoch in (0, 0, 1))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert not np.array_equal(first[0], second[0])
    groups = [len(set((batch // GROUP).tolist())) for batch in first]
    assert np.mean(groups) > 12, groups  # of 30 pictures; without moves it would be four to eight


def test_each_group_is_read_once_in_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(parquet_files(tmp_path / "set")), index_folder=tmp_path / "index")
    assert isinstance(source, ParquetSource)
    loaded: Counter[Any] = Counter()
    whole = pq.ParquetFile.read_row_group

    def counting(file: pq.ParquetFile, group: int, *rest: Any, **options: Any) -> pa.Table:
        loaded[file.metadata.num_rows, id(file), group] += 1
        return whole(file, group, *rest, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    with open_pictures(source, 8, CPU, storage="workers", workers=0) as pictures:
        order = choose_order(pictures)
        assert order.by == "shards" and order.lanes == 1 and order.why.startswith("by shards: 30 of them")
        batches = order.batches(pictures.count, 12, seed=0, epoch=0)
        loaded.clear()
        handed = Counter()
        for batch, instances in zip(pictures.batches(batches), batches, strict=True):
            assert batch.indices.tolist() == instances.tolist()
            colours = batch.images[:, :, 0, 0].long()
            assert (colours[:, 0] + 256 * colours[:, 1]).tolist() == instances.tolist()
            handed.update(instances.tolist())
    assert set(handed.values()) == {1} and len(handed) == COUNT
    assert 29 <= sum(loaded.values()) <= 30  # the first may have been looked into before


def test_processes_have_their_lanes(tmp_path: Path) -> None:
    """The same batches from two processes; each reads half of the groups and no more than a few others."""
    source = open_source(str(parquet_files(tmp_path / "set")), index_folder=tmp_path / "index")
    with open_pictures(source, 8, CPU, storage="workers", workers=2) as pictures:
        order = choose_order(pictures)
        assert order.lanes == 2
        batches = order.batches(pictures.count, 12, seed=0, epoch=0)
        asked: list[set[int]] = [set(), set()]
        pool = pictures._pool  # type: ignore[attr-defined]
        submit = pool.submit

        def noted(rows: np.ndarray, *rest: Any, line: int) -> Any:
            asked[line] |= set((rows // GROUP).tolist())
            return submit(rows, *rest, line=line)

        pool.submit = noted
        for batch, instances in zip(pictures.batches(batches), batches, strict=True):
            colours = batch.images[:, :, 0, 0].long()
            assert (colours[:, 0] + 256 * colours[:, 1]).tolist() == instances.tolist()
            assert batch.indices.tolist() == instances.tolist()
    assert len(asked[0] | asked[1]) == 30 and len(asked[0] & asked[1]) <= 2


def test_stretches_of_tar_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_room, "_SPAN", 4096)
    for shard in range(2):
        members = [member for number in range(30) for member in sample(30 * shard + number)]
        (tmp_path / f"{shard}.tar").write_bytes(tar_bytes(members))
    source = open_source(str(tmp_path / "*.tar"), index_folder=tmp_path / "index")
    assert isinstance(source, TarSource)
    groups = source.groups()
    assert groups is not None and not groups.dear and 30 in groups.starts and len(groups.starts) > 8
    expected = [source.read(row) for row in range(60)]
    fetched: list[tuple[int, int]] = []
    whole = TarSource._fetch

    def noted(self: TarSource, shard: int, offset: int, size: int) -> bytes:
        fetched.append((shard, offset))
        return whole(self, shard, offset, size)

    monkeypatch.setattr(TarSource, "_fetch", noted)
    source.keep_groups()
    for rows in np.split(np.arange(60), 6):
        assert [content for _, content in source.iterate(rows)] == [expected[row] for row in rows]
    assert len(fetched) == len(set(fetched)) == len(groups.starts)
    part = Subset(source, np.arange(5, 60, 5))
    some = part.groups()
    assert some is not None and some.starts[0] == 0 and len(some.starts) <= len(part)


def test_what_a_picture_folder_says_to_shards() -> None:
    with (
        open_pictures(open_source(np.zeros((40, 8, 8, 3), np.uint8)), 8, CPU) as pictures,
        pytest.raises(InputError, match="neither Parquet files nor tar shards"),
    ):
        choose_order(pictures, "shards")


@pytest.mark.parametrize("facts", [{}, [], 3, {"by": "shards", "lanes": 0, "window": 3}, {"by": "x", "lanes": 1}])
def test_damaged_facts(facts: Any) -> None:
    with (
        open_pictures(open_source(np.zeros((40, 8, 8, 3), np.uint8)), 8, CPU) as pictures,
        pytest.raises(InputError, match="damaged"),
    ):
        choose_order(pictures, kept=facts)


def met_in_training(folder: str) -> list[list[int]]:
    """The instances of each step of this rank, in one epoch of two."""
    met: list[list[int]] = []
    step = Training.step

    def noted(training: Training, parts: Iterator[Batch], planned: int) -> Any:
        pieces = list(parts)
        met.append([index for piece in pieces for index in piece.indices.tolist()])
        return step(training, iter(pieces), planned)

    Training.step = noted  # type: ignore[method-assign]  # in a process of its own
    settings = tiny(epochs=1, storage="workers", workers=0, batch=100)
    train(str(Path(folder) / "set"), Path(folder) / "run", settings, say=None, device="cpu")
    return met


def test_two_ranks_share_an_epoch_by_groups(tmp_path: Path) -> None:
    parquet_files(tmp_path / "set")
    first, second = run_on_ranks(2, met_in_training, str(tmp_path))
    assert RunFolder(tmp_path / "run").read_config()["chosen"]["order"]["lanes"] == 2
    assert sorted(index for step in first + second for index in step) == list(range(COUNT))
    assert {len(step) for step in first + second} == {50}
    groups = [{index // GROUP for step in steps for index in step} for steps in (first, second)]
    assert len(groups[0] & groups[1]) <= 1 and max(map(len, groups)) <= 16


def test_a_run_goes_on_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped and resumed, with other processes: the lanes are those that it began with, and so are the numbers."""
    parquet_files(tmp_path / "set")
    settings = tiny(epochs=2, storage="workers", workers=0, batch=60, checkpoint_minutes=0)
    said: list[str] = []
    whole = train(str(tmp_path / "set"), tmp_path / "whole", settings, say=said.append)
    assert any(line.startswith("Order: by shards: 30 of them") for line in said)
    step = Training.step

    def stopped(training: Training, parts: Iterator[Batch], planned: int) -> Any:
        if training.step_number == 13:
            raise InterruptedError
        return step(training, parts, planned)

    monkeypatch.setattr(Training, "step", stopped)
    with pytest.raises(InterruptedError):
        train(str(tmp_path / "set"), tmp_path / "cut", settings, say=None)
    monkeypatch.setattr(Training, "step", step)
    cut = train(str(tmp_path / "set"), tmp_path / "cut", replace(settings, workers=3), resume=True, say=None)
    assert RunFolder(cut.path).read_config()["chosen"]["order"]["lanes"] == 1
    assert saved_state(cut.path) == saved_state(whole.path)


def test_shards_that_are_not_there_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(InputError, match="take order=pictures"):
        train(np.zeros((40, 8, 8, 3), np.uint8), tmp_path / "run", tiny(order="shards"), say=said.append)
    assert not any(line.startswith("Data:") for line in said)
    train(np.zeros((40, 8, 8, 3), np.uint8), tmp_path / "run", tiny(order="pictures", epochs=0.4), say=None)
