"""What is kept in the cache folder: counted, listed, cleared by kind and age, but not under a process that fills."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import made_pictures, picture_folder

from instdisc.data.loading.dataset import open_pictures
from instdisc.data.loading.pixel_cache import PixelCache
from instdisc.data.sources.open import open_source
from instdisc.data.storage.inventory import being_filled, clear, kept
from instdisc.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache folder with an index, pixels, a download of 70 bytes and a data set, used 0, 0, 10 and 100 days ago."""
    top = tmp_path / "instdisc"
    pictures = picture_folder(tmp_path / "pictures", 20)
    source = open_source(pictures, index_folder=top / "index")
    open_pictures(source, 16, "cpu", storage="cache", cache_folder=top / "pixels", workers=0)
    for place, days in ((top / "downloads/a.parquet", 10), (top / "datasets/cifar10/batches/one.bin", 100)):
        place.parent.mkdir(parents=True)
        place.write_bytes(bytes(70))
        os.utime(place, (time.time() - 86_400 * days,) * 2)
    return top


def test_everything_is_listed_with_its_size(folder: Path) -> None:
    entries = {entry.kind: entry for entry in kept(folder=folder)}
    assert set(entries) == {"pixels", "index", "downloads", "datasets"}
    assert entries["pixels"].bytes > 20 * 3 * 16 * 16
    assert entries["downloads"].bytes == entries["datasets"].bytes == 70
    assert entries["datasets"].name == "cifar10"
    sizes = [entry.bytes for entry in kept(folder=folder)]
    assert sizes == sorted(sizes, reverse=True)
    assert kept(folder=folder / "nowhere") == []


@pytest.mark.parametrize(
    ("kinds", "days", "gone"),
    [
        ([], 0.0, {"pixels", "index", "downloads", "datasets"}),
        ([], 5.0, {"downloads", "datasets"}),
        (["downloads", "pixels"], 0.0, {"downloads", "pixels"}),
        (["downloads"], 50.0, set()),
    ],
)
def test_clearing_by_kind_and_age(folder: Path, kinds: list[str], days: float, gone: set[str]) -> None:
    assert {entry.kind for entry in clear(kinds, days, folder)} == gone
    assert {entry.kind for entry in kept(folder=folder)} == {"pixels", "index", "downloads", "datasets"} - gone


def test_what_is_being_filled_stays_and_what_was_cleared_is_made_again(folder: Path, tmp_path: Path) -> None:
    (entry,) = (entry for entry in kept(folder=folder) if entry.kind == "pixels")
    cache = PixelCache(folder / "pixels", entry.name.partition("-")[0], 20, 16)
    assert cache.path == entry.path and not being_filled(entry.path)
    with cache.locked():
        assert being_filled(entry.path)
        assert clear(["pixels"], 0.0, folder) == []
    assert len(clear(["pixels"], 0.0, folder)) == 1
    source = open_source(tmp_path / "pictures", index_folder=folder / "index")
    pictures = open_pictures(source, 16, "cpu", storage="cache", cache_folder=folder / "pixels", workers=0)
    (batch,) = pictures.batches([np.arange(20)])
    expected = sorted(made_pictures(20).transpose(0, 3, 1, 2).reshape(20, -1).tolist())
    assert sorted(batch.images.reshape(20, -1).tolist()) == expected


def test_what_cannot_be_is_refused(folder: Path) -> None:
    for act in (clear, kept):
        with pytest.raises(InputError, match="no kind of store"):
            act(["pixel"], folder=folder)
    with pytest.raises(InputError, match="at least 0"):
        clear([], -1.0, folder)
