"""What was added and removed comes back as it was, damage is seen, and a kill leaves what was there before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from instdisc.errors import InputError
from instdisc.search.store import Changes, Part, read_changes, write_changes


def part(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Part:
    vectors = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
    names = [f"{seed}-{row}" for row in range(count)]
    pictures = pa.table(
        {
            "id": pa.array(names, pa.large_string()),
            "location": pa.array(names, pa.large_string()),
            "label": pa.array(["cat", ""] * count, pa.string())[:count],
        }
    )
    return Part(vectors, pictures, {"given": f"/pictures/{seed}", "split": None, "limit": None})


def same(one: Part | None, other: Part | None) -> bool:
    if one is None or other is None:
        return one is other
    tables = (one.pictures is None and other.pictures is None) or one.pictures.equals(other.pictures)  # type: ignore[union-attr]
    return torch.equal(one.vectors, other.vectors) and bool(tables) and one.source == other.source


def test_changes_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    assert read_changes(folder) is None
    first = write_changes(folder, Changes(7, added=(part(5, 1),), removed=np.array([2, 9])))
    found = read_changes(folder)
    assert found is not None and found.step == 7 and found.removed.tolist() == [2, 9] and found.tags == {}
    assert same(found.added[0], first.added[0]) and found.recomputed is None
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    base = Part(torch.randn(3, 4).half())
    tags = {"beach": np.array([0, 4]), "snow": np.array([4])}
    second = write_changes(folder, replace(found, recomputed=base, added=(*found.added, part(2, 2)), tags=tags))
    again = read_changes(folder)
    assert again is not None and again.recomputed is not None and again.recomputed.vectors.dtype == torch.float16
    assert same(again.recomputed, base) and [same(*two) for two in zip(again.added, second.added, strict=True)]
    assert {name: rows.tolist() for name, rows in again.tags.items()} == {"beach": [0, 4], "snow": [4]}
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert all(kept[name] == time for name, time in files.items() if name.startswith("part")), "not written again"
    assert sum(name.startswith("marks") for name in kept) == 1, "what is of no use any more goes"
    third = write_changes(folder, replace(again, added=again.added[1:], recomputed=None))
    assert len(third.added) == 1 and len(list(folder.glob("part-*"))) == 2
    assert same(read_changes(folder).added[0], part(2, 2))  # type: ignore[union-attr]


@pytest.mark.parametrize("ending", [".safetensors", ".arrow", "index.json"])
def test_damage_is_seen(tmp_path: Path, ending: str) -> None:
    write_changes(tmp_path, Changes(1, added=(part(5, 1),), removed=np.array([1])))
    (file, *_) = (path for path in sorted(tmp_path.iterdir()) if path.name.endswith(ending))
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{tmp_path}.* (is damaged|can't be read)"):
        read_changes(tmp_path)
    file.unlink()
    if ending != "index.json":
        with pytest.raises(InputError, match="is damaged"):
            read_changes(tmp_path)


def test_a_newer_index_is_refused_and_files_elsewhere_are_not_opened(tmp_path: Path) -> None:
    write_changes(tmp_path, Changes(1, added=(part(5, 1),)))
    index = tmp_path / "index.json"
    named = json.loads(index.read_text())
    index.write_text(json.dumps(named | {"format": 99}))
    with pytest.raises(InputError, match="newer version"):
        read_changes(tmp_path)
    named["files"]["../secret.arrow"] = named["files"].popitem()[1]
    index.write_text(json.dumps(named))
    with pytest.raises(InputError, match="damaged"):
        read_changes(tmp_path)


def test_a_kill_leaves_what_was_there_before(tmp_path: Path) -> None:
    """A process adds parts for ever; wherever it is killed, the index is whole, with every part it said it had."""
    script = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[2])
        from dataclasses import replace
        from pathlib import Path
        from test_search_store import part
        from instdisc.search.store import Changes, write_changes

        changes = Changes(1)
        for number in range(10_000):
            changes = write_changes(Path(sys.argv[1]), replace(changes, added=(*changes.added[-3:], part(500, number))))
            print(number, flush=True)
        """
    )
    for wait in (0.02, 0.05, 0.11):
        folder = tmp_path / str(wait)
        command = [sys.executable, "-c", script, str(folder), os.path.dirname(__file__)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(wait)
            child.send_signal(signal.SIGKILL)
            said = [int(line) for line in child.stdout.read().split() if line.strip()]
        found = read_changes(folder)
        assert found is not None
        numbers = [int(one.source["given"].rpartition("/")[2]) for one in found.added]  # type: ignore[index]
        assert numbers[-1] >= max(said, default=0) and numbers == list(range(numbers[0], numbers[-1] + 1))
        assert all(same(one, part(500, number)) for one, number in zip(found.added, numbers, strict=True))
        write_changes(folder, found)
        left = {path.name for path in folder.iterdir()}
        assert len(left) == 2 * len(numbers) + 2, "what the kill left behind is gone"
