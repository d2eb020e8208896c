"""`instdisc reproduce`: the paper's tables, made again by ordinary runs.

    OUT/runs/ROW-SEED/     a run folder for every row and seed, with measured.json once it is measured
    OUT/precision.json     what precision "auto" came to, for all runs
    OUT/table.json         mean, deviation and values of every row, beside what was published
    OUT/table.md, .png, .svg

A table that was killed goes on where it stopped; finished runs are not made again.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from instdisc import ranks
from instdisc.data.decoding.decode import decode
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.encoder import build_encoder
from instdisc.errors import InputError
from instdisc.evaluation.knn import KNN
from instdisc.evaluation.svm import LinearSVM
from instdisc.files import read_json, write_json, write_whole
from instdisc.jobs.tables import SCALES, TABLES, Row, Scale, Table
from instdisc.jobs.train import FEWEST, RunResult, train
from instdisc.progress import duration
from instdisc.report import table_plot
from instdisc.runs import RunFolder
from instdisc.training import Settings, choose_precision, read_metrics
from instdisc.training.presets import paper_cifar10
from instdisc.version import __version__

NEIGHBOURS = 200
MEASURES = {"knn": "kNN", "svm": "linear SVM"}


def reproduce(
    table: str,
    out: str | Path | None = None,
    *,
    scale: str = "cpu",
    published_optimizer: bool = False,
    seeds: int = 3,
    source: Any = None,
    test: Any = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
    **overrides: Any,
) -> dict[str, Any]:
    """Make a table of the paper: every row with every seed, each an ordinary run; returns what table.json holds.

    table: a key of TABLES; scale: of SCALES. published_optimizer: the paper's SGD in place of the scale's own. out:
    where it goes, by default runs/TABLE-SCALE, with -published where that option changes something. source, test:
    labelled pictures to train on and to be classified; without, the scale's own. overrides: settings of all runs.
    Raises InputError for an invalid argument; KeyboardInterrupt where a run was interrupted: call again to go on.
    """
    _check(table, scale, seeds)
    size, name = SCALES[scale], name_of(table, scale, published_optimizer)
    about = size.words(published_optimizer) + "".join(f", {key} {value}" for key, value in overrides.items())
    folder = Path(out) if out is not None else Path("runs") / name
    pictures = _open(size, source, test)
    training, testing = pictures.training, pictures.testing
    base = _one_precision(
        folder, paper_cifar10().with_overrides(size.settings(published_optimizer) | overrides), device
    )
    rows, left_out = _rows(TABLES[table], len(training), base)
    say(f"Table {table} at scale {scale}: {about}. {len(rows)} rows with {seeds} seeds, in {folder}.")
    for absent in left_out:
        say(f"Left out: {absent.name}, which would be fewer than {FEWEST} pictures.")
    measured = _measured(folder, rows, seeds, replace(base, preset=name), pictures, device, say)
    result = {
        "name": name,
        "table": table,
        "scale": scale,
        "about": about,
        "unit": f"top-1 accuracy on {len(testing):,} test pictures, %, mean and standard deviation over seeds",
        "seeds": list(range(seeds)),
        "rows": [_summary(row, measured[row.name]) for row in rows],
        "settings": base.to_dict(),
        "pictures": len(training),
        "device": next(iter(measured.values()))[0]["device"],
        "date": time.strftime("%Y-%m-%d"),
        "instdisc": __version__,
    }
    write_json(folder / "table.json", result)
    write_whole(folder / "table.md", markdown(result))
    curves = _curves(folder, TABLES[table], rows, seeds)
    for ending in ("png", "svg"):
        table_plot(TABLES[table].title, result["rows"], MEASURES, folder / f"table.{ending}", curves=curves)
    return result


def _check(table: str, scale: str, seeds: int) -> None:
    if table not in TABLES:
        raise InputError(f'There is no table "{table}": choose one of {", ".join(TABLES)}.')
    if scale not in SCALES:
        raise InputError(f'There is no scale "{scale}": choose one of {", ".join(SCALES)}.')
    if seeds < 1:
        raise InputError(f"A table needs at least one seed, not {seeds}.")
    if ranks.world() > 1:
        raise InputError("A table is made by one process: start it without torchrun.")


def _measured(
    folder: Path,
    rows: Sequence[Row],
    seeds: int,
    base: Settings,
    pictures: _Pictures,
    device: str,
    say: Callable[[str], None],
) -> dict[str, list[dict[str, Any]]]:
    """What every row reaches with every seed, by the row's name. Runs that are there are not made again."""
    measured: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    planned, made, spent = len(rows) * seeds, 0, 0.0
    for number in range(planned):  # seed by seed: a table that is stopped early has whole columns
        seed, position = divmod(number, len(rows))
        row = rows[position]
        started = time.monotonic()
        remaining = f", about {duration(spent / made * (planned - number))} left" if made else ""
        say(f"\nRun {number + 1} of {planned}: {row.name}, seed {seed}{remaining}.")
        settings = replace(base.with_overrides(row.overrides | {"seed": seed}), preset=base.preset)
        found, fresh = _run(_folder(folder, row, seed), row, settings, pictures, device, say)
        measured[row.name].append(found)
        if fresh:
            made, spent = made + 1, spent + time.monotonic() - started
        say(f"  kNN {found['knn']:.2f} %, linear SVM {found['svm']:.2f} %")
    return measured


