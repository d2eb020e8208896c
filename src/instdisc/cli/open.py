"""instdisc open SOURCE --encoder NAME | instdisc open VECTORS [SOURCE]"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from instdisc.cli.options import Device, Limit
from instdisc.errors import InputError

EXAMPLES = """
Examples:

`instdisc open photos/ --encoder resnet50` — no training: search, page, map on timm's weights, in runs/photos

`instdisc open photos/ --encoder resnet50 --weights resnet50.safetensors -o runs/photos50` — weights from a file

`instdisc open photos/ --encoder conv6 --size 32 --weights other.safetensors` — one of our small networks

`instdisc open vectors.parquet photos/` — vectors that were made elsewhere, and their pictures: no encoder is needed
"""


def command(
    source: Annotated[
        list[str], typer.Argument(help="Pictures, as `train` takes them; or a file of vectors, and pictures.")
    ],
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="A network of timm's, or one of our small ones.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its weights, a safetensors file; without: timm's own, fetched.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--output", "--out", "-o", metavar="RUN", help="The run folder; runs/NAME without.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a Parquet file: the column of the vectors, if several are.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side at which it sees the pictures; its own without.")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV with path (or id) and label, for measuring only.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the source, where it has several.")] = None,
    limit: Limit = None,
    device: Device = "auto",
) -> None:
    """Open a collection on a published encoder, or on vectors of your own: nothing is trained."""
    run = out or Path("runs") / (Path(source[0].rstrip("/")).stem or "opened")
    how: dict[str, Any] = {"labels": labels, "split": split, "limit": limit}
    if encoder is None:
        ending = Path(source[0]).suffix.lower()
        if ending == ".lance":
            raise InputError(
                f"{source[0]} is a Lance data set: write it as Parquet first, in Python by "
                f"`pyarrow.parquet.write_table(lance.dataset({source[0]!r}).to_table(), 'vectors.parquet')`."
            )
        if ending not in (".npy", ".parquet") or weights is not None:
            raise InputError(
                "Name a network with --encoder, as in --encoder resnet50; or give a .npy or .parquet file of vectors. "
                "`instdisc train` learns a network of your own."
            )
        from instdisc.jobs.own import open_vectors

        open_vectors(source[0], run, _one(source[1:]), column=column, **how)
    else:
        from instdisc.jobs.open import open_run

        open_run(_one(source), run, encoder, weights=weights, size=size, device=device, **how)
    print(f"Next: instdisc serve {run}")


def _one(locations: list[str]) -> str | list[str] | None:
    """A location by itself, several as a list; None for none."""
    return locations[0] if len(locations) == 1 else locations or None
