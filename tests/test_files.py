"""Files that are whole or not there: write errors, a block that fails, a process killed while it writes; locks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from instdisc import files
from instdisc.errors import InputError
from instdisc.files import is_locked, locked, read_json, replacing, save_tensors, write_arrow, write_json, write_whole


def test_write_whole_makes_folders_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_whole(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    write_whole(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [found.name for found in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.fault('half-written checkpoint after a full disk becomes "the last"')
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"state": "old"})

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, failing, full)
    with pytest.raises(InputError, match="No space left on device.*make room"):
        write_json(path, {"state": "new"})
    assert read_json(path) == {"state": "old"}
    assert [found.name for found in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.fault('half-written checkpoint after a kill becomes "the last"')
@pytest.mark.fault("temp file on another filesystem")
def test_the_bytes_are_synced_in_the_same_folder_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: (done.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(
        files.os, "replace", lambda old, new: (done.append(Path(old).parent == Path(new).parent), replace(old, new))
    )
    write_whole(tmp_path / "file", b"content")
    assert done == ["sync", True, "sync"], "file, rename, folder"


@pytest.mark.fault('half-written checkpoint after a kill becomes "the last"')
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_reader_never_sees_a_part_even_when_the_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    size = 300_000
    code = (
        "import sys; from pathlib import Path; from instdisc.files import write_json\n"
        f"while True:\n    for letter in 'ab': write_json(Path(sys.argv[1]), {{'text': letter * {size}}})"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
        try:
            end = time.monotonic() + 500
            while not path.exists():
                assert time.monotonic() < end and writer.poll() is None, "the writer never began"
                time.sleep(0.01)
            for _ in range(100):
                text = read_json(path)["text"]
                assert text in ("a" * size, "b" * size)
        finally:
            writer.send_signal(signal.SIGKILL)
    assert read_json(path)["text"] in ("a" * size, "b" * size)
    write_json(path, {"text": "after"})
    assert read_json(path) == {"text": "after"}


def test_a_block_that_fails_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert temporary.parent == path.parent and path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_the_remedy_is_said_in_place_of_the_usual_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(InputError, match=r"within could not be written \(.*\): choose another folder\.$"),
        replacing(tmp_path / "file" / "within", "choose another folder"),
    ):
        pass


def test_tensors_come_back_and_a_refusal_is_an_oserror(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).T  # not contiguous, which safetensors itself refuses
    save_tensors({"turned": turned}, tmp_path / "file", {"step": "3"})
    assert torch.equal(load_file(tmp_path / "file")["turned"], turned)
    with pytest.raises(OSError, match="No such file"):
        save_tensors({"turned": turned}, tmp_path / "nowhere" / "file")


def test_who_holds_a_lock_is_seen_from_another_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = (
        "import sys; from pathlib import Path; from instdisc.files import is_locked\n"
        "print(is_locked(Path(sys.argv[1])))"
    )

    def elsewhere() -> str:
        return subprocess.check_output([sys.executable, "-c", code, str(lock)], text=True).strip()

    with locked(lock):
        assert elsewhere() == "True"
    assert elsewhere() == "False" and not is_locked(lock)


def staged(folder: Path) -> Path:
    """A folder with old files, and new ones in folder/new."""
    for name, text in (("a", "old a"), ("sub/b", "old b"), ("gone", "old"), ("other", "stays")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in ("a", "sub/b", "sub/c"):
        (folder / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "new" / name).write_text(f"new {name}")
    return folder / "new"


def contents(folder: Path) -> dict[str, str]:
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    return {name: text for name, text in found.items() if not name.startswith(".")}


@pytest.mark.parametrize("calls", range(1, 9))
def test_files_are_replaced_together_whenever_it_is_cut_short(
    tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = staged(tmp_path)
    before = contents(tmp_path)
    after = {"a": "new a", "sub/b": "new sub/b", "renamed": "new sub/c", "other": "stays"}
    done = [0]

    def cut(act: Any) -> Any:
        def called(*words: Any, **more: Any) -> Any:
            done[0] += 1
            if done[0] == calls:
                raise KeyboardInterrupt
            return act(*words, **more)

        return called

    with monkeypatch.context() as patched:
        for name in ("replace", "unlink"):
            patched.setattr(os, name, cut(getattr(os, name)))
        patched.setattr(Path, "unlink", cut(Path.unlink))
        with contextlib.suppress(KeyboardInterrupt):
            files.replace_together(tmp_path, new, [tmp_path / "gone", tmp_path / "a"], {"sub/c": "renamed"})
    if (tmp_path / "replacing.json").is_file():
        assert files.settle(tmp_path)
    assert contents(tmp_path) in (before, after)
    assert not files.settle(tmp_path)
    if calls > 3:
        assert contents(tmp_path) == after


@pytest.mark.parametrize(
    "plan",
    [
        {"staged": "new", "put": {"a": "../out"}, "drop": []},
        {"staged": "new", "put": {}, "drop": ["../keep"]},
        {"staged": "..", "put": {}, "drop": []},
        {"staged": "new", "put": {"../../keep": "a"}, "drop": []},
        {"staged": "new", "put": {}, "drop": ["link/keep"]},
        {"staged": ".", "put": {}, "drop": []},
        {"staged": 1},
    ],
)
def test_a_strangers_plan_touches_nothing_outside(tmp_path: Path, plan: dict[str, Any]) -> None:
    (tmp_path / "keep").write_text("mine")
    run = tmp_path / "run"
    staged(run)
    (run / "link").symlink_to(tmp_path)
    (run / "replacing.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match="names files outside of the run folder"):
        files.settle(run)
    assert (tmp_path / "keep").read_text() == "mine" and (run / "a").read_text() == "old a"


def test_an_arrow_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path, table = tmp_path / "new" / "table.arrow", pa.table({"row": range(10)})
    write_arrow(path, table, chunk=4)
    found = pa.ipc.open_file(pa.OSFile(str(path)))
    assert found.read_all() == table and found.num_record_batches == 3
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_arrow(path, table, chunk="four")
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be written .*: try another place."):
        write_arrow(tmp_path / "file" / "table.arrow", table, remedy="try another place")
