"""Writes the tables of docs/settings.md from the settings themselves.

python docs/settings.py
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from instdisc.training import described

PAGE = Path(__file__).with_name("settings.md")
MARK = "<!-- made by `python docs/settings.py` -->\n"


def tables() -> str:
    """A table for each group of settings."""
    lines = []
    for group, settings in groupby(described(), key=lambda setting: setting.group):
        lines += ["", f"### {group}", "", "| setting | default | values | |", "|---|---|---|---|"]
        for setting in settings:
            others = "; ".join(f"`{name}`: {value or 'empty'}" for name, value in setting.presets.items())
            text = f"{setting.text} {others}".strip().replace("|", "\\|")
            lines.append(f"| `{setting.name}` | {setting.default or 'empty'} | {setting.values} | {text} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace what stands below the mark."""
    above = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(above + MARK + tables(), encoding="utf-8")


if __name__ == "__main__":
    main()
