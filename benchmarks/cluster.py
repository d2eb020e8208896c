"""What a cluster needs for a collection of a given size: rows, memory, network, disk, hours, cost.

    python benchmarks/cluster.py --pictures 1e8 --ranks 64            # --help names every figure that can be given
    python benchmarks/cluster.py --page docs/scale.md                 # writes the tables of the page anew

What the bank, the objectives and the network cost comes from the measurements in results/scale.json (two CPU cores)
and from the formulas below; how many pictures a second a rank encodes, its rate of matrix products and its price are
the reader's: the defaults are round assumptions for a GPU of a data centre, not measured by this project.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

ROW_BYTES = {"float32": lambda dim: 4 * dim, "float16": lambda dim: 2 * dim, "int8": lambda dim: dim + 4}
BEGIN, END = "<!-- made by benchmarks/cluster.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Cluster:
    """pictures; ranks: processes, one a GPU; batch: pictures a step over all ranks; dim: numbers a picture.

    rows: dtype of the bank. negatives: of a sampled objective. epochs. rate: pictures a second that a rank encodes,
    forward and backward, all views. teraflops: matrix products of a rank. weights: of the encoder. gigabits: of a
    rank's link. kilobytes: of an encoded picture. price: of a rank and hour.
    """

    pictures: float = 1e8
    ranks: int = 64
    batch: int = 4096
    dim: int = 128
    rows: str = "float16"
    negatives: int = 4096
    epochs: float = 100
    rate: float = 1000
    teraflops: float = 30
    weights: float = 25.6e6
    gigabits: float = 100
    kilobytes: float = 100
    price: float = 2.5


def needs(cluster: Cluster) -> dict[str, float]:
    """Bytes, seconds and money. The seconds of encoder, objective and network are added: nothing is hidden."""
    c = cluster
    row = ROW_BYTES[c.rows](c.dim)
    around = (c.ranks - 1) / c.ranks  # of a ring: what a rank sends of what is gathered; a sum sends it twice
    vectors = 4 * c.dim * c.batch * around
    gradients = 2 * 4 * c.weights * around
    # exact: queries gathered, sums and expected rows summed, positives summed, features gathered for the update
    exact_bytes = 6 * vectors + gradients
    # sampled: drawn rows and positives summed, features gathered for the update
    sampled_bytes = 2 * 4 * c.dim * c.negatives * around + 3 * vectors + gradients
    encoder = c.batch / c.ranks / c.rate
    per_second = c.gigabits * 1e9 / 8
    product = 1e12 * c.teraflops
    exact = 4 * c.batch * (c.pictures / c.ranks) * c.dim / product  # scores, and the sum of rows that they weigh
    # each rank multiplies its own pictures with all drawn rows: forward, and backward to the pictures
    sampled = 4 * c.batch / c.ranks * c.negatives * c.dim / product
    steps = c.pictures / c.batch * c.epochs
    exact_step = encoder + exact + exact_bytes / per_second
    sampled_step = encoder + sampled + sampled_bytes / per_second
    return {
        "rows a rank": c.pictures / c.ranks,
        "bank a rank (bytes)": c.pictures / c.ranks * row,
        "order and shapes a rank (bytes)": 12 * c.pictures,
        "a checkpoint, two are stored (bytes)": c.pictures * row + 8 * c.weights,
        "pictures on disk (bytes)": c.pictures * 1000 * c.kilobytes,
        "read a rank (bytes a second)": c.rate * 1000 * c.kilobytes,
        "sent a step, exact (bytes)": exact_bytes,
        "sent a step, sampled (bytes)": sampled_bytes,
        "encoder (seconds a step)": encoder,
        "exact objective (seconds a step)": exact,
        "sampled objective (seconds a step)": sampled,
        "the run, exact (hours)": steps * exact_step / 3600,
        "the run, sampled (hours)": steps * sampled_step / 3600,
        "the run, exact (cost)": steps * exact_step / 3600 * c.ranks * c.price,
        "the run, sampled (cost)": steps * sampled_step / 3600 * c.ranks * c.price,
        # where the exact objective takes as long as the encoder
        "exact costs as much as the encoder from (pictures)": encoder * product * c.ranks / (4 * c.batch * c.dim),
    }


def spelled(value: float, unit: str) -> str:
    """Three digits with k, M, G, T; hours, money and seconds as people write them."""
    if unit == "seconds a step":
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    if unit == "hours":
        return f"{value:,.0f} h" if value >= 10 else f"{value:.1f} h"
    if unit == "cost":
        return f"{value:,.0f}"
    for limit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {name}{'B' if 'bytes' in unit else ''}".rstrip()
    return f"{value:.3g}{' B' if 'bytes' in unit else ''}"


def table(clusters: list[Cluster]) -> str:
    """A column for each cluster, a line for each need."""
    found = [needs(cluster) for cluster in clusters]
    lines = ["| | " + " | ".join(f"{spelled(c.pictures, '')} pictures, {c.ranks} ranks" for c in clusters) + " |"]
    lines.append("|---" + "|--:" * len(clusters) + "|")
    for name in found[0]:
        words, _, unit = name.rstrip(")").partition(" (")
        shown = " | ".join(spelled(one[name], unit) for one in found)
        more = {"bytes a second": ", a second", "cost": ", cost"}.get(unit, "")
        lines.append(f"| {words}{more} | {shown} |")
    return "\n".join(lines)


def measured(rows: list[dict[str, Any]]) -> str:
    """The measurements of scale.py as a table."""
    lines = [
        "| pictures | rows | bank | exact softmax | sampled | NCE | ten neighbours of one |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        seconds = [row[f"{name}_seconds"] for name in ("softmax", "sampled", "nce", "search_1")]
        shown = " | ".join(spelled(value, "seconds a step") for value in seconds)
        lines.append(f"| {row['rows']:,} | {row['dtype']} | {spelled(1e6 * row['rows_mb'], 'bytes')} | {shown} |")
    return "\n".join(lines)


def constants(rows: list[dict[str, Any]], batch: int, dim: int = 128) -> str:
    """The measured line of the exact objective, and where sampling pays."""
    whole = [row for row in rows if row["dtype"] == "float32"]
    slope = sum(row["rows"] * row["softmax_seconds"] for row in whole) / sum(row["rows"] ** 2 for row in whole)
    sampled = [row["sampled_seconds"] for row in whole]
    rate = 4 * batch * dim / slope / 1e9
    return (
        f"A step of the exact softmax takes {1e6 * slope:.2f} s for a million float32 rows and {batch} pictures, in "
        f"proportion to both: {rate:.0f} GFLOP/s of the two products. A step of the sampled softmax with 4,096 "
        f"negatives takes {1e3 * min(sampled):.0f} to {1e3 * max(sampled):.0f} ms from {whole[0]['rows']:,} to "
        f"{whole[-1]['rows']:,} rows. The two meet at {min(sampled) / slope / 1e3:.0f} to "
        f"{max(sampled) / slope / 1e3:.0f} thousand rows."
    )


def page(results: Path) -> str:
    """What stands between the marks of docs/scale.md."""
    facts = json.loads(results.read_text())
    base = Cluster()
    sizes = [
        replace(base, pictures=1e6, ranks=8),
        replace(base, pictures=1e7, ranks=16),
        base,
        replace(base, pictures=1e9, ranks=512, rows="int8", batch=16384, epochs=10),
    ]
    given = ", ".join(
        f"{field.name} {spelled(value, '') if isinstance(value := getattr(base, field.name), float) else value}"
        for field in fields(base)
        if field.name not in ("pictures", "ranks")
    )
    return "\n\n".join(
        [
            f"Measured ({facts['device']}; batch {facts['batch']}, 128 dimensions a picture):",
            measured(facts["rows"]),
            constants(facts["rows"], facts["batch"]),
            f"Computed, with {given}; for a billion pictures int8 rows, batch 16,384, 10 epochs:",
            table(sizes),
        ]
    )


def main() -> None:
    """Print the needs of one cluster, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Cluster):
        kind = type(field.default)
        options: dict[str, Any] = {"choices": list(ROW_BYTES)} if field.name == "rows" else {}
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, **options)
    parser.add_argument("--page", type=Path, help="a page whose part between the marks is written anew")
    parser.add_argument("--results", type=Path, default=Path("results/scale.json"))
    given = vars(parser.parse_args())
    where, results = given.pop("page"), given.pop("results")
    for name, value in given.items():
        if name != "rows" and not 0 < value < float("inf"):
            parser.error(f"{name} must be positive, not {value:g}")
    if where is None:
        print(table([Cluster(**given)]))
        return
    text = where.read_text(encoding="utf-8") if where.is_file() else ""
    if BEGIN not in text or END not in text or not results.is_file():
        parser.error(f"{where} has no place for the tables, or {results} is missing: benchmarks/scale.py makes it")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    where.write_text(f"{before}{BEGIN}\n{page(results)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
