"""What this machine has to give: free memory of a device, free disk, cores. A process asks for its own share."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch


def free_memory(device: torch.device) -> int:
    """Bytes that this process could take on the device now.

    Of a CPU's memory: what the system calls available, or less where the container allows less, shared between the
    processes that torchrun started on this machine.
    """
    if device.type == "cuda":
        ours = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free in blocks that torch has
        return int(torch.cuda.mem_get_info(device)[0]) + ours
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min(_system_memory(), _container_memory()) // processes_here()


def free_disk(folder: Path) -> int:
    """Bytes that can be written below a folder, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def usable_cores() -> int:
    """Cores for this process: those it may run on, shared between the processes that torchrun started here."""
    # sched_getaffinity knows taskset and cpusets, which cpu_count does not; macOS and Windows lack it.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // processes_here())


def processes_here() -> int:
    """How many processes of this run torchrun started on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Rivals:
    """How many cores other programs keep busy, on average since the last look, which was `every` seconds ago at least.

    Linux counts it; elsewhere, and before there was time to look, it is 0. Processes of one's own count as others.
    """

    def __init__(self, every: float = 0.25) -> None:
        self._every, self._cores, self._lock = every, 0.0, threading.Lock()
        self._before = self._look()

    def cores(self) -> float:
        """So many, at most those that this process may run on."""
        with self._lock:
            if self._before is not None and time.monotonic() - self._before[0] >= self._every:
                now = self._look()
                if now is not None:
                    passed, busy, own = (new - old for new, old in zip(now, self._before, strict=True))
                    self._cores = max(0.0, (busy - own) / passed)
                self._before = now
            return self._cores

    @staticmethod
    def _look() -> tuple[float, float, float] | None:
        """Seconds on a clock, for which cores of this process were busy, and for which they were with it."""
        try:
            here = {f"cpu{number}" for number in os.sched_getaffinity(0)}
            lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
            counts = [[int(number) for number in line[1:9]] for line in lines if line[0] in here]
        except (OSError, ValueError, IndexError, AttributeError):
            return None
        busy = sum(sum(count) - count[3] - count[4] for count in counts)  # all but idle and waiting for disks
        return time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()


_rivals: Rivals | None = None


def fitting_threads() -> int:
    """How many threads should share an operation now: torch's number, fewer where other programs keep cores busy.

    Threads of one operation wait for the slowest of them, and that is the one without a core of its own.
    """
    global _rivals
    wanted = torch.get_num_threads()
    if wanted == 1 or processes_here() > 1:  # the ranks share the cores already
        return wanted
    if _rivals is None:
        _rivals = Rivals()
    return max(1, min(wanted, round(usable_cores() - _rivals.cores())))


@contextlib.contextmanager
def beside_others() -> Iterator[None]:
    """Compute with `fitting_threads`. Not where the last bit of a result counts: sums are added in another order."""
    wanted, fitting = torch.get_num_threads(), fitting_threads()
    if fitting == wanted:
        yield
        return
    torch.set_num_threads(fitting)
    try:
        yield
    finally:
        torch.set_num_threads(wanted)


def readable_bytes(count: float) -> str:
    """154 MB, 2.5 GB."""
    scale, unit = next((pair for pair in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if count >= pair[0]), (1e3, "kB"))
    return f"{count / scale:,.0f} {unit}" if count >= 10 * scale else f"{count / scale:.1f} {unit}"


def _system_memory() -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # macOS counts nothing as available
    return 4 << 30  # Windows has neither; modest on any machine that trains


def _container_memory() -> int:
    """What the control group leaves, version 2 or 1; files in the page cache count as used, but can be dropped."""
    free = 1 << 62
    for folder, limit, used, cached in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    ):
        with contextlib.suppress(OSError, ValueError, StopIteration):  # "max" is no number: no limit
            held = int(Path(folder, used).read_text())
            lines = Path(folder, "memory.stat").read_text().splitlines()
            held -= int(next(line for line in lines if line.startswith(cached)).split()[1])
            free = min(free, int(Path(folder, limit).read_text()) - held)
    return max(0, free)
