"""Options that several commands have, each in one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Run = Annotated[Path, typer.Argument(help="The run folder.")]
CollectionSource = Annotated[str | None, typer.Option(help="Where the collection is now, if moved.")]
TrainSource = Annotated[str | None, typer.Option(help="Where the training pictures are now, if moved.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Approximate = Annotated[bool, typer.Option("--approximate", help="Nearly all, sooner: for millions.")]
Limit = Annotated[int | None, typer.Option(help="Take the first pictures only.")]
Bank = Annotated[bool, typer.Option("--bank", help="Use the rows of the bank; compute nothing.")]
