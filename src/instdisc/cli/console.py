"""Where commands show their tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(*, wrap: bool = True) -> Console:
    """Shows words as they are: brackets and colons in a file's name are no markup. wrap: lines are never cut."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=wrap)
