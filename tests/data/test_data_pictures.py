"""Pictures: the same batches from memory, from the cache and from workers; broken files; kills; full disks."""

from __future__ import annotations

import csv
import errno
import importlib
import io
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from instdisc import progress
from instdisc.data import Quarantine, Source, open_pictures, open_source
from instdisc.data.decoding.decode import decode, store
from instdisc.data.loading import dataset as pictures_room
from instdisc.data.loading import pixel_cache as cache_room
from instdisc.data.loading.batches import Pictures
from instdisc.data.loading.pixel_cache import PixelCache
from instdisc.data.loading.workers import Pool, must_stay_here
from instdisc.data.sources import folder as folder_room
from instdisc.errors import InputError

CPU = torch.device("cpu")
SIZE = 16


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        height, width = random.integers(8, 40, 2)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png", compress_level=0)
    return folder


def break_some(folder: Path, numbers: list[int]) -> None:
    for number in numbers:
        path = folder / f"{number:04d}.png"
        path.write_bytes(path.read_bytes()[: 60 + number])


def expected(source: Source, row: int, size: int = SIZE) -> np.ndarray:
    return store(decode(source.read(int(row)), at_least=size), size).transpose(2, 0, 1)


def order_of(count: int, batch: int = 10, seed: int = 1) -> list[np.ndarray]:
    shuffled = np.random.default_rng(seed).permutation(count)
    return [shuffled[start : start + batch] for start in range(0, count, batch)]


def read_all(source: Source, **options: Any) -> None:
    with open_pictures(source, SIZE, CPU, workers=0, **options) as found:
        list(found.batches([np.arange(found.count)]))


def listed(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", 45)


# ---- the same content everywhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["memory", "cache", "workers"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_right_pictures_in_the_right_order(
    folder: Path, tmp_path: Path, storage: Any, workers: int
) -> None:
    source = open_source(folder)
    order = [*order_of(45), np.array([3, 3, 0]), np.array([44])]
    with open_pictures(source, SIZE, CPU, storage=storage, cache_folder=tmp_path / "cache", workers=workers) as found:
        assert (found.storage, found.count, found.size) == (storage, 45, SIZE)
        np.testing.assert_array_equal(found.rows, np.arange(45))
        seen = 0
        for batch, instances in zip(found.batches(order), order, strict=True):
            np.testing.assert_array_equal(batch.indices, instances)
            assert batch.images.shape == (len(instances), 3, SIZE, SIZE) and batch.images.is_contiguous()
            assert batch.waited >= 0
            for instance, image in zip(instances, batch.images, strict=True):
                np.testing.assert_array_equal(image, expected(source, instance))
                width, height = Image.open(io.BytesIO(source.read(int(instance)))).size
                assert found.aspects[instance].item() == pytest.approx(width / height)
            seen += 1
        assert seen == len(order)


def test_arrays_of_the_stored_size_are_stored_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, SIZE, SIZE, 3), dtype=np.uint8)
    source = open_source(pixels)
    assert must_stay_here(source)
    for storage in ("memory", "workers"):
        with open_pictures(source, SIZE, "cpu", storage=storage) as found:
            (batch,) = found.batches([np.arange(30)])
            np.testing.assert_array_equal(batch.images, pixels.transpose(0, 3, 1, 2))
            assert (found.aspects == 1).all()


def test_a_second_and_a_broken_off_epoch(folder: Path) -> None:
    with open_pictures(open_source(folder), SIZE, CPU, storage="workers", workers=1) as found:
        for batch in found.batches(order_of(45)):
            assert len(batch.indices) == 10
            break  # training may stop in the middle of an epoch, with batches under way
        assert sum(len(batch.indices) for batch in found.batches(order_of(45, seed=2))) == 45


# ---- the choice ------------------------------------------------------------------------------------------------------


