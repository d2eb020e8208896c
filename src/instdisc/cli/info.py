"""instdisc info RUN|SOURCE"""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """
Examples:

`instdisc info runs/photos` — what a run is and how far it came

`instdisc info photos/` — how many pictures, of what sizes, with which labels
"""


def command(place: Annotated[str, typer.Argument(help="A run folder, or pictures.")]) -> None:
    """Say what a run folder or a collection holds."""
    from rich.table import Table

    from instdisc.cli.console import console
    from instdisc.jobs.info import info

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, words in info(place).items():
        table.add_row(name, words)
    console(wrap=False).print(table)
