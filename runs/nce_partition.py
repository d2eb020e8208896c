"""NCE under the published SGD: what it learns by each way to know Z, beside the exact softmax.

    python runs/nce_partition.py cifar10-train.parquet --test cifar10-test.parquet          # four ways, three seeds
    python runs/nce_partition.py cifar10-train.parquet --test cifar10-test.parquet --noise private --ways first_batch
    python runs/nce_partition.py cifar10-train.parquet --test cifar10-test.parquet --pictures 50000 --epochs 4 --seeds 0

`paper_cifar10` but for the network (conv6, by default of width 16) and the length. The rows of the bank classify the
test pictures. A finished run is not run again and an interrupted one goes on; every finished run below --out goes to
results/nce_partition.json, whichever call made it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from record import commit, record

from instdisc.files import write_json
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

WAYS = ("softmax", "first_batch", "moving_average", "exact")
MEASURED = "measured.json"
CONDITIONS = ("pictures", "epochs", "width", "optimizer", "noise", "way")


def main() -> None:
    """Make the runs that are missing, then record all that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("--test", required=True)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--noise", choices=("shared", "private"), default="shared")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--optimizer", choices=("sgd", "muon"), default="sgd", help="muon: as `reproduce --scale cpu`")
    parser.add_argument("--out", type=Path, default=Path("runs/out/nce_partition"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    for seed in map(int, settings.seeds.split(",")):  # seed by seed: stopped early, every way has as many
        for way in settings.ways.split(","):
            if way not in WAYS:
                parser.error(f"--ways takes {', '.join(WAYS)}, not {way}")
            if not make(settings, way, seed):
                print("Interrupted: start again to go on.")
                return
    write_result(settings.out, settings.results)


def make(settings: argparse.Namespace, way: str, seed: int) -> bool:
    """One run with its measurement, unless it is there; False where it was interrupted."""
    facts = {name: getattr(settings, name) for name in CONDITIONS if name != "way"} | {"way": way, "seed": seed}
    if way == "softmax":  # it draws no noise
        facts["noise"] = "none"
    folder = settings.out / "-".join(str(value) for value in facts.values())
    if (folder / MEASURED).is_file():
        return True
    overrides: dict[str, Any] = {"objective": "softmax"}
    if way != "softmax":
        overrides = {"objective": "nce", "partition": way, "noise": settings.noise}
    if settings.optimizer == "muon":
        overrides |= {"optimizer": "muon", "lr": 0.02, "vector_lr": 0.001}
    run = train(
        settings.train,
        folder,
        "paper_cifar10",
        resume=RunFolder(folder).exists(),
        limit=settings.pictures,
        test=settings.test,
        device="cpu",
        backbone="conv6",
        width=settings.width,
        epochs=settings.epochs,
        seed=seed,
        precision="float32",
        monitor_epochs=1000,  # only at the end
        **overrides,
    )
    if not run.finished:
        return False
    lines = run.metrics()
    logged = [line for line in lines if "loss" in line]
    last = next(line["measured"] for line in reversed(lines) if "measured" in line)
    write_json(
        folder / MEASURED,
        {
            **facts,
            "knn": 100 * last["knn_test"],
            "knn_train": 100 * last["knn"],
            "effective_rank": last["effective_rank"],
            "first_loss": logged[0]["loss"],
            "loss": logged[-1]["loss"],
            "log_z": [
                [line["epoch"], line["log_partition"], line.get("recent_log_partition")]
                for line in logged
                if "log_partition" in line
            ],
            "seconds": run.seconds,
            "commit": commit(),
        },
    )
    return True


def write_result(out: Path, results: Path) -> None:
    """Every finished run below `out`, those that differ only in the seed in one row."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"*/{MEASURED}"))]
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        rows.setdefault(tuple(run[name] for name in CONDITIONS), []).append(run)
    table = [
        dict(zip(CONDITIONS, condition, strict=True))
        | {"seeds": [run["seed"] for run in found]}
        | {name: _summary([run[name] for run in found]) for name in ("knn", "knn_train", "effective_rank", "loss")}
        | {"z_over_random": _summary([_largest_growth(run) for run in found if run["log_z"]])}
        | {"seconds": _summary([run["seconds"] for run in found]), "commits": sorted({run["commit"] for run in found})}
        for condition, found in sorted(rows.items(), key=lambda row: (*row[0][:-1], WAYS.index(row[0][-1])))
    ]
    file = results / "nce_partition.json"
    known = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    table = _joined(known, table)
    averages = [row for row in table if row["way"] == "moving_average"]
    first = next((row for row in averages if row["noise"] == "shared"), averages[0])
    record(
        file,
        name="nce_partition",
        command="python runs/nce_partition.py cifar10-train.parquet --test cifar10-test.parquet (conditions in `rows`)",
        unit="kNN top-1 of the 10,000 test pictures by the rows of the bank, %, k 200, temperature 0.07; "
        f"of the first moving average in `rows` ({first['pictures']:,} pictures); knn_train: 2,048 training pictures, "
        "own row left out; effective_rank: of their vectors; loss: of the last tenth of an epoch; "
        "z_over_random: the largest estimate of Z over a random bank's, pictures * exp(1 / (2 dim temperature^2))",
        values=first["knn"]["values"],
        seeds=first["seeds"],
        rows=table,
    )


def _joined(known: list[dict[str, Any]], table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an earlier file and these, by their conditions; a seed that both have counts as it is in these."""
    rows = {tuple(row[name] for name in CONDITIONS): row for row in known}
    for row in table:
        condition = tuple(row[name] for name in CONDITIONS)
        old = rows.get(condition, row)
        kept = [place for place, seed in enumerate(old["seeds"]) if seed not in row["seeds"]]
        order = sorted(
            range(len(kept) + len(row["seeds"])), key=[*(old["seeds"][p] for p in kept), *row["seeds"]].__getitem__
        )
        joined = dict(row) | {"commits": sorted({*old["commits"], *row["commits"]})}
        for name, values in row.items():
            if name == "seeds" or isinstance(values, dict):
                before, now = (old[name], values) if name == "seeds" else (old[name]["values"], values["values"])
                # An exact Z is not estimated: there are no values of it.
                both = [*(before[place] for place in kept), *now] if now or name == "seeds" else []
                both = [both[place] for place in order] if both else []
                joined[name] = both if name == "seeds" else _summary(both)
        rows[condition] = joined
    return sorted(
        rows.values(), key=lambda row: (*(str(row[name]) for name in CONDITIONS[:-1]), WAYS.index(row["way"]))
    )


def _largest_growth(run: dict[str, Any]) -> float:
    """The largest logged estimate of Z over that of a random bank (128 numbers, temperature 0.1)."""
    logs = [used if now is None else now for _, used, now in run["log_z"]]
    return math.exp(max(logs) - math.log(run["pictures"]) - 1 / (2 * 128 * 0.1**2))


def _summary(values: list[float]) -> dict[str, Any]:
    return {
        "values": [round(value, 3) for value in values],
        "mean": round(statistics.fmean(values), 3) if values else None,
        "std": round(statistics.stdev(values), 3) if len(values) > 1 else None,
    }


if __name__ == "__main__":
    main()
