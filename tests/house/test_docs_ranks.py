"""The commands of docs/hosts.md and docs/settings.md, several ranks among them, are run, as a reader would run them."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import follow, pages_of


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_of(__file__))
def test_page_does_what_it_says(page: str, tmp_path: Path, subtests: pytest.Subtests) -> None:
    follow(page, tmp_path, subtests)
