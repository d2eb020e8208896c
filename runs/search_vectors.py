"""How the map to search vectors was chosen: stages, shrinkage, dimensions, sample, mirrored views; and what it gives.

    python runs/search_vectors.py runs/out/digits=digits --divided runs/out/laptop=train.parquet

RUN=SOURCE: a finished run and its labelled training pictures. Each is named by all others, and the map is fitted
on the same pictures, without labels. --divided: the run of held_out.py on a part of SOURCE; the pictures that it never
saw are named by those it was trained on. No test picture is seen. Features are computed once for each run and kept in
--work. The result goes to results/search_vectors.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from held_out import Divided
from record import record

import instdisc
from instdisc import KNN
from instdisc.data.decoding.decode import decode
from instdisc.data.sources.open import open_source
from instdisc.encoder import Encoder
from instdisc.encoder.backbones import DEVIATION
from instdisc.encoder.whitening import SHRINKAGE, Moments, fit_whitening
from instdisc.evaluation.retrieval import retrieval
from instdisc.runs import RunFolder

SHRINKAGES = (1e-6, 1e-4, 1e-3, 3e-3, 1e-2, 1e-1)
DIMENSIONS = (64, 128, 256, 512)
SAMPLES = (500, 1_000, 2_000, 5_000, 10_000, 20_000)
_SEED = 0

Levels = dict[str, torch.Tensor]


def main() -> None:
    """Measure every run, and record all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN=SOURCE")
    parser.add_argument("--divided", nargs="*", default=[], metavar="RUN=SOURCE")
    parser.add_argument("--work", type=Path, default=Path("runs/out/search_vectors"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    found = []
    for given, divided in [(one, False) for one in settings.runs] + [(one, True) for one in settings.divided]:
        run, _, source = given.partition("=")
        found.append(measured(Path(run), source, settings.work, divided=divided))
    record(
        settings.results / "search_vectors.json",
        name="search_vectors",
        command="python runs/search_vectors.py RUN=SOURCE [...] [--divided RUN=SOURCE]",
        unit="kNN top-1, %, k 200 (or all), temperature 0.07, by search vectors as they are made; `runs` has all rows",
        values=[next(row["knn"] for row in one["rows"] if row["vectors"] == "search vectors") for one in found],
        seeds=[0] * len(found),
        runs=found,
    )


def measured(run: Path, source: str, work: Path, *, divided: bool) -> dict[str, Any]:
    """All rows of one run."""
    known, labels, asked, wanted, mirrored = features(run, source, work, divided=divided)
    facts = RunFolder(run).read_config()
    rows = []
    for words, train, test in candidates(known, asked, mirrored):
        votes = KNN(min(200, len(labels) - 1)).fit(train, labels)
        queries = () if wanted is None else (test, wanted)
        retrieved = retrieval(train, labels, *queries, most_queries=1_000)
        row = {
            "vectors": words,
            "dimensions": train.shape[1],
            "knn": 100 * (votes.leave_one_out().top1 if wanted is None else votes.score(test, wanted)),
            "precision_at_1": 100 * retrieved.precision[1],
            "precision_at_10": 100 * retrieved.precision[10],
            "mean_average_precision": 100 * retrieved.mean_average_precision,
        }
        rows.append({name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()})
        print(run.name, rows[-1], flush=True)
    return {
        "run": run.name,
        "pictures": len(labels),
        "asked": "each by all others" if wanted is None else f"{len(wanted)} held out",
        "epochs": facts["settings"]["epochs"],
        "backbone": facts["settings"]["backbone"],
        "stages": {name: values.shape[1] for name, values in known.items() if name != "embedding"},
        "rows": rows,
    }


def candidates(
    known: Levels, asked: Levels, mirrored: Levels | None
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, vectors of the known pictures, of those that ask) of every way that was weighed."""
    stages = [name for name in known if name != "embedding"]
    means = [name for name in stages if not name.endswith(DEVIATION)]

    def whitened(of: list[str], sample: int | None = None, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
        train, test = side_by_side(known, of), side_by_side(asked, of)
        rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(_SEED))[:sample]
        moments = Moments([known[name].shape[1] for name in of])
        moments.add(train[rows])
        whitening = fit_whitening(moments, of, **how)
        return whitening(train), whitening(test)

    yield "embedding", known["embedding"], asked["embedding"]
    yield "search vectors", *whitened(stages)
    yield "means of all stages", *whitened(means)
    for words, last in (("last stage", 1), ("last two stages", 2), ("last three stages", 3)):
        of = means[-last:]
        yield f"{words}, means as they are", unit(side_by_side(known, of)), unit(side_by_side(asked, of))
        yield f"{words}, means whitened", *whitened(of)
        yield f"{words} whitened", *whitened(stages[-2 * last :])
    yield "embedding whitened", *whitened(["embedding"])
    for shrinkage in SHRINKAGES:
        if shrinkage != SHRINKAGE:
            yield f"all stages, shrinkage {shrinkage:g}", *whitened(stages, shrinkage=shrinkage)
    for dimensions in DIMENSIONS:
        if dimensions != 256 and dimensions < 2 * sum(known[name].shape[1] for name in stages):
            yield f"all stages, {dimensions} dimensions", *whitened(stages, dimensions=dimensions)
    for sample in SAMPLES:
        if sample < len(known["embedding"]):
            yield f"all stages, fitted on {sample:,}", *whitened(stages, sample=sample)
    if mirrored is not None:
        moments = Moments([known[name].shape[1] for name in stages])
        moments.add(side_by_side(known, stages))
        whitening = fit_whitening(moments, stages)
        one, other = (whitening(side_by_side(levels, stages)) for levels in (asked, mirrored))
        both = unit(one + other)
        train = both if len(known["embedding"]) == len(both) else whitening(side_by_side(known, stages))
        yield "search vectors, mean with those of the mirrored picture", train, both


def features(
    run: Path, source: str, work: Path, *, divided: bool
) -> tuple[Levels, np.ndarray, Levels, np.ndarray | None, Levels]:
    """Levels and labels of the known pictures, and of those that ask (labels: None if the same); mirrored ones."""
    encoder = instdisc.load(run)
    if divided:
        parts = Divided.of(source)
        known, labels, asked, wanted = parts.images, parts.labels, parts.out_images, parts.out_labels
        mirrored = np.ascontiguousarray(asked[:, :, ::-1])
    else:
        opened = open_source(source)
        assert opened.labels is not None
        known = asked = opened
        labels, wanted = opened.labels, None
        mirrored = [np.ascontiguousarray(decode(opened.read(row))[:, ::-1]) for row in range(len(opened))]
    work.mkdir(parents=True, exist_ok=True)

    def kept(name: str, pictures: Any) -> Levels:
        file = work / f"{run.name}-{name}.npz"
        if not file.is_file():
            np.savez(file, **{level: values.numpy() for level, values in levels_of(encoder, pictures).items()})
        with np.load(file) as levels:
            return {level: torch.from_numpy(levels[level]) for level in levels.files}

    return (
        kept("known", known),
        labels,
        kept("asked" if divided else "known", asked),
        wanted,
        kept("mirrored", mirrored),
    )


def levels_of(encoder: Encoder, pictures: Any) -> Levels:
    """All levels that search vectors could be made of, stage by stage, and the embedding."""
    found = encoder.features(pictures, deviations=True)
    stages = [name for name in found if name + DEVIATION in found]
    order = [level for name in stages for level in (name, name + DEVIATION)]
    return {name: found[name] for name in [*order, "embedding"]}


def side_by_side(levels: Levels, names: list[str]) -> torch.Tensor:
    """The features of these levels in one row a picture."""
    return torch.cat([levels[name] for name in names], dim=1)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Rows of length 1."""
    return normalize(vectors, dim=1)


if __name__ == "__main__":
    main()
