"""instdisc map RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
Examples:

`instdisc map runs/photos` — pictures that are alike stand together; then `instdisc serve runs/photos` shows it
"""


def command(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    approximate: Annotated[bool, typer.Option("--approximate", help="Nearly all, sooner: for millions.")] = False,
    bank: Annotated[bool, typer.Option("--bank", help="Use the rows of the bank; compute nothing anew.")] = False,
    train_source: Annotated[str | None, typer.Option(help="Where the collection is now, if moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Lay out a run's collection in the plane, for the page."""
    from instdisc.jobs.map import make_map

    make_map(run, bank=bank, approximate=approximate, train_source=train_source, device=device)
