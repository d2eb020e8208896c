"""Vectors that were made elsewhere: seconds to open them, and from `instdisc serve` to the page and its first answers.

    python benchmarks/given_vectors.py                    # a million of 768 dimensions: 3 GB of disk, some minutes
    python benchmarks/given_vectors.py --count 2000 --results /tmp

`page` is the first answer of the server, `pictures` the names of the first 200, `neighbours` those of one picture: each
from the start of the process, the page's program not counted. Results go to results/given_vectors.json.
"""

from __future__ import annotations

import argparse
import http.cookiejar
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from processes import held, serving
from record import record

from instdisc.jobs.own import open_vectors

STARTS, BLOCK = 3, 50_000


def main() -> None:
    """Make the vectors, open them, serve them three times, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, run = Path(folder) / "vectors.npy", Path(folder) / "run"
        write_vectors(file, settings.count, settings.dim)
        started = time.perf_counter()
        open_vectors(file, run, say=None)
        opened = time.perf_counter() - started
        starts = [started_server(run, settings.count) for _ in range(STARTS)]
    record(
        settings.results / "given_vectors.json",
        name="given_vectors",
        command=f"python benchmarks/given_vectors.py --count {settings.count} --dim {settings.dim}",
        unit=f"seconds from the start of `instdisc serve` to the page's first answer, {STARTS} starts",
        values=[start["page"] for start in starts],
        seeds=[0],
        count=settings.count,
        dimensions=settings.dim,
        dtype="float16",
        seconds_to_open=opened,
        starts=starts,
    )


def write_vectors(file: Path, count: int, dim: int) -> None:
    """Float16 vectors around a thousand centres."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(1000, dim)).astype(np.float32)
    made = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(count, dim))
    for start in range(0, count, BLOCK):
        rows = min(BLOCK, count - start)
        noise = random.standard_normal((rows, dim), dtype=np.float32)
        made[start : start + rows] = centres[random.integers(1000, size=rows)] + noise
    made.flush()


def started_server(run: Path, count: int) -> dict[str, float]:
    """Seconds until each of the answers, and the server's own memory in MB afterwards."""
    started, found = time.perf_counter(), {}
    with serving(run) as (address, process):
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        root = address.partition("?")[0]
        asked = {"page": address, "pictures": f"{root}api/pictures?start=0&count=200"}
        for name, where in (asked | {"neighbours": f"{root}api/neighbours/{count // 2}"}).items():
            while not answered(browser, where):
                time.sleep(0.02)
            found[name] = time.perf_counter() - started
        found["own_mb"] = held(process.pid)["own_mb"]
    return found


def answered(browser: urllib.request.OpenerDirector, address: str) -> bool:
    """Whether it answers; not yet while the collection is being opened."""
    try:
        with browser.open(address, timeout=120) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return False
    return True


if __name__ == "__main__":
    main()
