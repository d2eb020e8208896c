"""instdisc search RUN PICTURE..."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instdisc.cli.options import CollectionSource, Device, Json, Run

if TYPE_CHECKING:
    from instdisc.jobs.search import Neighbour

EXAMPLES = """
Examples:

`instdisc search runs/photos cat.jpg` — the twenty pictures of the collection that are most like this one

`instdisc search runs/photos cat.jpg dog.jpg -k 8 --sheet found.png` — and a sheet to look at

`instdisc search runs/photos cat.jpg --where "2024/*" --json` — among some of them only, for another program
"""


def command(
    run: Run,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Picture files to search for.")],
    neighbours: Annotated[int, typer.Option("-k", "--neighbours", help="How many to find.")] = 20,
    where: Annotated[str | None, typer.Option(help="Only pictures whose id matches, with * and ?.")] = None,
    label: Annotated[str | None, typer.Option(help="Only pictures of this class.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only pictures that have this tag (`instdisc index --tag`).")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw the answers to this PNG file.")] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="First compute all vectors again; they stay for later.")
    ] = False,
    bank: Annotated[
        bool, typer.Option("--bank", help="Search at once by the rows of the bank, where nothing better is there.")
    ] = False,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask the copy on a PostgreSQL server (`instdisc index --store`).")
    ] = None,
    json_: Json = False,
    train_source: CollectionSource = None,
    device: Device = "auto",
) -> None:
    """Find the pictures of a run's collection that are most like given ones."""
    from instdisc import ranks
    from instdisc.jobs.search import search

    with ranks.distributed():
        if recompute:
            from instdisc.jobs.index import recompute as compute

            compute(run, train_source=train_source, device=device, say=None if json_ else print)
        answers = search(
            run,
            pictures,
            neighbours=neighbours,
            where=where,
            label=label,
            tag=tag,
            sheet=sheet,
            store=store,
            bank=bank,
            train_source=train_source,
            device=device,
            say=None if json_ else print,
        )
        if not ranks.is_main():
            return
    if json_:
        import json
        from dataclasses import asdict

        found = [
            {"query": str(picture), "neighbours": [asdict(one) for one in line]}
            for picture, line in zip(pictures, answers, strict=True)
        ]
        print(json.dumps(found, indent=2))
        return
    _show(pictures, answers)
    if sheet is not None:
        print(f"To look at: {sheet}")


def _show(pictures: Sequence[Path], answers: Sequence[Sequence[Neighbour]]) -> None:
    """A table a picture: what is most like it."""
    from rich.table import Table

    from instdisc.cli.console import console

    shown = console()
    for picture, line in zip(pictures, answers, strict=True):
        labelled = any(one.label for one in line)
        table = Table(title=f"Most like {picture}", title_justify="left")
        for column in ("", "cosine", *(["label"] if labelled else []), "picture"):
            table.add_column(column, justify="left" if column in ("label", "picture") else "right", overflow="fold")
        for number, one in enumerate(line, 1):
            table.add_row(str(number), f"{one.score:.3f}", *([one.label] if labelled else []), one.path)
        shown.print(table)
