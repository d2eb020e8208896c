"""instdisc reproduce TABLE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instdisc.cli.options import Device

EXAMPLES = """
Examples:

`instdisc reproduce objectives` — the paper's objectives on 10,000 CIFAR-10 pictures, on a CPU

`instdisc reproduce proximal --scale full --seeds 1` — the paper's own setting, for a GPU

`instdisc reproduce objectives --published-optimizer` — the same with the paper's SGD

`instdisc reproduce objectives --train train.parquet --test test.parquet` — on pictures of your own
"""


def command(
    table: Annotated[
        str,
        typer.Argument(help="objectives, proximal, partition, dimension, size, temperature or bank_momentum."),
    ],
    scale: Annotated[str, typer.Option(help="tiny (seconds), cpu (90 minutes on two cores) or full (a GPU).")] = "cpu",
    published_optimizer: Annotated[
        bool, typer.Option("--published-optimizer", help="The paper's SGD, where the scale has another (cpu: Muon).")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Runs of each row.")] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Without: runs/TABLE-SCALE, with -published by that optimizer.")
    ] = None,
    train: Annotated[str | None, typer.Option(help="Labelled pictures; without: the scale's own.")] = None,
    test: Annotated[str | None, typer.Option(help="Labelled test pictures, for --train.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Another setting for all runs.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Make a table of the paper: every row over several seeds, beside the published numbers. Goes on if stopped."""
    from instdisc.cli.train import parse_settings
    from instdisc.jobs.reproduce import markdown, reproduce

    overrides = parse_settings(set_ or [])
    result = reproduce(
        table,
        out,
        scale=scale,
        published_optimizer=published_optimizer,
        seeds=seeds,
        source=train,
        test=test,
        device=device,
        **overrides,
    )
    folder = out if out is not None else Path("runs") / result["name"]
    print("\n" + markdown(result))
    print(f"The table is in {folder / 'table.md'} and table.json, the plot in table.png and table.svg.")
