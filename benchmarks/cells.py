"""Nearly all neighbours among ten million vectors from cells on the disk: built, opened, asked.

    python benchmarks/cells.py                                         # of scikit-learn's digits
    python benchmarks/cells.py --vectors vectors.npy --folder FOLDER   # of a real collection's unit rows (n, dim)
    python benchmarks/cells.py --all --folder FOLDER                   # the neighbours of all: an hour of two cores
    python benchmarks/cells.py --all --part 1000000 --folder FOLDER    # of the first million alone, among all

Ten million vectors are made of the given ones: each is one of these moved by seven tenths of the difference of two of
its ten nearest, so that they lie as the given ones do. They are written as float16, and used again where FOLDER is
given. Then cells are made of them, opened in a new process, and asked for 20 neighbours of vectors that are among them:
recall of the ten nearest against exact search, time of a query, memory. The result goes to results/cells.json.
With --all each vector's ten neighbours are found (search/joins.py); that goes to results/joins.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from record import record

from instdisc.neighbours import Nearest, top_k
from instdisc.search.cells import CELLS, stored_cells
from instdisc.search.joins import Join
from instdisc.search.pairs import Vectors

SHIFT, CLOSE, ASKED, BLOCK = 0.7, 10, 200, 65_536


def main() -> None:
    """Make what is missing, measure in a process of its own, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--folder", type=Path, help="where the vectors and the cells are kept: 7 GB")
    parser.add_argument("--count", type=int, default=10_000_000)
    parser.add_argument("--all", action="store_true", help="find the neighbours of all, in place of some")
    parser.add_argument("--part", type=int, help="with --all: find those of so many alone")
    parser.add_argument("--joined", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--asked", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    if settings.joined:
        print(json.dumps(joined(settings.folder / "rows.npy", settings.part)))
        return
    if settings.asked:
        print(json.dumps(asked(settings.folder / "rows.npy")))
        return
    with tempfile.TemporaryDirectory() as temporary:
        measured(settings, settings.folder or Path(temporary))


def measured(settings: argparse.Namespace, folder: Path) -> None:
    """All of it, with what stands in the folder."""
    file = folder / "rows.npy"
    if not file.is_file():
        write(file, real(settings.vectors), settings.count)
    built = build(file)
    command = [sys.executable, __file__, "--folder", str(folder), "--joined" if settings.all else "--asked"]
    part = [] if settings.part is None else ["--part", str(settings.part)]
    said = subprocess.run([*command, *part], check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    if settings.all:
        record(
            settings.results / "joins.json",
            name="joins",
            command=f"python benchmarks/cells.py --all --vectors vectors.npy --folder FOLDER --count {settings.count}"
            + f" {' '.join(part)}".rstrip(),
            unit=f"seconds for the ten neighbours of each of {settings.part or settings.count:,} vectors among "
            f"{settings.count:,}, cells made before",
            values=[found.pop("seconds")],
            seeds=[0],
            pictures=settings.count,
            **found,
        )
        return
    record(
        settings.results / "cells.json",
        name="cells",
        command=f"python benchmarks/cells.py --vectors vectors.npy --folder FOLDER --count {settings.count}",
        unit=f"ms for 20 neighbours of one of {settings.count:,} vectors, {ASKED} queries",
        values=found.pop("ms"),
        seeds=[0],
        pictures=settings.count,
        built=built,
        **found,
    )


def real(vectors: Path | None) -> np.ndarray:
    """Unit rows of a collection."""
    if vectors is not None:
        return np.load(vectors).astype(np.float32)
    from sklearn.datasets import load_digits

    pixels = load_digits().data.astype(np.float32)
    pixels -= pixels.mean(0)
    return pixels / np.linalg.norm(pixels, axis=1, keepdims=True)


def write(file: Path, real: np.ndarray, count: int) -> None:
    """The made vectors, block by block."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = torch.from_numpy(real)
    near = top_k(rows, rows, CLOSE, exclude=torch.arange(len(rows)))[1]
    random = torch.Generator().manual_seed(0)
    made = np.lib.format.open_memmap(file.with_suffix(".part"), "w+", np.float16, (count, rows.shape[1]))
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        own = torch.randint(len(rows), (size,), generator=random)
        ends = near[own].gather(1, torch.rand(size, CLOSE, generator=random).argsort(1)[:, :2])
        moved = rows[own] + SHIFT * (rows[ends[:, 0]] - rows[ends[:, 1]])
        made[start : start + size] = torch.nn.functional.normalize(moved, dim=1).numpy()
    made.flush()
    file.with_suffix(".part").rename(file)


def vectors_of(file: Path) -> Vectors:
    """Mapped from the disk."""
    return Vectors.of(torch.from_numpy(np.load(file, mmap_mode="c")))


def build(file: Path) -> dict[str, float]:
    """Seconds, and bytes of the file; what stands there is used as it is."""
    started, cells = time.perf_counter(), file.with_name(CELLS)
    vectors = vectors_of(file)
    stored_cells(cells, vectors, rows=np.arange(vectors.count), made_of=[("made", vectors.count)], show=True)
    return {"seconds": round(time.perf_counter() - started, 1), "bytes": cells.stat().st_size, **memory()}


def asked(file: Path) -> dict[str, object]:
    """Of cells that are opened: seconds until then, what recall they say, and what queries take and find."""
    vectors = vectors_of(file)
    before, started = file.with_name(CELLS).stat().st_mtime, time.perf_counter()
    cells = stored_cells(
        file.with_name(CELLS), vectors, rows=np.arange(vectors.count), made_of=[("made", vectors.count)]
    )
    opened = time.perf_counter() - started
    assert file.with_name(CELLS).stat().st_mtime == before, "made again"
    own = np.random.default_rng(1).choice(vectors.count, ASKED, replace=False)
    queries = vectors.pick(own)
    times, positions = [], []
    for place, query in zip(own.tolist(), queries, strict=True):
        started = time.perf_counter()
        positions.append(cells.search(query[None], 20, exclude=np.array([place]))[1][0])
        times.append(1000 * (time.perf_counter() - started))
    after = memory()
    exact = exactly(vectors, own).indices
    found = [len(np.intersect1d(one[:10], other)) for one, other in zip(positions, exact, strict=True)]
    return {
        "ms": [round(one, 2) for one in times],
        "ms_p95": round(float(np.percentile(times, 95)), 2),
        "recall": statistics.fmean(found) / 10,
        "recall_said": cells.recall,
        "opened_seconds": round(opened, 2),
        **after,
    }


def joined(file: Path, part: int | None) -> dict[str, object]:
    """Of the neighbours of all, or of the first: seconds, recall said and found, the most memory that was no file's."""
    vectors = vectors_of(file)
    cells = stored_cells(
        file.with_name(CELLS), vectors, rows=np.arange(vectors.count), made_of=[("made", vectors.count)], beside=0
    )
    join = Join(cells)
    most, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(1):
            most[0] = max(most[0], memory()["own_mb"])

    watching = threading.Thread(target=watch)
    watching.start()
    started, used = time.perf_counter(), time.process_time()
    scores, positions = join.neighbours_of(np.arange(part or vectors.count), 10, show=True)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    done.set()
    watching.join()
    own = np.random.default_rng(1).choice(len(positions), ASKED, replace=False)
    exact = exactly(vectors, own)
    found = [len(np.intersect1d(*both)) for both in zip(positions[own], exact.indices.numpy(), strict=True)]
    near = scores[own] >= exact.scores[:, -1:].numpy() - 1e-6
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(used, 1),
        "cells_looked_through": join.looked,
        "cells": len(cells),
        "recall": statistics.fmean(found) / 10,
        "recall_or_as_near": float(near.mean()),  # some of the made vectors are equal
        "recall_said": join.recall,
        "most_own_mb": round(most[0]),
        "most_mb": memory()["most_mb"],
    }


def exactly(vectors: Vectors, own: np.ndarray) -> Nearest:
    """The ten nearest others of some of the vectors."""
    exact = Nearest(vectors.pick(own), 10, torch.from_numpy(own), expected=vectors.count)
    for start in range(0, vectors.count, BLOCK):
        exact.add(vectors.read(start, min(start + BLOCK, vectors.count)), start)
    return exact


def memory() -> dict[str, float]:
    """most_mb: that was resident, mapped files included; own_mb: now, without them."""
    words = Path("/proc/self/status").read_text().split()
    own = int(words[words.index("RssAnon:") + 1]) / 1024 if os.name == "posix" else 0.0
    return {"most_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), "own_mb": round(own)}


if __name__ == "__main__":
    main()
