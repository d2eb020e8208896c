"""CIFAR-10 accuracy against minutes at two commits: what work on speed gave the preset `laptop_cifar10`.

    python runs/before_after.py --before 05b27ec --train cifar10-train.parquet --test cifar10-test.parquet

Each commit is checked out beside the runs and trains for the same minutes, one after the other, on the same machine:
keep it quiet. Measuring on the way counts as time too. An interrupted run goes on where it stopped. The result goes to
results/before_after.json and .png.
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
    parser.add_argument("--test", required=True, help="labelled test pictures")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--monitor-epochs", type=int, nargs=2, default=(1, 1), help="epochs between points of each line"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/out/before_after"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    found = {}
    for name, epochs in zip(("before", "after"), settings.monitor_epochs, strict=True):
        commit = resolved(getattr(settings, name))
        place = settings.out.resolve() / commit  # by commit: what went before of another one is never taken for it
        run, files = place / "run", checkout(commit, place / "files")
        begun = ["--resume"] if (run / "config.json").is_file() else []
        length = ["--minutes", f"{settings.minutes:g}", "--set", f"monitor_epochs={epochs}"]
        words = ["--preset", "laptop_cifar10", "--seed", str(settings.seed), *length, *begun]
        source, test = _given(settings.train), _given(settings.test)
        if not (run / "evaluation.json").is_file():
            instdisc(files, "train", source, "--out", str(run), *words, "--test", test)
            instdisc(files, "evaluate", str(run), test)
        found[name] = reached(run) | {"commit": commit[:7]}
    record(
        settings.results / "before_after.json",
        name="before_after",
        command=f"python runs/before_after.py --before {settings.before} --after {found['after']['commit']} "
        f"--minutes {settings.minutes:g} --seed {settings.seed} "
        f"--monitor-epochs {' '.join(map(str, settings.monitor_epochs))}",
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


def instdisc(files: Path, *words: str) -> None:
    """The command, as it is in these files."""
    paths = os.environ | {"PYTHONPATH": str(files / "src")}
    done = subprocess.run([sys.executable, "-m", "instdisc", *words], cwd=files, env=paths)
    if done.returncode:
        sys.exit(f"instdisc {words[0]} in {files} did not end well: start again to go on.")


def reached(run: Path) -> dict[str, Any]:
    """What came of a run, from its files: they are alike at both commits."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    config, evaluation = (json.loads((run / f"{name}.json").read_text("utf-8")) for name in ("config", "evaluation"))
    curve = [
        {"minutes": round(line["seconds"] / 60, 2), "epoch": line["epoch"], "knn_test": line["measured"]["knn_test"]}
        for line in lines
        if "measured" in line
    ]
    return {
        "values": [100 * evaluation["knn"]["top1"]],
        "interval": [100 * bound for bound in evaluation["knn"]["interval"]],
        "epochs": lines[-1]["epoch"],
        "minutes": round(lines[-1]["seconds"] / 60, 2),
        "precision": config["chosen"]["precision"],
        "curve": curve,
    }


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
        points = [(point["minutes"], 100 * point["knn_test"]) for point in one["curve"][:-1]]
        points.append((one["minutes"], one["values"][0]))  # in the place of the one by the bank's rows
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{name}: {one['epochs']:.1f} epochs")
    axes.set(title="laptop_cifar10 before and after", xlabel="minutes", ylabel="kNN on the test pictures, %")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
