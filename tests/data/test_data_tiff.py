"""Every kind of TIFF is read rightly, or refused by the name of its kind: never called damaged, never wrong in silence.

The files are written from the format's definition (tiffs.py). tifffile, which shares no code with Pillow, says whether
they hold what was meant; what a person should see of those values is arithmetic.
"""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from tiffs import (
    BLACK_IS_ZERO,
    CMYK,
    COMPLEX,
    DEFLATE,
    FLOAT,
    LAB,
    LZW,
    MASK,
    NONE,
    PACKBITS,
    PALETTE,
    RGB,
    SIGNED,
    UNSIGNED,
    VOID,
    WHITE_IS_ZERO,
    YCBCR,
    Tiff,
)

from instdisc.data.decoding.decode import UnreadableError, decode

HEIGHT, WIDTH = 19, 21
LAYOUTS: tuple[dict[str, int], ...] = ({}, {"rows": 8}, {"tile": 16})
COLOURS: tuple[tuple[int, int, tuple[int, ...]], ...] = (  # photometric, samples, meaning of the extra ones
    (WHITE_IS_ZERO, 1, ()),
    (WHITE_IS_ZERO, 2, (2,)),
    (BLACK_IS_ZERO, 1, ()),
    *((BLACK_IS_ZERO, 2, (alpha,)) for alpha in (0, 1, 2)),
    (BLACK_IS_ZERO, 3, (0, 0)),
    (RGB, 3, ()),
    *((RGB, 4, (alpha,)) for alpha in (0, 1, 2)),
    (RGB, 5, (2, 0)),
    (PALETTE, 1, ()),
    (PALETTE, 2, (2,)),
    (MASK, 1, ()),
    (CMYK, 4, ()),
    (CMYK, 5, (0,)),
    (CMYK, 5, (2,)),
    (YCBCR, 3, ()),
    (LAB, 3, ()),
)
FORMATS = {UNSIGNED: (1, 2, 4, 6, 8, 10, 12, 14, 16, 32, 64), SIGNED: (8, 16, 32), FLOAT: (16, 32, 64), COMPLEX: (64,)}
OFTEN = ((UNSIGNED, 8), (UNSIGNED, 16), (FLOAT, 32), (SIGNED, 16))


