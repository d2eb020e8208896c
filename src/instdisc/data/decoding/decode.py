"""Picture files, arrays and PIL images to plain 8-bit RGB, or one short reason why not.

Files are known by their first bytes, never by their names, and only the formats of formats.py (`READ`) are ever handed
to a decoder; of an MPO the first picture, a JPEG. Formats that can run programs or fetch other files (EPS, SVG, PDF)
have no decoder here. Animations give their first frame, EXIF rotation is applied,
transparency is laid on white, colours are turned to sRGB where a profile says that they are others, 16-bit values keep
their high byte.

There are three answers: pixels; "of a kind that is not read", with what to convert it to; damaged.

Worker processes import this file, so it imports torch only when the first large picture has to be resized.
"""

from __future__ import annotations

import errno
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, TiffImagePlugin

from instdisc.data.decoding import jpeg as jpegs
from instdisc.data.decoding.formats import READ, format_of
from instdisc.data.decoding.formats import Format as Format
from instdisc.data.decoding.icc import in_srgb
from instdisc.data.decoding.jpeg import decode_whole
from instdisc.data.decoding.png import pixels_alone
from instdisc.data.decoding.quiet import quiet
from instdisc.data.decoding.refusals import UnreadableError as UnreadableError
from instdisc.data.decoding.refusals import not_read
from instdisc.data.decoding.rgb import rgb_of_array, rgb_of_picture
from instdisc.data.decoding.tiff import refuse_loaded

DECODING_VERSION = 3
"""Raised whenever the pixels that this file makes change: caches of stored pixels are then filled again."""

MAX_PIXELS = 100_000_000
"""Default cap on width x height, read from the header before any pixel is decoded (300 MB as RGB)."""

Encoded = bytes | bytearray | memoryview | np.ndarray | Image.Image

_ROTATIONS = {  # EXIF orientation -> what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
_MOST_EXIF = 100  # blocks; Pillow copies all that it has with each one more, so 12 MB of small ones take a minute
_MOST_SCANNED = 10_000_000_000  # pixels x scans of a progressive JPEG, some ten seconds; real ones have ten scans
_LITTLE = 2**26  # bytes: where not even that is left, no picture is to blame
_LARGE = 2**15  # pixels; larger pictures are resized by torch, to within one grey level of Pillow's result


def _machine_is_short(error: Exception) -> bool:
    """Whether a decoder failed for want of files, or of memory where there is little for anybody.

    A picture can ask for more than there is, and is then left out; else a whole one would be, and nobody would be told
    that the machine was the reason.
    """
    number = error.errno if isinstance(error, OSError) else None  # never the words: they may be the picture's own
    if not isinstance(error, MemoryError) and number != errno.ENOMEM:
        return number in (errno.EMFILE, errno.ENFILE)
    try:
        bytearray(_LITTLE)
    except MemoryError:
        return True
    return False


def decode(
    data: Encoded, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Upright 8-bit RGB of an encoded file, an array or a PIL image.

    Arrays are (h, w), (h, w, 1), (h, w, 3) or (h, w, 4 with alpha): uint8, uint16 (high byte), bool, or floats in 0..1.
    With `at_least`, a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as its shorter side
    keeps that many pixels: four times faster on a photograph that is stored small anyway.
    Raises UnreadableError for everything else, whatever the bytes are; but MemoryError or OSError where the machine has
    next to no memory or files left.
    """
    if isinstance(data, np.ndarray):
        return rgb_of_array(data)
    return _rgb_of_picture(data, max_pixels, at_least)[0]


def store(rgb: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The whole picture squashed to a size x size square, antialiased bilinear; itself where it has that size already.

    Squashing (and remembering width / height) keeps every pixel within reach of later random crops.
    """
    height, width = rgb.shape[:2]
    if (height, width) == (size, size):
        return rgb
    if height * width < _LARGE:
        return np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR))
    import torch  # a second and 300 MB of a worker, for a resize that takes a quarter of the time (1.1 ms at 500 x 375)

    planes = torch.from_numpy(rgb if rgb.flags.writeable else rgb.copy()).permute(2, 0, 1)[None]
    squashed = torch.nn.functional.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
    return squashed[0].permute(1, 2, 0).numpy()


