"""The API reference: it is written from the docstrings, and every public name is in it and says what it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import instdisc

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_reference_is_written_and_holds_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="pdoc is not installed: pip install 'instdisc[docs]'")
    words = [sys.executable, ROOT / "docs" / "api.py", tmp_path / "api"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "does not resolve" not in done.stderr, done.stderr
    page = (tmp_path / "api" / "instdisc.html").read_text(encoding="utf-8")
    modules = {"objectives", "__version__"}
    missing = [name for name in instdisc.__all__ if name not in modules and f'id="{name}"' not in page]
    assert not missing
    terms = (tmp_path / "api" / "instdisc" / "objectives.html").read_text(encoding="utf-8")
    assert all(f'id="{one.__name__}"' in terms for one in instdisc.objectives.OBJECTIVES.values())
    named = set(re.findall(r"`(instdisc[.\w]*)`", (ROOT / "docs" / "api.md").read_text(encoding="utf-8")))
    written = [path.relative_to(tmp_path / "api").with_suffix("") for path in (tmp_path / "api").rglob("*.html")]
    assert named <= {".".join(path.parts) for path in written}, "docs/api.md names a module that has no page"


def test_every_public_thing_has_a_docstring() -> None:
    public = {name: getattr(instdisc, name) for name in instdisc.__all__ if name != "__version__"}
    assert not [name for name, thing in public.items() if not (thing.__doc__ or "").strip()]
