"""Every kind of picture file becomes the RGB that a person would see, or a short reason.

The files are made here; what must come out is written down by hand or worked out from the format's own definition.
"""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from instdisc.data.decoding.decode import UnreadableError, decode, decode_stored, store

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
HEIC = ["HEIC"] if find_spec("pillow_heif") else []
KINDS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", *HEIC]
EXACT: dict[str, dict[str, object]] = {  # options of the encoders that keep the colours as they are, or nearly
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIC": {"quality": -1, "chroma": 444},
}


def encode(picture: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    if kind == "HEIC":
        import pillow_heif

        turned = options.pop("exif", None)
        heif = pillow_heif.from_pillow(picture)
        if isinstance(turned, Image.Exif):
            heif[0].info["exif"] = turned.tobytes()
        heif.save(file, **options)
    else:
        picture.save(file, kind, **({"speed": 10} if kind == "AVIF" else {}), **options)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], 2).astype(np.uint8)


def reason_for(data: object, **options: object) -> str:
    with pytest.raises(UnreadableError) as caught:
        decode(data, **options)
    assert "PIL" not in caught.value.reason and "\n" not in caught.value.reason and len(caught.value.reason) < 160
    return caught.value.reason


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG from its specification: `rows` each begin with filter 0."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# ---- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_back_every_pixel(kind: str) -> None:
    pixels = noise(7, 11)
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encode(pixels, kind, **options))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


def test_jpeg_is_within_its_own_loss() -> None:
    pixels = smooth(64, 48)
    pixels[..., 2] = 100
    decoded = decode(encode(pixels, "JPEG", quality=100, subsampling=0))
    assert np.abs(decoded.astype(int) - pixels).max() <= 4


@pytest.mark.fault("a GIF named .jpg")
@pytest.mark.parametrize("kind", KINDS)
def test_the_content_decides_and_not_a_name(kind: str) -> None:
    # decode() never learns a name: the bytes alone lead to the right decoder.
    decoded = decode(encode(np.full((5, 9, 3), 255, np.uint8), kind))
    assert decoded.shape == (5, 9, 3)
    assert (decoded >= 253).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    np.testing.assert_array_equal(decoded, np.broadcast_to(np.array(RED, np.uint8), (4, 6, 3)))


def test_mpo_gives_its_first_picture() -> None:
    first, second = Image.new("RGB", (16, 8), (200, 200, 200)), Image.new("RGB", (16, 8), BLACK)
    decoded = decode(encode(first, "MPO", save_all=True, append_images=[second]))
    assert decoded.shape == (8, 16, 3)
    assert np.abs(decoded.astype(int) - 200).max() <= 1


# ---- colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("CMYK JPEG")
def test_cmyk_jpeg() -> None:
    # 0 ink is white, full cyan takes away all red, full black is black.
    inks = np.zeros((8, 32, 4), np.uint8)
    inks[:, 8:16, 0] = 255
    inks[:, 16:24, 1] = 255
    inks[:, 24:, 3] = 255
    decoded = decode(encode(Image.frombytes("CMYK", (32, 8), inks.tobytes()), "JPEG", quality=100, subsampling=0))
    for column, colour in ((4, WHITE), (12, (0, 255, 255)), (20, (255, 0, 255)), (28, BLACK)):
        assert np.abs(decoded[4, column].astype(int) - colour).max() <= 3


@pytest.mark.fault("16-bit PNG")
def test_16_bit_grey_png_keeps_the_high_byte() -> None:
    values = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    expected = np.array([[0, 0, 1, 0x12], [0x7F, 0x80, 0xFF, 0xFF]], np.uint8)
    np.testing.assert_array_equal(decode(png(4, 2, 16, 0, rows)), np.repeat(expected[..., None], 3, 2))


def test_16_bit_rgb_png_keeps_the_high_byte() -> None:
    values = np.array([[[0x1234, 0x5678, 0x9ABC], [0xFFFF, 0x00FF, 0x0100]]], ">u2")
    np.testing.assert_array_equal(
        decode(png(2, 1, 16, 2, b"\0" + values.tobytes())), [[[0x12, 0x56, 0x9A], [0xFF, 0, 1]]]
    )


