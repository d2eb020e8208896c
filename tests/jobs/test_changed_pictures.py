"""Pictures that change under the same names: the cache decodes those again; resume and duplicates say so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import TINY, made_pictures, picture_folder

import instdisc
from instdisc.data.loading.batches import InCache
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.loading.pixel_cache import PixelCache, looked_at
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.jobs.duplicates import duplicates
from instdisc.jobs.index import add, recompute
from instdisc.jobs.search import search

COUNT, SIZE = 64, 16


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.png"))


def make_blue(file: Path) -> None:
    Image.new("RGB", (SIZE, SIZE), (0, 0, 255)).save(file)


def is_blue(file: Path) -> bool:
    with Image.open(file) as picture:
        return picture.getpixel((0, 0)) == (0, 0, 255)


def not_looked_at(folder: Path) -> list[Path]:
    """The files that the fingerprint of sixteen does not see."""
    seen = set(looked_at(open_source(folder)))
    return [file for row, file in enumerate(files_in(folder)) if row not in seen]


def stored(folder: Path) -> tuple[np.ndarray, str, list[int]]:
    """All stored pixels, how they were come by, and the rows that were decoded for it."""
    decoded: list[int] = []
    fill = PixelCache.fill

    def noted(self: PixelCache, pieces):  # type: ignore[no-untyped-def]
        for piece in fill(self, pieces):
            decoded.extend(piece.rows.tolist())
            yield piece

    PixelCache.fill = noted  # type: ignore[method-assign]
    try:
        with open_pictures(open_source(folder), SIZE, "cpu", storage="cache", workers=0) as found:
            assert isinstance(found, InCache)
            order = [np.arange(found.count)]
            pixels = np.concatenate([batch.images.numpy() for batch in found.batches(order)])
            return pixels, found.why, decoded
    finally:
        PixelCache.fill = fill  # type: ignore[method-assign]


@pytest.mark.fault("an edited picture is trained from its old pixels")
def test_an_edited_picture_is_decoded_again_and_no_other(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures", COUNT)
    first, _, decoded = stored(folder)
    assert decoded == list(range(COUNT))
    assert stored(folder)[2] == []
    for edited in (not_looked_at(folder)[0], files_in(folder)[0]):  # unseen and seen by the sixteen
        row = files_in(folder).index(edited)
        make_blue(edited)
        pixels, why, decoded = stored(folder)
        assert decoded == [row] and "1 changed picture decoded again, the rest read from the cache in" in why
        assert (pixels[row, 2] == 255).all() and (pixels[row, :2] == 0).all()
        others = [place for place, file in enumerate(files_in(folder)) if not is_blue(file)]
        assert len(others) >= COUNT - 2
        assert np.array_equal(pixels[others], first[others])
        assert stored(folder)[2] == []
    # A picture that was broken and is repaired, and one that breaks.
    broken = not_looked_at(folder)[1]
    content = broken.read_bytes()
    broken.write_bytes(content[:60])
    assert len(stored(folder)[0]) == COUNT - 1
    broken.write_bytes(content)
    pixels, _, decoded = stored(folder)
    assert len(pixels) == COUNT and decoded == [files_in(folder).index(broken)]


def test_folders_of_the_same_names_do_not_share_a_cache(tmp_path: Path) -> None:
    one, other = picture_folder(tmp_path / "one", COUNT), picture_folder(tmp_path / "other", COUNT, seed=1)
    pixels = [stored(folder)[0] for folder in (one, other, one, other)]
    assert np.array_equal(pixels[0], pixels[2]) and np.array_equal(pixels[1], pixels[3])
    assert not np.array_equal(pixels[0], pixels[1])
    assert stored(one)[2] == stored(other)[2] == []


def test_arrays_are_known_by_their_content(tmp_path: Path) -> None:
    made = made_pictures(COUNT)
    assert open_source(made).stamps() is None
    for pictures in (made, made_pictures(COUNT, seed=1)):
        with open_pictures(open_source(pictures), SIZE, "cpu", storage="cache", workers=0) as found:
            batch = next(iter(found.batches([np.arange(COUNT)])))
            assert torch.equal(batch.images, torch.from_numpy(pictures).permute(0, 3, 1, 2))


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path]:
    folder = picture_folder(tmp_path / "pictures", COUNT)
    return folder, instdisc.train(folder, tmp_path / "run", say=None, **TINY).path


def told_by(act: Callable[..., object]) -> str:
    lines: list[str] = []
    act(say=lines.append)
    return "\n".join(lines)


def resumed(folder: Path, run: Path) -> str:
    return told_by(lambda say: instdisc.train(folder, run, resume=True, say=say, **TINY))


@pytest.mark.fault("pictures change under the same names, and nothing says so")
def test_resume_and_duplicates_say_that_pictures_changed(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, path = run
    assert "another size or date" not in resumed(folder, path) + told_by(lambda say: duplicates(path, say=say))
    changed = not_looked_at(folder)  # 48 of 64, and none of the sixteen
    assert len(changed) == 48
    for file in changed:
        make_blue(file)
    sentence = f"48 of the 64 pictures have another size or date than when the run began, the first is {changed[0]}"
    assert sentence in resumed(folder, path)
    for act in (
        lambda say: duplicates(path, say=say),
        lambda say: search(path, [files_in(folder)[0]], neighbours=2, say=say),
        lambda say: duplicates(path, bank=True, say=say),
    ):
        assert "48 of the 64 pictures have another size or date than when the vectors were made" in told_by(act)
    recompute(path, say=None)
    assert "another size or date" not in told_by(lambda say: duplicates(path, say=say))
    # So with pictures that were added.
    more = picture_folder(tmp_path / "more", 3, seed=9)
    add(path, more, say=None)
    assert "another size or date" not in told_by(lambda say: duplicates(path, say=say))
    make_blue(files_in(more)[1])
    assert f"1 of the 67 pictures has another size or date than when the vectors were made, the first is {more}" in (
        told_by(lambda say: duplicates(path, say=say))
    )


def test_what_leaves_the_pixels_alone_locks_nobody_out(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, path = run
    for row in looked_at(open_source(folder)):  # a rating is written into them: other bytes, the same pixels
        with Image.open(files_in(folder)[row]) as picture:
            exif = picture.getexif()
            exif[0x4746] = 5
            picture.save(files_in(folder)[row], exif=exif)
    assert "16 of the 64 pictures have another size or date" in resumed(folder, path)
    copied = Path(shutil.copytree(folder, tmp_path / "copied", copy_function=shutil.copyfile))
    for file in files_in(copied):
        os.utime(file, (1, 1))
    # All dates differ, as in a copy: sizes alone count.
    told = told_by(lambda say: search(path, [files_in(copied)[0]], neighbours=2, train_source=copied, say=say))
    assert "16 of the 64" in told or "another size" not in told


def test_a_copy_with_other_dates_is_not_changed(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, path = run
    for file in files_in(folder):
        os.utime(file, (1, 1))
    assert "another size or date" not in resumed(folder, path)
    os.utime(files_in(folder)[5], (2, 2))
    assert "another size or date" not in resumed(folder, path)


@pytest.mark.parametrize("how_many", [9, 16])
def test_other_pictures_of_the_same_names_are_refused(run: tuple[Path, Path], how_many: int) -> None:
    folder, path = run
    for row in looked_at(open_source(folder))[:how_many]:
        make_blue(files_in(folder)[row])
    with pytest.raises(InputError, match="has other pictures now"):
        resumed(folder, path)
