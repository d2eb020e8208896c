"""`python -m instdisc ...` is the same as the `instdisc` command."""

from __future__ import annotations

from instdisc.cli.program import run

if __name__ == "__main__":
    run()
