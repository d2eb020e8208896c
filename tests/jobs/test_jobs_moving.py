"""The scripts that move files, run on names that break what is quoted badly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from instdisc.errors import InputError
from instdisc.jobs.moving import beside, moving_script

NAMES = [
    "plain.jpg",
    "two words.jpg",
    "it's.jpg",
    'a "quoted" $HOME `id` \\ one.jpg',
    "line\nbreak.jpg",
    "ends in a break\n",
    "-rf",
    "--help",
    "* ?[a].jpg",
    "’‘‚‛.jpg",
    " leading and trailing ",
    "%s %n.jpg",
    "#; & | > x",
]
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        os.path.relpath(os.path.join(place, name), folder): Path(place, name).read_bytes()
        for place, _, names in os.walk(folder)
        for name in names
    }


def filled(folder: Path) -> list[str]:
    """A file of every name, in a folder of every name."""
    files = []
    for number, name in enumerate([*NAMES, os.fsdecode(b"no utf8 \xff.jpg")]):
        place = folder / "photos" / NAMES[number % len(NAMES)].replace("/", "")
        place = place.with_name(place.name + " folder")
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(f"picture {number}".encode())
        files.append(str(place / name))
    return files


@pytest.mark.parametrize("shell", SHELLS)
def test_whatever_their_names_files_are_moved_and_none_is_lost(tmp_path: Path, shell: str) -> None:
    files = filled(tmp_path)
    before = tree(tmp_path / "photos")
    script = tmp_path / "move.sh"
    script.write_bytes(moving_script(beside(files, [str(tmp_path / "photos")]), "sh"))
    words = [shell, "sh"] if shell == "busybox" else [shell]
    done = subprocess.run([*words, str(script)], capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert tree(tmp_path / "photos") == {} and tree(tmp_path / "photos-removed") == before
    assert f"{len(files)} moved, 0 left" in done.stdout.decode("utf-8", "replace")


def test_nothing_is_overwritten_and_what_is_gone_is_told(tmp_path: Path) -> None:
    photos, aside = tmp_path / "photos", tmp_path / "photos-removed"
    for folder, words in ((photos, "mine"), (aside, "another")):
        folder.mkdir()
        (folder / "a.jpg").write_text(words)
    (photos / "folder").mkdir()
    files = [str(photos / "a.jpg"), str(photos / "gone.jpg"), str(photos / "folder")]
    script = tmp_path / "move.sh"
    script.write_bytes(moving_script(beside(files, [str(photos)]), "sh"))
    told = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=True).stdout
    assert (photos / "a.jpg").read_text() == "mine" and (aside / "a.jpg").read_text() == "another"
    assert "Another file has this name" in told and "Not there" in told and "0 moved, 3 left" in told
    again = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=True).stdout
    assert "0 moved" in again


def test_files_of_several_folders_go_beside_the_one_that_holds_them(tmp_path: Path) -> None:
    roots = [str(tmp_path / "a"), str(tmp_path / "b" / "c")]
    files = [str(tmp_path / name) for name in ("a/x/1.jpg", "b/c/2.jpg", "elsewhere/3.jpg")]
    assert [os.path.relpath(to, tmp_path) for _, to in beside(files, roots)] == [
        "a-removed/x/1.jpg",
        "b/c-removed/2.jpg",
        "elsewhere-removed/3.jpg",
    ]
    assert beside(["/x/1.jpg"], ["/"])[0][1] == "/pictures-removed/x/1.jpg"


def as_powershell_reads(text: str) -> list[str]:
    """The strings in single quotes of a line, by PowerShell's rule: any of five quotes ends one, two stand for one."""
    quotes, found, at = "'‘’‚‛", [], 0
    while (begin := next((place for place in range(at, len(text)) if text[place] in quotes), -1)) >= 0:
        at, word = begin + 1, ""
        while text[at] not in quotes or text[at + 1 : at + 2] in [*quotes]:
            at += text[at] in quotes
            word += text[at]
            at += 1
        found.append(word)
        at += 1
    return found


def test_powershell_is_told_the_same_names(tmp_path: Path) -> None:
    files = filled(tmp_path)[:-1]
    targets = beside(files, [str(tmp_path / "photos")])
    script = moving_script(targets, "powershell", others=2)
    assert script.startswith(b"\xef\xbb\xbf#"), "Windows PowerShell takes it for UTF-8 by that alone"
    text = script.decode("utf-8-sig")
    calls = re.split(r"^Move-Picture ", text[: text.rindex("\nWrite-Output")], flags=re.MULTILINE)[1:]
    read = [as_powershell_reads(call.rstrip("\n") if call != calls[-1] else call) for call in calls]
    assert read == [[one, os.path.dirname(to), to] for one, to in targets]
    assert "leaves 2 that are no files" in text
    assert not re.search(r"Remove-Item|-Force|\bdel\b", text)
    with pytest.raises(InputError, match="PowerShell"):
        moving_script([("/x/\udcff.jpg", "/y")], "powershell")


@pytest.mark.skipif(shutil.which("pwsh") is None, reason="PowerShell is not installed")
def test_powershell_moves_them(tmp_path: Path) -> None:
    files = filled(tmp_path)[:-1]
    before = tree(tmp_path / "photos")
    script = tmp_path / "move.ps1"
    script.write_bytes(moving_script(beside(files, [str(tmp_path / "photos")]), "powershell"))
    subprocess.run(["pwsh", "-NoProfile", "-File", str(script)], check=True, capture_output=True)
    assert len(tree(tmp_path / "photos-removed")) == len(before) - 1


def test_pictures_that_are_no_files_can_not_be_moved() -> None:
    with pytest.raises(InputError, match="hide them"):
        moving_script([], "sh")
