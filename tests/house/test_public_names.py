"""Public docstrings: each has an example, and it does what it says."""

from __future__ import annotations

import doctest
import importlib
import os
import re
from pathlib import Path
from typing import Any

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src"
DRAWN = ("few_labels_plot", "table_plot", "training_curves")  # by matplotlib, an extra


def _named(path: Path) -> dict[str, Any]:
    """What the file offers by its `__all__`: classes and functions of ours."""
    if not re.search(r"^__all__ = ", path.read_text(encoding="utf-8"), re.MULTILINE):
        return {}
    module = importlib.import_module(
        ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")
    )
    named = [getattr(module, name) for name in module.__all__]
    ours = [one for one in named if callable(one) and one.__module__.startswith("instdisc")]
    return {f"{one.__module__}.{one.__qualname__}": one for one in ours}


PUBLIC = {name: one for path in sorted(SOURCES.rglob("*.py")) for name, one in _named(path).items()}


def test_every_module_of_the_reference_lists_its_public_names() -> None:
    page = (SOURCES.parent / "docs" / "api.md").read_text(encoding="utf-8")
    modules = re.findall(r"`(instdisc[.\w]*)`", page)
    assert len(modules) > 10
    assert not [name for name in modules if not getattr(importlib.import_module(name), "__all__", None)]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example_that_holds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.endswith(DRAWN):
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    thing: Any = PUBLIC[name]
    assert "Examples:" in (thing.__doc__ or ""), f"{name}: show it in use, under `Examples:`"
    (example,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs={})
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=told.append)
    assert result.attempted and not result.failed, "".join(told)
