"""People at odd keyboards, in odd places: what they do ends well, or in one sentence that says what to do."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from strange import strangers
from tiny_runs import picture_folder, tiny

from instdisc.errors import InputError
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

pytestmark = pytest.mark.slow


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
        "import sys; from pathlib import Path; from instdisc.files import held\n"
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


# ---------------------------------------------------------------------------------------------------------------------
# Odd places: every command, in forks


Ask = Callable[..., dict[str, dict[str, Any]]]
linux = pytest.mark.skipif(sys.platform != "linux", reason="it forks, and needs /proc")


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with strangers() as asked:
        yield asked


def went_well(name: str, ended: dict[str, Any]) -> None:
    assert ended["status"] == 0, (name, ended["out"][-1000:], ended["errors"])
    said = ended["out"] + ended["errors"]
    assert "Traceback" not in said, (name, said)
    assert "\x1b" not in said and "\r" not in said, f"{name}: no terminal reads this"


@linux
def test_one_core_and_output_that_no_terminal_reads(ask: Ask) -> None:
    for name, ended in ask("one core").items():
        went_well(name, ended)


@linux
def test_a_clock_that_runs_backwards(ask: Ask) -> None:
    found = ask("clock backwards", ["train", "evaluate", "index anew", "outliers", "label", "report", "cache"])
    for name, ended in found.items():
        went_well(name, ended)
    assert "images/s" in found["train"]["out"] and "-" not in found["train"]["out"].partition("images/s")[0][-8:]


@linux
@pytest.mark.parametrize("where", ["no home", "home unset"])
def test_no_home_folder_to_keep_anything_in(ask: Ask, where: str) -> None:
    for name, ended in ask(where, ["info", "train", "train from files", "search", "cache"]).items():
        went_well(name, ended)
        if name != "search":  # which reads the run alone
            assert ended["errors"].count("No home folder can be written here: caches go to") == 1, name


@linux
def test_shared_memory_that_cannot_be_written(ask: Ask) -> None:
    found = ask("no shared memory", ["train from files", "embed"])
    if any("no mount namespace here" in ended["errors"] for ended in found.values()):
        pytest.skip("no right to make a mount namespace")
    for name, ended in found.items():
        went_well(name, ended)


@linux
def test_a_reader_that_has_gone(ask: Ask) -> None:
    """As `| head -1` leaves it: no traceback, and not the status of success."""
    for name, ended in ask("no reader").items():
        assert ended["status"] == 1, (name, ended)
        assert "Traceback" not in ended["errors"] and ended["errors"].count("\n") <= 2, (name, ended["errors"])


@linux
def test_ctrl_c_at_any_moment_of_any_command(ask: Ask) -> None:
    """stress/kill.py tries some of them a hundred times, and looks at what they leave."""
    names = ["info", "evaluate", "search", "duplicates", "outliers", "map", "report", "export", "compare", "reproduce"]
    stopped = 0
    for seed in (0, 1):
        for name, ended in ask("interrupt", [*names, "train"], seed).items():
            assert ended["status"] in (0, 130), (name, ended)
            assert "Traceback" not in ended["errors"], (name, ended["errors"])
            if ended["status"] == 130 and ended["errors"]:  # without a word: before `main` had begun, or behind it
                stopped += 1
                assert ended["errors"].rstrip().endswith("stopped.") or name == "train", (name, ended["errors"])
            went_well(name, ended["again"])
    assert stopped >= 2


# ---------------------------------------------------------------------------------------------------------------------
# Odd names and odd terminals, by the real command


def odd_names(folder: Path) -> Path:
    """30 pictures below paths of over a thousand bytes, with names of 255 bytes, not UTF-8, with markup and lines."""
    plain = sorted(picture_folder(folder / "plain", 30).rglob("*.png"))
    root = os.fsencode(folder / "pictures ☃ mine")
    deep = root + b"/" + b"/".join([b"d" * 200] * 6)
    os.makedirs(deep)
    os.makedirs(root + b"/caf\xe9")
    for number, picture in enumerate(plain):
        name = [
            deep + b"/%d.png" % number,
            root + b"/caf\xe9/\xff\xfe%d.png" % number,
            root + b"/" + b"n" * 249 + b"%02d.png" % number,
            root + f"/Ünïcödé {number} :cat:[red]\x1b[31m\n.png".encode(),
            root + b"/ -rf %d.png" % number,
        ][number % 5]
        shutil.copy(picture, os.fsdecode(name))
    return folder / "pictures ☃ mine"


def shell(*words: Any, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The real command, in a world with as few variables as can be."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-m", "instdisc", *map(str, words)]
    done = subprocess.run(command, capture_output=True, timeout=500, env=kept | {"OMP_NUM_THREADS": "1"} | environment)
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if sys.platform != "linux":
        pytest.skip("other systems do not allow such names")
    folder = tmp_path_factory.mktemp("odd")
    pictures = odd_names(folder)
    return pictures, train(pictures, folder / "a run ü", tiny(epochs=1), say=None).path


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C.UTF-8"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
    ],
)
def test_names_that_the_terminal_cannot_show(odd: tuple[Path, Path], environment: dict[str, str]) -> None:
    """A name on disk keeps its bytes, so that another program can open it; other letters become their numbers."""
    pictures, run = odd
    query = next(picture for picture in pictures.iterdir() if "-rf" in picture.name)
    done = shell("search", run, query, "-k", "29", COLUMNS="3000", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"caf\xe9/\xff\xfe") == 6
    assert b"\x1b" not in done.stdout and b":cat:[red]\\x1b[31m" in done.stdout, "names are neither markup nor emoji"


def test_odd_names_go_through_every_command(odd: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, given = odd
    run = shutil.copytree(given, tmp_path / "run")
    not_utf8 = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    not_utf8.mkdir()
    names = sorted(os.fsencode(path) for path in pictures.rglob("*.png"))
    for words in (
        ("embed", run, pictures, "-o", not_utf8 / "vectors.parquet"),
        ("duplicates", run, "--threshold", "0.5", "--bank", "-o", not_utf8),
        ("outliers", run, "--bank", "-o", not_utf8),
        ("label", run, "--set", f"{next(pictures.rglob('*1.png'))}=Kätzchen", "-o", not_utf8 / "labels.csv"),
        ("export", run, "--only", "vectors", "-o", tmp_path / "export"),
        ("report", run, "-o", not_utf8 / "report.html"),
    ):
        done = shell(*words, LC_ALL="C.UTF-8")
        assert done.returncode == 0, (words, done.stderr)
    written = (not_utf8 / "outliers.csv").read_bytes()
    assert all(name.replace(b'"', b'""') in written for name in names)


def test_a_run_below_a_name_that_is_not_utf8_is_refused_before_it_is_trained(
    odd: tuple[Path, Path], tmp_path: Path
) -> None:
    """safetensors would write its weights, and open none of them."""
    wrong = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    done = shell("train", odd[0], "--out", wrong / "run", LC_ALL="C.UTF-8")
    assert done.returncode == 1 and not wrong.exists()
    assert b"is not UTF-8, as this folder's name must be: choose another" in done.stderr
    shutil.copytree(odd[1], wrong / "run")
    done = shell("search", wrong / "run", next(odd[0].rglob("*1.png")), LC_ALL="C.UTF-8")
    assert done.returncode == 1 and b"or rename it" in done.stderr
    # Pictures may stand there.
    shutil.copytree(pictures_of(odd[0]), wrong / "pictures")
    train(wrong / "pictures", tmp_path / "run", tiny(epochs=1), say=None)
    assert (
        len(search(tmp_path / "run", [next((wrong / "pictures").rglob("*.png"))], neighbours=3, device="cpu")[0]) == 3
    )


def pictures_of(pictures: Path) -> Path:
    return pictures.parent / "plain"


def test_a_terminal_that_is_dumb(odd: tuple[Path, Path], tmp_path: Path) -> None:
    """TERM=dumb on a real pseudo-terminal: tables and bars without a colour or a moved cursor."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "instdisc", "duplicates", str(odd[1]), "--bank", "-o", str(tmp_path)]
    with subprocess.Popen(words, stdout=theirs, stderr=theirs, stdin=theirs, env=os.environ | {"TERM": "dumb"}) as it:
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            said += piece
    os.close(ours)
    assert it.returncode == 0 and said and b"\x1b" not in said


