"""How well doubtful labels are found: labels flipped at random, and the average precision of the order of doubts.

    python runs/doubtful.py RUN -o results/doubtful.json          # RUN: trained on a labelled source, as digits

Each of `DRAWS` times 3 % of the labels become another class; the doubts (search/doubtful.py) should put these first.
By search vectors and by the embedding; the number of neighbours and the temperature were chosen by this table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import record

from instdisc.jobs.collection import Collection
from instdisc.jobs.index import recompute
from instdisc.search.doubtful import NEIGHBOURS, TEMPERATURE, doubts
from instdisc.search.pairs import neighbours_of_all

DRAWS, FLIPPED = 10, 0.03
TRIED = (5, 10, 20, 30), (0.03, 0.07, 0.1, 0.2)


def average_precision(wrong: np.ndarray, doubt: np.ndarray) -> float:
    """The mean, over the wrong ones, of the share that is wrong among those doubted at least as much."""
    order = np.argsort(-doubt, kind="stable")
    hits = wrong[order]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def measured(scores: np.ndarray, places: np.ndarray, codes: np.ndarray, temperature: float) -> dict[str, Any]:
    """Of each draw, their mean and deviation; and the share of wrong ones among as many as were flipped."""
    found, first = [], []
    for draw in range(DRAWS):
        random = np.random.default_rng(draw)
        count = round(FLIPPED * len(codes))
        flipped = random.choice(len(codes), count, replace=False)
        noisy, wrong = codes.copy(), np.zeros(len(codes), dtype=bool)
        noisy[flipped] = (noisy[flipped] + random.integers(1, codes.max() + 1, count)) % (codes.max() + 1)
        wrong[flipped] = True
        doubt = doubts(scores, places, noisy, temperature=temperature)[1]
        found.append(average_precision(wrong, doubt))
        first.append(float(wrong[np.argsort(-doubt, kind="stable")[:count]].mean()))
    return {
        "values": [round(one, 4) for one in found],
        "ap": float(np.mean(found)),
        "deviation": float(np.std(found, ddof=1)),
        "right_of_first": float(np.mean(first)),
    }


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("-o", "--out", type=Path, default=Path("results/doubtful.json"))
    asked = parser.parse_args()
    tables: dict[str, Any] = {}
    for kind in ("embedding", "search"):
        recompute(asked.run, vectors=kind, say=None)
        collection = Collection(asked.run)
        rows, vectors = collection.index.present()
        codes = collection.index.labels[rows]
        scores, places = neighbours_of_all(vectors, max(TRIED[0]))
        tables[kind] = [
            {"neighbours": k, "temperature": warmth} | measured(scores[:, :k], places[:, :k], codes, warmth)
            for k in TRIED[0]
            for warmth in TRIED[1]
        ]
    best = next(one for one in tables["search"] if (one["neighbours"], one["temperature"]) == (NEIGHBOURS, TEMPERATURE))
    record(
        asked.out,
        name=asked.out.stem,
        command=f"python runs/doubtful.py RUN -o {asked.out}",
        unit=f"average precision of the {FLIPPED:.0%} of labels that were flipped, by search vectors, "
        f"{NEIGHBOURS} neighbours, temperature {TEMPERATURE}; `by` has all that was tried",
        values=best["values"],
        seeds=list(range(DRAWS)),
        run={
            "source": collection.facts["source"]["name"],
            "pictures": len(codes),
            "epochs": round(float(collection.saved.facts["epoch"]), 1),
        },
        by=tables,
    )


if __name__ == "__main__":
    main()
