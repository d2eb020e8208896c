"""Every command of the tool under strange circumstances: what each said and how it ended.

The commands run in forks of one process that has everything imported. It is a process of its own, for which the tests
ask: `with strangers() as ask: ask("clock backwards")`.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forks import live
from lives import RECIPE, made

FAST = [word for name, value in RECIPE.items() for word in ("--set", f"{name}={value}")]
CPU = ["--device", "cpu"]


def commands(place: Path, folder: Path) -> dict[str, list[Any]]:
    """Name -> words, in an order in which each finds what it needs. folder: where a copy of a run stands in `run`."""
    run, pictures, others, known = folder / "run", place / "pictures", place / "others", place / "known"
    return {
        "info": ["info", pictures],
        "train": ["train", others, "--out", folder / "new", *FAST, *CPU],
        "train from files": ["train", others, "--out", folder / "newer", *FAST, *CPU, "--set", "storage=workers"],
        "info of a run": ["info", run],
        "evaluate": ["evaluate", run, "-k", "5", *CPU],
        "embed": ["embed", run, pictures, "-o", folder / "vectors.parquet", *CPU],
        "search": ["search", run, pictures / "red" / "0000.png", "--sheet", folder / "found.png", *CPU],
        "index": ["index", run, "--add", others, *CPU],
        "index anew": ["index", run, "--recompute", *CPU],
        "duplicates": ["duplicates", run, "--threshold", "0.9", *CPU],
        "outliers": ["outliers", run, *CPU],
        "label": ["label", run, "--from", place / "more.csv", "--replace", "-o", folder / "labels.csv", *CPU],
        "map": ["map", run, *CPU],
        "report": ["report", run, "-o", folder / "report.html"],
        "export": ["export", run, "-o", folder / "export", "--only", "vectors"],
        "compare": ["compare", run, folder / "new", known, "-k", "5", *CPU],
        "cache": ["cache"],
        "reproduce": [
            *("reproduce", "partition", "--scale", "tiny", "--seeds", "1", "--out", folder / "table"),
            *("--train", known, "--test", place / "asked", *CPU),
            *("--set", "width=4", "--set", "dim=8", "--set", "batch=16", "--set", "epochs=1"),
            *("--set", "precision=float32"),
        ],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Circumstances, as they are called before the command in its fork


def clock_backwards() -> None:
    """Each look at the clock shows an hour less than the one before."""
    now = itertools.count(time.time(), -3600.0)
    time.time = lambda: next(now)


def no_home() -> None:
    """Nothing can be made in the home folder, by root neither; no other place for a cache is named."""
    del os.environ["XDG_CACHE_HOME"]
    os.environ["HOME"] = "/proc/self/nowhere"


def home_unset() -> None:
    del os.environ["XDG_CACHE_HOME"]
    os.environ.pop("HOME", None)
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(number)

    pwd.getpwuid = unknown  # type: ignore[assignment]


def one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def no_shared_memory() -> None:
    """/dev/shm can be seen and not written, as in some containers."""
    libc = ctypes.CDLL(None, use_errno=True)
    ways = [
        (libc.unshare, (0x00020000,)),  # CLONE_NEWNS
        (libc.mount, (b"none", b"/", None, ctypes.c_ulong(0x4000 | 0x40000), None)),  # MS_REC, MS_PRIVATE
        (libc.mount, (b"none", b"/dev/shm", b"tmpfs", ctypes.c_ulong(1), None)),  # MS_RDONLY
    ]
    for way, arguments in ways:
        if way(*arguments):
            raise OSError(ctypes.get_errno(), "no mount namespace here")


def no_reader() -> None:
    """Standard output is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    os.close(writing)


CIRCUMSTANCES: dict[str, Callable[[], None] | None] = {
    "nothing strange": None,
    "clock backwards": clock_backwards,
    "no home": no_home,
    "home unset": home_unset,
    "one core": one_core,
    "no shared memory": no_shared_memory,
    "no reader": no_reader,
}


# ---------------------------------------------------------------------------------------------------------------------
# The process that tries them


def tried(place: Path, circumstance: str, only: list[str], seed: int) -> dict[str, dict[str, Any]]:
    """Name of each command (of those named, or all) -> status, out, errors. "interrupt": each gets a Ctrl-C."""
    found = {}
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        shutil.copytree(place / "before" / "run", folder / "run")
        draw = random.Random(seed)
        for command, words in commands(place, folder).items():
            if only and command not in only:
                continue
            if circumstance == "interrupt":
                before = time.monotonic()
                ended = live(words, folder, folder / "said", None, draw.uniform(0.0, 0.25), signal.SIGINT)
                if command == "train" and (folder / "new" / "config.json").is_file():
                    words = [*words, "--resume"]  # as who was interrupted would go on
                again = live(words, folder, folder / "said")
                found[command] = asdict(ended) | {"again": asdict(again), "seconds": time.monotonic() - before}
            else:
                found[command] = asdict(live(words, folder, folder / "said", CIRCUMSTANCES[circumstance]))
    return found


@contextlib.contextmanager
def strangers() -> Iterator[Callable[..., dict[str, dict[str, Any]]]]:
    """The process, as a function: ask(circumstance, seed)."""
    alone = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    alone |= {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # else pyarrow starts a thread when it is imported
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | alone
    ) as it:
        assert it.stdin is not None and it.stdout is not None

        def ask(circumstance: str, only: Sequence[str] = (), seed: int = 0) -> dict[str, dict[str, Any]]:
            it.stdin.write(json.dumps([circumstance, only, seed]) + "\n")
            it.stdin.flush()
            return json.loads(it.stdout.readline())

        yield ask
        it.stdin.close()


def main() -> None:
    """Answer one line after the other."""
    with tempfile.TemporaryDirectory(prefix="instdisc-strange-") as place:
        os.environ["XDG_CACHE_HOME"] = str(Path(place, "cache"))
        tempfile.tempdir = place  # what a fork leaves there goes with it
        with contextlib.redirect_stdout(io.StringIO()):
            made(Path(place))
        for line in sys.stdin:
            print(json.dumps(tried(Path(place), *json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