def test_the_first_storage_that_fits_is_taken_and_says_why(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    needed = 45 * 3 * SIZE**2

    def choose(**budgets: Any) -> Pictures:
        with open_pictures(source, SIZE, CPU, cache_folder=tmp_path / "cache", workers=0, **budgets) as found:
            return found

    found = choose()
    assert found.storage == "memory" and found.why == "45 pictures at 16 px take 35 kB: kept in memory."
    found = choose(memory_budget=needed - 1, disk_budget=needed - 1)
    assert found.storage == "workers"
    assert found.why == (
        f"45 pictures at 16 px take 35 kB (more than the 35 kB of memory reserved; more than the 35 kB of disk "
        f"reserved in {tmp_path / 'cache'}): decoded in each epoch by this process."
    )
    assert not (tmp_path / "cache").exists()
    found = choose(memory_budget=0, disk_budget=needed)
    assert found.storage == "cache" and "decoded once into the cache" in found.why
    found = choose(memory_budget=0, disk_budget=0)  # complete already: it takes no more disk
    assert found.storage == "cache" and "read from the cache" in found.why
    with pytest.raises(InputError, match=r"more than the 0\.0 kB of memory reserved.*--storage cache"):
        choose(storage="memory", memory_budget=0)
    with pytest.raises(InputError, match="give auto, memory, cache or workers"):
        choose(storage="disk")


@pytest.mark.fault("hours before the first step, with no progress shown")
@pytest.mark.parametrize("storage", ["memory", "cache"])
def test_reading_shows_how_far_it_has_come(
    folder: Path, tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(pictures_room, "_PIECE_ROWS", 10)
    open_pictures(open_source(folder), SIZE, CPU, storage=storage, cache_folder=tmp_path / "cache", workers=0).close()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Reading")]
    assert [line.split(",")[0] for line in lines] == [
        f"Reading pictures: {read} of 45 pictures" for read in (10, 20, 30, 40, 45)
    ]
    assert all(line.endswith(" left") for line in lines)


@pytest.mark.fault("hours before the first step, with no progress shown")
def test_with_workers_the_first_batch_waits_for_few_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = folder_room._read_local
    monkeypatch.setattr(folder_room, "_read_local", lambda place: (read.append(place), real(place))[1])
    with open_pictures(open_source(folder), SIZE, CPU, storage="workers", workers=0) as found:
        assert len(read) < 5, "one or another is looked at"
        read.clear()
        next(iter(found.batches(order_of(45, batch=5))))
        assert 5 <= len(read) <= 20, "this batch, and those that are put together meanwhile"


# ---- broken pictures -------------------------------------------------------------------------------------------------


@pytest.mark.fault("a corrupt or truncated picture kills the run after hours")
@pytest.mark.fault("a picture that can't be read is on no list with its reason, and not counted at the end")
@pytest.mark.parametrize("storage", ["memory", "cache", "workers"])
def test_unreadable_pictures_are_listed_once_and_left_out(folder: Path, tmp_path: Path, storage: Any) -> None:
    broken = [0, 7, 8, 20, 44]
    break_some(folder, broken)
    source = open_source(folder)
    good = np.setdiff1d(np.arange(45), broken)
    quarantine = Quarantine(tmp_path / "run" / "quarantine.csv")
    with open_pictures(
        source, SIZE, CPU, storage=storage, cache_folder=tmp_path / "cache", workers=1, quarantine=quarantine
    ) as found:
        if storage != "workers":
            np.testing.assert_array_equal(found.rows, good)
            assert found.count == len(found.aspects) == 40
        for epoch in range(2):
            handed_out = []
            for batch in found.batches(order_of(found.count, seed=epoch)):
                handed_out.extend(found.rows[batch.indices.numpy()])
                for row, image in zip(found.rows[batch.indices.numpy()], batch.images, strict=True):
                    np.testing.assert_array_equal(image, expected(source, row))
            assert sorted(handed_out) == good.tolist()
    lines = listed(tmp_path / "run" / "quarantine.csv")
    assert lines[0] == ["id", "path", "reason"]
    assert sorted(line[0] for line in lines[1:]) == [source.identifier(row) for row in broken]
    assert {line[1] for line in lines[1:]} == {source.location(row) for row in broken}
    assert all("PNG is" in line[2] for line in lines[1:])
    assert quarantine.count == 5


@pytest.mark.parametrize("storage", ["memory", "cache", "workers"])
def test_strict_stops_at_the_first(folder: Path, tmp_path: Path, storage: Any) -> None:
    break_some(folder, [12])
    source = open_source(folder)
    with pytest.raises(InputError, match=r"0012\.png cannot be read: the PNG is .*--strict"):
        read_all(source, storage=storage, cache_folder=tmp_path / "cache", strict=True)


@pytest.mark.parametrize("storage", ["memory", "cache", "workers"])
def test_nothing_readable_is_said_at_once(folder: Path, tmp_path: Path, storage: Any) -> None:
    break_some(folder, list(range(45)))
    source = open_source(folder)
    with pytest.raises(InputError, match=r"None of 45 pictures of .* can be read; for example .*0000\.png: the PNG is"):
        read_all(source, storage=storage, cache_folder=tmp_path / "cache")


def test_a_repaired_picture_comes_back_from_a_filled_cache(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "0012.png").read_bytes()
    break_some(folder, [12])
    arguments: dict[str, Any] = {"storage": "cache", "cache_folder": tmp_path / "cache", "workers": 0}
    with open_pictures(open_source(folder), SIZE, CPU, **arguments) as found:
        assert found.count == 44
    (folder / "0012.png").write_bytes(whole)
    source = open_source(folder)
    with open_pictures(source, SIZE, CPU, **arguments) as found:
        assert found.count == 45
        (batch,) = found.batches([np.array([12])])
        np.testing.assert_array_equal(batch.images[0], expected(source, 12))


@pytest.mark.fault("names with spaces")
@pytest.mark.fault("names with newlines")
@pytest.mark.fault("names with non-UTF-8 bytes")
def test_the_quarantine_list_takes_any_name_and_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    names = ["plain.jpg", "with, comma.jpg", 'quote".jpg', "new\nline.jpg", os.fsdecode(b"caf\xe9.jpg"), "ü.jpg"]
    first, second = Quarantine(path), Quarantine(path)  # as two ranks would
    for name in names:
        first.add(name, f"/data/{name}", "the file is empty (0 bytes)")
        second.add(name, f"/data/{name}", "the file is empty (0 bytes)")
    second.add("one more.jpg", "/data/one more.jpg", "the JPEG is cut short")
    assert first.count == second.count == Quarantine(path).count == 7
    assert [line[0] for line in listed(path)] == ["id", *names, "one more.jpg"]
    assert Quarantine(tmp_path / "none.csv").count == 0 and not (tmp_path / "none.csv").exists()


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_the_cache_is_used_again_and_never_for_other_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"storage": "cache", "cache_folder": tmp_path / "cache", "workers": 0}
    open_pictures(open_source(folder), SIZE, CPU, **arguments).close()

    def forbidden(*_: object) -> Iterator[Any]:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(pictures_room.Pool, "stream", forbidden)
        open_pictures(open_source(folder), SIZE, CPU, **arguments).close()
    # Another size, another decoder, and other pictures under the same names.
    other = write_pictures(tmp_path / "elsewhere" / "pictures", 45, seed=9)
    source = open_source(other)
    assert source.fingerprint == open_source(folder).fingerprint
    for size in (SIZE, 8):
        with open_pictures(source, size, CPU, **arguments) as found:
            (batch,) = found.batches([np.arange(45)])
            np.testing.assert_array_equal(batch.images[5], expected(source, 5, size))
    monkeypatch.setattr(cache_room, "DECODING_VERSION", 10_000)
    assert "decoded once" in open_pictures(source, SIZE, CPU, **arguments).why


@pytest.mark.parametrize("damage", ["header", "pixels", "state"])
def test_a_damaged_cache_is_made_anew(folder: Path, tmp_path: Path, damage: str) -> None:
    source = open_source(folder)
    arguments: dict[str, Any] = {"storage": "cache", "cache_folder": tmp_path / "cache", "workers": 0}
    open_pictures(source, SIZE, CPU, **arguments).close()
    (home,) = (tmp_path / "cache").iterdir()
    name = {"header": "header.json", "pixels": "pixels.u8", "state": "state.u8"}[damage]
    (home / name).write_bytes((home / name).read_bytes()[:20])
    with open_pictures(source, SIZE, CPU, **arguments) as found:
        assert "decoded once" in found.why
        (batch,) = found.batches([np.arange(45)])
        for row in range(45):
            np.testing.assert_array_equal(batch.images[row], expected(source, row))


@pytest.mark.fault("a kill while pictures are decoded loses hours, or leaves a half-written cache that counts as whole")
def test_filling_goes_on_after_kill_9(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", 300)
    break_some(folder, [1, 150, 299])
    program = f"""
        import time
        import numpy as np
        from pathlib import Path
        from instdisc.data.loading import pixel_cache as cache
        from instdisc.data import open_source
        from instdisc.data.loading.workers import Pool
        cache._SYNC_SECONDS = 0.0
        source = open_source({str(folder)!r})
        pixels = cache.PixelCache.of(source, Path({str(tmp_path / "cache")!r}), {SIZE})
        with pixels.locked():
            pixels.prepare(retry_unreadable=False)
            missing = pixels.missing()
            pieces = np.split(missing, range(4, len(missing), 4))
            for number, _ in enumerate(pixels.fill(Pool(source, {SIZE}, 0).stream(pieces))):
                print(number, flush=True)
                time.sleep(0.01)
    """
    source = open_source(folder)
    store_of = PixelCache.of(source, tmp_path / "cache", SIZE)
    for enough in (10, 20):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == enough:
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
        process.stdout.close()
    left = len(store_of.missing())
    assert 0 < left < 300 - 4 * 25  # both starts brought it forward
    with open_pictures(source, SIZE, CPU, storage="cache", cache_folder=tmp_path / "cache", workers=0) as found:
        assert "read from the cache" in found.why
        assert found.count == 297
        (batch,) = found.batches([np.arange(297)])
        for instance, row in enumerate(found.rows):
            np.testing.assert_array_equal(batch.images[instance], expected(source, row))
        assert set(store_of.unreadable()) == {1, 150, 299}


@pytest.mark.fault("a kill while pictures are decoded loses hours, or leaves a half-written cache that counts as whole")
def test_a_row_counts_as_stored_only_after_its_pixels_are_on_the_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(folder)
    cache = PixelCache.of(source, tmp_path, SIZE)
    calls: list[str] = []
    real_sync, real_mark = os.fsync, PixelCache._mark
    monkeypatch.setattr(
        cache_room.os, "fsync", lambda handle: (calls.append(os.readlink(f"/proc/self/fd/{handle}")), real_sync(handle))
    )
    monkeypatch.setattr(
        PixelCache, "_mark", lambda self, rows, state: (calls.append("mark"), real_mark(self, rows, state))
    )
    with cache.locked():
        cache.prepare(retry_unreadable=True)
        calls.clear()
        with Pool(source, SIZE, 0) as pool:
            list(cache.fill(pool.stream([np.arange(45)])))
    assert [Path(call).name for call in calls[: calls.index("mark")]] == [
        "pixels.u8",
        "aspects.f32",
        "unreadable.jsonl",
        "stamps.i64",
    ]


@pytest.mark.fault("a disk that fills up while pictures are decoded ends the run")
def test_a_disk_that_fills_up_leads_to_workers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cache_room._write
    written = 0

    def until_full(file: Any, position: int, values: np.ndarray) -> None:
        nonlocal written
        written += values.nbytes
        if written > 20 * 3 * SIZE**2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, position, values)

    monkeypatch.setattr(cache_room, "_write", until_full)
    monkeypatch.setattr(pictures_room, "_PIECE_ROWS", 4)
    source = open_source(folder)
    with open_pictures(source, SIZE, CPU, storage="cache", cache_folder=tmp_path / "cache", workers=0) as found:
        assert found.storage == "workers"
        assert "could not be written (No space left on device)): decoded in each epoch" in found.why
        assert found.count == 45 and sum(len(batch.indices) for batch in found.batches(order_of(45))) == 45
    assert not any((tmp_path / "cache").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="needs a folder that cannot be made")
def test_a_cache_folder_that_cannot_be_made_leads_to_workers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with open_pictures(
        open_source(folder), SIZE, CPU, storage="cache", cache_folder=tmp_path / "file" / "cache", workers=0
    ) as found:
        assert found.storage == "workers" and "could not be written (Not a directory)" in found.why


def test_two_processes_fill_one_cache_together(tmp_path: Path) -> None:
    source = open_source(write_pictures(tmp_path / "pictures", 60))
    program = f"""
        from pathlib import Path
        from instdisc.data.loading import pixel_cache as cache
        from instdisc.data import open_source
        from instdisc.data.loading.workers import Pool
        source = open_source({str(tmp_path / "pictures")!r})
        pixels = cache.PixelCache.of(source, Path({str(tmp_path / "cache")!r}), {SIZE})
        with pixels.locked():
            pixels.prepare(retry_unreadable=False)
            missing = pixels.missing()
            for _ in pixels.fill(Pool(source, {SIZE}, 0).stream([missing] if len(missing) else [])):
                pass
        print(len(missing))
    """
    processes = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = sorted(process.communicate(timeout=500)[0].strip() for process in processes)
    assert answers == ["0", "60"]  # the second waited, and found the work done
    cache = PixelCache.of(source, tmp_path / "cache", SIZE)
    pixels = np.empty((60, 3, SIZE, SIZE), np.uint8)
    cache.read(np.arange(60), out=pixels)
    np.testing.assert_array_equal(pixels[37], expected(source, 37))


# ---- the processes ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("a worker that dies leaves the run hanging")
def test_a_worker_that_dies_gives_one_clear_error(folder: Path) -> None:
    with open_pictures(open_source(folder), SIZE, CPU, storage="workers", workers=1) as found:
        batches = found.batches(order_of(45) * 50)
        next(batches)
        child = found._pool._children[0]  # type: ignore[attr-defined]
        child.process.kill()
        with pytest.raises(InputError, match=r"ended by signal SIGKILL, which often means that the memory was full"):
            list(batches)


def test_a_worker_that_has_no_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_room.py").write_text(
        "import instdisc.data.sources.arrays as arrays\n"
        "class Crowded(arrays.SequenceSource):\n"
        "    def read(self, row):\n"
        "        raise MemoryError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = importlib.import_module("no_room").Crowded([np.zeros((4, 4), np.uint8)] * 3)
    with Pool(source, SIZE, 1) as pool, pytest.raises(InputError, match="There is not enough memory"):
        list(pool.stream([np.arange(3)]))


def test_workers_need_no_main_guard_and_survive_ctrl_c(folder: Path, tmp_path: Path) -> None:
    # A script without `if __name__ == "__main__"`, as people write them, interrupted in the middle.
    script = tmp_path / "script.py"
    program = f"""
        import itertools, os, signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        import numpy as np
        from instdisc.data import open_source
        from instdisc.data.loading.workers import Pool
        pool = Pool(open_source({str(folder)!r}), {SIZE}, 2)
        try:
            for number, _ in enumerate(pool.stream(itertools.repeat(np.arange(45)))):
                if number == 3:
                    os.killpg(0, signal.SIGINT)
        except KeyboardInterrupt:
            (fetched,) = pool.stream([np.arange(45)])
            print("saved", len(fetched.rows))
    """
    script.write_text(textwrap.dedent(program))
    answer = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=500, start_new_session=True, check=False
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "saved 45\n", "")