def decode_stored(
    data: Encoded, size: int, *, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "{size} {size} 3"], float]:
    """`store(decode(data, at_least=size), size)`, and the width / height of the whole picture."""
    if isinstance(data, np.ndarray):
        rgb = rgb_of_array(data)
        return store(rgb, size), rgb.shape[1] / rgb.shape[0]
    rgb, aspect = _rgb_of_picture(data, max_pixels, size)
    return store(rgb, size), aspect


def format_and_size(data: Encoded) -> tuple[str, int, int]:
    """(format, width, height) from the header alone, not turned upright; the format of pixels in memory is ""."""
    if isinstance(data, np.ndarray):
        return "", data.shape[1], data.shape[0]
    if isinstance(data, Image.Image):
        return "", *data.size
    kind, content = _recognise(bytes(data))
    with quiet:
        return kind, *_opened(kind, content).size


def _rgb_of_picture(
    data: bytes | bytearray | memoryview | Image.Image, max_pixels: int, at_least: int | None
) -> tuple[UInt8[np.ndarray, "height width 3"], float]:
    """Upright RGB, and width / height before any reduction."""
    if isinstance(data, Image.Image):
        content, kind, handed = _file_of(data), "picture", data
    else:
        content, kind, handed = bytes(data), "", None
    if content is not None:
        kind, content = _recognise(content)
    try:
        with quiet:
            if content is None:
                assert handed is not None
                if isinstance(handed, TiffImagePlugin.TiffImageFile):
                    refuse_loaded(handed)
                return _upright_rgb(handed, None, max_pixels, None)
            picture = _opened(kind, content)
            _refuse_what_costs_too_much(picture, content, max_pixels)
            return _upright_rgb(picture, content if kind == "JPEG" else None, max_pixels, at_least)
    except UnreadableError:
        raise
    except Image.DecompressionBombError as error:  # only from frames larger than the header says, and from huge WebP
        raise UnreadableError(f"the {kind} has more pixels than can be decoded safely") from error
    except Exception as error:
        if _machine_is_short(error):
            raise
        if isinstance(error, MemoryError):
            raise UnreadableError(f"the {kind} needs more memory than there is") from error
        if kind == "JPEG" and content and (other := jpegs.kind(content)):
            raise not_read(kind, other, "8-bit JPEG or PNG") from error
        # Decoders raise whatever their parsers run into on hostile bytes: OSError, SyntaxError, ValueError, KeyError,
        # struct.error, EOFError, ZeroDivisionError, OverflowError ... Each of them says: this picture is broken.
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise UnreadableError(f"the {kind} is {'cut short' if cut else 'damaged or cut short'}") from error


def _file_of(picture: Image.Image) -> bytes | None:
    """The file behind a PIL image that was opened and neither loaded nor moved to another frame, so that the same
    picture gives the same pixels however it is handed over; None of any other."""
    file = getattr(picture, "fp", None)
    if not isinstance(picture, ImageFile.ImageFile) or not picture.tile or picture.tell() or file is None:
        return None
    position = file.tell()
    file.seek(0)
    content = bytes(file.read())
    file.seek(position)
    format = format_of(content)
    return content if format is not None and not format.refusal else None


def _recognise(data: bytes) -> tuple[str, bytes]:
    """Name of the format, by the first bytes, and what of the file its decoder should see."""
    if not data:
        raise UnreadableError("the file is empty (0 bytes)")
    format = format_of(data)
    if format is None or format.refusal:
        unknown = f"is not a picture in a known format ({', '.join(READ)})"
        raise UnreadableError(f"the file {unknown if format is None else format.refusal}")
    if format.name == "JPEG" and _ends_in_zeros(data):
        raise UnreadableError("the last part of the JPEG is missing (zeros stand in its place)")
    if format.name == "JPEG" and (blocks := data.count(b"Exif\0\0")) > _MOST_EXIF:
        raise UnreadableError(f"the JPEG has {blocks:,} EXIF blocks, which no camera writes")
    if data.startswith(b"MM\0+"):  # Pillow looks for its mark at another byte
        raise not_read("TIFF", "BigTIFF with the high byte first", "a plain TIFF")
    if format.name == "PNG":
        if data[12:16] == b"CgBI":
            raise not_read("PNG", "Apple's form for iPhone programs (CgBI)", "an ordinary PNG")
        data = pixels_alone(data)
    return format.name, data


