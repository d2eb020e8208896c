"""How far the figures that need no labels go with kNN accuracy: over the runs of a table, and along one run.

    python runs/quality.py --runs runs/out/objectives-cpu/runs/* --along runs/out/laptop_cifar10

Reads what the runs measured of themselves while they trained (alignment, uniformity, effective rank, and kNN accuracy
of a sample among the rows of the bank). `between`: Spearman's rank correlation over the last measurements of the runs
of --runs; `along`: over all measurements of one run. The result goes to results/quality.json and quality.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.runs import RunFolder
from instdisc.training import read_metrics

FIGURES = {
    "alignment": "alignment (0 = views agree)",
    "uniformity": "uniformity (low = spread out)",
    "effective_rank": "effective rank (directions in use)",
}


def main() -> None:
    """Correlate and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders to compare with each other")
    parser.add_argument("--along", type=Path, help="one run folder with many measurements")
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    between = {run.name: measured(run)[-1] for run in sorted(settings.runs)}
    along = measured(settings.along) if settings.along else []
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    for ax, (name, words) in zip(figure.subplots(1, len(FIGURES)), FIGURES.items(), strict=True):
        ax.scatter([one[name] for one in between.values()], [100 * one["knn"] for one in between.values()], s=14)
        ax.set_xlabel(words, fontsize=9)
        ax.set_ylabel("kNN accuracy, %", fontsize=9)
        ax.grid(color="#e6e6e6", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    settings.results.mkdir(parents=True, exist_ok=True)
    figure.savefig(settings.results / "quality.png", dpi=150)
    found = correlations(list(between.values()))
    record(
        settings.results / "quality.json",
        name="quality",
        command="python runs/quality.py --runs RUNS --along RUN",
        unit=f"Spearman's rank correlation with kNN accuracy: {', '.join(FIGURES)}, over the runs",
        values=[one["correlation"] for one in found.values()],
        seeds=[],
        between=found,
        along=correlations(along) if along else None,
        runs=between,
    )


def measured(run: Path) -> list[dict[str, float]]:
    """What the run measured of itself, in order."""
    return [line["measured"] for line in read_metrics(RunFolder(run)) if "knn" in line.get("measured", {})]


def correlations(points: list[dict[str, float]]) -> dict[str, Any]:
    """For each figure its rank correlation with kNN accuracy, and how likely one so strong is by chance."""
    found = {}
    for name in FIGURES:
        result = spearmanr([point[name] for point in points], [point["knn"] for point in points])
        found[name] = {"correlation": float(result.statistic), "p": float(result.pvalue), "points": len(points)}
    return found


if __name__ == "__main__":
    main()
