"""CIFAR-10 accuracy against minutes at two commits: what work on speed gave the preset `laptop_cifar10`.

    python runs/before_after.py --before 05b27ec --train cifar10-train.parquet --test cifar10-test.parquet

Each commit is checked out beside the runs and trains for the same minutes, one after the other, on the same machine:
keep it quiet. An interrupted run goes on where it stopped. The result goes to results/before_after.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Both commits, then the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="a commit")
    parser.add_argument("--after", default="HEAD", help="another one")
    parser.add_argument("--train", default="cifar10")
    parser.add_argument("--test", help="labelled test pictures; without: CIFAR-10's test split")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/out/before_after"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    found = {}
    for name in ("before", "after"):
        commit = resolved(getattr(settings, name))
        place = settings.out.resolve() / commit  # by commit: what went before of another one is never taken for it
        words = ["--train", _given(settings.train), "--minutes", str(settings.minutes), "--seed", str(settings.seed)]
        words += ["--test", _given(settings.test)] if settings.test else []
        words += ["--out", str(place / "run"), "--results", str(place / "results")]
        result = place / "results/laptop_cifar10.json"
        if not result.is_file():
            script = checkout(commit, place / "files") / "runs/laptop_cifar10.py"
            paths = {"PYTHONPATH": str(script.parents[1] / "src")}
            done = subprocess.run([sys.executable, str(script), *words], cwd=script.parents[1], env=os.environ | paths)
            if done.returncode or not result.is_file():
                sys.exit(f"The run of {commit} did not end: start again to go on.")
        found[name] = json.loads(result.read_text(encoding="utf-8"))
    record(
        settings.results / "before_after.json",
        name="before_after",
        command=f"python runs/before_after.py --before {settings.before} --after {found['after']['commit']} "
        f"--minutes {settings.minutes:g} --seed {settings.seed}",
        unit="kNN top-1 on the 10,000 test pictures, %, after, at the end of equal minutes; `before` has the other",
        values=found["after"]["values"],
        before=found["before"]["values"],
        seeds=[settings.seed],
        epochs={name: round(one["epochs"], 2) for name, one in found.items()},
        commits={name: one["commit"] for name, one in found.items()},
        intervals={name: one["interval"] for name, one in found.items()},
        precisions={name: one["precision"] for name, one in found.items()},
        curves={name: one["curve"] for name, one in found.items()},
    )
    draw(found, settings.results / "before_after.png")


def _given(source: str) -> str:
    """A path as it is found from another folder; a name stays."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def resolved(name: str) -> str:
    """The hash of a commit that was named in some way."""
    words = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"There is no commit {name} in {ROOT}.")
    return done.stdout.strip()


def checkout(commit: str, place: Path) -> Path:
    """The files of a commit at `place`, as git knows them."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(place)], check=True)
    subprocess.run(["git", "-C", str(place), "checkout", "--quiet", commit], check=True)
    return place


def draw(found: dict[str, Any], out: Path) -> None:
    """Accuracy against minutes, a line each; the last point is of recomputed vectors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for (name, one), colour in zip(found.items(), ("#D55E00", "#0072B2"), strict=True):
        points = [(point["minutes"], 100 * point["knn_test"]) for point in one["curve"]]
        points.append((one["minutes"], one["values"][0]))
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{name}: {one['epochs']:.1f} epochs")
    axes.set(title="laptop_cifar10 before and after", xlabel="minutes", ylabel="kNN on the test pictures, %")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
