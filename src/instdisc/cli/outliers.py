"""instdisc outliers RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instdisc.cli.options import Approximate, CollectionSource, Device, Json, Run

EXAMPLES = """
Examples:

`instdisc outliers runs/photos` — the pictures that are least like any other

`instdisc outliers runs/photos --by similarity -k 5 --count 200` — more of them, by the cosine with their five nearest
"""


def command(
    run: Run,
    count: Annotated[int, typer.Option(help="How many to show; the CSV file has all.", min=1)] = 20,
    by: Annotated[
        str, typer.Option(help="outlier_score, similarity (to the nearest), or uniqueness.")
    ] = "outlier_score",
    neighbours: Annotated[int, typer.Option("-k", "--neighbours", help="The mean is over so many nearest.")] = 10,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the results: RUN/outliers.")] = None,
    approximate: Approximate = False,
    bank: Annotated[bool, typer.Option("--bank", help="Compare the rows of the bank; compute nothing.")] = False,
    json_: Json = False,
    train_source: CollectionSource = None,
    device: Device = "auto",
) -> None:
    """Find the pictures of a run's collection that are least like any other."""
    from instdisc import ranks
    from instdisc.jobs.outliers import outliers
    from instdisc.runs import RunFolder

    with ranks.distributed():
        found = outliers(
            run,
            by=by,
            neighbours=neighbours,
            count=count,
            out=out,
            bank=bank,
            approximate=approximate,
            train_source=train_source,
            device=device,
            say=None if json_ else print,
        )
        if not ranks.is_main():
            return
    if json_:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    from rich.table import Table

    from instdisc.cli.console import console

    shown = console()
    table = Table(title=f"Outliers, by {by}", title_justify="left")
    for column in ("outlier score", f"cosine with {neighbours}", "uniqueness", "picture"):
        table.add_column(column, justify="left" if column == "picture" else "right", overflow="fold")
    for one in found:
        table.add_row(f"{one.outlier_score:.2f}", f"{one.similarity:.3f}", f"{one.uniqueness:.3f}", one.path)
    shown.print(table)
    folder = out or RunFolder(run).outliers
    shown.print(f"All: {folder / 'outliers.csv'}; to look at: {folder / 'outliers.png'}")
