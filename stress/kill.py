"""Every life of the tool cut short a hundred times, and gone on with: what was tried, survived, lost.

    python stress/kill.py                          # half an hour on two cores; as root, disks are truly full
    python stress/kill.py --times 10 --trials kill

The lives are in tests/support/lives.py (training, embed, scan, cache, index add, labels, a table of reproduce), the
trials and what counts as lost in tests/support/killing.py. Results go to results/kill.json; other lives and trials that
stand there are kept, each with the commit at which it was tried.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from killing import TRIALS, killing
from lives import LIVES
from record import commit, record


def main() -> None:
    """Try them, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="rounds that truly hit, of each trial on each life")
    parser.add_argument("--trials", nargs="*", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--lives", nargs="*", choices=list(LIVES), default=list(LIVES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/kill.json"))
    settings = parser.parse_args()
    rows, here = kept(settings.out), commit()
    with killing() as ask:
        for trial in settings.trials:
            for life in settings.lives:
                found = ask(life=life, trial=trial, times=settings.times, seed=settings.seed)
                rows[life, trial] = {**found, "commit": here}
                write(settings.out, rows, settings.times, settings.seed)
    lost = sum(row["lost"] for row in rows.values())
    if lost:
        sys.exit(f"{lost} rounds lost something")


def write(out: Path, rows: dict[tuple[str, str], dict[str, Any]], times: int, seed: int) -> None:
    """Record what is known so far: an interrupted measurement goes on with what is left."""
    record(
        out,
        name="kill",
        command=f"python stress/kill.py --times {times} --trials {named(trial for _, trial in rows)} "
        f"--lives {named(life for life, _ in rows)}",
        unit="rounds in which something was lost or damaged, one value a life and trial; `rows` has all counts",
        values=[float(row["lost"]) for row in rows.values()],
        seeds=[seed],
        **{name: sum(row[name] for row in rows.values()) for name in ("tried", "hit", "survived", "lost")},
        rows=list(rows.values()),
    )


def named(words: Iterable[str]) -> str:
    """Each once, as a shell takes them."""
    return shlex.join(dict.fromkeys(words))


def kept(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What was recorded before."""
    if not out.is_file():
        return {}
    before = json.loads(out.read_text(encoding="utf-8"))
    return {(row["life"], row["trial"]): {"commit": before["commit"], **row} for row in before["rows"]}


if __name__ == "__main__":
    main()
