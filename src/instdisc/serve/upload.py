"""A stranger's picture, decoded in a process of its own: limits on bytes, pixels, time and memory.

    pixels = decode_aside(content)                 # (height, width, 3) uint8, at most 1,024 pixels long

Only the formats of data/decoding/formats.py are ever handed to a decoder. A decoder that hangs, eats memory or
crashes takes that process with it and nothing else. `python -m instdisc.serve.upload` is that process: bytes in, pixels
out.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np

from instdisc.errors import InputError

MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
_SECONDS, _MEMORY = 10, 1_500_000_000
_SIDE = 1_024
_AT_ONCE = threading.BoundedSemaphore(2)


def decode_aside(content: bytes) -> np.ndarray:
    """Pixels of an uploaded picture; InputError with a reason where it is none, or takes too long or too much."""
    if len(content) > MAX_BYTES:
        raise InputError(f"The file is larger than {MAX_BYTES // 1_000_000} MB.")
    with _AT_ONCE:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "instdisc.serve.upload"],
                input=content,
                capture_output=True,
                timeout=2 * _SECONDS,
                env={name: os.environ[name] for name in ("PATH", "PYTHONPATH", "SYSTEMROOT") if name in os.environ},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise InputError("The picture takes too long to read.") from None
    if done.returncode == 3:
        raise InputError(done.stderr.decode("utf-8", "replace").strip()[:300])
    if done.returncode or len(done.stdout) < 8:
        raise InputError("The picture could not be read: reading it took too much time or memory.")
    height, width = struct.unpack("<II", done.stdout[:8])
    return np.frombuffer(done.stdout, np.uint8, offset=8).reshape(height, width, 3)


def _limit(what: str, most: int) -> None:
    """Take a limit where the system has it: macOS refuses one on memory, Windows has none."""
    if sys.platform == "win32":
        return
    import resource

    kind = getattr(resource, f"RLIMIT_{what}", None)
    if kind is None:
        return
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (most, most))


def _main() -> int:
    from instdisc.data.decoding.formats import format_of

    content = sys.stdin.buffer.read()
    format = format_of(content)
    _limit("CPU", _SECONDS)
    _limit("AS", _MEMORY)
    _limit("FSIZE", 0)
    if format is None or format.name != "HEIC":  # its decoder has a thread of its own, which would count
        _limit("NPROC", 0)
    from PIL import Image

    from instdisc.data.decoding.decode import UnreadableError, decode

    try:
        picture = Image.fromarray(decode(content, max_pixels=MAX_PIXELS))
    except UnreadableError as error:
        print(f"This can't be used as a picture: {error}.", file=sys.stderr)
        return 3
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    sys.stdout.buffer.write(struct.pack("<II", picture.height, picture.width) + picture.tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(_main())