def name_of(table: str, scale: str, published_optimizer: bool) -> str:
    """What a table is called, and its folder without another one."""
    return f"{table}-{scale}" + ("-published" if published_optimizer and SCALES[scale].optimizer else "")


def markdown(result: dict[str, Any]) -> str:
    """The table as Markdown: a line a row, published numbers beside ours."""

    def cell(found: dict[str, Any]) -> str:
        return f"{found['mean']:.1f}" + (f" ± {found['std']:.1f}" if found["std"] is not None else "")

    head = [TABLES[result["table"]].title, *(f"{name} | published" for name in MEASURES.values())]
    lines = [
        f"{len(result['seeds'])} seed(s), {result['pictures']:,} pictures ({result['about']}), {result['unit']}.\n",
        f"| {' | '.join(head)} | minutes a run |",
        "|---|" + "--:|" * (2 * len(MEASURES) + 1),
    ]
    for row in result["rows"]:
        cells = [row["name"]]
        for name in MEASURES:
            published = row["published"][name]
            cells += [cell(row[name]), "" if published is None else f"{published:g}"]
        lines.append(f"| {' | '.join(cells)} | {row['minutes']:.1f} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Pictures:
    """given, limit: what `train` opens. training: the same, opened; it classifies testing, whatever a run has seen."""

    given: Any
    limit: int | None
    training: Source
    testing: Source

    def measure(self, run: RunResult) -> dict[str, float]:
        """Accuracies of a run on the test pictures, percent."""
        encoder = run.encoder()
        known, asked = (encoder.embed(part, vectors="embedding") for part in (self.training, self.testing))
        knn = KNN(min(NEIGHBOURS, len(known))).fit(known, self.training.labels)
        svm = LinearSVM().fit(known, self.training.labels)
        return {
            "knn": 100 * knn.score(asked, self.testing.labels),
            "svm": 100 * svm.score(asked, self.testing.labels),
            "svm_cost": svm.chosen_,
        }


def _open(size: Scale, source: Any, test: Any) -> _Pictures:
    """The pictures to train on and those to be classified, both with labels."""
    given = size.source if source is None else source
    limit = size.pictures
    if given == "digits":  # it has one part only: the last pictures are for the test
        given, training, testing = _divided(open_source("digits"))
    else:
        training = open_source(given, limit=limit)
        if test is None and source is not None:
            raise InputError("Give test pictures too: --test with a labelled source that is not trained on.")
        testing = open_source(given, split="test") if test is None else open_source(test)
    for part in (training, testing):
        part.need_labels()
    testing.number_like(training)
    return _Pictures(given, limit, training, testing)


def _divided(source: Source) -> tuple[np.ndarray, Source, Source]:
    pictures = np.stack([decode(source.read(row)) for row in range(len(source))])
    assert source.labels is not None
    cut = len(source) - len(source) // 4
    training, testing = open_source(pictures[:cut]), open_source(pictures[cut:])
    training.set_labels(source.labels[:cut])
    testing.set_labels(source.labels[cut:])
    return pictures[:cut], training, testing


def _one_precision(folder: Path, base: Settings, device: str) -> Settings:
    """The precision that "auto" means here, tried once a table: a trial for each run could fall out differently."""
    if base.precision != "auto":
        return base
    kept = folder / "precision.json"
    if not kept.is_file():
        encoder = build_encoder(base.encoder, seed=0)
        choice = choose_precision(encoder, ranks.device(device), base.precision, base.batch)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"precision": choice.precision, "why": choice.why})
    return base.with_overrides({"precision": read_json(kept)["precision"]})