def test_16_bit_grey_png_with_a_transparent_value() -> None:
    values = np.array([[0x1234, 0x4000]], ">u2")
    data = png(2, 1, 16, 0, b"\0" + values.tobytes(), extra=chunk(b"tRNS", b"\x12\x34"))
    np.testing.assert_array_equal(decode(data)[0, :, 0], [255, 0x40])


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_tiff(mode: str) -> None:
    values = np.array([[0, 0x1234], [0x8000, 0xFFFF]], "<u2" if mode == "I;16" else ">u2")
    data = encode(Image.frombytes(mode, (2, 2), values.tobytes()), "TIFF")
    np.testing.assert_array_equal(decode(data)[..., 1], [[0, 0x12], [0x80, 0xFF]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),  # 0..1
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),  # 0..255
        (np.array([[0, 0x1234, 0xFFFF]], np.int32), [0, 0x12, 0xFF]),  # 16 bits in 32
        (np.array([[0, 1, 200]], np.int32), [0, 1, 200]),  # 8 bits in 32
        (np.array([[-10.0, 0.0, 10.0]], np.float32), [0, 128, 255]),  # no usual range: from lowest to highest
        (np.array([[-5, -5, -5]], np.int32), [0, 0, 0]),
    ],
)
def test_32_bit_tiff(values: np.ndarray, expected: list[int]) -> None:
    np.testing.assert_array_equal(decode(encode(Image.fromarray(values), "TIFF"))[0, :, 0], expected)


def test_a_tiff_with_nan_is_refused() -> None:
    assert "not finite" in reason_for(encode(Image.fromarray(np.array([[np.nan, 1]], np.float32)), "TIFF"))


def test_palette() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([*RED, *GREEN, 10, 20, 30])
    picture.putdata([0, 1, 2])
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(encode(picture, kind)), [[RED, GREEN, (10, 20, 30)]])


@pytest.mark.fault("palette with alpha")
def test_palette_with_alpha_lies_on_white() -> None:
    palette = chunk(b"PLTE", bytes([*RED, *BLACK, *BLUE]))
    data = png(3, 1, 8, 3, b"\0\0\1\2", extra=palette + chunk(b"tRNS", bytes([255, 128, 0])))
    # Half-transparent black on white: 255 · (1 − 128/255) = 127.
    np.testing.assert_allclose(decode(data)[0].astype(int), [RED, (127, 127, 127), WHITE], atol=1)


def test_gif_transparency_lies_on_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *GREEN])
    picture.putdata([0, 1])
    np.testing.assert_array_equal(decode(encode(picture, "GIF", transparency=1)), [[RED, WHITE]])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_lies_on_white(kind: str) -> None:
    rgba = np.array([[[200, 0, 100, 255], [200, 0, 100, 51], [9, 9, 9, 0]]], np.uint8)
    expected = np.rint(rgba[..., :3] * (rgba[..., 3:] / 255) + 255 * (1 - rgba[..., 3:] / 255))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    np.testing.assert_allclose(decode(encode(rgba, kind, **options)).astype(int), expected, atol=1)


def test_grey_with_alpha_and_a_colour_key() -> None:
    grey = Image.fromarray(np.array([[[0, 255], [0, 51]]], np.uint8), "LA")
    np.testing.assert_allclose(decode(encode(grey, "PNG"))[0, :, 0].astype(int), [0, 204], atol=1)
    keyed = encode(np.array([[RED, GREEN]], np.uint8), "PNG", transparency=GREEN)
    np.testing.assert_array_equal(decode(keyed), [[RED, WHITE]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_one_bit(kind: str) -> None:
    bits = np.array([[True, False, True], [False, False, True]])
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bits), kind))[..., 0], bits * 255)


@pytest.mark.parametrize("kind", KINDS)
def test_grey(kind: str) -> None:
    decoded = decode(encode(np.full((8, 8), 99, np.uint8), kind))
    assert np.abs(decoded.astype(int) - 99).max() <= 1


# ---- EXIF ------------------------------------------------------------------------------------------------------------

