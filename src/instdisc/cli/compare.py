"""instdisc compare RUN RUN SOURCE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instdisc.cli.options import Device

EXAMPLES = """
Example:

`instdisc compare runs/softmax runs/nce test/` — which of two runs is better, and could it be luck?
"""


def command(
    first: Annotated[Path, typer.Argument(help="A run folder.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    source: Annotated[str, typer.Argument(help="Labelled test pictures.")],
    neighbours: Annotated[
        int | None, typer.Option("-k", "--neighbours", help="How many vote; 200 if there are.", min=1)
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the votes.")] = 0.07,
    vectors: Annotated[str, typer.Option(help="search, or embedding: the head's output, the paper's.")] = "search",
    labels: Annotated[Path | None, typer.Option(help="CSV with path (or id) and label of the test pictures.")] = None,
    device: Device = "auto",
) -> None:
    """Compare two runs by weighted kNN on the same test pictures, with McNemar's exact test."""
    from instdisc.jobs.compare import compare

    report = compare(
        first,
        second,
        source,
        labels=labels,
        neighbours=neighbours,
        temperature=temperature,
        vectors=vectors,
        device=device,
    )
    for found in report["runs"].values():
        low, high = found["interval"]
        print(f"{found['run']}: {100 * found['top1']:.2f} % ({100 * low:.2f} to {100 * high:.2f})")
    paired = report["paired"]
    chance = paired["probability"]
    print(
        f"Difference {100 * paired['difference']:+.2f} points on {report['test']['pictures']:,} pictures: "
        f"{paired['only_first']:,} only the first gets right, {paired['only_second']:,} only the second."
    )
    words = "hardly luck" if chance < 0.05 else "it may well be luck"
    print(f"Two equally good runs would differ so much with probability {chance:.2g}: {words}.")
