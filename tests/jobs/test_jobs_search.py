"""Search: the answers are those of all cosines in NumPy, and a picture never finds itself."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from by_hand import are_the_best
from PIL import Image
from tiny_runs import picture_folder, tiny

import instdisc
from instdisc import cli
from instdisc.checkpoint import latest
from instdisc.errors import InputError
from instdisc.jobs.run import Run
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

COUNT = 50


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of pictures and a run on it. Paths have a space, and one file is broken."""
    folder = tmp_path_factory.mktemp("search it")
    pictures = picture_folder(folder / "pictures", COUNT)
    (pictures / "red" / "0001a.png").write_bytes(b"no picture")
    return pictures, train(pictures, folder / "run", tiny(epochs=2), say=None).path


@pytest.mark.parametrize("bank", [True, False])
def test_the_answers_are_those_of_all_cosines(made: tuple[Path, Path], tmp_path: Path, bank: bool) -> None:
    pictures, run = made[0], Path(shutil.copytree(made[1], tmp_path / "run"))
    saved = latest(RunFolder(run).checkpoints)
    assert saved is not None
    files = sorted(pictures.glob("*/*.png"))
    kept = [files[row] for row in Run(run).rows]
    assert len(kept) == COUNT
    encoder, paths = instdisc.load(run), [str(path) for path in kept]
    known = saved.rows("bank", 0, COUNT)["rows"].numpy() if bank else encoder.embed(paths).numpy()
    asked = [kept[3], kept[40]]
    queries = encoder.embed([str(path) for path in asked], vectors="embedding" if bank else "search").numpy()
    for line, query, own in zip(search(run, asked, neighbours=7, bank=bank), queries, (3, 40), strict=True):
        cosines = known @ query
        cosines[own] = -np.inf
        best = [one.row for one in line]
        assert len(best) == 7
        are_the_best(best, cosines)
        assert [one.path for one in line] == [str(kept[row]) for row in best]
        assert [one.label for one in line] == [kept[row].parent.name for row in best]
        assert [one.id for one in line] == [f"{kept[row].parent.name}/{kept[row].name}" for row in best]
        np.testing.assert_allclose([one.score for one in line], cosines[best], atol=1e-6)


@pytest.mark.fault("no search with an outside picture")
def test_a_picture_from_elsewhere_may_find_its_copy(made: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = made
    own = sorted(pictures.glob("*/*.png"))[5]
    shutil.copy(own, tmp_path / "other.png")
    (found,) = search(run, [tmp_path / "other.png"], neighbours=COUNT - 1)
    assert str(own) in [one.path for one in found]
    (found,) = search(run, [own], neighbours=COUNT - 1)
    assert str(own) not in [one.path for one in found]


def test_only_some_are_looked_through(made: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = made
    asked = sorted(pictures.glob("green/*.png"))[0]
    (found,) = search(run, [asked], neighbours=9, label="green")
    assert {one.label for one in found} == {"green"} and str(asked) not in [one.path for one in found]
    (some,) = search(run, [asked], neighbours=4, where="red/000*")
    assert all(one.id.startswith("red/000") for one in some)
    with pytest.raises(InputError, match="there are: blue, green, red"):
        search(run, [asked], label="mauve")
    with pytest.raises(InputError, match="and 4 pictures are there to choose from: ask for fewer"):
        search(run, [asked], neighbours=20, where="red/000*")


def test_the_first_search_says_that_a_picture_has_gone(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Not that it could not be read: that is said of a file that is there."""
    here = Path(shutil.copytree(made[0], tmp_path / "here"))
    own = train(here, tmp_path / "run", tiny(epochs=1), say=None).path
    asked = shutil.copy(here / "red" / "0000.png", tmp_path)
    gone, broken = here / "red" / "0003.png", here / "red" / "0006.png"
    gone.unlink()
    broken.write_bytes(b"no picture")
    said: list[str] = []
    search(own, [asked], neighbours=5, say=said.append)
    assert f"1 picture has gone, the first is {gone}." in said
    assert [line.split(":")[0] for line in said if "could not be read" in line] == ["1 could not be read"]


def test_a_collection_that_has_gone_can_still_be_searched(made: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, _ = made
    here = tmp_path / "here"
    shutil.copytree(pictures, here)
    own = train(here, tmp_path / "run", tiny(epochs=1), say=None).path
    asked = shutil.copy(here / "red" / "0000.png", tmp_path)
    with_all = search(own, [asked], neighbours=5, sheet=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 500
    (here / "red" / "0000.png").unlink()
    assert [one.row for one in search(own, [asked], neighbours=5)[0]] == [one.row for one in with_all[0]]
    said: list[str] = []
    search(own, [asked], neighbours=5, sheet=tmp_path / "without.png", say=said.append)
    assert any("1 picture has gone" in line for line in said)
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    again = search(own, [asked], neighbours=5, train_source=moved, sheet=tmp_path / "again.png")
    assert [one.label for one in again[0]] == [one.label for one in with_all[0]]
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()


@pytest.mark.fault("no score shown")
@pytest.mark.fault("results cannot be exported")
def test_the_command(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, run = made
    asked = sorted(pictures.glob("blue/*.png"))[1]
    words = ["instdisc", "search", str(run), str(asked), "-k", "3", "--device", "cpu"]

    def said(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return captured.err if ended.value.code else captured.out

    expected = search(run, [asked], neighbours=3)[0]
    (found,) = json.loads(said("--json"))
    assert found["query"] == str(asked) and [one["path"] for one in found["neighbours"]] == [o.path for o in expected]
    table = said()
    assert f"Most like {asked}" in table and all(f"{one.score:.3f}" in table for one in expected)
    words[3] = "nowhere.png"
    assert "nowhere.png" in said() and "Traceback" not in said()
