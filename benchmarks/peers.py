"""Beside the software that people use for the same work: times as fast, of the fastest of theirs, with the spread.

    make peers                                        # some twenty minutes; keep the machine quiet
    python benchmarks/peers.py --rounds 1 --only augment

lightly's training steps (SimCLR and MoCo), the augmentation of torchvision and kornia, torchvision's way from JPEG
bytes to batches, kNN and the linear SVM of scikit-learn, FAISS's exact search. Each round runs every comparison once,
in which the contestants take turns, so that a slow spell of the machine meets both sides. The comparisons are those of
step.py, augment.py, decode.py, evaluation.py and query.py; what each side does exactly is said there. Results go to
results/peers.json. Needs the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from record import record

HERE = Path(__file__).parent
PACKAGES = ("lightly", "torchvision", "kornia", "pillow", "scikit-learn", "faiss-cpu")


def _step(found: dict[str, Any]) -> dict[str, float]:
    rates = {name: values[0] for name, values in found["images_per_second"].items()}
    ours = rates.pop("instdisc")
    return {f"training step beside {name}": ours / rate for name, rate in rates.items()}


def _fastest(found: dict[str, Any], *ours_or_theirs: str) -> float:
    """The rate of the fastest contestant whose name starts so."""
    return max(one["values"][0] for name, one in found["contestants"].items() if name.startswith(ours_or_theirs))


def _augment(found: dict[str, Any]) -> dict[str, float]:
    return {
        f"augmentation at {size} px beside {peer}": _fastest(found, f"{size} px: ours, 2")
        / _fastest(found, f"{size} px: {peer}")
        for size in (32, 224)
        for peer in ("torchvision", "kornia")
    }


def _decode(found: dict[str, Any]) -> dict[str, float]:
    names = list(found["contestants"])
    ours = next(name for name in names if "a core of two: ours" in name)
    theirs = [name for name in names if "DataLoader" in name]
    rates = {name: found["contestants"][name]["values"][0] for name in names}
    return {"JPEG bytes to batches at 224 px beside torchvision": rates[ours] / max(rates[name] for name in theirs)}


def _evaluation(found: dict[str, Any]) -> dict[str, float]:
    seconds = {name: values[0]["seconds"] for name, values in found["contestants"].items()}
    return {
        f"{what} beside scikit-learn": seconds[f"{name} of scikit-learn"] / seconds[name]
        for what, name in (("kNN of 10,000 among 50,000", "knn"), ("linear SVM of 50,000", "svm"))
    }


def _query(found: dict[str, Any]) -> dict[str, float]:
    taken = {row["way"]: row["ms"] for row in found["rows"]}
    return {"one exact query among 50,000 beside FAISS": taken["FAISS flat"] / taken["exact"]}


COMPARISONS: dict[str, tuple[list[str], Callable[[dict[str, Any]], dict[str, float]]]] = {
    "step": (["--rounds", "1", "--steps", "12"], _step),
    "augment": (["--repeats", "1", "--seconds", "1"], _augment),
    "decode": (["--repeats", "1", "--limit", "512", "--sizes", "224"], _decode),
    "evaluation": (["--repeats", "1"], _evaluation),
    "query": (["--counts", "50000"], _query),
}


def main() -> None:
    """Compare, record, and show a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.rounds):
            for name in settings.only:
                words, ratios_of = COMPARISONS[name]
                out = Path(folder, f"{name}.json")
                place = ["--results", folder] if name == "query" else ["--out", str(out)]
                done = subprocess.run(
                    [sys.executable, str(HERE / f"{name}.py"), *words, *place], capture_output=True, text=True
                )
                if done.returncode:
                    sys.exit(f"{name} failed: {done.stderr[-2000:]}")
                for what, ratio in ratios_of(json.loads(out.read_text(encoding="utf-8"))).items():
                    ratios.setdefault(what, []).append(ratio)
                    print(f"round {number + 1} of {settings.rounds}: {what}: {ratio:.2f} times as fast", flush=True)
    only = "" if len(settings.only) == len(COMPARISONS) else f" --only {' '.join(settings.only)}"
    result = record(
        settings.results / "peers.json",
        name="peers",
        command=f"python benchmarks/peers.py --rounds {settings.rounds}{only}",
        unit="times as fast as the peer, the mean of each comparison; `ratios` has every round",
        values=[round(statistics.fmean(found), 3) for found in ratios.values()],
        seeds=list(range(settings.rounds)),
        ratios={what: [round(ratio, 3) for ratio in found] for what, found in ratios.items()},
        versions={name: version(name) for name in PACKAGES},
    )
    show(result)


def show(result: dict[str, Any]) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Times as fast as", title_justify="left")
    table.add_column("")
    for name in ("median", "from", "to"):
        table.add_column(name, justify="right")
    for what, found in result["ratios"].items():
        table.add_row(what, *(f"{value:.2f}" for value in (statistics.median(found), min(found), max(found))))
    Console(highlight=False, markup=False).print(table)


if __name__ == "__main__":
    main()
