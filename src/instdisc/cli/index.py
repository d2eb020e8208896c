"""instdisc index RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instdisc.cli.options import Device, Run, TrainSource

EXAMPLES = """
Examples:

`instdisc index runs/photos` — what the collection of this run holds

`instdisc index runs/photos --add new_pictures/` — new pictures, embedded as the encoder is: nothing is trained

`instdisc index runs/photos --remove "2019/*"` — search passes them over; no file is touched

`instdisc index runs/photos --purge list.txt` — erase what the run holds of these pictures, for good

`instdisc index runs/photos --tag beach --where "*/malta/*"` — then `instdisc search runs/photos cat.jpg --tag beach`

`instdisc index runs/photos --recompute` — search vectors of the pictures as they are, in the place of the bank's rows

`instdisc index runs/photos --store postgresql://host/pictures` — a copy for a team, on a server with pgvector
"""


def command(
    run: Run,
    add: Annotated[str | None, typer.Option(metavar="SOURCE", help="Pictures to add: what `train` takes.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Their labels: a CSV file with the columns path, label.")] = None,
    remove: Annotated[str | None, typer.Option(metavar="PATTERN", help="Remove ids that match, with * and ?.")] = None,
    remove_list: Annotated[Path | None, typer.Option(help="Remove the paths in this file, one a line.")] = None,
    purge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST",
            help="Erase pictures from the run for good: those in a text file, a path or id a line, or one by its name.",
        ),
    ] = None,
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
    train_source: TrainSource = None,
    device: Device = "auto",
) -> None:
    """Add pictures to a run's collection, remove or tag some, compute its vectors again; or see what it holds."""
    from instdisc import ranks
    from instdisc.errors import counted
    from instdisc.jobs import index

    with ranks.distributed():  # to embed is shared among the processes of torchrun; the main one does the rest
        log = print if ranks.is_main() else _silent
        if reset:
            index.reset(run)
            log("The collection is the training pictures again, with the rows of the bank.")
        if recompute:
            count = index.recompute(run, vectors=vectors, train_source=train_source, dtype=dtype, device=device)
            log(f"The vectors of {counted(count, 'picture')} were computed again.")
        if add is not None:
            added = index.add(run, add, labels=labels, bank=bank, dtype=dtype, device=device)
            log(f"{counted(added, 'picture was', 'pictures were')} added.")
        if not ranks.is_main():
            return
    if remove is not None or remove_list is not None:
        from instdisc.jobs.sources import read_paths

        paths = None if remove_list is None else read_paths(remove_list)
        folders = [Path(), *([] if remove_list is None else [remove_list.parent])]
        gone = index.remove(run, where=remove, paths=paths, folders=folders, train_source=train_source)
        print(f"{counted(gone, 'picture was', 'pictures were')} removed from the collection.")
    if purge:
        _purge(run, purge, train_source)
    for name, taken in ((tag, False), (untag, True)):
        if name is not None:
            tagged = index.tag(run, name, where=where, label=label, untag=taken)
            print(f"{counted(tagged, 'picture has', 'pictures have')} the tag {name}.")
    if store is not None:
        sent = index.push(run, store, train_source=train_source)
        new = counted(sent.added, "picture")
        print(f"The server's copy: {new} added, {sent.changed:,} changed, {sent.removed:,} removed.")
    _show(run)


def _show(run: Path) -> None:
    """What the collection holds."""
    from rich.table import Table

    from instdisc.cli.console import console
    from instdisc.jobs import index

    table = Table(title=f"The collection of {run}", title_justify="left", show_header=False)
    for name, words in index.describe(run).items():
        table.add_row(name, words)
    console(wrap=False).print(table)


def _purge(run: Path, given: list[str], train_source: str | None) -> None:
    from instdisc.data.storage.kinds import has_picture_name
    from instdisc.errors import counted
    from instdisc.jobs.purge import purge
    from instdisc.jobs.sources import read_paths

    names, folders = [], [Path()]
    for one in given:
        if Path(one).is_file() and not has_picture_name(one.encode("utf-8", "surrogateescape")):
            names += read_paths(one)
            folders.append(Path(one).parent)
        else:
            names.append(one)
    gone = purge(run, names, folders=folders, train_source=train_source)
    print(f"{counted(gone, 'picture was', 'pictures were')} erased from the run.")


def _silent(words: str) -> None:
    pass