def _opened(kind: str, content: bytes) -> ImageFile.ImageFile:
    opened = READ[kind].opened
    assert opened is not None
    try:
        return opened(io.BytesIO(content))
    except OSError as error:
        if kind == "BMP" and str(error).startswith("Unsupported BMP"):  # of a header that was read to its end
            bits, method = int.from_bytes(content[28:30], "little"), content[30]
            raise not_read(kind, f"{bits} bits a pixel, method {method}") from error
        raise


def _refuse_what_costs_too_much(picture: Image.Image, data: bytes, max_pixels: int) -> None:
    """Small files within the cap on pixels that still ask for hours or gigabytes."""
    width, height = picture.size
    if picture.info.get("progressive"):
        scans = data.count(b"\xff\xda")  # at least as many as there are; each goes over all pixels, though of few bytes
        if scans * width * height > _MOST_SCANNED:
            raise UnreadableError(f"the JPEG has {scans:,} scans, which would take too long to decode")
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        # A tile is decoded whole, however small the picture.
        wide, high = (picture.tag_v2.get(tag) for tag in (_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT))
        if isinstance(wide, int) and isinstance(high, int) and wide * high > max_pixels:
            raise UnreadableError(
                f"the tiles of the TIFF have {wide:,} x {high:,} pixels, "
                f"more than the cap of {max_pixels / 1e6:,.6g} megapixels"
            )


def _upright_rgb(
    picture: Image.Image, jpeg: bytes | None, max_pixels: int, at_least: int | None
) -> tuple[UInt8[np.ndarray, "height width 3"], float]:
    width, height = picture.size
    if width * height > max_pixels:
        raise UnreadableError(
            f"{width:,} x {height:,} are {width * height / 1e6:,.6g} megapixels, "
            f"more than the cap of {max_pixels / 1e6:,.6g} megapixels"
        )
    rgb = None
    if jpeg is not None:
        if at_least is not None:
            picture.draft(None, (at_least, at_least))  # None leaves the colours alone
        if picture.mode in ("RGB", "L"):
            rgb = decode_whole(jpeg, (width, height), picture.size)
            if rgb is None and (ended := jpegs.with_end(jpeg)) is not None:
                rgb = decode_whole(ended, (width, height), picture.size)
            if rgb is not None and (profile := picture.info.get("icc_profile")):
                plain = Image.fromarray(np.ascontiguousarray(rgb[..., 0]) if picture.mode == "L" else rgb)
                rgb = np.asarray(in_srgb(plain, profile).convert("RGB"))
    if rgb is None:
        picture.load()
        if jpeg is None:
            width, height = picture.size  # a TIFF turns itself upright while it loads, and then names no orientation
        rgb = rgb_of_picture(picture)
    orientation = _orientation(picture)
    if orientation in _ROTATIONS:
        rgb = np.asarray(Image.fromarray(rgb).transpose(_ROTATIONS[orientation]))
    return rgb, (height / width if orientation >= 5 else width / height)


def _ends_in_zeros(jpeg: bytes) -> bool:
    """Whether the compressed pixels run into zeros, as after a copy that broke off in a file of full length.

    The decoder reads zeros as grey blocks and says nothing. Zeros behind the end marker are harmless padding.
    """
    if not jpeg.endswith(bytes(32)):
        return False
    position = 2
    while jpeg[position : position + 1] == b"\xff" and jpeg[position + 1 : position + 2] != b"\xda":
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4])
    return jpeg.find(b"\xff\xd9", position) < 0


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception as error:  # a broken EXIF block is no reason to lose a picture whose pixels are whole
        if _machine_is_short(error):
            raise
        return 1
