"""instdisc report RUN [RUN ...] -o report.html"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instdisc.cli.options import TrainSource

EXAMPLES = """
Examples:

`instdisc report runs/photos -o report.html` — curves, accuracies, neighbours, a map: one file that opens anywhere

`instdisc report runs/softmax runs/nce -o both.html` — two runs side by side
"""


def command(
    runs: Annotated[list[Path], typer.Argument(help="Run folder(s).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    train_source: TrainSource = None,
) -> None:
    """Write a report of runs as one HTML file that opens without a network."""
    from instdisc.jobs.report import report

    written = report(runs, out, train_source=train_source)
    print(f"The report is {written} ({written.stat().st_size / 1e6:.1f} MB): open it in a browser.")
