"""Picture files, arrays and PIL images to plain 8-bit RGB, or one short reason why not.

Files are known by their first bytes, never by their names, and only six formats are ever handed to a decoder: JPEG
(the first picture of an MPO too), PNG, WebP, GIF, BMP and TIFF. Formats that can run programs or fetch other files
(EPS, SVG, PDF) have no decoder here. Animations give their first frame, EXIF rotation is applied, transparency is laid
on white, 16-bit values keep their high byte.

Worker processes import this file, so it imports torch only when the first large picture has to be resized.
"""

from __future__ import annotations

import errno
import io
import re
import threading
import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL import WebPImagePlugin as WebpImagePlugin

from instdisc.data.jpeg import decode_whole

DECODING_VERSION = 2
"""Raised whenever the pixels that this file makes change: caches of stored pixels are then filled anew."""

MAX_PIXELS = 100_000_000
"""Default cap on width x height, read from the header before any pixel is decoded (300 MB as RGB)."""

Encoded = bytes | bytearray | memoryview | np.ndarray | Image.Image

# The decoder classes are called directly: Image.open would first try a list of formats, and refuses pictures by a
# process-wide limit of its own before this file could compare the header with the caller's cap.
_FORMATS: tuple[tuple[re.Pattern[bytes], str, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG", JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WebP", WebpImagePlugin.WebPImageFile),
    (re.compile(rb"GIF8[79]a"), "GIF", GifImagePlugin.GifImageFile),
    (re.compile(rb"BM"), "BMP", BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "TIFF", TiffImagePlugin.TiffImageFile),
)
_STRANGERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"version https://git-lfs"), "is a Git LFS pointer, not the picture itself: run `git lfs pull`"),
    (re.compile(rb"(<\?xml.*)?<svg", re.DOTALL | re.IGNORECASE), "is an SVG drawing, which is not read"),
    (re.compile(rb"<!doctype html|<html|<head", re.IGNORECASE), "is a web page (HTML), not a picture"),
    (re.compile(rb"<\?xml|[\[{]\s*\""), "is a text file (XML or JSON), not a picture"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "is an EPS drawing, which is not read"),
    (re.compile(rb"%PDF"), "is a PDF document, not a picture"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "is a compressed archive, not a picture"),
    (re.compile(rb"....ftyp(avif|avis|hei|mif1|msf1)", re.DOTALL), "is an AVIF or HEIC picture, which is not read"),
    (re.compile(rb"....ftyp", re.DOTALL), "is a video, not a picture"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "is a JPEG 2000 picture, which is not read"),
    (re.compile(rb"8BPS"), "is a Photoshop file, which is not read"),
    (re.compile(rb"\0*\Z"), "holds nothing but zeros"),
)
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
_TIFF_BITS_PER_SAMPLE = 258
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
_MOST_EXIF = 100  # blocks; Pillow copies all that it has with each one more, so 12 MB of small ones take a minute
_MOST_SCANNED = 10_000_000_000  # pixels x scans of a progressive JPEG, some ten seconds; real ones have ten scans
_LITTLE = 2**26  # bytes: where not even that is left, no picture is to blame
_LARGE = 2**15  # pixels; larger pictures are resized by torch, to within one grey level of Pillow's result


