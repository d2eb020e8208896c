"""instdisc info RUN|SOURCE"""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """
Examples:

`instdisc info runs/photos` — what a run is and how far it came

`instdisc info photos/` — how many pictures, of what sizes, with which labels, and what is skipped

`instdisc info photos/ --split train` — of a part; `instdisc info a/ b/` — of several places together
"""


def command(
    location: Annotated[list[str], typer.Argument(help="A run folder, or pictures: as `train` takes them.")],
    split: Annotated[str | None, typer.Option(help="Part of the pictures, where they have several.")] = None,
) -> None:
    """Say what a run folder or a collection holds."""
    from rich.table import Table

    from instdisc.cli.console import console
    from instdisc.jobs.info import info

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, words in info(location[0] if len(location) == 1 else location, split).items():
        table.add_row(name, words)
    console(wrap=False).print(table)
