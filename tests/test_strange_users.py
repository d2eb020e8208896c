"""People at odd keyboards: two who train in one run folder, one who moved or copied it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import picture_folder, tiny

from instdisc.errors import InputError
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.runs import RunFolder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_folder(tmp_path_factory.mktemp("strange") / "pictures of mine", 20)


@pytest.fixture(scope="module")
def run(pictures: Path) -> Path:
    return train(pictures, pictures.parent / "a run", tiny(epochs=1), say=None).path


def test_who_trains_second_in_a_folder_is_told_who_is_first(pictures: Path, tmp_path: Path) -> None:
    """The first is another process; when it is killed, the folder is free."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    program = (
        "import sys; from pathlib import Path; from instdisc.runs import held\n"
        "with held(Path(sys.argv[1]), 'training there'):\n    print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", program, str(folder.lock)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"is held by process {first.pid} on .*, which is training there"):
            train(pictures, folder.path, tiny(epochs=1), say=None)
        assert not folder.exists()
        first.kill()
    assert train(pictures, folder.path, tiny(epochs=1), say=None).path == folder.path


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_run_that_was_moved_or_copied_finds_the_same(
    run: Path, pictures: Path, tmp_path: Path, move: Callable[[Path, Path], Any]
) -> None:
    query = next(pictures.rglob("*.png"))
    expected = [(hit.id, hit.score) for hit in search(run, [query], neighbours=5, device="cpu")[0]]
    mine = tmp_path / "mine"
    shutil.copytree(run, mine)
    other = tmp_path / "moved to another place" / "run"
    other.parent.mkdir()
    move(mine, other)
    assert [(hit.id, hit.score) for hit in search(other, [query], neighbours=5, device="cpu")[0]] == expected
