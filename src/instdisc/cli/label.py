"""instdisc label RUN"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instdisc.cli.options import Bank, CollectionSource, Device, Run

if TYPE_CHECKING:
    from instdisc.jobs.votes import Labelled

EXAMPLES = """
Examples:

`instdisc label runs/photos --propose 20` — what to label first: a list to fill in, and a sheet to look at

`instdisc label runs/photos --from runs/photos/labels/next.csv` — what was filled in

`instdisc label runs/photos --set 2019/a.jpg=beach --set 2019/b.jpg=town` — or one by one

`instdisc label runs/photos --doubtful 50` — labels that the neighbours contradict, those of the folders too

`instdisc label runs/photos -o labels.parquet` — every picture's label: by hand, or by vote, and how sure
"""


def command(
    run: Run,
    one: Annotated[list[str] | None, typer.Option("--set", metavar="PICTURE=LABEL", help="Label a picture.")] = None,
    file: Annotated[
        Path | None, typer.Option("--from", help="Labels: a table (CSV or the like) with the columns path, label.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="New labels take the place of others by hand.")] = False,
    propose: Annotated[int | None, typer.Option(metavar="COUNT", help="Propose pictures to label next.")] = None,
    doubtful: Annotated[
        int | None, typer.Option(metavar="COUNT", help="Show labels that the neighbours contradict.", min=1)
    ] = None,
    by: Annotated[str, typer.Option(help="Proposals: covered, uncertain, or mixed.")] = "mixed",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write all labels: .csv or .parquet.")] = None,
    votes: Annotated[str, typer.Option(help="How labels come to the others: spread, or neighbours.")] = "spread",
    neighbours: Annotated[
        int | None, typer.Option("-k", "--neighbours", help="So many labelled neighbours vote.", min=1)
    ] = None,
    bank: Bank = False,
    train_source: CollectionSource = None,
    device: Device = "auto",
) -> None:
    """Label a few pictures by hand; their labels spread to the others, with how sure each is.

    spread: from neighbour to neighbour, over the graph of each picture's ten nearest. neighbours: a picture's nearest
    labelled pictures vote at once (20 of them, or as many as -k says, which asks for this way).
    """
    from instdisc.cli.console import console
    from instdisc.errors import InputError
    from instdisc.jobs import label as job
    from instdisc.jobs.votes import NEIGHBOURS
    from instdisc.runs import RunFolder

    shown = console()
    _assign(run, one or [], file, replace)
    if doubtful is not None:
        _show_doubtful(run, doubtful, bank, train_source, device)
        if out is None and propose is None:
            return
    if propose is not None:
        job.propose(run, propose, by=by, bank=bank, train_source=train_source, device=device)
        folder = RunFolder(run).labels
        shown.print(f"To look at: {folder / 'next.png'}; to fill in: {folder / 'next.csv'}, then")
        shown.print(f"  instdisc label {run} --from {folder / 'next.csv'}")
        if out is None:
            return
    if not job.hand_labels(run):
        if out is not None or propose is None:
            raise InputError(f"No picture is labelled yet: see what to start with by instdisc label {run} --propose 20")
        return
    found = job.label(
        run,
        votes=votes if neighbours is None else "neighbours",
        neighbours=neighbours or NEIGHBOURS,
        bank=bank,
        train_source=train_source,
        device=device,
    )
    _show(run, found)
    if out is not None:
        job.save(run, found, out)
        shown.print(f"All labels: {out}")


def _show_doubtful(run: Path, count: int, bank: bool, train_source: str | None, device: str) -> None:
    from rich.table import Table

    from instdisc.cli.console import console
    from instdisc.jobs.doubtful import doubtful
    from instdisc.runs import RunFolder

    found = doubtful(run, count, bank=bank, train_source=train_source, device=device)
    table = Table(title="Labels in doubt, the most doubtful first", title_justify="left")
    for column in ("path", "label", "neighbours say", "doubt"):
        table.add_column(column, justify="right" if column == "doubt" else "left", overflow="fold")
    for one in found:
        table.add_row(one.path, f"{one.label}{' (by hand)' if one.hand else ''}", one.voted, f"{one.doubt:.2f}")
    console().print(table)
    console().print(f"All of them: {RunFolder(run).labels / 'doubtful.csv'}; --set PATH=LABEL changes one.")


def _assign(run: Path, one_by_one: Sequence[str], file: Path | None, replace: bool) -> None:
    """Label what --set and --from say, and print how many pictures that were."""
    from instdisc.cli.console import console
    from instdisc.errors import InputError, counted
    from instdisc.jobs import label as job

    filled_in = None if file is None else job.read_table(file)
    given: dict[str, str] = {}
    for words in one_by_one:
        path, equals, text = words.rpartition("=")
        if not (path and equals and text):
            raise InputError(f'"{words}" is no PICTURE=LABEL.')
        given[path] = text
    labelled = [one for one in (given, filled_in) if one is not None and len(one)]
    if labelled:  # where both label a picture, --set counts
        new = sum(job.assign(run, one, replace=replace)[0] for one in (labelled[::-1] if replace else labelled))
        words = f"{counted(new, 'picture was', 'pictures were')} labelled by hand."
        console().print(words if new else "No picture got a new label.")
    elif file is not None:
        console().print(f"{file} holds no label yet: fill in its column label.")


def _show(run: Path, found: Labelled) -> None:
    """Classes with their numbers of pictures, and how well those labelled by hand are told by one another."""
    from rich.table import Table

    from instdisc.cli.console import console
    from instdisc.jobs import label as job

    table = Table(title=f"Labels of {run}", title_justify="left")
    for column in ("label", "by hand", "by vote"):
        table.add_column(column, justify="left" if column == "label" else "right", overflow="fold")
    for name, by_hand, by_vote in job.counts(found):
        table.add_row(name, f"{by_hand:,}", f"{by_vote:,}")
    console().print(table)
    if found.accuracy is not None:
        low, high = found.accuracy.interval
        console().print(
            f"Right on the {found.accuracy.count:,} labelled by hand, each by the others: "
            f"{100 * found.accuracy.top1:.1f} % ({100 * low:.1f} to {100 * high:.1f}); they are no random sample."
        )
