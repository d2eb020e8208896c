"""How many labels by hand does a collection need? Proposals against random choice, with the true labels as the person.

    python runs/labelling.py runs/out/laptop_cifar10 runs/out/photos          # runs whose pictures have labels; minutes

From each run's pictures 10,000 (or all) are drawn anew for every seed and embedded as they are. Labels are asked for in
rounds, and after each the accuracy of the votes on all pictures that are not labelled is taken: of labels spread over
the neighbour graph, and of the direct vote. After 50, 100 and 200 labels also how often votes of each confidence are
right, and how many of the labelled pictures the others name rightly (`left_out`). The result goes to
results/labelling.json, the curves to results/labelling.png.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.jobs.index import without_augmentation
from instdisc.jobs.votes import WAYS, proposals, vote
from instdisc.search.graph import nearest_graph
from instdisc.search.pairs import Vectors

PICTURES = 10_000
BUDGETS = (10, 20, 30, 40, 50, 75, 100, 150, 200, 300)
CHANCE = "random choice"
CURVES = (*(("spread", by) for by in (*WAYS, CHANCE)), ("neighbours", WAYS[0]), ("neighbours", CHANCE))
CHECKED = (50, 100, 200)  # budgets at which the confidence is looked at
STEPS = (0, 0.3, 0.5, 0.7, 0.85, 0.95, 1.01)  # of the confidence


def main() -> None:
    """Simulate, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--train-source", nargs="*", default=[], help="where each run's pictures are now, if moved")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", default="labelling", help="of the result")
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    found = []
    for number, run in enumerate(settings.runs):
        moved = settings.train_source[number] if number < len(settings.train_source) else None
        found.append(simulated(run, moved, settings.seeds))
    values = next(line for line in found[0]["curves"] if line["by"] == WAYS[0])["values"]
    record(
        settings.results / f"{settings.name}.json",
        name=settings.name,
        command=f"python runs/labelling.py RUN [RUN...] --seeds {settings.seeds} --name {settings.name}",
        unit=f"share of the other pictures that the votes name rightly; `values`: {found[0]['name']}, "
        f"{CHECKED[0]} labels, proposals as {WAYS[0]}, spread; `collections` has all",
        values=values[BUDGETS.index(CHECKED[0])],
        seeds=list(range(settings.seeds)),
        budgets=BUDGETS,
        collections=found,
    )
    draw(found, settings.results / f"{settings.name}.png")


def simulated(run: Path, moved: str | None, seeds: int) -> dict[str, Any]:
    """The curves of one collection, and how far the confidence of its votes is right."""
    collection = without_augmentation(run, train_source=moved)
    truth_of_all = collection.index.labels
    everyone = np.flatnonzero(~collection.index.removed & (truth_of_all >= 0))
    facts = collection.facts
    curves, reliability = [], []
    for votes, by in CURVES:
        lines, sure, left_out = [], [], []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            rows = np.sort(random.permutation(everyone)[:PICTURES])
            asking = Asking(collection.index.vectors(rows), truth_of_all[rows], votes, by, seed)
            lines.append(asking.accuracies)
            sure.append(asking.sure)
            left_out.append(asking.left_out)
        values = [list(column) for column in zip(*lines, strict=True)]
        curve = {"votes": votes, "by": by, "mean": [statistics.fmean(one) for one in values], "values": values}
        curves.append(curve | {"left_out": [list(column) for column in zip(*left_out, strict=True)]})
        reliability.append({"votes": votes, "by": by} | {str(budget): reliable(sure, budget) for budget in CHECKED})
        print(run.name, votes, by, [f"{100 * mean:.1f}" for mean in curves[-1]["mean"]], flush=True)
    return {
        "name": f"{facts['settings']['preset']} on {min(PICTURES, len(everyone)):,} pictures",
        "epochs": facts["settings"]["epochs"],
        "classes": len(set(truth_of_all[everyone].tolist())),
        "curves": curves,
        "reliability": reliability,
    }


class Asking:
    """Labels asked for in rounds. accuracies: on the pictures that are not labelled, after each budget; left_out: on
    those that are, each by the others.

    sure: budget -> (confidence, whether right) of those pictures.
    """

    def __init__(self, vectors: Any, truth: np.ndarray, votes: str, by: str, seed: int) -> None:
        order = np.random.default_rng(1000 + seed).permutation(len(truth))
        codes = np.full(len(truth), -1)
        names = [str(code) for code in range(int(truth.max()) + 1)]
        graph = nearest_graph(Vectors.of(vectors)).affinity() if votes == "spread" else None
        self.accuracies: list[float] = []
        self.left_out: list[float | None] = []
        self.sure: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for budget in BUDGETS:
            more = budget - int((codes >= 0).sum())
            if by == CHANCE:
                chosen = order[budget - more : budget]
            else:
                chosen = proposals(vectors, codes, more, graph=graph, by=by, seed=seed)
            codes[chosen] = truth[chosen]
            labelled = vote(np.arange(len(truth)), vectors, codes, names, graph=graph)
            right = (labelled.codes == truth)[~labelled.hand]
            self.accuracies.append(float(right.mean()))
            self.left_out.append(None if labelled.accuracy is None else labelled.accuracy.top1)
            self.sure[budget] = labelled.confidence[~labelled.hand], right


def reliable(found: list[dict[int, tuple[np.ndarray, np.ndarray]]], budget: int) -> list[dict[str, float]]:
    """Of the votes of all seeds, by their confidence: the share of votes, their mean confidence, the share right."""
    confidence, right = (np.concatenate([one[budget][part] for one in found]) for part in (0, 1))
    lines = []
    for low, high in itertools.pairwise(STEPS):
        here = (confidence >= low) & (confidence < high)
        if here.any():
            line = {
                "from": low,
                "share": here.mean(),
                "confidence": confidence[here].mean(),
                "right": right[here].mean(),
            }
            lines.append({name: round(float(value), 4) for name, value in line.items()})
    return lines


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against the number of labels, a panel a collection."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(5.2 * len(found), 3.8), squeeze=False, layout="constrained")
    for panel, collection in zip(panels[0], found, strict=True):
        colours = ("#0072B2", "#009E73", "#D55E00", "#777777", "#0072B2", "#777777")
        for line, mark, colour in zip(collection["curves"], "osD^os", colours, strict=True):
            values = 100 * np.array(line["values"])
            spread = values.std(axis=1, ddof=1) if values.shape[1] > 1 else None
            panel.errorbar(
                BUDGETS,
                values.mean(axis=1),
                spread,
                marker=mark,
                markersize=4,
                color=colour,
                linestyle="-" if line["votes"] == "spread" else ":",
                label=f"{line['votes']}, {line['by']}",
                capsize=2,
            )
        panel.set(title=collection["name"], xlabel="labels by hand", ylabel="right among the others, %", xscale="log")
        panel.set_xticks([10, 20, 50, 100, 200, 300], [10, 20, 50, 100, 200, 300])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
