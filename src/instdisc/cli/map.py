"""instdisc map RUN"""

from __future__ import annotations

from instdisc.cli.options import Approximate, Bank, CollectionSource, Device, Run

EXAMPLES = """
Examples:

`instdisc map runs/photos` — pictures that are alike stand together; then `instdisc serve runs/photos` shows it
"""


def command(
    run: Run,
    approximate: Approximate = False,
    bank: Bank = False,
    train_source: CollectionSource = None,
    device: Device = "auto",
) -> None:
    """Lay out a run's collection in the plane, for the page."""
    from instdisc.jobs.map import make_map

    make_map(run, bank=bank, approximate=approximate, train_source=train_source, device=device)
