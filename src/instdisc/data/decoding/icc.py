"""Colours by the ICC profile that a picture carries, as sRGB: a telephone's Display P3, Adobe RGB, a press's CMYK.

The same scene is then the same colours whatever wrote the file. A profile that is sRGB in effect changes nothing, and
neither does one that is broken or of another kind of picture.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image

_SPACES = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # mode -> colour space of a profile that fits
_LARGEST = 4_000_000  # bytes; those of presses and scanners have some 0.5 to 2 MB
_UNSEEN = 2  # levels; gamma 2.2 in place of sRGB's own curve has up to 9


def in_srgb(picture: Image.Image, profile: object) -> Image.Image:
    """A loaded picture of mode RGB, RGBA, L or CMYK as sRGB, in RGB or RGBA; itself where nothing has to change."""
    if not isinstance(profile, bytes) or picture.mode not in _SPACES or not 128 < len(profile) <= _LARGEST:
        return picture
    transform = _transform(profile, picture.mode)
    return picture if transform is None else transform.apply(picture)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str):  # type: ignore[no-untyped-def]  # of a class that is imported late
    """What turns pictures of this mode to sRGB; None for nothing. Made once a profile: it takes some 4 ms."""
    if profile[16:20].decode("latin-1").strip() != _SPACES[mode]:
        return None
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGBA" if mode == "RGBA" else "RGB")
        if mode != "CMYK":
            sample = _sample().convert(mode)
            before, after = (np.asarray(one.convert("RGB")).astype(int) for one in (sample, transform.apply(sample)))
            if np.abs(after - before).max() <= _UNSEEN:
                return None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform


def _sample() -> Image.Image:
    """Colours from all over the cube: nine levels of each."""
    levels = np.minimum(np.arange(9) * 32, 255).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3))