# From the EXIF standard, tag 0x0112: which side of the scene the stored row 0 and the stored column 0 are.
_SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored_as(upright: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera held that way stores an upright scene."""
    row_side, column_side = _SIDES[orientation]
    stored = upright if row_side in ("top", "bottom") else upright.swapaxes(0, 1)
    if row_side in ("bottom", "right"):
        stored = stored[::-1]
    if column_side in ("bottom", "right"):
        stored = stored[:, ::-1]
    return np.ascontiguousarray(stored)


@pytest.mark.fault("EXIF rotation")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", *HEIC])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(kind: str, orientation: int) -> None:
    upright = np.zeros((64, 128, 3), np.uint8)
    upright[:32, :32], upright[:32, 96:], upright[32:, :32] = RED, GREEN, BLUE
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored_as(upright, orientation), kind, exif=exif, **EXACT.get(kind, {}))
    decoded = decode(data)
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= (3 if kind in ("JPEG", "AVIF", "HEIC") else 0)
    _, aspect = decode_stored(data, 8)
    assert aspect == 2.0
    if kind != "HEIC":
        np.testing.assert_array_equal(decode(Image.open(io.BytesIO(data))), decoded)


def test_a_broken_exif_block_does_not_cost_the_picture() -> None:
    data = encode(np.full((8, 8, 3), 77, np.uint8), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x09")
    assert np.abs(decode(data).astype(int) - 77).max() <= 1


# ---- kinds within a format -----------------------------------------------------------------------------------------


@pytest.mark.fault("a whole picture is called damaged")
@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"node " * 400_000)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_500_000))),
        chunk(b"tEXt", b"parameters\0" + b"x" * 70_000_000),
        chunk(b"gAMA", bytes(4))[:-4] + b"\0\0\0\1",  # a wrong checksum
        chunk(b"eXIf", bytes(9))[:-1] + b"\0",
    ],
    ids=["zTXt", "iTXt", "iCCP", "tEXt", "gAMA", "eXIf"],
)
def test_what_has_nothing_to_do_with_the_pixels_costs_no_png(extra: bytes) -> None:
    pixels = noise(5, 7)
    plain = encode(pixels, "PNG")
    for data in (plain[:33] + extra + plain[33:], plain[:-12] + extra + plain[-12:]):
        np.testing.assert_array_equal(decode(data), pixels)


def test_what_a_png_must_have_is_not_skipped() -> None:
    data = png(3, 1, 8, 3, b"\0\0\1\2", extra=chunk(b"PLTE", bytes([*RED, *BLACK, *BLUE])) + chunk(b"tRNS", bytes(3)))
    for name in (b"IHDR", b"PLTE", b"tRNS"):
        at = data.index(name)
        end = at + 4 + int.from_bytes(data[at - 4 : at])
        assert "damaged" in reason_for(data[:end] + bytes(4) + data[end + 4 :])
    assert "iPhone" in reason_for(data[:8] + chunk(b"CgBI", bytes(4)) + data[8:])


def test_a_png_with_its_orientation_in_text_is_upright() -> None:
    pixels = noise(5, 7)
    exif = Image.Exif()
    exif[0x0112] = 3
    raw = b"\nexif\n%8d\n%s\n" % (len(exif.tobytes()), exif.tobytes().hex().encode())
    plain = encode(pixels, "PNG")
    text = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))
    np.testing.assert_array_equal(decode(plain[:33] + text + plain[33:]), pixels[::-1, ::-1])


@pytest.mark.fault("a whole picture is called damaged")
@pytest.mark.parametrize(
    ("marker", "bits", "colours", "words"),
    [
        (0xC1, 12, 1, "12 bits a value"),
        (0xC3, 16, 1, "lossless, 16 bits a value"),
        (0xC0, 8, 2, "2 colours"),
        (0xC5, 8, 1, "hierarchical"),
    ],
)
def test_a_jpeg_of_another_kind_is_named(marker: int, bits: int, colours: int, words: str) -> None:
    parts = b"".join(bytes([number + 1, 0x11, 0]) for number in range(colours))
    frame = struct.pack(">BBHBHHB", 0xFF, marker, 8 + 3 * colours, bits, 96, 96, colours) + parts
    scan = b"\xff\xda" + struct.pack(">HB", 6 + 2 * colours, colours) + b"\1\0" * colours + b"\0\x3f\0"
    said = reason_for(b"\xff\xd8" + frame + scan + bytes(200) + b"\xff\xd9")
    assert "the JPEG is of a kind that is not read: " in said and words in said and "convert it to" in said


def bmp(bits: int, method: int, body: bytes, masks: bytes = b"", width: int = 2, height: int = 2) -> bytes:
    """A bitmap with the header of version 5."""
    start = 14 + 124
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, bits, method, len(body), 0, 0, 0, 0)
    header = (header + masks).ljust(124, b"\0")
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + body


def test_a_bmp_of_another_kind_is_named() -> None:
    assert "the BMP is of a kind that is not read: 64 bits a pixel" in reason_for(bmp(64, 0, bytes(32)))
    assert "method 4" in reason_for(bmp(0, 4, bytes(32)))
    assert "cut short" in reason_for(bmp(24, 0, b""))


def test_a_bmp_whose_alpha_is_0_everywhere_is_opaque() -> None:
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    red, half = bytes([0, 0, 255]), bytes([0, 0, 255, 128])
    np.testing.assert_array_equal(decode(bmp(32, 3, (red + b"\0") * 4, masks)), np.full((2, 2, 3), RED))
    shown = decode(bmp(32, 3, (red + b"\0") * 3 + half, masks))  # bottom row first: the last is at the right of the top
    np.testing.assert_array_equal(shown[1], [WHITE, WHITE])
    np.testing.assert_allclose(shown[0, 1].astype(int), (255, 127, 127), atol=1)
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[..., 0] = 255
    np.testing.assert_array_equal(decode(encode(clear, "PNG")), np.full((2, 2, 3), WHITE))


@pytest.mark.parametrize("mode", ["LAB", "HSV", "YCbCr", "CMYK", "RGBa", "La", "PA", "I;16", "F", "1"])
def test_a_pil_image_of_any_mode_is_read(mode: str) -> None:
    assert decode(Image.new(mode, (3, 2))).shape == (2, 3, 3)


def test_a_pil_image_that_was_only_opened_is_the_file_behind_it() -> None:
    pixels = noise(5, 7)
    plain = encode(pixels, "PNG")
    late = plain[:-12] + chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"node " * 400_000)) + plain[-12:]
    picture = Image.open(io.BytesIO(late))
    np.testing.assert_array_equal(decode(picture), pixels)
    np.testing.assert_array_equal(decode(picture), pixels)
    frames = [Image.new("RGB", (6, 4), colour) for colour in (RED, GREEN)]
    moved = Image.open(io.BytesIO(encode(frames[0], "TIFF", save_all=True, append_images=frames[1:])))
    moved.seek(1)
    assert decode(moved)[0, 0].tolist() == list(GREEN)


def test_heic_without_the_extra_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for brand in (b"heic", b"mif1", b"heix"):
        said = reason_for(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(40))
        assert "HEIC picture" in said and "pip install 'instdisc[heif]'" in said


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("1×1 pixel")
@pytest.mark.parametrize("kind", KINDS)
def test_one_pixel(kind: str) -> None:
    data = encode(np.full((1, 1, 3), 255, np.uint8), kind)
    stored, aspect = decode_stored(data, 32)
    assert aspect == 1
    assert stored.shape == (32, 32, 3) and (stored >= 253).all()


@pytest.mark.fault("30,000 pixels wide")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_30000_pixels_wide(kind: str) -> None:
    pixels = np.zeros((2, 30_000, 3), np.uint8)
    pixels[:, 15_000:] = 255
    stored, aspect = decode_stored(encode(pixels, kind), 8)
    assert aspect == 15_000
    assert (stored[:, :3] <= 2).all() and (stored[:, 5:] >= 253).all()


@pytest.mark.fault("decompression bomb")
@pytest.mark.parametrize("kind", KINDS)
def test_the_cap_on_pixels_is_read_from_the_header(kind: str) -> None:
    reason = reason_for(encode(np.zeros((100, 120, 3), np.uint8), kind), max_pixels=10_000)
    assert reason == "120 x 100 are 0.012 megapixels, more than the cap of 0.01 megapixels"
    assert decode(encode(np.zeros((100, 120, 3), np.uint8), kind), max_pixels=12_000).shape == (100, 120, 3)


@pytest.mark.fault("decompression bomb")
def test_a_bomb_costs_no_memory() -> None:
    # 60,000 x 60,000 announced in a few bytes: 10.8 GB if anybody believed the header.
    reason = reason_for(png(60_000, 60_000, 8, 2, b""))
    assert reason == "60,000 x 60,000 are 3,600 megapixels, more than the cap of 100 megapixels"


def test_a_cap_above_pillows_own_is_honoured() -> None:
    # 200 megapixels of one bit each: Pillow's own limit (about 179) would refuse them.
    rows = (b"\0" + b"\xff" * 2500) * 10_000
    assert decode_stored(png(20_000, 10_000, 1, 0, rows), 32, max_pixels=300_000_000)[0].min() == 255


# ---- broken files ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("a corrupt or truncated picture trains half-grey in silence")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated(kind: str, share: float) -> None:
    data = encode(noise(64, 64), kind)
    assert "cut short" in reason_for(data[: int(len(data) * share)])


@pytest.mark.fault("a corrupt or truncated picture trains half-grey in silence")
def test_a_jpeg_whose_end_is_zeros() -> None:
    data = encode(noise(64, 64), "JPEG")
    half = len(data) // 2
    assert "zeros" in reason_for(data[:half] + bytes(len(data) - half))
    np.testing.assert_array_equal(decode(data + bytes(100)), decode(data))  # padding behind the end is harmless


@pytest.mark.fault("zero bytes")
def test_zero_bytes() -> None:
    assert reason_for(b"") == "the file is empty (0 bytes)"
    assert reason_for(bytes(5000)) == "the file holds nothing but zeros"


@pytest.mark.fault("SVG decoded")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\n <!DOCTYPE html><html><body>404</body></html>", "web page (HTML)"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?>\n<svg/>', "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"%PDF-1.7\n", "PDF"),
        (b"PK\x03\x04rest", "archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b'{"error": "not found"}', "JSON"),
        (b"\0\0\0\x20ftypavif", "AVIF is"),
        (b"\0\0\0\x18ftypqt  ", "video"),
        (b"\x1aE\xdf\xa3\x01\0", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL picture, which is not read: convert it to JPEG or PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\xd8\xff\xf7\0\x0b\x08", "JPEG-LS"),
        (bytes(128) + b"DICM\2\0", "DICOM file, which is not read: export its picture to PNG or TIFF"),
        (b"II*\0\x10\0\0\0CR\2\0", "raw file (CR2), which is not read: develop it to JPEG or TIFF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw file (CR3)"),
        (b"FUJIFILMCCD-RAW 0201", "raw file (RAF)"),
        (b"\x89PNG\r\n\x1a\n", "PNG is"),
        (b"\xff\xd8\xff", "JPEG is"),
        (b"GIF89a", "GIF is"),
        (b"RIFF\0\0\0\0WEBP", "WebP is"),
        (b"BM", "BMP is"),
        (b"II*\0", "TIFF is"),
        (b"some text", "known format"),
    ],
)
def test_what_is_no_picture_is_called_by_its_name(data: bytes, words: str) -> None:
    assert words in reason_for(data)


@pytest.mark.fault("SVG decoded")
@pytest.mark.fault("EPS decoded")
def test_a_whole_drawing_is_refused_and_no_program_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand an EPS to Ghostscript, which runs what stands in it."""

    opened = []

    def started(*_: object, **__: object) -> None:
        opened.append("an EPS")
        raise OSError

    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", started)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    eps = encode(smooth(8, 8), "EPS")
    with pytest.raises(OSError):  # noqa: PT011 - whatever it says
        Image.open(io.BytesIO(eps))
    assert opened == ["an EPS"], "this is what Pillow alone does"
    opened.clear()
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8"/></svg>'
    for data, words in ((eps, "EPS"), (b"\xc5\xd0\xd3\xc6" + bytes(26) + eps, ""), (svg, "SVG")):
        assert words in reason_for(data)
        with pytest.raises(UnreadableError):
            decode_stored(data, 8)
    assert opened == []


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1), flips=st.integers(1, 40))
def test_hostile_bytes_give_a_picture_or_a_reason(kind: str, seed: int, flips: int) -> None:
    random = np.random.default_rng(seed)
    data = np.frombuffer(_SAMPLES[kind], np.uint8).copy()
    head = random.random() < 0.7  # most damage is done where the header is
    places = random.integers(4, min(len(data), 120) if head else len(data), flips)
    data[places] = random.integers(0, 256, flips)
    # Any other exception than UnreadableError, and any warning, fails the test.
    with contextlib.suppress(UnreadableError):
        decoded = decode(data.tobytes(), max_pixels=1_000_000)
        assert decoded.ndim == 3 and decoded.shape[2] == 3


