"""Copies by evidence: what was done to a picture is known, and what was found is compared with it."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from instdisc.data.decoding.decode import UnreadableError, format_and_size
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.search import copies, joins
from instdisc.search import fingerprints as fingerprints_module
from instdisc.search.alignment import agreement, guessed, oriented, patches, recoloured, refined, shrunk
from instdisc.search.closer import Larger, closer_look
from instdisc.search.copies import SAME_FILE, SAME_PICTURE, Finder, Limits
from instdisc.search.fingerprints import READ, Fingerprints, Signatures, marks_of, stored_fingerprints


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Something like a photograph: colours of its own, and less and less of finer and finer detail."""
    random = np.random.default_rng(seed)
    whole = np.zeros((size[1], size[0], 3)) + random.normal(0, 0.6, 3)
    for cells in (3, 6, 12, 24, 48):
        grid = random.normal(0, 1, (cells, cells)) + random.normal(0, 0.5, (3, cells, cells))
        for channel, plane in enumerate(grid):
            large = Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
            whole[..., channel] += np.asarray(large) * (3 / cells) ** 0.7
    return Image.fromarray(np.clip(128 + 50 * whole, 0, 255).astype(np.uint8))


def saved(picture: Image.Image, quality: int = 90, kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return content.getvalue()


def fingerprints(contents: list[Any], folder: Path) -> Fingerprints:
    ids = [b"%d" % number for number in range(len(contents))]

    def read(places: np.ndarray) -> Iterator[tuple[int, Any]]:
        yield from ((int(place), contents[place]) for place in places)

    return stored_fingerprints(folder / "thumbnails.npy", marks_of(ids, ids), read)


def written_on(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    ImageDraw.Draw(picture).text((20, 70), "(c) somebody", fill="white", font_size=10)
    return picture


CHANGES: dict[str, tuple[Any, set[str]]] = {
    "JPEG at 30": (lambda picture: saved(picture, 30), {"re-encoded"}),
    "PNG": (lambda picture: saved(picture, kind="PNG"), {"re-encoded"}),
    "half": (lambda picture: saved(picture.resize((80, 60), Image.Resampling.LANCZOS)), {"resized"}),
    "larger": (lambda picture: saved(picture.resize((240, 180), Image.Resampling.BICUBIC)), {"resized"}),
    "cropped": (lambda picture: saved(picture.crop((18, 4, 154, 104))), {"cropped"}),
    "framed": (lambda picture: saved(ImageOps.expand(picture, 5, "white")), {"cropped"}),
    "mirrored": (lambda picture: saved(ImageOps.mirror(picture)), {"mirrored"}),
    "turned": (lambda picture: saved(picture.transpose(Image.Transpose.ROTATE_90)), {"turned"}),
    "upside down": (lambda picture: saved(ImageOps.flip(picture)), {"mirrored", "turned"}),
    "mirrored crop": (lambda picture: saved(ImageOps.mirror(picture.crop((10, 8, 150, 116)))), {"mirrored", "cropped"}),
    "brighter": (lambda picture: saved(ImageEnhance.Brightness(picture).enhance(1.15)), {"recoloured"}),
    "a text": (lambda picture: saved(written_on(picture)), {"re-encoded"}),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], list[str], Fingerprints]:
    """Sixty scenes, the first ones with one copy each, made as its name says; the very first also with a same file."""
    scenes = [scene(seed) for seed in range(60)]
    contents = [saved(picture, 95) for picture in scenes]
    contents += [change(picture) for (change, _), picture in zip(CHANGES.values(), scenes, strict=False)]
    contents.append(contents[0])
    return contents, list(CHANGES), fingerprints(contents, tmp_path_factory.mktemp("planted"))


@pytest.mark.fault("a list of copies holds pictures that were never proven to be any")
def test_each_kind_of_copy_is_proven_and_nothing_else(planted: tuple[list[bytes], list[str], Fingerprints]) -> None:
    contents, names, stored = planted
    cropped = names.index("cropped")  # its signature is not near enough among these: the encoder proposes it
    proven = Finder(stored, contents.__getitem__).within(np.array([[60 + cropped, cropped], [3, 9], [20, 21]]))
    expected = {(number, 60 + number): CHANGES[name][1] for number, name in enumerate(names)}
    same = (0, len(contents) - 1)
    assert set(proven) == {*expected, same}
    assert proven[same].kind == SAME_FILE and proven[same].changes == ()
    for pair, changes in expected.items():
        assert proven[pair].kind == SAME_PICTURE and set(proven[pair].changes) == changes, names[pair[0]]
        assert Limits().closer <= proven[pair].agreement <= 1


def test_of_very_many_pictures_cells_find_the_likest_and_large_arrays_stand_in_files(
    planted: tuple[list[bytes], list[str], Fingerprints], monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, _, stored = planted
    expected = Finder(stored, contents.__getitem__).within(np.array([[0, 5]]))
    assert len(expected) > 10
    monkeypatch.setattr(copies, "MANY", 20)
    monkeypatch.setattr(joins, "RECALL", 1.0)
    monkeypatch.setattr(fingerprints_module, "_MOST_IN_MEMORY", 100)
    assert isinstance(stored.scratch((60, 2), np.float32), np.memmap)
    before = sorted(Path(stored.records.filename).parent.iterdir())  # type: ignore[attr-defined]
    assert Finder(stored, contents.__getitem__).within(np.array([[0, 5]])) == expected
    assert sorted(Path(stored.records.filename).parent.iterdir()) == before  # type: ignore[attr-defined]

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match="for a while could not be had in .*No space left"):
        Finder(stored, contents.__getitem__)


def test_the_best_stays_and_every_copy_is_proven_against_it(tmp_path: Path) -> None:
    picture = scene(1, (320, 240))
    versions = [picture.resize((160, 120)), picture, picture.crop((16, 12, 304, 228)), scene(2)]
    contents = [saved(one) for one in versions] + [saved(versions[0])]
    stored = fingerprints(contents, tmp_path)
    finder = Finder(stored, contents.__getitem__)
    sizes = stored.records["width"].astype(int) * stored.records["height"]
    groups = finder.groups(finder.within(), lambda places: sorted(places, key=lambda place: (-sizes[place], place)))
    assert [group.best for group in groups] == [1]
    assert {place for place, _ in groups[0].copies} == {0, 2, 4}
    certainties = [proof.certainty for _, proof in groups[0].copies]
    assert certainties == sorted(certainties, reverse=True)


def test_as_many_copies_as_there_are_come_together(tmp_path: Path) -> None:
    """Twenty versions of one picture: more than the nearest that are looked at."""
    contents = [saved(scene(number)) for number in range(10)] + [saved(scene(0), 50 + number) for number in range(20)]
    finder = Finder(fingerprints(contents, tmp_path), contents.__getitem__)
    groups = finder.groups(finder.within(), sorted)
    assert [(group.best, {place for place, _ in group.copies}) for group in groups] == [(0, set(range(10, 30)))]


def test_pictures_without_detail_are_copies_only_by_their_bytes(tmp_path: Path) -> None:
    plain = [Image.new("RGB", (100, 80), (shade, shade, shade)) for shade in (250, 250, 251, 20, 128)]
    contents = [saved(picture) for picture in plain]
    assert set(Finder(fingerprints(contents, tmp_path), contents.__getitem__).within()) == {(0, 1)}


def test_skies_that_darken_alike_are_no_copies(tmp_path: Path) -> None:
    """A gradient is no detail, however well two of them agree: of one sky or of two, mirrored or cropped."""
    random, down = np.random.default_rng(0), np.linspace(0, 1, 240)[:, None, None]
    skies = [np.array([70, 120, 190]) + 60 * down + random.normal(0, 1.5, (240, 320, 3)) for _ in range(3)]
    pictures = [Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8)) for sky in skies]
    contents = [saved(picture, 95) for picture in (*pictures, pictures[0].crop((20, 10, 300, 225)))]
    assert not Finder(fingerprints(contents, tmp_path), contents.__getitem__).within()


