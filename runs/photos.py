"""Photographs from end to end: train with the preset `default`, evaluate, embed; then a folder with broken files.

    python runs/photos.py --photos photos.parquet                # a Parquet file or folder of labelled photographs

Every stage is the ordinary command's function. The folder has 1,000 of the photographs and 20 broken files among them
(empty, cut short, no picture at all); the run on it must list just those 20. The result goes to results/photos.json.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.data.sources.open import open_source
from instdisc.jobs.embed import embed
from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

GOOD = 1_000
NO_PICTURES = [b"", b"\xff\xd8", b"<html>not a picture</html>", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(50)]
CUT_SHORT = 15


def main() -> None:
    """Run all stages and record what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, help="without: what the preset chooses")
    parser.add_argument("--out", type=Path, default=Path("runs/out/photos"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    length = {} if settings.epochs is None else {"epochs": settings.epochs}
    run = train(settings.photos, settings.out, resume=RunFolder(settings.out).exists(), seed=settings.seed, **length)
    if not run.finished:
        print(f"{settings.out} is not finished: start again to go on.")
        return
    report = evaluate(settings.out)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        vectors = Path(folder) / "vectors.parquet"
        embed(settings.out, settings.photos, vectors)
        seconds = time.perf_counter() - started
        rows = pq.read_metadata(vectors).num_rows
        broken, listed = with_broken_files(settings.photos, Path(folder))
    record(
        settings.results / "photos.json",
        name="photos",
        command=f"python runs/photos.py --photos photos.parquet --seed {settings.seed}"
        + (f" --epochs {settings.epochs:g}" if settings.epochs is not None else ""),
        unit="kNN top-1, %, leave-one-out on the training pictures, k 200, temperature 0.07",
        values=[100 * report["knn"]["top1"]],
        seeds=[settings.seed],
        interval=[100 * bound for bound in report["knn"]["interval"]],
        search_vectors={"top1": 100 * report["knn_search"]["top1"], "interval": report["knn_search"]["interval"]},
        baselines={name: 100 * result["top1"] for name, result in report["baselines"].items()},
        pictures=run.instances,
        epochs=run.epochs,
        training_minutes=round(run.seconds / 60, 2),
        settings=RunFolder(settings.out).read_config()["settings"],
        embedded={"rows": rows, "seconds": round(seconds, 1)},
        broken={"made": len(broken), "listed": len(listed), "the_same": broken == listed},
    )


def with_broken_files(photos: str, folder: Path) -> tuple[set[str], set[str]]:
    """Names of the broken files among GOOD photographs, and names on the quarantine list of a run on the folder."""
    pictures = folder / "pictures"
    pictures.mkdir()
    source = open_source(photos, limit=GOOD)
    contents = [source.read(row) for row in range(GOOD)]
    assert all(isinstance(content, bytes) for content in contents), "the photographs must be encoded files"
    for row, content in enumerate(contents):
        (pictures / f"photo {row:04d}.jpg").write_bytes(content)
    draw = random.Random(0)
    cut = [content[: draw.randint(200, len(content) - 2000)] for content in contents[:CUT_SHORT]]
    broken = {f"broken {number:02d}.jpg": content for number, content in enumerate([*NO_PICTURES, *cut])}
    for name, content in broken.items():
        (pictures / name).write_bytes(content)
    run = train(pictures, folder / "run", epochs=1)
    with RunFolder(run.path).quarantine.open(encoding="utf-8", newline="") as lines:
        return set(broken), {Path(line["path"]).name for line in csv.DictReader(lines)}


if __name__ == "__main__":
    main()
