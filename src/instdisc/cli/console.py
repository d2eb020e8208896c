"""Where commands show their tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from instdisc.errors import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def console(*, wrap: bool = True) -> Console:
    """Shows words as they are: brackets, colons and escapes in a file's name do nothing. wrap: lines are never cut."""
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text), **options)

    return Plain(highlight=False, markup=False, emoji=False, soft_wrap=wrap)