_SAMPLES = {kind: encode(smooth(24, 24), kind) for kind in KINDS}


# ---- arrays and PIL images -------------------------------------------------------------------------------------------


def test_arrays() -> None:
    grey = np.array([[0, 100, 255]], np.uint8)
    expected = np.repeat(grey[..., None], 3, 2)
    for array in (grey, grey[..., None], expected, grey.astype(np.uint16) * 256 + 7, (grey / 255).astype(np.float32)):
        np.testing.assert_array_equal(decode(array), expected)
    np.testing.assert_array_equal(decode(np.array([[True, False]]))[..., 0], [[255, 0]])
    np.testing.assert_array_equal(decode(np.array([[[9, 9, 9, 0], [1, 2, 3, 255]]], np.uint8)), [[WHITE, (1, 2, 3)]])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 8, 8), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4), np.int64),
        np.full((4, 4), 1.5),
        np.full((4, 4), np.nan),
        np.full((4, 4), -0.1),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray) -> None:
    assert reason_for(array).startswith("an array of")


def test_pil_images_are_left_as_they_are() -> None:
    picture = Image.new("RGBA", (4, 2), (10, 20, 30, 255))
    assert decode(picture)[0, 0].tolist() == [10, 20, 30]
    assert picture.mode == "RGBA"


