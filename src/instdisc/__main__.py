"""`python -m instdisc ...` is the same as the `instdisc` command."""

from __future__ import annotations

from instdisc.cli import main

if __name__ == "__main__":
    main()
