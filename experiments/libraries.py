"""Libraries that an installation brings anyway, tried in place of our own code: same promises, same time, fewer lines?

    python experiments/libraries.py
    python experiments/libraries.py loky scipy

Each trial does what the code does, by the library, and prints whether it keeps the promise and what both take (median
of five). docs/house.md has the decisions.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, get_type_hints

import filelock
import numpy as np
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress
from scipy.stats import binomtest

from instdisc.data.loading.workers import Pool
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.evaluation.intervals import wilson
from instdisc.evaluation.paired import paired_test
from instdisc.files import held, locked
from instdisc.progress import Bar
from instdisc.training.config import Settings
from instdisc.training.converting import convert

TEXTS: dict[str, tuple[Any, ...]] = {  # settings as a command line or a file has them
    "lr": ("0.1", 1, "1e-3", "fast", "nan", "none"),
    "batch": ("64", 64.0, "2.5", 2.5),
    "width": ("none", None, "32"),
    "pretrained": ("yes", "False", "weights.safetensors"),
    "mask_own": ("true", "off", "maybe"),
    "drops": ("0.5,0.75", "0.5", "", [0.5], "half"),
    "crop_scale": ("0.1 0.9", (0.1, 0.9), "0.5"),
    "objective": ("nce",),
}


def microseconds(act: Callable[[], object], repeats: int = 200) -> float:
    """A call's time, the median of five rounds."""
    rounds = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(repeats):
            act()
        rounds.append((time.perf_counter() - begun) / repeats * 1e6)
    return statistics.median(rounds)


def importing(module: str) -> float:
    """Milliseconds that a fresh interpreter takes for it, NumPy being there already; median of five."""
    code = f"import numpy, time; begun = time.perf_counter(); import {module}; print(time.perf_counter() - begun)"
    found = [float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(5)]
    return 1e3 * statistics.median(found)


def tried_filelock(folder: Path) -> None:
    """Locks, and who holds one."""
    ours, theirs = folder / "ours", folder / "theirs"

    def by_ours() -> None:
        with locked(ours):
            pass

    def by_theirs() -> None:
        with filelock.FileLock(theirs):
            pass

    print(f"filelock: ours {microseconds(by_ours):.0f} us a lock, filelock {microseconds(by_theirs):.0f} us")
    with held(ours, "training there"):
        try:
            with held(ours, "training there"):
                pass
        except InputError as error:
            print(f"  ours tells who is there: {error}")
    with filelock.FileLock(theirs):
        theirs.write_text("process 4711")
        try:
            filelock.FileLock(theirs, timeout=0).acquire()
        except filelock.Timeout:
            print(f"  filelock's file, after another process asked for it: {theirs.read_text()!r}")


def tried_rich() -> None:
    """A bar's cost an item, and what a log file gets."""
    with Bar(10**9, "Reading", "pictures") as bar:
        ours = microseconds(bar.advance, 10_000)
    with redirect_stderr(io.StringIO()) as said, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Reading", total=10**9)
        theirs = microseconds(lambda: progress.advance(task), 10_000)
        time.sleep(3)
        during = len(said.getvalue())
    print(
        f"rich.progress: ours {ours:.2f} us an item, rich {theirs:.2f} us; in 3 s to a file rich wrote {during} bytes"
    )


