"""instdisc embed RUN SOURCE -o vectors.parquet"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instdisc.cli.options import Device, Limit, Run

EXAMPLES = """
Examples:

`instdisc embed runs/photos photos/ -o vectors.parquet` — a table of id, location, label, vector

`instdisc embed runs/photos photos/ -o vectors.npy` — an array to map into memory, and vectors.ids.parquet

`instdisc embed runs/photos photos/ -o vectors.parquet --vectors embedding` — the head's 128 dimensions, as in the paper

`instdisc embed runs/photos photos/ -o vectors.parquet --precision bfloat16` — faster on processors that have it
"""


def command(
    run: Run,
    source: Annotated[list[str], typer.Argument(help="The pictures to embed.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .parquet or .npy file.")],
    labels: Annotated[Path | None, typer.Option(help="CSV with path (or id) and label, to copy.")] = None,
    limit: Limit = None,
    batch: Annotated[int, typer.Option(help="Pictures a forward pass.")] = 256,
    vectors: Annotated[
        str, typer.Option(help="search: the best to find like pictures by; embedding: the head's output.")
    ] = "search",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; auto: bfloat16 on CUDA devices, float32 elsewhere.")
    ] = "auto",
    device: Device = "auto",
    restart: Annotated[bool, typer.Option("--restart", help="Throw away an interrupted job's work.")] = False,
) -> None:
    """Write the vectors of a collection to a file; an interrupted job goes on."""
    from instdisc.jobs.embed import embed

    embed(
        run,
        source[0] if len(source) == 1 else source,
        out,
        labels=labels,
        limit=limit,
        batch=batch,
        vectors=vectors,
        precision=precision,
        device=device,
        restart=restart,
    )
