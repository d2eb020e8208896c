"""instdisc duplicates RUN, or SOURCE"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instdisc.cli.options import Approximate, CollectionSource, Device, Json

if TYPE_CHECKING:
    from instdisc.jobs.copies import Duplicates
    from instdisc.jobs.duplicates import LookAlikes
    from instdisc.jobs.leaks import Leak

EXAMPLES = """
Examples:

`instdisc duplicates runs/photos` — copies, proven by their pixels, and which of each to keep; nothing is deleted

`instdisc duplicates pictures/ -o found/` — the same without a run: no training, no encoder

`instdisc duplicates runs/photos --look-alikes --threshold 0.9` — also what is merely alike, in a list of its own

`instdisc duplicates runs/photos --against test/` — pictures of test/ that the collection holds already

`instdisc index runs/photos --remove-list runs/photos/duplicates/remove.txt` — then search passes the copies over
"""


def command(
    run: Annotated[str, typer.Argument(help="The run folder; or pictures: what `train` takes.")],
    against: Annotated[str | None, typer.Option(metavar="SOURCE", help="Compare with these pictures instead.")] = None,
    look_alikes: Annotated[
        bool, typer.Option("--look-alikes", help="List what is alike too, by vectors; it is never in remove.txt.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(help="The least cosine of look-alikes: 0.85 of search vectors, 0.95 of others.", min=-1, max=1),
    ] = None,
    keep: Annotated[str, typer.Option(help="Which copy to keep: largest, sharpest or oldest.")] = "largest",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the results: RUN/duplicates, or ./duplicates.")
    ] = None,
    approximate: Approximate = False,
    bank: Annotated[bool, typer.Option("--bank", help="Propose by the rows of the bank; compute no vectors.")] = False,
    json_: Json = False,
    train_source: CollectionSource = None,
    device: Device = "auto",
) -> None:
    """Find copies in a run's collection or among pictures, or pictures of another source there. Deletes nothing."""
    from instdisc import ranks
    from instdisc.errors import InputError
    from instdisc.jobs import duplicates as job
    from instdisc.jobs import leaks as leaks_job
    from instdisc.runs import RunFolder

    say = None if json_ else print
    look_alikes = look_alikes or threshold is not None
    whole = is_run(run)
    folder = out or (RunFolder(run).duplicates if whole else Path("duplicates"))
    options: dict[str, Any] = {"out": out, "bank": bank, "approximate": approximate, "train_source": train_source}
    options |= {"device": device, "say": say}
    groups: list[Duplicates] = []
    alike: list[LookAlikes] = []
    leaks: list[Leak] = []
    if not whole and (look_alikes or bank or approximate or train_source):
        raise InputError(
            f"{run} is not a run folder: --look-alikes, --threshold, --bank, --approximate and --train-source need one."
        )
    with ranks.distributed():
        if not whole and ranks.world() > 1:
            raise InputError("Copies among pictures alone are one process's work: start it without torchrun.")
        if against is None and whole:
            groups = job.duplicates(run, keep=keep, **options)
            if look_alikes:
                alike = job.look_alikes(run, threshold=threshold, copies=groups, **options)
        elif against is None:
            groups = job.duplicates_of_source(run, keep=keep, out=folder, say=say)
        elif whole:
            leaks = leaks_job.leaks(run, against, look_alikes=look_alikes, threshold=threshold, **options)
        else:
            leaks = leaks_job.leaks_of_sources(run, against, out=folder, say=say)
        if not ranks.is_main():
            return
    if json_:
        _print_json(groups if against is None else leaks, alike if look_alikes and against is None else None)
    elif against is None:
        _show_copies(groups, folder)
        if look_alikes:
            _show_look_alikes(alike, folder)
    else:
        _show_leaks(leaks, against, folder)


def is_run(location: str) -> bool:
    """Whether this names a run folder, rather than pictures: it has a run's files, or there is nothing of that name."""
    from instdisc.runs import RunFolder

    folder = RunFolder(location)
    if folder.path.is_dir():
        return any(file.exists() for file in (folder.config, folder.checkpoints, folder.instances))
    from instdisc.data.sources.builtin import NAMES

    pattern = any(letter in location for letter in "*?[{") or "://" in location or location in NAMES
    return not folder.path.exists() and not pattern


def _print_json(found: Sequence[Any], alike: Sequence[Any] | None) -> None:
    """The copies or leaks as a list; with look-alikes asked for, both lists by their names."""
    import json
    from dataclasses import asdict

    lists = [_without_nan(asdict(one)) for one in found]
    print(
        json.dumps(
            lists if alike is None else {"copies": lists, "look_alikes": [asdict(one) for one in alike]}, indent=2
        )
    )


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what is not known is null."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if value != value else value


_SHOWN = 12


def _show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    from instdisc.cli.console import console

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows[:_SHOWN]:
        table.add_row(*row)
    console().print(table)
    if len(rows) > _SHOWN:
        console().print(f"... and {len(rows) - _SHOWN:,} more.")


def _why(kind: str, changes: Sequence[str]) -> str:
    return f"{kind}, {', '.join(changes)}" if changes else kind


def _show_copies(groups: Sequence[Duplicates], folder: Path) -> None:
    from instdisc.cli.console import console

    copies = sum(len(group.copies) for group in groups)
    if not copies:
        console().print("No copies: no two pictures are the same file or show the same pixels.")
        return
    rows = [
        (_why(copy.kind, copy.changes), f"{copy.agreement:.3f}", group.kept.path, copy.path)
        for group in groups
        for copy in group.copies
    ]
    title = f"{copies:,} {'copy' if copies == 1 else 'copies'} in {len(groups):,} group{'s' * (len(groups) != 1)}"
    _show(title, ("why", "agreement", "kept", "copy"), rows)
    console().print(f"All: {folder / 'duplicates.csv'}; marked for removal: {folder / 'remove.txt'}")
    console().print(f"To look at: {folder / 'duplicates.png'}")


def _show_look_alikes(groups: Sequence[LookAlikes], folder: Path) -> None:
    from instdisc.cli.console import console

    if not groups:
        console().print("No look-alikes: a lower --threshold finds more.")
        return
    rows = [(f"{group.score:.3f}", str(len(group.pictures)), "\n".join(group.worst)) for group in groups]
    title = f"{len(groups):,} group{'s' * (len(groups) != 1)} of look-alikes, which are not proven to be copies"
    _show(title, ("least cosine", "pictures", "least alike"), rows)
    console().print(f"All: {folder / 'look_alikes.csv'}")


def _show_leaks(leaks: Sequence[Leak], against: str, folder: Path) -> None:
    from instdisc.cli.console import console
    from instdisc.jobs.leaks import LOOK_ALIKE

    copies = [leak for leak in leaks if leak.kind != LOOK_ALIKE]
    rows = [(_why(leak.kind, leak.changes), leak.path, leak.nearest.path) for leak in leaks]
    if not rows:
        console().print(f"No picture of {against} is in the collection.")
        return
    one = len(copies) == 1
    words = f"{len(copies):,} picture{'' if one else 's'} of {against} {'is' if one else 'are'} in the collection"
    if len(copies) < len(leaks):
        words += f", {len(leaks) - len(copies):,} more look like one in it"
    _show(words, ("why", "there", "in the collection"), rows)
    if copies:
        console().print(f"All: {folder / 'leaks.csv'}; marked for removal: {folder / 'remove.txt'}")
        console().print(f"To look at: {folder / 'leaks.png'}")
    if len(copies) < len(leaks):
        console().print(f"Look-alikes: {folder / 'look_alikes.csv'}")
