"""Bank, objectives and search without an encoder, against the number of pictures: seconds of a step, memory, bytes.

    python benchmarks/scale.py                                   # to 100 million rows (13 GB in int8); half an hour
    python benchmarks/scale.py --counts 100000 1000000           # less

Made unit features in batches of 256; a step is the objective forward and backward and the bank's update. Every count
runs in a process of its own, so that its memory can be read off. Results go to results/scale.json, the plot to
results/scale.png, and docs/scale.md computes from them what a cluster needs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import ROW_BYTES
from record import record

BATCH, DIM, NEGATIVES = 256, 128, 4096
BUDGET = 6.0  # seconds for each way, at least two steps
KINDS = ("float32", "float16", "int8", "float32 on disk", "int8 on disk")


def main() -> None:
    """Measure every count in a process of its own, record, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=[10**5, 10**6, 10**7, 10**8])
    parser.add_argument("--most-gb", type=float, default=14, help="banks that are larger are skipped")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--folder", type=Path, default=Path("runs/out"), help="where rows on disk lie")
    parser.add_argument("--one", nargs=2, metavar=("COUNT", "KIND"), help="what a process of its own does")
    settings = parser.parse_args()
    if settings.one:
        print(json.dumps(measured(int(settings.one[0]), settings.one[1], settings.folder)))
        return
    rows = []
    for count in settings.counts:
        for kind in KINDS:
            if count * ROW_BYTES[kind.partition(" on ")[0]](DIM) > 1e9 * settings.most_gb:
                continue
            words = [sys.executable, __file__, "--folder", str(settings.folder), "--one", str(count), kind]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"rows": count, "dtype": kind} | json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    whole = [row for row in rows if row["dtype"] == "float32"]
    record(
        settings.results / "scale.json",
        name="scale",
        command=f"python benchmarks/scale.py --counts {' '.join(map(str, settings.counts))}",
        unit="seconds of a step of the exact softmax, batch 256, float32 rows, one value a count; `rows` has all",
        values=[row["softmax_seconds"] for row in whole],
        seeds=[0],
        batch=BATCH,
        negatives=NEGATIVES,
        rows=rows,
    )
    draw(rows, settings.results / "scale.png")


def measured(count: int, kind: str, folder: Path) -> dict[str, Any]:
    """One bank: seconds to make it, of a step by each objective, of queries; megabytes above its rows.

    folder: where a file of rows lies. Its pages count as the process's memory, as rows in memory do.
    """
    import torch
    from torch.nn.functional import normalize

    from instdisc.bank import MemoryBank
    from instdisc.neighbours import top_k
    from instdisc.objectives import NCE, NonParametricSoftmax, SampledSoftmax

    folder.mkdir(parents=True, exist_ok=True)
    small = MemoryBank(1000, DIM)  # everything is loaded before memory is read
    _step(NonParametricSoftmax(0.07), small, torch.arange(BATCH), torch.eye(BATCH, DIM).add(0.01))
    before = _peak()
    started = time.perf_counter()
    dtype, _, disk = kind.partition(" on ")
    bank = MemoryBank(count, DIM, dtype=getattr(torch, dtype), storage=disk or "memory", folder=folder)
    found: dict[str, Any] = {"making_seconds": round(time.perf_counter() - started, 2)}
    found["rows_mb"] = round(bank.kept.nbytes / 1e6)
    ways = {
        "softmax": NonParametricSoftmax(0.07),
        "sampled": SampledSoftmax(0.07, NEGATIVES),
        "nce": NCE(0.07, NEGATIVES),
    }
    for name, objective in ways.items():

        def one(number: int, objective: torch.nn.Module = objective) -> None:
            draw = torch.Generator().manual_seed(number)
            indices = torch.randint(count, (BATCH,), generator=draw)
            features = torch.randn(BATCH, DIM, generator=draw)
            _step(objective, bank, indices, normalize(features, dim=1))

        found[f"{name}_seconds"] = _median(one)
    found["above_rows_mb"] = round(_peak() - before - found["rows_mb"])
    for queries in (1, 256):
        asked = bank.lookup(torch.arange(queries))

        def search(_: int, asked: torch.Tensor = asked) -> None:
            top_k(asked, bank.kept, 10)

        found[f"search_{queries}_seconds"] = _median(search)
    return found


def _step(objective: Any, bank: Any, indices: Any, features: Any) -> None:
    features.requires_grad_()
    objective(features, indices, bank).backward()
    bank.update(indices, features.detach())


def _median(run: Callable[[int], None]) -> float:
    run(0)
    taken: list[float] = []
    while len(taken) < 2 or (sum(taken) < BUDGET and len(taken) < 50):
        started = time.perf_counter()
        run(len(taken) + 1)
        taken.append(time.perf_counter() - started)
    return round(statistics.median(taken), 5)


def _peak() -> float:
    """Megabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Seconds against rows, both by powers of ten."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for number, (name, words) in enumerate(
        (
            ("softmax_seconds", "a step, exact softmax"),
            ("sampled_seconds", f"a step, softmax over {NEGATIVES:,} sampled rows"),
            ("nce_seconds", f"a step, NCE with {NEGATIVES:,} noise rows"),
            ("search_1_seconds", "ten neighbours of one picture, exactly"),
        )
    ):
        for dtype, line, dot in (("float32", "-", "o"), ("int8", "--", "s")):
            held = [row for row in rows if row["dtype"] == dtype]
            label = words if dtype == "float32" else f"{words}, int8"
            seconds = [row[name] for row in held]
            axes.plot([row["rows"] for row in held], seconds, line, color=f"C{number}", marker=dot, ms=4, label=label)
    axes.set(xscale="log", yscale="log", xlabel="pictures", ylabel="seconds, two CPU cores")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
