"""instdisc export RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instdisc.cli.options import Run

EXAMPLES = """
Examples:

`instdisc export runs/photos -o photos_export/` — ONNX, timm's weights, vectors as Parquet and NumPy

`instdisc export runs/photos -o photos_export/ --only vectors` — the vectors and what they belong to alone
"""


def command(
    run: Run,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")],
    only: Annotated[str, typer.Option(help="What to write, with commas between.")] = "onnx,timm,vectors",
    bank: Annotated[
        bool, typer.Option("--bank", help="Take the vectors that are there, the rows of the bank perhaps.")
    ] = False,
    train_source: Annotated[str | None, typer.Option(help="Where the collection is now, if moved: for labels.")] = None,
) -> None:
    """Write a run's encoder and vectors for other software: ONNX, timm, Parquet, NumPy."""
    from instdisc.jobs.export import export

    kinds = [kind.strip() for kind in only.split(",") if kind.strip()]
    export(run, out, only=kinds, bank=bank, train_source=train_source)
