"""The fuzzing of stress/fuzz.py for a moment: that its targets and its judgement work; the hours are its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "stress" / "fuzz.py"

pytestmark = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: it is for Linux")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    places = ["--results", str(folder), "--corpus", str(folder / "corpus")]
    return subprocess.run(
        [sys.executable, str(FUZZ), *words, *places],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_moment_of_fuzzing_finds_nothing(tmp_path: Path) -> None:
    targets = ["labels", "config", "checkpoints", "tar", "pictures"]
    done = run(tmp_path, "--targets", *targets, "--seconds", "2")
    assert done.returncode == 0, done.stdout[-3000:]
    rows = json.loads((tmp_path / "fuzz.json").read_text())["rows"]
    assert [row["target"] for row in rows] == targets
    assert all(row["tried"] > 100 and row["coverage"] > 20 and not row["findings"] for row in rows), rows


def test_a_fault_is_found(tmp_path: Path) -> None:
    """A parser that is broken on purpose: its input is kept, and the exit status says so."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        f"import sys; sys.path.insert(0, {str(FUZZ.parent)!r}); sys.argv[0] = {str(FUZZ)!r}\n"
        "import instdisc.data.decoding.decode as room, fuzz\n"
        "from pathlib import Path\n"
        "true = room.decode\n"
        "def wrong(content):\n"
        "    if content[:2] == b'BM':\n"
        "        raise IndexError('a fault')\n"
        "    return true(content)\n"
        "room.decode = wrong\n"
        "fuzz.fuzz('pictures', Path(sys.argv[1]), 20)\n"
    )
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    done = subprocess.run([sys.executable, str(broken), str(corpus)], capture_output=True, text=True, timeout=500)
    assert done.returncode != 0 and "IndexError: a fault" in done.stdout + done.stderr
    (found,) = corpus.glob("crash-*")
    assert found.read_bytes()[:2] == b"BM"
