"""Names in a run folder, and what is said of one that is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instdisc.errors import InputError
from instdisc.files import read_json, write_json
from instdisc.runs import FORMAT, RunFolder


def test_a_run_folder_names_files_and_makes_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert not run.exists()
    assert not run.path.exists()
    names = {name: value.relative_to(run.path).as_posix() for name, value in vars(run).items() if name != "path"}
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
