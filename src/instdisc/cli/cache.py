"""instdisc cache"""

from __future__ import annotations

import time
from typing import Annotated

import typer

EXAMPLES = """
Examples:

`instdisc cache` — what is kept on this disk, and how large it is

`instdisc cache --clear --older 30` — delete what was not used for 30 days

`instdisc cache --clear pixels` — delete decoded pictures; the next run decodes them again
"""


def command(
    kinds: Annotated[list[str] | None, typer.Argument(help="pixels, index, downloads, datasets, trials.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete them: all can be made or fetched again.")] = False,
    older: Annotated[float, typer.Option(help="Only what was not used for so many days.")] = 0.0,
) -> None:
    """Show or clear what instdisc keeps to be faster the next time. Runs are never touched."""
    from rich.table import Table

    from instdisc.cli.console import console
    from instdisc.data.storage import inventory as kept
    from instdisc.data.storage.scan import cache_folder
    from instdisc.system import readable_bytes

    if clear:
        deleted = kept.clear(kinds or [], older)
        freed = readable_bytes(sum(entry.bytes for entry in deleted))
        print(f"Deleted {len(deleted)} of the stores in {cache_folder()}: {freed} are free again.")
        return
    entries = kept.kept(kinds or [])
    table = Table(title=f"Kept in {cache_folder()}", title_justify="left")
    for name in ("kind", "name", "size", "last used"):
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for entry in entries:
        day = time.strftime("%Y-%m-%d", time.localtime(entry.used))
        table.add_row(entry.kind, entry.name, readable_bytes(entry.bytes), day)
    shown = console(wrap=False)
    shown.print(table)
    shown.print(f"{readable_bytes(sum(entry.bytes for entry in entries))} together; --clear deletes them.")