def _rows(table: Table, pictures: int, base: Settings) -> tuple[list[Row], list[Row]]:
    """The rows that can be made with so many pictures, and those that can't."""
    rows = [row for row in table.rows if round(row.share * pictures) >= FEWEST]
    return rows, [row for row in table.rows if row not in rows]


def _folder(folder: Path, row: Row, seed: int) -> Path:
    return folder / "runs" / f"{re.sub(r'[^0-9A-Za-z.]+', '_', row.name).strip('_')}-{seed}"


def _run(
    path: Path, row: Row, settings: Settings, pictures: _Pictures, device: str, say: Callable[[str], None]
) -> tuple[dict[str, Any], bool]:
    """What a run reached, and whether it was made or measured just now."""
    done = path / "measured.json"
    wanted = settings.to_dict()
    if done.is_file():
        found = read_json(done)
        different = [name for name in wanted if found["settings"].get(name) != wanted[name]]
        if settings.objective != "nce":  # how Z is known is NCE's own affair, and had another default
            different = [name for name in different if name != "partition"]
        if different:
            raise InputError(
                f"{path} was made with another {', '.join(different)}: choose another folder with --out, or delete it."
            )
        return found, False
    # Asked for by name, it is not taken from a run that was started with another.
    known_by: dict[str, Any] = {"partition": settings.partition} if settings.objective == "nce" else {}
    run = train(
        pictures.given,
        path,
        settings,
        resume=RunFolder(path).exists(),
        limit=pictures.limit if row.share == 1 else round(row.share * len(pictures.training)),
        device=device,
        say=say,
        **known_by,
    )
    if not run.finished:
        raise KeyboardInterrupt
    config = RunFolder(path).read_config()
    found = {
        **pictures.measure(run),
        "minutes": run.seconds / 60,
        "settings": wanted,
        "device": config["chosen"]["device_name"],
    }
    write_json(done, found)
    return found, True


def _summary(row: Row, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"name": row.name, "overrides": row.overrides, "share": row.share}
    for name in MEASURES:
        values = [round(one[name], 3) for one in found]
        summary[name] = {
            "values": values,
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
    summary["published"] = {"knn": row.knn, "svm": row.svm}
    summary["minutes"] = statistics.fmean(one["minutes"] for one in found)
    return summary


def _curves(folder: Path, table: Table, rows: list[Row], seeds: int) -> dict[str, list[tuple[float, float]]]:
    """For a table that shows them: row -> (epoch, value of the term), the mean over seeds."""
    if table.term is None:
        return {}
    curves = {}
    for row in rows:
        points: dict[float, list[float]] = {}
        for seed in range(seeds):
            for line in read_metrics(RunFolder(_folder(folder, row, seed))):
                if "losses" in line:
                    points.setdefault(line["epoch"], []).append(line["losses"][table.term])
        curves[row.name] = [(epoch, statistics.fmean(values)) for epoch, values in sorted(points.items())]
    return curves
