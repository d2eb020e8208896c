"""What processes hold, read from /proc: memory, descriptors, threads; and `instdisc serve` in a process of its own.

with serving(run) as (address, process):
    held(process.pid)          # {"rss_mb": 312.4, "own_mb": 210.1, "descriptors": 14, "threads": 9, "children": 0}
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def serving(run: Path, *options: str, errors: IO[str] | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command in a process of its own, and its address."""
    command = [sys.executable, "-m", "instdisc", "serve", str(run), "--port", "0", *options]
    environment = os.environ | {"XDG_CACHE_HOME": str(run.parent / "cache")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.terminate()


def held(pid: int) -> dict[str, float]:
    """rss_mb, descriptors and threads of the process itself; own_mb and how many of all below it, itself included.

    own_mb is memory that is no file's, what they share counted once (Pss_Anon, Pss_Shmem): other processes that load
    the same libraries do not change it. Raises ProcessLookupError where the process has ended, or is about to.
    """
    try:
        status, descriptors = Path(f"/proc/{pid}/status").read_text(), len(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    if not descriptors or "VmRSS" not in status:
        raise ProcessLookupError(pid)
    below = children(pid)
    return {
        "rss_mb": _number(status, "VmRSS") / 1024,
        "own_mb": sum(_own(one) for one in (pid, *below)) / 1024,
        "descriptors": descriptors,
        "threads": int(_number(status, "Threads")),
        "children": len(below),
    }


def children(pid: int) -> list[int]:
    """All processes below this one."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for one in map(int, task.read_text().split()):
                found += [one, *children(one)]
    return found


def _own(pid: int) -> float:
    with suppress(OSError):  # one that ends meanwhile holds nothing
        found = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return _number(found, "Pss_Anon") + _number(found, "Pss_Shmem")
    return 0.0


def _number(text: str, name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    return float(found[1]) if found else 0.0
