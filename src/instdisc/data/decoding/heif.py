"""AVIF by Pillow, HEIC by the optional package pillow-heif: their readers, on one thread each.

Both take as many threads as there are cores, but decoding has threads of its own; and in the process for uploads it may
start none. They are imported when the first such file comes.
"""

from __future__ import annotations

import importlib.util
import io
import threading
from types import ModuleType

from PIL import ImageFile, features

from instdisc.data.decoding.refusals import UnreadableError

_lock = threading.Lock()


def has_avif() -> bool:
    """Whether this Pillow was built with it."""
    return bool(features.check("avif"))


def has_heic() -> bool:
    """Whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def open_avif(file: io.BytesIO) -> ImageFile.ImageFile:
    """The header of an AVIF. Raises UnreadableError where this Pillow was built without it."""
    from PIL import AvifImagePlugin

    if not AvifImagePlugin.SUPPORTED:
        raise UnreadableError("the file is an AVIF picture, and this Pillow was built without: `pip install -U pillow`")
    return _with_one_thread(AvifImagePlugin, "DEFAULT_MAX_THREADS", AvifImagePlugin.AvifImageFile, file)


def open_heic(file: io.BytesIO) -> ImageFile.ImageFile:
    """The header of a HEIC or HEIF. Raises UnreadableError with the remedy where pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError as error:
        raise UnreadableError(
            "the file is a HEIC picture, which is not read here: pip install 'instdisc[heif]', or convert it to JPEG"
        ) from error
    return _with_one_thread(pillow_heif.options, "DECODE_THREADS", pillow_heif.HeifImageFile, file)


def _with_one_thread(
    options: ModuleType, name: str, reader: type[ImageFile.ImageFile], file: io.BytesIO
) -> ImageFile.ImageFile:
    """Both libraries are told once, when a file is opened, and by a setting of the whole process: it is set back."""
    with _lock:
        before = getattr(options, name)
        setattr(options, name, 1)
        try:
            return reader(file)
        finally:
            setattr(options, name, before)
