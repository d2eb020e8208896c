"""The allocator keeps freed memory: seen by the page faults that a second use of the same memory costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import ctypes, os, resource, sys
from instdisc.allocator import keep_freed_memory
told = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
size = 48 << 20
def use():
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use()
print(int(told), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    def run(**environment: str) -> tuple[int, int]:
        done = subprocess.run(
            [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
        )
        told, faults = done.stdout.split()
        return int(told), int(faults)

    told, kept = run()
    left_alone, returned = run(INSTDISC_ALLOCATOR="system")
    assert (told, left_alone) == (1, 0)
    assert returned > 4 * kept + 40  # 50,000 pages of 4 kB, or a hundred of 2 MB, against next to none
