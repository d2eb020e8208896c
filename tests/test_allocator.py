"""The allocator keeps freed memory, seen by the page faults that a second use of it costs, or gives it back."""

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


CROWD = """
import ctypes, threading
from instdisc.allocator import give_back_freed_memory
told = give_back_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
everyone = threading.Barrier(16)
def ask():
    everyone.wait()
    blocks = [libc.malloc(ctypes.c_size_t(100_000)) for _ in range(200)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    everyone.wait()
    for block in blocks:
        libc.free(block)
threads = [threading.Thread(target=ask) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(int(told), int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20, flush=True)
libc.malloc_info(0, libc.fdopen(1, b"w"))
libc.fflush(None)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_crowd_of_threads_shares_two_arenas() -> None:
    """By what glibc's own malloc_info says: without it each thread gets an arena, up to eight for each core."""

    def arenas(**environment: str) -> tuple[str, int]:
        done = subprocess.run(
            [sys.executable, "-c", CROWD], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()[0], done.stdout.count("<heap nr=")

    assert arenas() == ("1", 2)
    told, many = arenas(INSTDISC_ALLOCATOR="system")
    assert told == "0" and many > 4
