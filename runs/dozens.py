"""Two hundred photographs labelled on the page, by the dozen: how many keys and clicks does that take?

    python runs/dozens.py --photos photos.parquet     # a Parquet file of labelled photographs; training, then minutes

Trains the preset `default` on the photographs as a folder without labels, opens the page on the run, and labels 200 of
them as a person would who knows what each shows (tests/support/labeller.py): some one by one, then what is suggested,
24 at a time. Names of classes have one letter. Needs playwright and Chromium. The result goes to results/dozens.json.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from browsing import chromium, quiet_page
from labeller import NAMES, Person
from record import record
from serving import served

from instdisc.jobs.index import recompute
from instdisc.jobs.train import train
from instdisc.runs import RunFolder
from instdisc.serve.opened import Opened

WANTED = 200


def main() -> None:
    """Train unless that is done, label from nothing a few times, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, type=Path)
    parser.add_argument("--epochs", type=float, help="without: what the preset chooses")
    parser.add_argument("--one-by-one", type=int, nargs="+", default=[20, 30, 40], help="how many are labelled first")
    parser.add_argument("--out", type=Path, default=Path("runs/out/dozens"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    truth = written(settings.photos, settings.out / "pictures")
    folder = settings.out / "run"
    length = {} if settings.epochs is None else {"epochs": settings.epochs}
    run = train(settings.out / "pictures", folder, resume=RunFolder(folder).exists(), **length)
    if not run.finished:
        print(f"{folder} is not finished: start again to go on.")
        return
    recompute(folder)
    acts = [labelled(folder, truth, first) for first in settings.one_by_one]
    record(
        settings.results / "dozens.json",
        name="dozens",
        command=f"python runs/dozens.py --photos photos.parquet --one-by-one {' '.join(map(str, settings.one_by_one))}"
        + (f" --epochs {settings.epochs:g}" if settings.epochs is not None else ""),
        unit=f"keys and clicks until {WANTED} photographs are labelled, by how many were labelled one by one first",
        values=acts,
        seeds=[0],
        one_by_one=settings.one_by_one,
        pictures=run.instances,
        epochs=run.epochs,
        training_minutes=round(run.seconds / 60, 2),
    )


def labelled(run: Path, truth: dict[str, str], one_by_one: int) -> int:
    """Keys and clicks, from a run without labels, which stays so."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(run, Path(folder) / "run")
        with (
            served(Opened(copy, device="cpu")) as client,
            chromium() as browser,
            quiet_page(browser, client.address) as page,
        ):
            person = Person(page, truth, copy)
            given = person.label(WANTED, one_by_one)
    wrong = [name for name, label in given.items() if truth[name] != label]
    assert not wrong, wrong
    print(f"{one_by_one} one by one: {len(given)} labels by {person.acts} keys and clicks", flush=True)
    return person.acts


def written(photos: Path, folder: Path) -> dict[str, str]:
    """The photographs as files in one folder; the class of each, by a letter."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(photos, columns=["image", "label"]).to_pylist()
    classes = sorted({row["label"] for row in table})
    truth = {}
    for number, row in enumerate(table):
        name = f"{number:05d}.jpg"
        truth[name] = NAMES[classes.index(row["label"])]
        if not (folder / name).is_file():
            (folder / name).write_bytes(row["image"]["bytes"])
    return truth


if __name__ == "__main__":
    main()
