"""Loaded pictures of any mode, and arrays, as plain 8-bit RGB: what a person would see on white paper."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import BmpImagePlugin, Image, TiffImagePlugin

from instdisc.data.decoding.icc import in_srgb
from instdisc.data.decoding.refusals import UnreadableError
from instdisc.data.decoding.tiff import TiffFile

_TIFF_BITS_PER_SAMPLE, _TIFF_EXTRA_SAMPLES = 258, 338


def rgb_of_picture(picture: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """A loaded picture. Raises UnreadableError where its values are no numbers."""
    wide = picture.mode in ("I", "F") or (isinstance(picture, TiffFile) and picture.stored is not None)
    if wide or picture.mode.startswith("I;16"):
        grey = _grey_of_wide(_values(picture)) if wide else _grey_of_16_bits(picture)
        if isinstance(picture, TiffFile) and picture.white_is_zero:
            grey = 255 - grey
        return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    profile = picture.info.get("icc_profile")
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data and not _alpha_says_nothing(picture):
        return np.asarray(_on_white(in_srgb(picture.convert("RGBA"), profile)))
    if picture.mode not in ("RGB", "L", "CMYK"):
        picture = picture.convert("RGB")
    picture = in_srgb(picture, profile)
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _values(picture: Image.Image) -> np.ndarray:
    return picture.values() if isinstance(picture, TiffFile) else np.asarray(picture)


def _grey_of_16_bits(picture: Image.Image) -> np.ndarray:
    values = np.asarray(picture).astype(np.uint16)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        bits = picture.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (16,))
        values = values << (16 - bits[0])  # 12-bit values come unscaled
    grey = (values >> 8).astype(np.uint8)
    if isinstance(transparent := picture.info.get("transparency"), int):
        grey[values == transparent] = 255
    return grey


def _alpha_says_nothing(picture: Image.Image) -> bool:
    """Whether a fourth value that nobody called alpha is 0 everywhere: such pictures are shown without it.

    A BMP has a mask for it whether it is used or not, and a TIFF may have a fourth sample and not say what for. What is
    called alpha is taken at its word: a PNG that is transparent everywhere shows nothing, here as elsewhere.
    """
    loose = isinstance(picture, BmpImagePlugin.BmpImageFile) or (
        isinstance(picture, TiffImagePlugin.TiffImageFile) and _TIFF_EXTRA_SAMPLES not in picture.tag_v2
    )
    return loose and picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (0, 0)


def _grey_of_wide(values: np.ndarray) -> np.ndarray:
    """uint8 of 32-bit values, which come without a stated white: by the smallest usual range that holds them all."""
    floats = values.dtype.kind == "f"
    if not np.isfinite(values).all():
        raise UnreadableError("the picture holds values that are not finite")
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if floats and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    return np.rint((values - low) * (255.0 / (high - low or 1.0))).astype(np.uint8)


def _on_white(rgba: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def rgb_of_array(array: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """An array of the shapes and types that `decode` names. Raises UnreadableError for others."""
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