def test_a_last_look_at_many_pairs_is_that_at_each(planted: tuple[list[bytes], list[str], Fingerprints]) -> None:
    """With one that can't be read, a small one and others; what is left keeps its position."""
    contents, names, stored = planted
    pairs = np.array([(number, 60 + number) for number in range(len(names))] + [(3, 9), (20, 21)])
    first, second = (patches(stored.grey(column)) for column in pairs.T)
    aligned = refined(*(stored.grey(column) for column in pairs.T), guessed(first, second), 64, 4)
    shorter = torch.full((len(pairs),), 120)
    shorter[2] = 40

    def unless_gone(position: int) -> bytes:
        if position == pairs[1, 1]:
            raise UnreadableError("it is gone")
        return contents[position]

    larger = [Larger(unless_gone)(column.tolist()) for column in pairs.T]
    left, together, score = closer_look(*larger, aligned, shorter, Limits())
    alone = []
    for number in range(len(pairs)):
        one = slice(number, number + 1)
        found = closer_look(larger[0][one], larger[1][one], aligned.at(torch.tensor([number])), shorter[one], Limits())
        alone += [(number, float(found[2]), found[1].window)] if len(found[0]) else []
    assert left.tolist() == [number for number, _, _ in alone] and 5 < len(alone) < len(pairs) - 1
    torch.testing.assert_close(score, torch.tensor([score for _, score, _ in alone]))
    torch.testing.assert_close(together.window, torch.cat([window for _, _, window in alone]))