def tried_scipy() -> None:
    """Wilson's interval and McNemar's test."""

    def by_theirs() -> tuple[float, float]:
        found = binomtest(8080, 10_000).proportion_ci(0.95, method="wilson")
        return found.low, found.high

    assert np.allclose(wilson(8080, 10_000), by_theirs(), atol=1e-12)
    one, two = microseconds(lambda: wilson(8080, 10_000)), microseconds(by_theirs)
    print(f"scipy.stats: Wilson's interval ours {one:.1f} us, SciPy {two:.0f} us")
    for wrong in (60, 2000):
        first = np.arange(10_000) >= wrong
        second = np.roll(first, wrong)
        tosses = int((first != second).sum())
        one = microseconds(lambda a=first, b=second: paired_test(a, b), 5)
        two = microseconds(lambda n=tosses: binomtest(n // 2, n).pvalue, 5)
        print(f"  McNemar's test, {tosses} pictures differ: ours {one:.0f} us, SciPy {two:.0f} us")


def tried_pydantic() -> None:
    """Settings from text."""
    hints, same, asked, different = get_type_hints(Settings), 0, 0, []
    for name, texts in TEXTS.items():
        adapter = TypeAdapter(hints[name])
        for text in texts:
            answers: list[Any] = []
            for act in (lambda n=name, t=text: convert(n, t, hints[n]), lambda a=adapter, t=text: a.validate_python(t)):
                try:
                    answers.append(act())
                except (InputError, ValidationError):
                    answers.append("refused")
            asked, same = asked + 1, same + (repr(answers[0]) == repr(answers[1]))
            different += [f"{name}={text!r}: ours {answers[0]!r}, pydantic {answers[1]!r}"] * (answers[0] != answers[1])
    one = microseconds(lambda: convert("lr", "0.1", hints["lr"]))
    adapter = TypeAdapter(hints["lr"])
    print(f"TypeAdapter: reads {same} of {asked} texts as ours; {one:.1f} us and {_microseconds_of(adapter):.1f} us")
    print("  " + "\n  ".join(different))


def _microseconds_of(adapter: TypeAdapter[Any]) -> float:
    return microseconds(lambda: adapter.validate_python("0.1"))


def _fetched(source: Any, rows: np.ndarray, size: int) -> np.ndarray:
    from instdisc.data.loading.workers import fetch

    out = np.empty((len(rows), 3, size, size), np.uint8)
    fetch(source, rows, np.arange(len(rows)), out)
    return out


def tried_loky(folder: Path, pictures: int = 640, size: int = 256, rounds: int = 3) -> None:
    """Pictures decoded by two processes."""
    noise = np.random.default_rng(0)
    for number in range(pictures):
        values = noise.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(values).resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number:05}.jpg")
    source, jobs = open_source(folder), np.array_split(np.arange(pictures), pictures // 32)

    def timed(batches: Callable[[], Iterator[object]]) -> tuple[float, float, float]:
        before, begun, first = os.times(), time.perf_counter(), 0.0
        for _ in batches():
            first = first or time.perf_counter() - begun
        took, after = time.perf_counter() - begun, os.times()
        return first, took, sum(after[:4]) - sum(before[:4])

    def by_ours() -> Iterator[object]:
        with Pool(source, size, 2) as pool:
            yield from pool.stream(jobs)

    def by_theirs() -> Iterator[object]:
        executor = get_reusable_executor(max_workers=2, kill_workers=True, reuse=False)
        waiting = [executor.submit(_fetched, source, rows, size) for rows in jobs]
        yield from (answer.result() for answer in waiting)
        executor.shutdown()

    turns = [(timed(by_ours), timed(by_theirs)) for _ in range(rounds)]
    for name, place in (("ours", 0), ("loky", 1)):
        first, whole, processor = (statistics.median(turn[place][part] for turn in turns) for part in range(3))
        print(
            f"loky: {name}, first batch after {first:.2f} s, {pictures:,} photographs in {whole:.2f} s, "
            f"{processor:.2f} s of processor time"
        )


TRIALS = {
    "imports": lambda folder: tried_imports(),
    "filelock": tried_filelock,
    "rich": lambda folder: tried_rich(),
    "scipy": lambda folder: tried_scipy(),
    "pydantic": lambda folder: tried_pydantic(),
    "loky": tried_loky,
}


def tried_imports() -> None:
    """What each costs a command that needs it."""
    for module in ("filelock", "rich.progress", "scipy.stats", "pydantic", "joblib.externals.loky"):
        print(f"import {module}: {importing(module):.0f} ms")


def main() -> None:
    """Those that are named, or all."""
    for name in sys.argv[1:] or TRIALS:
        with tempfile.TemporaryDirectory() as folder:
            TRIALS[name](Path(folder))


if __name__ == "__main__":
    main()
