"""JPEG by libjpeg-turbo's own interface: the pixels of Pillow, to the bit; what is not sound or not RGB is Pillow's."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin

from instdisc.data.decoding import decode as decoding
from instdisc.data.decoding.decode import UnreadableError, decode, decode_stored
from instdisc.data.decoding.jpeg import decode_whole


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth, with some noise."""
    random = np.random.default_rng(width * height)
    small = Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels = np.clip(pixels + random.integers(-9, 9, pixels.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(content: bytes, at_least: int | None = None) -> np.ndarray:
    picture = Image.open(io.BytesIO(content))
    if at_least is not None:
        picture.draft(None, (at_least, at_least))
    return np.asarray(picture.convert("RGB"))


KINDS: dict[str, dict[str, object]] = {
    "plain": {},
    "best": {"quality": 100, "subsampling": 0},
    "poor": {"quality": 10},
    "4:2:2": {"subsampling": 1},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "RGB inside": {"keep_rgb": True},
    "with EXIF": {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"},
}


@pytest.fixture
def pillow_loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each picture whose pixels Pillow decoded."""
    loads: list[int] = []
    true = JpegImagePlugin.JpegImageFile.load_prepare
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile, "load_prepare", lambda picture: (loads.append(1), true(picture))[1]
    )
    return loads


@pytest.mark.parametrize("size", [(500, 375), (33, 57), (8, 8), (1, 1), (257, 16)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_those_of_pillow(kind: str, mode: str, size: tuple[int, int], pillow_loads: list[int]) -> None:
    content = encoded(photograph(*size, mode), **KINDS[kind])
    assert np.array_equal(decode(content), expected := by_pillow(content))
    for at_least in (1, 30, 46, 47, 90, 110, 187, 188, 300):
        drafted = by_pillow(content, at_least)
        pillow_loads.clear()
        assert np.array_equal(decode(content, at_least=at_least), drafted), at_least
        assert not pillow_loads, "Pillow decoded it once more"
    assert decode_stored(content, 8)[1] == expected.shape[1] / expected.shape[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_the_camera_was(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photograph(60, 40), exif=exif.tobytes())
    picture = Image.open(io.BytesIO(content))
    assert np.array_equal(decode(content), np.asarray(ImageOps.exif_transpose(picture)))


@pytest.mark.parametrize("kind", ["CMYK", "extra bytes", "another picture behind it"])
def test_what_is_odd_and_whole_is_read_as_pillow_reads_it(kind: str) -> None:
    content = encoded(photograph(60, 40, "CMYK" if kind == "CMYK" else "RGB"))
    if kind == "extra bytes":  # between segments: a warning of the library
        content = content[:2] + bytes(5) + content[2:]
    elif kind == "another picture behind it":
        content += encoded(photograph(30, 20))
    if kind != "another picture behind it":
        assert decode_whole(content, (60, 40), (60, 40)) is None
    try:
        expected = by_pillow(content)
    except OSError:
        with pytest.raises(UnreadableError):
            decode(content)
    else:
        assert np.array_equal(decode(content), expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["plain", "progressive", "restarts", "4:2:2"])
def test_one_that_lacks_nothing_but_its_end_is_read_and_one_that_lacks_more_is_not(kind: str, mode: str) -> None:
    content = encoded(photograph(40, 30, mode), quality=50, **KINDS[kind])
    whole = decode(content)
    for end in range(content.index(b"\xff\xda"), len(content)):
        assert decode_whole(content[:end], (40, 30), (40, 30)) is None, end
        if end >= len(content) - 2:
            assert np.array_equal(decode(content[:end]), whole)
            assert np.array_equal(decode(content[:end], at_least=8), decode(content, at_least=8))
        else:
            with pytest.raises(UnreadableError):
                decode(content[:end])


def test_a_header_that_says_something_else_than_was_agreed_to_is_not_followed() -> None:
    content = encoded(photograph(60, 40))
    assert decode_whole(content, (60, 40), (60, 40)) is not None
    assert decode_whole(content, (30, 20), (30, 20)) is None
    assert decode_whole(content, (60, 40), (31, 20)) is None
    assert decode_whole(b"", (60, 40), (60, 40)) is None


def test_where_simplejpeg_is_not_installed_pillow_reads_all(
    monkeypatch: pytest.MonkeyPatch, pillow_loads: list[int]
) -> None:
    content = encoded(photograph(60, 40))
    expected = decode(content)
    assert not pillow_loads
    monkeypatch.setattr("instdisc.data.decoding.jpeg.simplejpeg", None)
    assert np.array_equal(decode(content), expected) and pillow_loads


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("instdisc.data.decoding.jpeg.simplejpeg.decode_jpeg", none_left)
    with pytest.raises(decoding.UnreadableError, match="needs more memory than there is"):
        decode(encoded(photograph(60, 40)))
    monkeypatch.setattr(decoding, "_LITTLE", 1 << 62)  # as where nothing is left for anybody: not the picture's fault
    with pytest.raises(MemoryError):
        decode(encoded(photograph(60, 40)))