def test_pages_of_text_are_told_apart(tmp_path: Path) -> None:
    """Two pages with the same layout and other words look the same when they are small."""
    random = np.random.default_rng(0)
    pages = []
    for _ in range(4):
        page = Image.new("RGB", (600, 800), "white")
        for line in range(24):
            words = "".join(random.choice([*"abcdefghijklmnopqrstuvwxyz  "], 46))
            ImageDraw.Draw(page).text((40, 30 + 31 * line), words, fill="black", font_size=20)
        pages.append(page)
    contents = [saved(page) for page in pages] + [saved(pages[0].resize((300, 400), Image.Resampling.LANCZOS))]
    assert set(Finder(fingerprints(contents, tmp_path), contents.__getitem__).within()) == {(0, 4)}


def test_the_same_shape_in_another_colour_is_no_copy(tmp_path: Path) -> None:
    pixels = np.asarray(scene(3).convert("L"), np.float32)[..., None]
    contents = [saved(Image.fromarray((pixels * colour).astype(np.uint8))) for colour in ([1, 0.4, 0.3], [0.3, 0.4, 1])]
    assert not Finder(fingerprints(contents, tmp_path), contents.__getitem__).within()


def bust(skin: str, size: int) -> bytes:
    picture = Image.new("RGB", (size, size), "white")
    draw, part = ImageDraw.Draw(picture), size / 16
    draw.rounded_rectangle([2 * part, 10 * part, 14 * part, 18 * part], 3 * part, fill="#3b7fd9")
    draw.ellipse([4 * part, 2 * part, 12 * part, 11 * part], fill=skin, outline="#5a3a2a", width=round(part / 3))
    draw.pieslice([4 * part, 1 * part, 12 * part, 9 * part], 180, 360, fill="#402010")
    for left in (6, 9):
        draw.ellipse([left * part, 6 * part, (left + 1) * part, 7 * part], fill="black")
    draw.arc([6 * part, 6 * part, 10 * part, 9.5 * part], 20, 160, fill="black", width=round(part / 3))
    return saved(picture, kind="PNG")


@pytest.mark.fault("a list of copies holds pictures that were never proven to be any")
@pytest.mark.parametrize("size", [64, 256])
def test_a_drawing_with_a_part_in_another_colour_is_no_copy(tmp_path: Path, size: int) -> None:
    """Emoji: every line is the same, and some skin is another."""
    contents = [bust(skin, size) for skin in ("#ffdc5d", "#f7dece", "#bf8b68", "#5c4033")]
    contents.append(saved(Image.open(io.BytesIO(contents[0])).convert("RGB"), 90))
    assert set(Finder(fingerprints(contents, tmp_path), contents.__getitem__).within()) == {(0, 4)}


def test_one_change_of_all_colours_and_what_it_leaves() -> None:
    """Known: a linear map of the colours, and squares that were changed apart from it."""
    random = np.random.default_rng(0)
    first = np.stack([gaussian_filter(random.standard_normal((256, 256)), 12) for _ in range(3)])
    first = 120 + 40 * first / first.std()
    change = np.array([[1.1, 0.05, 0], [0, 0.95, 0.05], [0.02, 0, 1.05]])
    second = np.einsum("ij,jyx->iyx", change, first) + np.array([4.0, -6.0, 2.0])[:, None, None]
    planes = [torch.from_numpy(one).float()[None] for one in (first, second)]
    whole = guessed(*(patches(torch.from_numpy(first.mean(0)).float()[None]) for _ in range(2)))
    parts, far = recoloured(*planes, whole)
    squares = [one.reshape(3, 16, 16, 16, 16).mean((2, 4)) for one in (first, second)]
    assert parts == 0
    assert far == pytest.approx(np.abs(squares[1] - squares[0]).max(0).mean(), rel=0.1)
    planes[1][:, 0, :64, :64] += 60  # 16 of 256 squares
    assert recoloured(*planes, whole)[0] == pytest.approx(16 / 256)


def test_digits_that_were_all_written_apart_are_no_copies(tmp_path: Path) -> None:
    source = open_source("digits", limit=300)
    contents = [source.read(row) for row in range(len(source))]
    assert len({content.tobytes() for content in contents}) == len(contents)
    assert not Finder(fingerprints(contents, tmp_path), contents.__getitem__).within()