class UnreadableError(Exception):
    """A picture that cannot be used. `reason` is one short sentence without a full stop, for a person."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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
        return _rgb_of_array(data)
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
        rgb = _rgb_of_array(data)
        return store(rgb, size), rgb.shape[1] / rgb.shape[0]
    rgb, aspect = _rgb_of_picture(data, max_pixels, size)
    return store(rgb, size), aspect


def _rgb_of_picture(
    data: bytes | bytearray | memoryview | Image.Image, max_pixels: int, at_least: int | None
) -> tuple[UInt8[np.ndarray, "height width 3"], float]:
    """Upright RGB, and width / height before any reduction."""
    if isinstance(data, Image.Image):
        kind, reader = "picture", None
    else:
        data = bytes(data)
        kind, reader = _recognise(data)
    try:
        with _quiet:
            picture = reader(io.BytesIO(data)) if reader and isinstance(data, bytes) else data
            assert isinstance(picture, Image.Image)
            if isinstance(data, bytes):
                _refuse_what_costs_too_much(picture, data, max_pixels)
            jpeg = data if kind == "JPEG" and isinstance(data, bytes) else None
            return _upright_rgb(picture, kind, jpeg, max_pixels, at_least)
    except UnreadableError:
        raise
    except Image.DecompressionBombError as error:  # only from frames larger than the header says, and from huge WebP
        raise UnreadableError(f"the {kind} has more pixels than can be decoded safely") from error
    except Exception as error:
        if _machine_is_short(error):
            raise
        if isinstance(error, MemoryError):
            raise UnreadableError(f"the {kind} needs more memory than there is") from error
        # Decoders raise whatever their parsers run into on hostile bytes: OSError, SyntaxError, ValueError, KeyError,
        # struct.error, EOFError, ZeroDivisionError, OverflowError ... Each of them says: this picture is broken.
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise UnreadableError(f"the {kind} is {'cut short' if cut else 'damaged or cut short'}") from error


def _recognise(data: bytes) -> tuple[str, Callable[[io.BytesIO], ImageFile.ImageFile]]:
    """Name of the format and its decoder, by the first bytes."""
    if not data:
        raise UnreadableError("the file is empty (0 bytes)")
    for signature, kind, reader in _FORMATS:
        if signature.match(data):
            if kind == "JPEG" and _ends_in_zeros(data):
                raise UnreadableError("the last part of the JPEG is missing (zeros stand in its place)")
            if kind == "JPEG" and (blocks := data.count(b"Exif\0\0")) > _MOST_EXIF:
                raise UnreadableError(f"the JPEG has {blocks:,} EXIF blocks, which no camera writes")
            return kind, reader
    text = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, what in _STRANGERS:
        if signature.match(text):
            raise UnreadableError(f"the file {what}")
    raise UnreadableError("the file is not a picture in a known format (JPEG, PNG, WebP, GIF, BMP, TIFF)")


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
    picture: Image.Image, kind: str, jpeg: bytes | None, max_pixels: int, at_least: int | None
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
    if rgb is None:
        picture.load()
        if jpeg is None:
            width, height = picture.size  # a TIFF turns itself upright while it loads, and then names no orientation
        rgb = np.asarray(_to_rgb(picture))
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


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.uint16)
        if isinstance(picture, TiffImagePlugin.TiffImageFile):
            bits = picture.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (16,))
            values = values << (16 - bits[0])  # 12-bit values come unscaled
        grey = (values >> 8).astype(np.uint8)
        if isinstance(transparent := picture.info.get("transparency"), int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if picture.mode in ("I", "F"):
        return Image.fromarray(_grey_of_wide(np.asarray(picture))).convert("RGB")
    if picture.has_transparency_data:
        return _on_white(picture.convert("RGBA"))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _grey_of_wide(values: np.ndarray) -> np.ndarray:
    """uint8 of 32-bit values, which come without a stated white: by the smallest usual range that holds them all."""
    if not np.isfinite(values).all():
        raise UnreadableError("the picture holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    return np.rint((values - low) * (255.0 / (high - low or 1.0))).astype(np.uint8)


def _on_white(rgba: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _rgb_of_array(array: np.ndarray) -> np.ndarray:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise UnreadableError(
            f"an array of shape {array.shape} is not a picture: (height, width) is expected, "
            "or (height, width, channels) with 1, 3 or 4 channels"
        )
    if array.dtype == np.uint8:
        values = array
    elif array.dtype == np.uint16:
        values = (array >> 8).astype(np.uint8)
    elif array.dtype == np.bool_:
        values = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also true of NaN
            raise UnreadableError("an array of floats must hold values from 0 to 1")
        values = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    else:
        raise UnreadableError(f"an array of {array.dtype} is not a picture: uint8, uint16, bool or floats are expected")
    if channels == 4:
        return np.asarray(_on_white(Image.fromarray(np.ascontiguousarray(values))))
    return np.ascontiguousarray(np.broadcast_to(values.reshape(*array.shape[:2], channels), (*array.shape[:2], 3)))


class _Quiet:
    """Silences the warnings of Pillow's modules while any thread is decoding, and no other module's.

    `warnings.catch_warnings` swaps the process-wide list of filters: two threads that leave it in another order than
    they entered keep each other's filters for good. One entry, counted under a lock, has no order to get wrong; and
    inserting it by hand leaves the registry of warnings that were shown once as it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._entry = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._entry not in warnings.filters:
                warnings.filters.insert(0, self._entry)  # type: ignore[attr-defined]  # declared as a Sequence

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._entry in warnings.filters:
                warnings.filters.remove(self._entry)  # type: ignore[attr-defined]


_quiet = _Quiet()
