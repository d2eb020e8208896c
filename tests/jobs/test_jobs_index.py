"""Adding, removing, tagging, computing anew: the answers of a search afterwards are those of the vectors by hand."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import are_the_best
from PIL import Image
from tiny_runs import made_pictures, picture_folder, tiny

import instdisc
from instdisc import cli
from instdisc.data.decoding.decode import UnreadableError, decode
from instdisc.errors import InputError
from instdisc.jobs import hiding, index
from instdisc.jobs.collection import Collection
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.progress import watched
from instdisc.runs import RunFolder

COUNT = 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("index")
    pictures = picture_folder(folder / "pictures", COUNT)
    return pictures, train(pictures, folder / "run", tiny(epochs=2), say=None).path


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Twelve more pictures in two class folders, one of a class of their own, and a broken file."""
    folder = picture_folder(tmp_path / "others", 12, seed=5)
    (folder / "blue").rename(folder / "cyan")
    (folder / "cyan" / "broken.png").write_bytes(b"no picture")
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.png"))


@pytest.mark.fault("no adding of pictures later")
@pytest.mark.parametrize("bank", [True, False])
def test_added_pictures_are_found_by_their_own_vectors(
    run: Path, others: Path, trained: tuple[Path, Path], bank: bool
) -> None:
    said: list[str] = []
    assert index.add(run, others, bank=bank, say=said.append) == 12
    assert any("1 could not be read" in line for line in said)
    readable = [path for path in files(others) if path.name != "broken.png"]
    encoder = instdisc.load(run)
    kind = "embedding" if bank else "search"
    vectors = encoder.embed([str(path) for path in readable], vectors=kind)
    collection = Collection(run)
    assert len(collection.index) == COUNT + 12 and collection.vectors == kind
    np.testing.assert_allclose(collection.index.vectors(np.arange(COUNT, COUNT + 12)), vectors, atol=1e-6)
    own = collection.saved.rows("bank", 0, COUNT)["rows"] if bank else encoder.embed(trained[0])
    torch.testing.assert_close(collection.index.vectors(np.arange(COUNT)), own, atol=0 if bank else 1e-5, rtol=0)
    asked = files(trained[0])[0]
    (found,) = search(run, [asked], neighbours=51, bank=bank)
    cosines = torch.cat([own, vectors]) @ encoder.embed([str(asked)], vectors=kind)[0]
    cosines[0] = -torch.inf  # the asked picture itself
    assert len(found) == COUNT + 11
    are_the_best([one.row for one in found], cosines.numpy())
    by_row = {one.row: one for one in found}
    assert [by_row[COUNT + place].path for place in range(12)] == [str(path) for path in readable]
    assert [by_row[COUNT + place].label for place in range(12)] == [path.parent.name for path in readable]
    (of_added,) = search(run, [readable[0]], neighbours=3, bank=bank)
    assert str(readable[0]) not in [one.path for one in of_added]
    for row in (0, 17, COUNT, COUNT + 11):
        expected = files(trained[0])[row] if row < COUNT else readable[row - COUNT]
        np.testing.assert_array_equal(collection.picture(row), decode(expected.read_bytes()))


def test_what_is_there_is_not_added_again(run: Path, others: Path, trained: tuple[Path, Path]) -> None:
    said: list[str] = []
    assert index.add(run, trained[0], say=said.append) == 0 and "40 of 40 pictures are in" in said[-1]
    assert index.add(run, others, say=None) == 12
    Image.fromarray(made_pictures(1, seed=9)[0]).save(others / "red" / "zz.png")
    assert index.add(run, others, say=None) == 1, "the folder grew by one; the broken file is tried again"
    collection = Collection(run)
    assert len(collection.index) == COUNT + 13 and collection.index.entries([COUNT + 12])[0].id == "red/zz.png"
    np.testing.assert_array_equal(collection.picture(COUNT + 12), made_pictures(1, seed=9)[0])
    assert collection.index.entries([COUNT])[0].path == str(files(others)[0])
    np.testing.assert_array_equal(collection.picture(COUNT), decode(files(others)[0].read_bytes()))
    files(others)[0].unlink()
    with pytest.raises(UnreadableError, match="not there any more"):
        Collection(run).picture(COUNT)


