"""instdisc demo"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from instdisc.cli.options import Device

EXAMPLES = """
Example:

`instdisc demo` — trains on handwritten digits in a minute or two, and measures what was learned
"""


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder to make.")] = Path("runs/demo"),
    device: Device = "auto",
) -> None:
    """Train on the handwritten digits that scikit-learn ships, and measure the result."""
    from instdisc.cli.evaluate import show
    from instdisc.jobs.evaluate import evaluate
    from instdisc.jobs.train import train
    from instdisc.runs import RunFolder

    if RunFolder(out).exists():  # a demo may be shown twice; a run is never overwritten
        out = out.with_name(f"{out.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    print("1. Train on 1,797 handwritten digits, without their labels.\n")
    train("digits", out, "digits", device=device)
    print("\n2. Measure: each digit is classified by the labels of its nearest neighbours, itself left out.\n")
    report = evaluate(out, device=device)
    show(report, out)
    print("\n3. Next, on pictures of your own:\n")
    name = _as_typed()
    following = {
        f"{name} serve {out}": "see these digits in a browser",
        f"{name} train my-pictures/ --out runs/mine": "train on a folder",
        f"{name} evaluate runs/mine": "measure it",
        f"{name} serve runs/mine": "browse, search, clean and label them",
    }
    widest = max(map(len, following))
    for words, meaning in following.items():
        print(f"   {words:<{widest}}   {meaning}")


def _as_typed() -> str:
    """How this command is called from the shell: where an environment is not active, by its path."""
    path = Path(sys.argv[0])
    apart = shutil.which("instdisc") is None and path.name == "instdisc" and path.is_file()
    return os.path.relpath(path) if apart else "instdisc"