def test_copies_between_two_sources(tmp_path: Path) -> None:
    ours = [saved(scene(number)) for number in range(20)]
    theirs = [saved(scene(30)), ours[4], saved(ImageOps.mirror(scene(7)), 60), saved(scene(31)), b"no picture"]
    (tmp_path / "theirs").mkdir()
    own, others = fingerprints(ours, tmp_path), fingerprints(theirs, tmp_path / "theirs")
    proven = Finder(own, ours.__getitem__, others, theirs.__getitem__).across()
    assert {pair: proof.kind for pair, proof in proven.items()} == {(4, 1): SAME_FILE, (7, 2): SAME_PICTURE}
    assert proven[7, 2].changes == ("mirrored",)


def test_a_window_is_found_where_it_was_cut(tmp_path: Path) -> None:
    """The window that the alignment finds is the box of the crop, for each of the eight ways to turn and mirror."""
    picture, box = scene(5, (128, 128)), (13, 6, 122, 104)
    first = torch.from_numpy(np.asarray(picture.convert("L").resize((64, 64), Image.Resampling.BOX), np.float32))[None]
    part = picture.crop(box).convert("L").resize((64, 64), Image.Resampling.BILINEAR)
    for symmetry in range(8):
        second = oriented(torch.from_numpy(np.asarray(part, np.float32))[None], symmetry)
        found = guessed(patches(first), patches(second))
        for side, steps in ((16, 4), (32, 3), (64, 3)):
            found = refined(first, second, found, side, steps)
        assert torch.equal(oriented(second, int(found.symmetry[0])), oriented(second, int(found.symmetry[0])))
        back = oriented(second, int(found.symmetry[0]))[0]
        assert float((back - torch.from_numpy(np.asarray(part, np.float32))).abs().max()) < 1e-4, "it is turned back"
        left, top, wide, high = (128 * found.window[0]).tolist()
        assert (left, top, left + wide, top + high) == pytest.approx(box, abs=0.7)
        assert float(agreement(first, second, found, 64)[0]) > 0.95
        assert float(found.overlap()) == pytest.approx(1, abs=0.01)


@pytest.mark.fault("a picture of one line ends the search for copies with a traceback")
@pytest.mark.parametrize("size", [1, 64])
def test_what_one_line_does_not_tell_breaks_nothing(size: int) -> None:
    """Where all slopes lie in one column, moving and stretching are the same: the equations have no one solution."""
    for level in range(60, 256, 5):
        picture = torch.zeros(1, 64, 64)
        picture[0, -size:, 63] = level
        aligned = guessed(patches(picture), patches(picture))
        for side in (32, 64):
            found = refined(picture, picture, aligned, side, 4)
            assert torch.isfinite(found.window).all() and torch.isfinite(found.score).all()


def test_pictures_shrink_to_the_means_of_their_squares() -> None:
    pictures = np.random.default_rng(2).integers(0, 256, (3, 2, 32, 32)).astype(np.float32)
    for side in (32, 16, 4):
        step = 32 // side
        wanted = pictures.reshape(3, 2, side, step, side, step).mean((3, 5), dtype=np.float64)
        np.testing.assert_allclose(shrunk(torch.from_numpy(pictures), side), wanted, rtol=1e-6)


def test_agreement_is_the_structural_similarity_by_hand() -> None:
    """Without detail left out, squares of 8 pixels that do not overlap, both of the same contrast."""
    random = np.random.default_rng(0)
    first = gaussian_filter(random.standard_normal((64, 64)), 1.5)
    first = 128 + 40 * first / first.std()
    second = first.copy()
    second[:8] = first[:8, ::-1]  # one row of squares in sixteen differs
    pair = [torch.from_numpy(one).float()[None] for one in (first, second)]
    whole = guessed(patches(pair[0]), patches(pair[0]))
    assert float(agreement(pair[0], pair[0], whole, 64)[0]) == pytest.approx(1, abs=1e-5)
    assert float(agreement(*pair, whole, 64)[0]) == pytest.approx(1, abs=2e-3), "less than 15 % may differ"
    other = torch.from_numpy(128 + 40 * gaussian_filter(random.standard_normal((64, 64)), 1.5) / 0.19).float()[None]
    assert float(agreement(pair[0], other, whole, 64)[0]) < 0.3


