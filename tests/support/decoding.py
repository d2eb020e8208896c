"""Hostile files (hostile_pictures.py) decoded as the product decodes, in a child: what became of each.

    for outcome in tried(corpus()): ...    # read, refused, crashed, hung, too large

    python tests/support/decoding.py 1000 avif heic    # a thousand of each, with bytes changed, and what became of them

`python tests/support/decoding.py 32` is that child: it waits for files on its standard input.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile_pictures import Hostile, flipped, small_files

SECONDS = 30.0  # for one file, on a busy machine
MEMORY = 2_400_000_000  # bytes: what an honest picture of 100 megapixels takes, in the most costly of the formats
_ADDRESSES = 8_000_000_000  # bytes of address space; torch alone maps some of it


@dataclass(frozen=True)
class Outcome:
    """What became of a file. state: read, refused, crashed, hung, too large. said: the reason, or a hash of pixels."""

    file: Hostile
    state: str
    said: str
    seconds: float = 0.0
    megabytes: int = 0


def tried(files: Iterable[Hostile], *, size: int = 32) -> Iterator[Outcome]:
    """Each file through the product's own decoder, as a training stores it, in a child with a cap on memory and time.

    A child that ends or hangs costs this file alone: the next has a new one.
    """
    child: subprocess.Popen[bytes] | None = None
    try:
        for file in files:
            child = child or _start(size)
            outcome = _try(child, file)
            if outcome.state in ("crashed", "hung"):
                child.kill()
                child.communicate()
                child = None
            yield outcome
    finally:
        if child is not None:
            child.kill()
            child.communicate()


def _start(size: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
    command = [sys.executable, __file__, str(size)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0)


def _try(child: subprocess.Popen[bytes], file: Hostile) -> Outcome:
    assert child.stdin is not None and child.stdout is not None
    line = b""
    try:
        child.stdin.write(struct.pack("<Q", len(file.content)))
        for start in range(0, len(file.content), 2**16):
            child.stdin.write(file.content[start : start + 2**16])
        with selectors.DefaultSelector() as waiting:
            waiting.register(child.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not waiting.select(SECONDS):
                    return Outcome(file, "hung", f"no answer in {SECONDS:g} s", SECONDS)
                if not (part := child.stdout.read(2**16)):
                    break
                line += part
    except BrokenPipeError:
        pass
    if not line.endswith(b"\n"):
        return Outcome(file, "crashed", f"the process ended with {child.wait()}")
    answer = json.loads(line)
    if "error" in answer:
        return Outcome(file, "crashed", answer["error"])
    state = "too large" if answer["peak"] > MEMORY else "read" if answer["read"] else "refused"
    return Outcome(file, state, answer["said"], answer["seconds"], answer["peak"] // 1_000_000)


def _peak() -> int:
    """Bytes: the highest that this process came to since the last call, where the system says."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) * 1024


def _main() -> None:
    """The child: a length and a file in, a line of JSON out."""
    import resource
    import time

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from instdisc.data.decoding.decode import UnreadableError, decode_stored

    while len(head := sys.stdin.buffer.read(8)) == 8:
        content = sys.stdin.buffer.read(struct.unpack("<Q", head)[0])
        _peak()
        started = time.monotonic()
        answer: dict[str, Any] = {"read": False}
        try:
            pixels, _ = decode_stored(content, int(sys.argv[1]))
            answer = {"read": True, "said": hashlib.sha256(pixels.tobytes()).hexdigest()}
        except UnreadableError as error:
            answer["said"] = error.reason
        except BaseException as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        answer |= {"seconds": round(time.monotonic() - started, 3), "peak": _peak()}
        print(json.dumps(answer), flush=True)


def _mutated(count: int, kinds: list[str]) -> int:
    """What became of so many changed files of each kind; the exit status says whether all was well."""
    bad = 0
    for kind in kinds:
        outcomes = list(tried(flipped({kind: small_files()[kind]}, seed=count, count=count)))
        states = Counter(one.state for one in outcomes)
        slowest, most = max(one.seconds for one in outcomes), max(one.megabytes for one in outcomes)
        print(f"{kind}: {dict(states)}, at most {slowest:.2f} s and {most:,} MB a file")
        for one in outcomes:
            if one.state not in ("read", "refused"):
                print(one.file.name, one.state, one.said, one.file.content.hex())
                bad += 1
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(_main() if len(sys.argv) == 2 else _mutated(int(sys.argv[1]), sys.argv[2:]))
