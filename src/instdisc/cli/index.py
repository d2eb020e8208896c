"""instdisc index RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
Examples:

`instdisc index runs/photos` — what the collection of this run holds

`instdisc index runs/photos --add new_pictures/` — new pictures, embedded as the encoder is: nothing is trained

`instdisc index runs/photos --remove "2019/*"` — search passes them over; no file is touched

`instdisc index runs/photos --tag beach --where "*/malta/*"` — then `instdisc search runs/photos cat.jpg --tag beach`

`instdisc index runs/photos --recompute` — search vectors of the pictures as they are, in the place of the bank's rows

`instdisc index runs/photos --store postgresql://host/pictures` — a copy for a team, on a server with pgvector
"""


def command(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    add: Annotated[str | None, typer.Option(metavar="SOURCE", help="Pictures to add: what `train` takes.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Their labels: a CSV file with the columns path, label.")] = None,
    remove: Annotated[str | None, typer.Option(metavar="PATTERN", help="Remove ids that match, with * and ?.")] = None,
    remove_list: Annotated[Path | None, typer.Option(help="Remove the paths in this file, one a line.")] = None,
    tag: Annotated[str | None, typer.Option(metavar="NAME", help="Give this tag to some pictures.")] = None,
    untag: Annotated[str | None, typer.Option(metavar="NAME", help="Take this tag from some pictures.")] = None,
    where: Annotated[str | None, typer.Option(metavar="PATTERN", help="Which to tag: ids that match.")] = None,
    label: Annotated[str | None, typer.Option(help="Which to tag: those of this class.")] = None,
    recompute: Annotated[bool, typer.Option("--recompute", help="Compute all vectors again.")] = False,
    vectors: Annotated[
        str, typer.Option(help="Which to compute again: search, or embedding (the head's output).")
    ] = "search",
    bank: Annotated[bool, typer.Option("--bank", help="With --add: leave the other vectors as they are.")] = False,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Bring the copy on a PostgreSQL server up to date.")
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Forget all that was added, removed, tagged.")] = False,
    dtype: Annotated[str, typer.Option(help="How new vectors are kept: float32, or float16 for half the room.")] = (
        "float32"
    ),
    train_source: Annotated[str | None, typer.Option(help="Where the training pictures are now, if moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Add pictures to a run's collection, remove or tag some, compute its vectors anew; or see what it holds."""
    from instdisc import ranks
    from instdisc.jobs import index

    with ranks.together():  # to embed is shared among the processes of torchrun; the main one does the rest
        tell = print if ranks.is_main() else _silent
        if reset:
            index.reset(run)
            tell("The collection is the training pictures again, with the rows of the bank.")
        if recompute:
            count = index.recompute(run, vectors=vectors, train_source=train_source, dtype=dtype, device=device)
            tell(f"The vectors of {count:,} pictures were computed again.")
        if add is not None:
            added = index.add(run, add, labels=labels, bank=bank, dtype=dtype, device=device)
            tell(f"{added:,} pictures were added.")
        if not ranks.is_main():
            return
    if remove is not None or remove_list is not None:
        from instdisc.jobs.sources import read_paths

        paths = None if remove_list is None else read_paths(remove_list)
        print(f"{index.remove(run, where=remove, paths=paths):,} pictures were removed from the collection.")
    for name, taken in ((tag, False), (untag, True)):
        if name is not None:
            print(f"{index.tag(run, name, where=where, label=label, untag=taken):,} pictures have the tag {name}.")
    if store is not None:
        sent = index.push(run, store, train_source=train_source)
        print(f"The server's copy: {sent.added:,} pictures added, {sent.changed:,} changed, {sent.removed:,} removed.")
    from rich.table import Table

    from instdisc.cli.console import console

    table = Table(title=f"The collection of {run}", title_justify="left", show_header=False)
    for name, words in index.describe(run).items():
        table.add_row(name, words)
    console(wrap=False).print(table)


def _silent(words: str) -> None:
    pass
