"""Pictures made small for a screen."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

_SMALL = 128  # pixels of the longer side of a picture that must not lose any more


def as_jpeg(pixels: np.ndarray, side: int) -> bytes:
    """A JPEG, at most `side` pixels long, of pixels (height, width, 3) uint8.

    A picture of few pixels, which is shown large, has a high quality.
    """
    picture = Image.fromarray(pixels)
    small = max(picture.size) <= _SMALL
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=95 if small else 86, subsampling=0 if small else 2)
    return out.getvalue()