def test_two_skies_agree_in_their_shading_alone_and_that_is_not_enough() -> None:
    random = np.random.default_rng(1)
    shading = np.linspace(60, 200, 64)[:, None]

    def sky() -> np.ndarray:
        clouds = gaussian_filter(random.standard_normal((64, 64)), 1.0)
        return shading + 12 * clouds / clouds.std()

    def seen(pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels).float()[None]

    first = sky()
    whole = guessed(patches(seen(first)), patches(seen(first)))
    noise = 2 * random.standard_normal((64, 64))
    assert np.corrcoef(first.ravel(), sky().ravel())[0, 1] > 0.9
    assert float(agreement(seen(first), seen(first + noise), whole, 64)[0]) > 0.9
    assert float(agreement(seen(first), seen(sky()), whole, 64)[0]) < 0.5


def test_signatures_do_not_change_with_a_mirror_or_a_turn(planted: Any) -> None:
    _, names, stored = planted
    vectors = Signatures(stored).of(stored, np.arange(len(stored)))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    cosines = vectors @ vectors.T
    for name in ("mirrored", "turned", "upside down", "half", "PNG"):
        number = names.index(name)
        assert float(cosines[number, 60 + number]) > 0.9, name
    assert float(cosines[:60, :60].triu(1).max()) < 0.9


def test_fingerprints_hold_what_is_in_the_file(planted: tuple[list[bytes], list[str], Fingerprints]) -> None:
    contents, _, stored = planted
    record = stored.records[3]
    with Image.open(io.BytesIO(contents[3])) as picture:
        assert (record["width"], record["height"], record["format"].decode()) == (*picture.size, picture.format)
        grey = np.asarray(picture.convert("L").resize((64, 64), Image.Resampling.BOX), np.float32)
    assert record["digest"].tobytes() == hashlib.sha256(contents[3]).digest() and record["bytes"] == len(contents[3])
    assert float(np.abs(grey - record["grey"]).mean()) < 4
    assert record["colour"].shape == (16, 16, 3) and record["state"] == READ


def test_only_what_changed_is_made_again(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.jpg" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(saved(scene(number)))
    asked: list[int] = []

    def made(chosen: list[Path]) -> Fingerprints:
        def read(places: np.ndarray) -> Iterator[tuple[int, Any]]:
            for place in places.tolist():
                asked.append(int(chosen[place].stem))
                broken = UnreadableError("it is not there any more")
                yield place, chosen[place].read_bytes() if chosen[place].exists() else broken

        names = [bytes(file) for file in chosen]
        return stored_fingerprints(tmp_path / "kept" / "thumbnails.npy", marks_of(names, names), read)

    before = made(files).records.copy()
    assert asked == [0, 1, 2, 3]
    assert np.array_equal(made(files).records, before) and len(asked) == 4, "nothing is read twice"
    files[2].write_bytes(saved(scene(9), 80))
    files[3].unlink()
    chosen = [files[2], files[0], files[1], files[3]]  # another order, one changed, one gone
    again = made(chosen)
    assert asked[4:] == [2, 3]
    assert np.array_equal(again.records[1:3], before[:2]) and not np.array_equal(again.records[0], before[2])
    assert again.readable().tolist() == [0, 1, 2]
    (tmp_path / "kept" / "thumbnails.npy").write_bytes(b"damaged")
    assert made(chosen).readable().tolist() == [0, 1, 2], "a damaged file is made anew"
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["thumbnails.npy"]


def test_what_was_done_before_an_interruption_is_kept(tmp_path: Path) -> None:
    contents, asked = [saved(scene(number)) for number in range(3)], []
    names = [b"%d" % number for number in range(3)]

    def read(places: np.ndarray) -> Iterator[tuple[int, Any]]:
        for place in places.tolist():
            if place == 2 and not asked[2:]:
                asked.append(place)
                raise KeyboardInterrupt
            asked.append(place)
            yield place, contents[place]

    with pytest.raises(KeyboardInterrupt):
        stored_fingerprints(tmp_path / "thumbnails.npy", marks_of(names, names), read)
    found = stored_fingerprints(tmp_path / "thumbnails.npy", marks_of(names, names), read)
    assert len(found.readable()) == 3 and [file.name for file in tmp_path.iterdir()] == ["thumbnails.npy"]


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"thumbnails\.npy could not be written"):
        stored_fingerprints(tmp_path / "file" / "thumbnails.npy", marks_of([b"1"], [b"1"]), lambda places: iter(()))


def test_format_and_size_are_those_of_the_header() -> None:
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WebP"):
        content = io.BytesIO()
        scene(0).save(content, kind)
        assert format_and_size(content.getvalue()) == (kind, 160, 120)
    assert format_and_size(np.zeros((5, 7, 3), np.uint8)) == ("", 7, 5)