def test_removed_pictures_are_no_answer_until_they_are_added_again(
    run: Path, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = files(trained[0])[2]
    assert index.remove(run, where="red/*", say=None) == 14
    (found,) = search(run, [asked], neighbours=25)
    assert {one.label for one in found} == {"green", "blue"}
    some = [str(path) for path in files(trained[0]) if path.parent.name == "green"][:3]
    said: list[str] = []
    assert index.remove(run, paths=[*some, "nowhere.png"], say=said.append) == 3 and "nowhere.png" in said[0]
    assert Collection(run).index.removed.sum() == 17 and all(Path(path).is_file() for path in some)
    assert index.add(run, trained[0], say=None) == 17
    (found,) = search(run, [asked], neighbours=39)
    assert {one.label for one in found} == {"red", "green", "blue"}
    with pytest.raises(InputError, match="No picture of the collection matches x/"):
        index.remove(run, where="x/*")
    with pytest.raises(InputError, match="at least one has to stay"):
        index.remove(run, where="*")


def test_tags_choose_among_the_pictures(run: Path, trained: tuple[Path, Path]) -> None:
    asked = files(trained[0])[2]
    assert index.tag(run, "few", where="*/000?.png") == 10 and index.tag(run, "few", label="blue") == 20
    assert index.tag(run, "few", where="red/*", untag=True) == 16
    (found,) = search(run, [asked], neighbours=15, tag="few")
    assert not any(one.id.startswith("red/") for one in found)
    assert index.tag(run, "few", untag=True) == 0 and Collection(run).index.tags == {}
    with pytest.raises(InputError, match="there are: none at all"):
        search(run, [asked], tag="few")
    with pytest.raises(InputError, match="No picture of the collection matches x"):
        index.tag(run, "few", where="x")


def test_all_vectors_can_be_computed_anew(run: Path, others: Path, trained: tuple[Path, Path]) -> None:
    index.add(run, others, say=None)
    index.remove(run, where="red/0000.png", say=None)
    (others / "red" / "0003.png").write_bytes(b"broken since")
    assert index.recompute(run, say=None, dtype="float16") == COUNT + 11
    collection = Collection(run)
    expected = instdisc.load(run).embed([str(path) for path in files(trained[0])])
    found = collection.index.vectors(np.arange(COUNT))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert torch.equal(found, found.half().float()) and collection.index.parts[0].dtype == torch.float16
    readable = [path for path in files(others) if path.name not in ("broken.png", "0003.png")]
    assert len(np.flatnonzero(~collection.index.removed)) == COUNT + 12 - 2, "red/0000.png, red/0003.png of the others"
    there = [entry.path for entry in collection.index.entries(np.flatnonzero(~collection.index.removed))]
    assert set(there[-11:]) == set(map(str, readable)), "an id is one picture's: 0000.png of the others stays"
    assert sorted(path.name for path in (run / "index").iterdir() if path.suffix in (".npy", ".parquet")) == []
    index.reset(run)
    assert len(Collection(run).index) == COUNT and not list((run / "index").glob("part-*"))


def test_vectors_computed_meanwhile_keep_what_others_did(run: Path, tmp_path: Path, others: Path) -> None:
    """Pictures hidden, shown again and tagged while it embeds; the vectors are those of `recompute`."""
    plain = Path(shutil.copytree(run, tmp_path / "plain"))
    index.remove(run, where="red/0000*", say=None)
    shown, gone = Collection(run), []

    def others_act(what: str, done: int, total: int | None) -> None:
        if what == "Embedding" and not gone:
            with index.changing(run):  # nobody holds it
                hiding.show(shown, shown.changes.removed)
                hiding.hide(shown, [5])
            gone.append(index.tag(run, "late", where="blue/*"))

    with watched(others_act):
        assert index.recompute_meanwhile(run, device="cpu") == COUNT
    index.recompute(plain, say=None)
    found, expected = Collection(run), Collection(plain)
    assert found.up_to_date and np.flatnonzero(found.index.removed).tolist() == [5]
    assert gone and len(found.index.tags["late"]) == gone[0]
    rows = np.arange(COUNT)
    assert torch.equal(found.index.vectors(rows), expected.index.vectors(rows))
    assert not list((run / "index").glob("meanwhile*.npy")), "what it worked with is gone"

    def another_adds(what: str, done: int, total: int | None) -> None:
        if what == "Embedding" and len(gone) == 1:
            gone.append(0)  # it embeds, too
            index.add(run, others, say=None)

    with watched(another_adds), pytest.raises(InputError, match="Another command has changed the collection meanwhile"):
        index.recompute_meanwhile(run, device="cpu")
    assert len(Collection(run).index) == COUNT + 12


def test_vectors_of_an_older_encoder_are_refused(run: Path, others: Path, trained: tuple[Path, Path]) -> None:
    index.tag(run, "few", where="red/*")
    train(trained[0], run, tiny(epochs=2), resume=True, say=None)
    assert Collection(run).index.tags["few"].size == 14, "tags hold whatever the step"
    index.add(run, others, say=None)
    saved = RunFolder(run).checkpoints
    (newest,) = sorted(saved.iterdir())[-1:]
    assert Collection(run).changes.step == int(newest.name.removeprefix("step-"))
    longer = train(trained[0], run.with_name("longer"), tiny(epochs=3), say=None).path
    shutil.rmtree(saved)
    shutil.copytree(RunFolder(longer).checkpoints, saved)
    for act in (lambda: search(run, files(others)[:1]), lambda: index.add(run, others), lambda: index.describe(run)):
        with pytest.raises(InputError, match="--recompute"):
            act()
    index.recompute(run, say=None)
    assert len(search(run, files(others)[1:2], neighbours=4)[0]) == 4


def test_what_cannot_be_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Pictures in memory"):
        index.add(run, made_pictures(3))
    with pytest.raises(InputError, match="float32 or float16"):
        index.add(run, tmp_path, dtype="int8")
    with pytest.raises(InputError, match="no run folder"):
        index.add(tmp_path / "nowhere", tmp_path)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(InputError, match="needs a name"):
        index.tag(run, " ")


def test_the_command(
    run: Path, others: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def said(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["instdisc", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return captured.err if ended.value.code else captured.out

    text = said("index", str(run), "--add", str(others), "--device", "cpu")
    assert "12 pictures were added" in text and "52" in text and "search vectors (step" in text
    (tmp_path / "list.txt").write_text(f"{files(others)[1]}\r\n\n{files(others)[2]}\n")
    text = said("index", str(run), "--remove-list", str(tmp_path / "list.txt"), "--tag", "new", "--where", "cyan/*")
    assert "2 pictures were removed" in text and "pictures have the tag new" in text and "50" in text
    assert "can't be read" in said("index", str(run), "--remove-list", "nowhere.txt")
    text = said("search", str(run), str(files(others)[5]), "--recompute", "--tag", "new", "-k", "2", "--device", "cpu")
    assert "cyan" in text
    assert "search vectors" in said("index", str(run))
    assert "the rows of the bank" in said("index", str(run), "--reset")
