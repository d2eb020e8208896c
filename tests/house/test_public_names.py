"""Public docstrings: each has an example, and it does what it says."""

from __future__ import annotations

import doctest
import os
from pathlib import Path
from typing import Any

import pytest

import instdisc
from instdisc import bank, data, encoder, neighbours

PUBLIC = {name: getattr(instdisc, name) for name in instdisc.__all__ if name not in ("__version__", "objectives")}
PUBLIC |= {name: getattr(instdisc.objectives, name) for name in instdisc.objectives.__all__ if name[0].isupper()}
PUBLIC |= {name: getattr(bank, name) for name in ("Rows", "choose_rows")}
PUBLIC |= {name: getattr(data, name) for name in ("Quarantine", "UnreadableError", "open_source")}
PUBLIC |= {name: getattr(encoder, name) for name in ("EncoderConfig", "Preprocessing", "build_encoder", "unit_length")}
PUBLIC |= {"top_k": neighbours.top_k}
PUBLIC = {name: thing for name, thing in PUBLIC.items() if callable(thing)}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example_that_holds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    thing: Any = PUBLIC[name]
    assert "Examples:" in (thing.__doc__ or ""), f"{name}: show it in use, under `Examples:`"
    (example,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs={})
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=told.append)
    assert result.attempted and not result.failed, "".join(told)