def stored(bits: int, format: int, samples: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    if format in (FLOAT, COMPLEX):
        values = random.random((HEIGHT, WIDTH, samples))
        return values.astype("c8" if format == COMPLEX else f"f{bits // 8}")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if format == SIGNED else (0, 2**bits)
    return random.integers(low, high, (HEIGHT, WIDTH, samples), dtype=np.uint64 if bits == 64 else np.int64)


def kinds(format: int, bits: int) -> list[Tiff]:
    """All arrangements of one type of value."""
    found = []
    for photometric, samples, extra in COLOURS:
        if photometric == PALETTE and (bits > 16 or format != UNSIGNED):
            continue
        ways = itertools.product((1, 2) if samples > 1 else (1,), LAYOUTS, (NONE, LZW, DEFLATE, PACKBITS), "<>")
        values = stored(bits, format, samples)
        for planes, layout, compression, order in ways:
            if compression in (LZW, PACKBITS) and (format, bits) not in OFTEN and layout:
                continue
            facts = dict(layout, planes=planes, compression=compression, order=order, extra=extra)
            found.append(Tiff(values, bits, photometric, format, **facts))
    return found


def answer(file: bytes) -> np.ndarray | str:
    try:
        return decode(file)
    except UnreadableError as error:
        return error.reason


MUST_BE_READ = {
    (UNSIGNED, bits, *colours)
    for bits, allowed in {
        1: [(0, ()), (1, ()), (3, ())],
        4: [(0, ()), (1, ()), (3, ())],
        8: [*((0, ()), (1, ()), (1, (0,)), (1, (1,)), (1, (2,)), (3, ()), (3, (2,)), (5, ()), (5, (0,)))]
        + [(2, extra) for extra in ((), (0,), (1,), (2,), (2, 0))],
        16: [(0, ()), (1, ()), (5, ()), *((2, extra) for extra in ((), (0,), (1,), (2,)))],
    }.items()
    for colours in allowed
} | {(FLOAT, 32, 0, ()), (FLOAT, 32, 1, ()), *((SIGNED, bits, way, ()) for bits in (8, 16, 32) for way in (0, 1))}


@pytest.mark.fault("a TIFF is read inverted, wrapped round or with its bytes swapped")
@pytest.mark.parametrize(("format", "bits"), [(format, bits) for format, all in FORMATS.items() for bits in all])
def test_a_kind_is_read_rightly_or_refused_by_its_name(format: int, bits: int) -> None:
    wrong, refused = [], set()
    for tiff in kinds(format, bits):
        said = answer(tiff.file())
        kind = (tiff.format, tiff.bits, tiff.photometric, tiff.extra)
        if isinstance(said, str):
            refused |= {kind} if tiff.planes == 1 else set()
            if "is of a kind that is not read: " not in said or "; convert it to " not in said or len(said) > 160:
                wrong.append((tiff.order, kind, said))
        elif np.abs(said - tiff.levels()).max() > 1.01:
            wrong.append((tiff.order, tiff.planes, tiff.rows, tiff.tile, tiff.compression, kind))
    assert not wrong
    assert not refused & MUST_BE_READ


needs_tifffile = pytest.mark.skipif(find_spec("tifffile") is None, reason="tifffile, the second reader, is missing")


@needs_tifffile
@pytest.mark.parametrize(("format", "bits"), [(format, bits) for format, all in FORMATS.items() for bits in all])
def test_the_files_hold_what_another_reader_finds_in_them(format: int, bits: int) -> None:
    import tifffile

    seen = 0
    for tiff in kinds(format, bits)[:: 5 if bits % 8 == 0 else 25]:
        if tiff.photometric == YCBCR or tiff.compression == LZW or (bits in (6, 10, 12, 14) and tiff.compression):
            continue  # for these it wants a library of its own
        try:
            found = tifffile.imread(io.BytesIO(tiff.file()))
        except NotImplementedError:
            assert bits % 8
            continue
        count = tiff.samples.shape[2]
        apart = tiff.planes == 2
        found = found.reshape(count, HEIGHT, WIDTH).transpose(1, 2, 0) if apart else found.reshape(HEIGHT, WIDTH, count)
        np.testing.assert_array_equal(found, tiff.samples.astype(found.dtype))
        seen += 1
    assert seen > 30 or bits % 8


@needs_tifffile
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB])
@pytest.mark.parametrize("depth", ["u1", "u2", "i2", "u4", "f4"])
def test_files_of_another_writer(photometric: int, depth: str) -> None:
    import tifffile

    bits, format = 8 * int(depth[1]), {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[depth[0]]
    tiff = Tiff(stored(bits, format, 3 if photometric == RGB else 1), bits, photometric, format)
    values = np.squeeze(tiff.samples.astype(depth))
    for order, big, way in itertools.product("<>", (False, True), (None, "zlib", "predictor")):
        file = io.BytesIO()
        facts = {} if way is None else {"compression": "zlib", "predictor": way == "predictor" and depth != "f4"}
        name = ("miniswhite", "minisblack", "rgb")[photometric]
        tifffile.imwrite(file, values, photometric=name, byteorder=order, bigtiff=big, **facts)
        said = answer(file.getvalue())
        if isinstance(said, str):
            assert "of a kind that is not read" in said
            assert (big and order == ">") or (photometric == RGB and depth in ("i2", "u4", "f4")), said
        else:
            assert np.abs(said - tiff.levels()).max() <= 1.01


def test_values_of_no_stated_type_are_numbers() -> None:
    values = stored(8, UNSIGNED, 3)
    np.testing.assert_array_equal(decode(Tiff(values, photometric=RGB, format=VOID).file()), values)


@pytest.mark.parametrize("bits", [1, 8])
def test_bits_in_the_other_order(bits: int) -> None:
    values = stored(bits, UNSIGNED, 1)
    plain = Tiff(values, bits)
    file = plain.file()
    start = 8
    length = HEIGHT * (-(-WIDTH * bits // 8))
    turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in file[start : start + length])
    other = Tiff(values, bits, more=((266, (2,)),)).file()
    np.testing.assert_array_equal(decode(other[:start] + turned + other[start + length :]), plain.levels())


def test_a_palette_of_bytes_is_as_bright_as_one_of_shorts() -> None:
    tiff = Tiff(stored(8, UNSIGNED, 1), photometric=PALETTE)
    colours = (tiff.palette() // 257).T.reshape(-1).tolist()
    of_bytes = Tiff(tiff.samples, photometric=PALETTE, more=((320, tuple(colours)),))
    np.testing.assert_array_equal(decode(of_bytes.file()), tiff.levels())


def test_values_are_shown_by_the_smallest_usual_range() -> None:
    for high, expected in ((200, 200), (40_000, 156), (3_000_000_000, 255)):
        for format in (UNSIGNED, SIGNED) if high < 2**31 else (UNSIGNED,):
            values = np.zeros((3, 4, 1), np.int64)
            values[1, 2] = high
            for photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
                shown = decode(Tiff(values, 32, photometric, format).file())
                other = 255 if photometric == WHITE_IS_ZERO else 0
                assert shown[1, 2].tolist() == [abs(other - expected)] * 3 and shown[0, 0].tolist() == [other] * 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (((259, (50001,)),), "compression by WebP"),
        (((259, (34712,)),), "compression by JPEG 2000"),
        (((259, (12345,)),), "compression by method 12345"),
        (((332, (2,)),), "CMYK"),
        (((258, (8, 8, 8, 16)),), "unequal widths"),
        (((339, (1, 1, 3, 1)),), "unequal widths"),
    ],
)
def test_other_kinds_are_named(more: tuple[tuple[int, tuple[int, ...]], ...], words: str) -> None:
    said = answer(Tiff(stored(8, UNSIGNED, 4), photometric=CMYK, more=more).file())
    assert isinstance(said, str) and "of a kind that is not read" in said and words in said


def test_a_part_that_is_not_there_is_not_black() -> None:
    tiff = Tiff(stored(8, UNSIGNED, 1), rows=8)
    whole = tiff.file()
    assert isinstance(answer(whole), np.ndarray)
    for more, words in (((273, (8, 8 + 8 * WIDTH)),), "not listed"), (((273, (8, 0, 8)),), "never written"):
        said = answer(Tiff(tiff.samples, rows=8, more=more).file())
        assert isinstance(said, str) and words in said


@pytest.mark.fault("a camera's raw file trains as its thumbnail")
def test_a_raw_file_is_named_and_not_its_preview() -> None:
    preview = stored(8, UNSIGNED, 3)
    for more in (((50706, (1,)),), ((254, (1,)),)):
        said = answer(Tiff(preview, photometric=RGB, more=more).file())
        assert isinstance(said, str) and "raw file" in said and "JPEG or TIFF" in said
    said = answer(Tiff(stored(16, UNSIGNED, 1), 16, photometric=32803).file())
    assert isinstance(said, str) and "raw file" in said


def test_a_tiff_that_pillow_opened_is_the_same_picture() -> None:
    for tiff in (Tiff(stored(16, UNSIGNED, 1), 16, WHITE_IS_ZERO), Tiff(stored(8, SIGNED, 1), 8, format=SIGNED)):
        file = tiff.file()
        if tiff.photometric == WHITE_IS_ZERO:  # the other it does not open at all, or wrongly
            np.testing.assert_array_equal(decode(Image.open(io.BytesIO(file))), tiff.levels())
            loaded = Image.open(io.BytesIO(file))
            loaded.load()
            with pytest.raises(UnreadableError, match="give the file"):
                decode(loaded)
    plain = Image.open(io.BytesIO(Tiff(stored(8, UNSIGNED, 3), photometric=RGB).file()))
    plain.load()
    np.testing.assert_array_equal(decode(plain), np.asarray(plain))


def test_libtiff_prints_nothing() -> None:
    """What it has to say of a damaged file would stand on the terminal for each picture."""
    file = Tiff(stored(8, UNSIGNED, 3), photometric=RGB, compression=LZW).file()
    damaged = file[:8] + bytes(100) + file[108:]
    program = (
        "import sys\nfrom instdisc.data.decoding.decode import UnreadableError, decode\n"
        "try: decode(sys.stdin.buffer.read())\nexcept UnreadableError as error: print(error.reason)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=damaged, capture_output=True, check=True)
    assert b"damaged" in done.stdout and done.stderr == b""
