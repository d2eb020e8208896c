"""Names in a run folder, and files that are whole or not there: write errors, and a process killed while it writes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instdisc import runs
from instdisc.errors import InputError
from instdisc.runs import FORMAT, RunFolder, read_json, write_json, write_whole


def test_a_run_folder_names_files_and_makes_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert not run.exists()
    assert not run.path.exists()
    names = {name: value.name for name, value in vars(run).items() if name != "path"}
    assert names["config"] == "config.json"
    assert len(set(names.values())) == len(names), "two things share a file"
    assert all(run.path in value.parents for name, value in vars(run).items() if name != "path")
    assert RunFolder(str(run.path)).config == run.config


def test_config_comes_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    write_json(run.config, {"format": FORMAT, "name": "Zoë", "rate": 0.03})
    assert run.exists()
    assert run.read_config() == {"format": FORMAT, "name": "Zoë", "rate": 0.03}
    assert "Zoë" in run.config.read_text(encoding="utf-8"), "a person can read it"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not a run folder"),
        ("{", "can't be read"),
        ("", "can't be read"),
        (b"\xff\xfe\x00", "can't be read"),
        ("[]", "a JSON object was expected"),
        ("{}", "does not say its format"),
        ('{"format": 0}', "does not say its format"),
        (json.dumps({"format": FORMAT + 1}), "upgrade instdisc"),
    ],
)
def test_a_damaged_run_folder_is_one_sentence(tmp_path: Path, content: str | bytes | None, words: str) -> None:
    run = RunFolder(tmp_path)
    if content is not None:
        run.config.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=words) as raised:
        run.read_config()
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no run folder"):
        RunFolder(tmp_path / "nowhere").read_config()
    with pytest.raises(InputError, match="can't be read"):
        read_json(tmp_path / "nothing.json")


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

    monkeypatch.setattr(runs.os, failing, full)
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
    monkeypatch.setattr(runs.os, "fsync", lambda descriptor: (done.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(
        runs.os, "replace", lambda old, new: (done.append(Path(old).parent == Path(new).parent), replace(old, new))
    )
    write_whole(tmp_path / "file", b"content")
    assert done == ["sync", True, "sync"], "file, rename, folder"


@pytest.mark.fault('half-written checkpoint after a kill becomes "the last"')
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_reader_never_sees_a_part_even_when_the_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    size = 300_000
    code = (
        "import sys; from pathlib import Path; from instdisc.runs import write_json\n"
        f"while True:\n    for letter in 'ab': write_json(Path(sys.argv[1]), {{'text': letter * {size}}})"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
        try:
            end = time.monotonic() + 60
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
