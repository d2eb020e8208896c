"""What `instdisc train RUN --add` gives beside training again: handwritten digits, or others, a tenth more of them.

    python runs/adding.py --old 1600 --epochs 20 --seeds 0 1 2
    python runs/adding.py --source photos.parquet --preset default --old 3500 --epochs 20 --name adding_photos

Once the new pictures are of the classes that were there, once all of a class that the run never saw. Accuracy is kNN's,
leave-one-out over all pictures, by search vectors; cost is processor time from pictures to search vectors. What is
finished is not run again. The result goes to results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import numpy as np
import torch
from PIL import Image
from record import record
from sklearn.datasets import load_digits

import instdisc
from instdisc.data.sources.open import open_source
from instdisc.jobs.grow import grow
from instdisc.jobs.index import add, recompute
from instdisc.jobs.train import train

NEIGHBOURS = 20
CASES = ("known classes", "a new class")
WAYS = ("again", "train --add", "index --add", "before")


@dataclass(frozen=True)
class Labelled:
    """Pictures that are in memory or in a source. write(row, file): as a file; suffix: of its name."""

    classes: np.ndarray
    write: Callable[[int, Path], object]
    suffix: str

    @classmethod
    def of(cls, source: str | None) -> Labelled:
        """Of a labelled source; of none, scikit-learn's digits."""
        if source is not None:
            opened = open_source(source)
            assert opened.labels is not None, "the pictures need labels"
            return cls(opened.labels, lambda row, file: file.write_bytes(opened.read(row)), ".jpg")
        digits = load_digits()
        return cls(
            digits.target,
            lambda row, file: Image.fromarray((digits.images[row] * 15).astype(np.uint8)).save(file),
            ".png",
        )


def pictures(labelled: Labelled, folder: Path, case: str, seed: int, count: int) -> tuple[Path, Path]:
    """Folders of the old and the new pictures, by class, drawn by the seed; the new class is the last one."""
    classes = labelled.classes
    order = np.random.default_rng(seed).permutation(len(classes))
    if case == "a new class":
        last = classes[order] == classes.max()
        chosen = order[~last][:count], order[last][: count // 10]
    else:
        chosen = order[:count], order[count : count + count // 10]
    for name, rows in zip(("old", "new"), chosen, strict=True):
        for row in rows.tolist():
            file = folder / name / str(classes[row]) / f"{row:05d}{labelled.suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            labelled.write(row, file)
    return folder / "old", folder / "new"


def accuracy(run: Path, old: Path, new: Path, kind: str) -> dict[str, float]:
    """kNN, %, leave-one-out over old and new by the run's encoder: of all, and of the new alone."""
    encoder = instdisc.load(run)
    vectors, names = [], []
    for folder in (old, new):
        files = sorted(folder.glob("*/*.*"))
        vectors.append(encoder.embed([str(file) for file in files], vectors=kind).numpy())
        names += [file.parent.name for file in files]
    together, labels = np.concatenate(vectors), np.array(names, dtype=int)
    scores = together @ together.T
    np.fill_diagonal(scores, -np.inf)
    near = np.argpartition(-scores, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    weights = np.exp(np.take_along_axis(scores, near, axis=1) / 0.07)
    votes = np.stack([(weights * (labels[near] == label)).sum(1) for label in range(labels.max() + 1)], axis=1)
    right = 100 * (votes.argmax(1) == labels)
    return {"all": float(right.mean()), "new": float(right[-len(vectors[1]) :].mean())}


def timed(work: Callable[[], Any]) -> float:
    """Processor seconds."""
    before = time.process_time()
    work()
    return time.process_time() - before


def one(labelled: Labelled, preset: str, case: str, seed: int, settings: argparse.Namespace) -> list[dict[str, Any]]:
    """All ways on one draw of pictures."""
    count, epochs, place = settings.old, settings.epochs, settings.out / settings.name
    folder = place / f"{case.replace(' ', '_')}_{seed}_{count}_{epochs:g}"
    done = folder / "done.json"
    if done.is_file():
        return list(json.loads(done.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    old, new = pictures(labelled, folder, case, seed, count)
    both = folder / "both"
    shutil.copytree(old, both)
    shutil.copytree(new, both, dirs_exist_ok=True)
    how: dict[str, Any] = {"preset": preset, "say": None, "seed": seed, "epochs": epochs}
    how |= {"storage": "memory", "monitor_epochs": 10_000}
    if preset == "digits":
        how["precision"] = "float32"

    def trained(source: Path, run: Path) -> None:
        train(source, run, **how)
        recompute(run, say=None)

    runs = {name: folder / name.replace(" ", "_") for name in WAYS}
    cost = {"before": timed(lambda: trained(old, runs["before"]))}
    for name in ("train --add", "index --add"):
        shutil.copytree(runs["before"], runs[name])
    cost["train --add"] = timed(lambda: grow(runs["train --add"], new, say=None))
    cost["index --add"] = timed(lambda: add(runs["index --add"], new, say=None))
    cost["again"] = timed(lambda: trained(both, runs["again"]))
    rows = []
    for name in WAYS:
        found = {kind: accuracy(runs[name], old, new, kind) for kind in ("search", "embedding")}
        rows.append({"case": case, "seed": seed, "way": name, "seconds": cost[name], **found})
    done.write_text(json.dumps(rows))
    return rows


def main() -> None:
    """Both cases over the seeds, then the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="labelled pictures; without, scikit-learn's digits")
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--name", default="adding", help="of the result")
    parser.add_argument("--old", type=int, default=1600, help="pictures at first; a tenth as many are new")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("runs/out/adding"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    labelled = Labelled.of(settings.source)
    rows = [
        row
        for seed in settings.seeds
        for case in settings.cases
        for row in one(labelled, settings.preset, case, seed, settings)
    ]
    table = []
    for case in settings.cases:
        for way in WAYS:
            mine = [row for row in rows if row["case"] == case and row["way"] == way]
            line: dict[str, Any] = {"case": case, "way": way}
            for name, pick in (
                ("search", lambda row: row["search"]["all"]),
                ("search_new", lambda row: row["search"]["new"]),
                ("embedding", lambda row: row["embedding"]["all"]),
                ("embedding_new", lambda row: row["embedding"]["new"]),
                ("seconds", lambda row: row["seconds"]),
            ):
                values = [pick(row) for row in mine]
                line[name] = statistics.fmean(values)
                line[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
            table.append(line)
    again = {(row["case"], row["seed"]): row for row in rows if row["way"] == "again"}
    added = [row for row in rows if row["way"] == "train --add"]
    record(
        settings.results / f"{settings.name}.json",
        name=settings.name,
        command=f"python runs/adding.py{f' --source {Path(settings.source).name}' if settings.source else ''} "
        f"--preset {settings.preset} --old {settings.old} --epochs {settings.epochs:g} "
        f"--seeds {' '.join(map(str, settings.seeds))}",
        unit="kNN top-1, points by which `train --add` is above training again (search vectors, all pictures), one "
        "value a seed and case; `table` has all ways, seconds of processor time",
        values=[row["search"]["all"] - again[row["case"], row["seed"]]["search"]["all"] for row in added],
        seeds=[row["seed"] for row in added],
        cases=[row["case"] for row in added],
        shares_of_time=[row["seconds"] / again[row["case"], row["seed"]]["seconds"] for row in added],
        epochs=settings.epochs,
        pictures=settings.old,
        new=settings.old // 10,
        table=table,
    )


if __name__ == "__main__":
    main()
