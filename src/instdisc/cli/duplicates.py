"""instdisc duplicates RUN"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from instdisc.jobs.duplicates import Duplicates

EXAMPLES = """
Examples:

`instdisc duplicates runs/photos` — groups of near-duplicates, and which of each to keep; nothing is deleted

`instdisc duplicates runs/photos --threshold 0.98 --keep oldest -o found/` — closer ones only; keep the first file

`instdisc duplicates runs/photos --against test/` — pictures of test/ that the collection holds already

`instdisc index runs/photos --remove-list runs/photos/duplicates/remove.txt` — then search passes the copies over
"""


def command(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    against: Annotated[str | None, typer.Option(metavar="SOURCE", help="Compare with these pictures instead.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="The least cosine of two duplicates: 0.85 of search vectors, 0.95 of others.", min=-1, max=1),
    ] = None,
    keep: Annotated[str, typer.Option(help="Which of a group to keep: largest, sharpest or oldest.")] = "largest",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the results: RUN/duplicates.")] = None,
    approximate: Annotated[bool, typer.Option("--approximate", help="Nearly all, sooner: for millions.")] = False,
    bank: Annotated[bool, typer.Option("--bank", help="Compare the rows of the bank; compute nothing anew.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    train_source: Annotated[str | None, typer.Option(help="Where the collection is now, if moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Find near-duplicates in a run's collection, or pictures of another source that it holds. Deletes nothing."""
    from dataclasses import asdict

    from instdisc import ranks
    from instdisc.jobs import duplicates as job
    from instdisc.runs import RunFolder

    say = None if json_ else print
    folder = out or RunFolder(run).duplicates
    groups: list[job.Duplicates] = []
    leaks: list[job.Leak] = []
    rows: list[tuple[str, ...]]
    with ranks.together():
        options: Any = {
            "threshold": threshold,
            "out": out,
            "bank": bank,
            "approximate": approximate,
            "train_source": train_source,
            "device": device,
            "say": say,
        }
        if against is None:
            groups = job.duplicates(run, keep=keep, **options)
        else:
            leaks = job.leaks(run, against, **options)
        if not ranks.is_main():
            return
    if against is None:
        rows = [
            (f"{group.score:.3f}", str(1 + len(group.copies)), group.kept.path, "\n".join(_beside(group)))
            for group in groups
        ]
        columns: tuple[str, ...] = ("least cosine", "pictures", "kept", "least alike")
        copies = sum(len(group.copies) for group in groups)
        words = f"{copies:,} copies in {len(groups):,} groups"
        name = "duplicates"
    else:
        rows = [(f"{leak.nearest.score:.3f}", leak.path, leak.nearest.path) for leak in leaks]
        columns = ("cosine", "there", "in the collection")
        words = f"{len(leaks):,} pictures of {against} are in the collection"
        name = "leaks"
    if json_:
        import json

        print(json.dumps([asdict(one) for one in (groups if against is None else leaks)], indent=2))
        return
    from rich.table import Table

    from instdisc.cli.console import console

    shown = console()
    if rows:
        table = Table(title=words, title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows[:_SHOWN]:
            table.add_row(*row)
        shown.print(table)
        if len(rows) > _SHOWN:
            shown.print(f"... and {len(rows) - _SHOWN:,} more.")
        shown.print(f"All: {folder / f'{name}.csv'}; what could go: {folder / 'remove.txt'}")
        shown.print(f"To look at: {folder / f'{name}.png'}")
    else:
        shown.print("No two pictures are so alike: a lower --threshold finds more.")


_SHOWN = 12


def _beside(group: Duplicates) -> list[str]:
    """Of the two least alike of a group those that are not the kept one."""
    return [path for path in group.worst if path != group.kept.path]