def test_processes_end_with_their_owner(folder: Path) -> None:
    found = open_pictures(open_source(folder), SIZE, CPU, storage="workers", workers=2)
    next(found.batches(order_of(45)))
    processes = [child.process for child in found._pool._children]  # type: ignore[attr-defined]
    found.close()
    assert all(process.poll() is not None for process in processes)
    pool = Pool(open_source(folder), SIZE, 1)
    process = pool._children[0].process
    del pool
    assert process.poll() is not None


def test_a_worker_does_not_import_torch(folder: Path) -> None:
    with Pool(open_source(folder), SIZE, 1) as pool:
        pool.submit(np.arange(3)).result()
        if sys.platform == "linux":
            maps = Path(f"/proc/{pool._children[0].process.pid}/maps").read_text()
            assert "libtorch" not in maps and "numpy" in maps


def test_what_must_stay_in_this_process(folder: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    assert not must_stay_here(open_source(folder))
    assert not must_stay_here(open_source([file.getvalue()] * 3))
    assert must_stay_here(open_source([Image.new("RGB", (4, 4))] * 3))


def test_an_error_of_our_own_is_not_called_an_unreadable_picture(folder: Path) -> None:
    with Pool(open_source(folder), SIZE, 1) as pool, pytest.raises(RuntimeError, match="IndexError"):
        pool.submit(np.array([10_000])).result()
