"""One version: the package, its metadata, the list of changes, the citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import instdisc

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_the_same_everywhere() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest is not None and cited is not None
    assert newest[1] == cited[1] == instdisc.__version__
    assert PROJECT["dynamic"] == ["version"], "the metadata's version is read from the package"