def test_pictures_that_went_or_changed_after_the_training(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", 40)
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    query = shutil.copy(pictures / "red" / "0003.png", tmp_path / "query.png")
    expected = [hit.id for hit in search(run, [query], neighbours=5, bank=True, device="cpu")[0]]
    (pictures / "red" / "0003.png").unlink()
    # The rows of the bank are what they were; what needs the pictures goes on with the others, and says so.
    assert [hit.id for hit in search(run, [query], neighbours=5, bank=True, device="cpu")[0]] == expected
    gone = str(pictures / "red" / "0003.png").encode()
    for words in (("search", run, query), ("evaluate", run), ("duplicates", run)):
        done = shell(*words, "--device", "cpu", LC_ALL="C.UTF-8")
        assert done.returncode == 0, done.stderr
        told = (b"1 picture has gone, the first is " + gone, gone + b": it is not there", b"1 could not be read: see ")
        assert any(words in done.stdout for words in told)
    done = shell("train", pictures, "--out", run, "--resume", "--device", "cpu", LC_ALL="C.UTF-8")
    assert done.returncode == 1 and b"was started with other settings" in done.stderr
    done = shell("duplicates", run, "--bank", "--threshold", "0.5", LC_ALL="C.UTF-8")
    assert done.returncode == 0, done.stderr
    assert (run / "duplicates" / "look_alikes.csv").is_file(), "the others are compared all the same"


def test_labels_that_were_renamed_after_the_training(tmp_path: Path) -> None:
    """A folder of a class renamed: its pictures have gone; a table of labels renamed: its new words are shown."""
    pictures = picture_folder(tmp_path / "pictures", 40)
    table = tmp_path / "labels.csv"
    rows = sorted(pictures.rglob("*.png"))
    table.write_text("path,label\n" + "".join(f"{row},{row.parent.name}\n" for row in rows))
    run = train(pictures, tmp_path / "run", tiny(epochs=1), labels=table, say=None).path
    table.write_text(table.read_text().replace(",red\n", ",rouge\n"))
    done = shell("search", run, rows[0], "-k", "39", "--json", LC_ALL="C.UTF-8")
    assert done.returncode == 0, done.stderr
    labels = {one["label"] for one in json.loads(done.stdout)[0]["neighbours"]}
    assert labels == {"rouge", "green", "blue"}
    (pictures / "red").rename(pictures / "rot")
    done = shell("evaluate", run, LC_ALL="C.UTF-8")
    assert done.returncode == 0, done.stderr
    assert (
        b"14 pictures could not be read and are left out" in done.stdout and b"it is not there any more" in done.stdout
    )
