"""What a few labels are worth on CIFAR-10, with the encoder of a run and without: accuracy against their number.

    python runs/few_labels.py runs/out/laptop_cifar10 --test cifar10-test.parquet      # an hour on two cores

An interrupted evaluation goes on where it stopped, and --shares may be added to: what is done is kept. The run is that
of runs/laptop_cifar10.py, or any other with labels. The result goes to results/NAME.json, the curves to
results/NAME.png.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.semi import SHARES
from instdisc.runs import RunFolder


def main() -> None:
    """Evaluate and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--train-source", help="where the training pictures are now, if they were moved")
    parser.add_argument("--test", default=None, help="labelled test pictures; without: CIFAR-10's test split")
    parser.add_argument("--shares", type=float, nargs="*", default=list(SHARES), help="of the labels, of 1")
    parser.add_argument("--name", default="few_labels", help="of the result")
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    test = settings.test
    if test is None:
        from instdisc.data.sources.open import open_source

        test = open_source("cifar10", split="test")
    preset = RunFolder(settings.run).read_config()["settings"]["preset"]
    found = evaluate(settings.run, test, measures=["semi"], train_source=settings.train_source, shares=settings.shares)[
        "semi"
    ]
    least = found["shares"][0]
    record(
        settings.results / f"{settings.name}.json",
        name=settings.name,
        command=f"python runs/few_labels.py RUN --shares {' '.join(map(str, settings.shares))}, a run of {preset}",
        unit="top-1 on the test pictures, as a share of 1; `values` are those of the encoder fine-tuned on "
        f"{least['labels']:,} labels, `shares` has all",
        values=least["fine_tuned"]["values"],
        seeds=list(range(found["draws"])),
        mode=found["mode"],
        precision=found["precision"],
        epochs_of_the_run=RunFolder(settings.run).read_config()["settings"]["epochs"],
        shares=found["shares"],
    )
    shutil.copy(RunFolder(settings.run).few_labels_plot, settings.results / f"{settings.name}.png")


if __name__ == "__main__":
    main()