# ---- storing ---------------------------------------------------------------------------------------------------------


def test_store_is_the_identity_at_its_own_size() -> None:
    pixels = noise(32, 32)
    np.testing.assert_array_equal(store(pixels, 32), pixels)


def triangle_resize(values: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bilinear along axis 0: a triangle as wide as the shrinking, weights summing to one."""
    scale = max(len(values) / size, 1.0)
    ratio = len(values) / size
    out = np.zeros((size, *values.shape[1:]))
    for target in range(size):
        centre = (target + 0.5) * ratio
        weights = np.maximum(0, 1 - np.abs((np.arange(len(values)) + 0.5 - centre) / scale))
        out[target] = np.tensordot(weights / weights.sum(), values, 1)
    return out


@pytest.mark.parametrize("shape", [(40, 56), (20, 90), (10, 12), (375, 500), (300, 110)])
def test_store_is_an_antialiased_bilinear_squash(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    slow = triangle_resize(triangle_resize(pixels.astype(float), 16).swapaxes(0, 1), 16).swapaxes(0, 1)
    assert np.abs(store(pixels, 16) - slow).max() <= 1.5  # each axis is rounded to whole grey levels


def test_draft_keeps_the_size_asked_for_and_the_content() -> None:
    data = encode(smooth(600, 801), "JPEG", quality=95)
    for at_least in (75, 100, 150, 250, 300, 600):
        shorter = min(decode(data, at_least=at_least).shape[:2])
        assert at_least <= shorter < max(2 * at_least, 601)
    stored, aspect = decode_stored(data, 64)
    assert aspect == 801 / 600  # of the whole picture, not of the reduced one
    full = store(decode(data), 64)
    assert np.abs(stored[:, :, :2].astype(int) - full[:, :, :2]).mean() < 1.5


def test_decode_stored_is_store_of_decode() -> None:
    for data in (encode(smooth(100, 140), "PNG"), encode(smooth(300, 420), "JPEG"), noise(20, 30)):
        np.testing.assert_array_equal(decode_stored(data, 32)[0], store(decode(data, at_least=32), 32))


# ---- manners ---------------------------------------------------------------------------------------------------------


def test_warnings_are_silenced_in_threads_and_left_alone_elsewhere() -> None:
    palette = chunk(b"PLTE", bytes([*RED, *BLACK]))
    data = png(2, 1, 8, 3, b"\0\0\1", extra=palette + chunk(b"tRNS", bytes([255, 128])) + chunk(b"acTL", bytes(8)))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                decode(data)  # an invalid animation chunk: Pillow warns, and warnings are errors here
        except BaseException as error:
            failures.append(error)

    before = list(warnings.filters)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert warnings.filters == before
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn("ours", UserWarning, stacklevel=1)


def test_decoding_needs_no_torch() -> None:
    imports = "import sys, instdisc.data.loading.workers, instdisc.data.loading.pixel_cache"
    program = f"{imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
