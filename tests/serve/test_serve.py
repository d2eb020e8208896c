"""The API: its answers are those of the library."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from serving import COUNT, Client, made_collection, served
from tiny_runs import picture_folder, tiny

import instdisc
from instdisc.jobs import index
from instdisc.jobs.collection import Collection
from instdisc.jobs.duplicates import duplicates, look_alikes
from instdisc.jobs.label import assign, hand_labels
from instdisc.jobs.outliers import outliers
from instdisc.jobs.train import train
from instdisc.search.index import Index
from instdisc.serve.opened import Opened
from instdisc.serve.opening import Opening
from instdisc.serve.session import Session


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def client(trained: tuple[Path, Path]) -> Iterator[Client]:
    """A server that no test changes."""
    with served(trained[1]) as client:
        yield client


def test_pictures_are_listed_filtered_and_shown(client: Client, trained: tuple[Path, Path]) -> None:
    about = client.json("/api/collection")
    assert (about["pictures"], about["dim"], about["labels"]) == (COUNT, 8, ["blue", "green", "red"])
    listing = client.json("/api/pictures?start=3&count=4")
    whole = Collection(trained[1]).index
    assert listing["total"] == COUNT
    assert [one["path"] for one in listing["pictures"]] == [entry.path for entry in whole.entries(range(3, 7))]
    assert client.json("/api/pictures?label=red&count=500")["total"] == int(whole.matching(label="red").sum())
    assert {one["id"] for one in client.json("/api/pictures?where=*1.png")["pictures"]} == {
        entry.id for entry in whole.entries(range(COUNT)) if entry.id.endswith("1.png")
    }
    status, headers, content = client.send("GET", "/pictures/5?size=full")
    assert status == 200 and headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(content)) as shown, Image.open(whole.entries([5])[0].path) as true:
        assert shown.size == true.size
        error = np.abs(np.asarray(shown, float) - np.asarray(true.convert("RGB"), float)).mean()
        assert error < 5


def test_neighbours_are_those_of_the_full_matrix(client: Client, trained: tuple[Path, Path]) -> None:
    vectors = Collection(trained[1]).index.vectors(np.arange(COUNT)).double().numpy()
    scores = vectors @ vectors.T
    for row in (0, 17):
        found = client.json(f"/api/neighbours/{row}?count=9")["results"]
        own = scores[row].copy()
        own[row] = -2
        assert [one["score"] for one in found] == pytest.approx(np.sort(own)[::-1][:9].tolist(), abs=1e-5)
        assert row not in {one["row"] for one in found}
    # Several pictures as one query, less like others, and among some alone.
    query = vectors[[2, 9]].mean(0) - 0.5 * vectors[4]
    query /= np.linalg.norm(query)
    expected = vectors @ query
    expected[[2, 4, 9]] = -2
    found = client.json("/api/search?like=2,9&unlike=4&count=7")["results"]
    assert [one["score"] for one in found] == pytest.approx(np.sort(expected)[::-1][:7].tolist(), abs=1e-5)
    found = client.json("/api/search?like=2&count=500&label=red")["results"]
    assert {one["label"] for one in found} == {"red"} and 2 not in {one["row"] for one in found}
    assert client.json("/api/search", status=400)["detail"] == "Name at least one picture to search for."


@pytest.mark.fault("no search with an outside picture")
@pytest.mark.fault("no score shown")
def test_an_uploaded_picture_finds_itself(client: Client, trained: tuple[Path, Path]) -> None:
    path = sorted(trained[0].glob("*/*.png"))[11]
    status, _, content = client.send("POST", "/api/uploads", path.read_bytes())
    name = json.loads(content)["id"]
    assert status == 200
    found = client.json(f"/api/search?upload={name}&count=40")["results"]
    own = instdisc.load(trained[1]).embed([str(path)], vectors="embedding")
    vectors = Collection(trained[1]).index.vectors(np.arange(COUNT))
    expected = (own @ vectors.T)[0].sort(descending=True).values
    assert [one["score"] for one in found] == pytest.approx(expected.tolist(), abs=1e-4)
    status, headers, content = client.send("GET", f"/api/uploads/{name}")
    assert status == 200 and headers["content-type"] == "image/jpeg"
    assert client.json("/api/uploads/none", status=404)["detail"].startswith("This search picture has expired")


def test_copies_are_those_of_the_command_with_the_facts_of_their_files_where_they_are_now(tmp_path: Path) -> None:
    """A picture, its copy that was saved again, larger and mirrored, and one with the same bytes."""
    pictures = picture_folder(tmp_path / "before", COUNT)
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    scene = coarse.resize((160, 120), Image.Resampling.BICUBIC)
    scene.save(pictures / "red" / "scene.png")
    scene.resize((320, 240)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pictures / "red" / "large.jpg", quality=90)
    shutil.copy(pictures / "red" / "0003.png", pictures / "blue" / "same.png")
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    moved = pictures.rename(tmp_path / "now")
    served_run = Opened(run, train_source=moved, device="cpu")
    expected = duplicates(run, bank=True, train_source=moved, say=None)
    with served(served_run) as client:
        found = client.json("/api/duplicates")
        assert client.json("/api/pictures/0")["path"].startswith(str(moved))
        alike = client.json("/api/look-alikes?threshold=0.51&count=500")
    assert found["total"] == 2 and found["copies"] == 2
    assert [[one["path"] for one in group["pictures"]] for group in found["groups"]] == [
        [one.path for one in (group.kept, *group.copies)] for group in expected
    ]
    same, large = (group["pictures"] for group in found["groups"])
    assert same[1]["kind"] == "same file" and same[1]["agreement"] == 1 and same[0]["kind"] == ""
    assert [Path(one["path"]).name for one in large] == ["large.jpg", "scene.png"]
    assert large[1]["kind"] == "same picture" and set(large[1]["changes"]) == {"mirrored", "resized"}
    file = moved / "red" / "large.jpg"
    facts = {name: large[0][name] for name in ("width", "height", "size", "format")}
    assert facts == {"width": 320, "height": 240, "size": file.stat().st_size, "format": "JPEG"}
    assert large[0]["modified"] == pytest.approx(file.stat().st_mtime)
    gone = {one["row"] for group in found["groups"] for one in group["pictures"][1:]}
    assert not gone & {one["row"] for group in alike["groups"] for one in group["pictures"]}


@pytest.mark.fault("clusters that are strewn over the map, and say nothing of what is in them")
def test_clusters_are_places_of_the_map_with_names(tmp_path: Path) -> None:
    """Twelve heaps of different sizes far from one another, two pictures removed: each heap is a cluster."""
    heaps = np.repeat(np.arange(12), np.arange(10, 34, 2))[np.random.default_rng(0).permutation(252)]
    places = np.stack([heaps % 4, heaps // 4], axis=1) + np.random.default_rng(1).normal(0, 0.02, (252, 2))
    paths = [f"{'even' if heap % 2 == 0 else 'odd'}/{row}.png" for row, heap in enumerate(heaps.tolist())]
    names = pa.table(dict.fromkeys(("id", "location"), paths))
    removed = np.arange(len(heaps)) < 2
    index = Index([torch.nn.functional.normalize(torch.ones(252, 4))], names, removed=removed)
    opened = SimpleNamespace(
        index=index, map_points=lambda: (np.arange(252), places.astype(np.float32)), suggestions=lambda: None
    )
    session = type("Made", (Session,), {"opened": opened})(Opening("made", lambda: None))
    codes = session.clusters("")
    assert (codes[:2] == -1).all() and set(codes[2:]) == set(range(12))
    assert len(set(zip(codes[2:], heaps[2:], strict=True))) == 12
    sizes = np.bincount(codes[2:])
    assert (np.diff(sizes) <= 0).all()
    said = session.cluster_names(codes)
    assert len(set(said)) == 12
    for code, text in enumerate(said):
        heap = heaps[codes == code][0]
        assert text.split(" (")[0] == f"{'even' if heap % 2 == 0 else 'odd'}, {sizes[code]}"


def test_duplicates_and_outliers_are_those_of_the_commands(client: Client, run: Path) -> None:
    found = client.json("/api/look-alikes?threshold=0.9")
    groups = look_alikes(run, threshold=0.9, bank=True, say=None)
    assert found["total"] == len(groups) > 0
    for one, group in zip(found["groups"], groups, strict=True):
        assert [picture["row"] for picture in one["pictures"]] == [picture.row for picture in group.pictures]
        assert one["least"] == pytest.approx(group.score)
    assert client.json("/api/duplicates") == {"total": 0, "copies": 0, "groups": []}
    unusual = client.json("/api/outliers?count=5")
    expected = outliers(run, by="similarity", bank=True, count=5, say=None)
    assert unusual["by"] == "similarity" and [one["row"] for one in unusual["pictures"]] == [
        one.row for one in expected
    ]
    expected = outliers(run, bank=True, count=5, say=None)
    with served(run) as other:
        unusual = other.json("/api/outliers?count=5")
    assert unusual["by"] == "outlier_score" and [one["row"] for one in unusual["pictures"]] == [
        one.row for one in expected
    ]


def test_labels_are_saved_at_once_and_taken_back(run: Path) -> None:
    with served(run) as client:
        first = [one["row"] for one in client.json("/api/proposals?count=12")["pictures"]]
        assert len(set(first)) == 12
        paths = {row: client.json(f"/api/pictures/{row}")["path"] for row in first}
        for row in first:
            state = client.json("/api/labels", {"rows": [row], "label": "odd" if row % 2 else "even"})
            assert hand_labels(run)[paths[row]] == ("odd" if row % 2 else "even")
        assert {one["label"]: one["hand"] for one in state["classes"]} == {
            "even": sum(row % 2 == 0 for row in first),
            "odd": sum(row % 2 for row in first),
        }
        assert sum(one["hand"] + one["vote"] for one in state["classes"]) == COUNT
        assert 0 <= state["interval"][0] <= state["accuracy"] <= state["interval"][1] <= 1
        again = client.json("/api/proposals?count=100")["pictures"]
        assert {one["row"] for one in again} == set(range(COUNT)) - set(first)
        assert all(one["guess"] in ("even", "odd") and 0 < one["confidence"] <= 1 for one in again)
        assert client.json("/api/pictures?label=odd")["total"] == sum(row % 2 for row in first)
        content = client.send("GET", "/api/labels.csv")[2].decode()
        lines = list(csv.DictReader(io.StringIO(content)))
        assert len(lines) == COUNT and sum(line["by"] == "hand" for line in lines) == 12
        client.json("/api/labels", {"rows": first, "label": None})
        assert hand_labels(run) == {}
        assert client.json(f"/api/pictures/{first[0]}")["label"] in ("red", "green", "blue")
        state = client.json("/api/labels")
        assert (state["classes"], state["accuracy"], state["interval"], state["none"]) == ([], None, None, COUNT)


def test_labels_from_the_command_are_seen_at_once(run: Path) -> None:
    with served(run) as client:
        client.json("/api/labels", {"rows": [1, 2], "label": "ours"})
        paths = [client.json(f"/api/pictures/{row}")["path"] for row in (2, 3, 4)]
        assert client.json("/api/pictures?label=ours")["total"] == 2
        assign(run, {paths[0]: "theirs", paths[1]: "theirs"}, replace=True, say=None)
        assert client.json("/api/pictures?label=theirs")["total"] == 2
        assert client.json("/api/pictures?label=ours")["total"] == 1
        shown = client.json("/api/pictures/3")
        assert (shown["label"], shown["hand"]) == ("theirs", True)
        assert {one["label"]: one["hand"] for one in client.json("/api/labels")["classes"]} == {"ours": 1, "theirs": 2}
        client.json("/api/labels", {"rows": [4], "label": "ours"})
        assert hand_labels(run)[paths[1]] == "theirs" and hand_labels(run)[paths[2]] == "ours"


def test_removed_pictures_are_nowhere(run: Path) -> None:
    index.remove(run, where="red/*", say=None)
    gone = Collection(run).changes.removed.tolist()
    with served(run) as client:
        assert client.json("/api/collection")["pictures"] == COUNT - len(gone)
        for row in gone[:2]:
            for path in (
                f"/api/pictures/{row}",
                f"/pictures/{row}",
                f"/api/neighbours/{row}",
                f"/api/search?like={row}",
            ):
                assert client.send("GET", path)[0] == 404
            assert client.send("POST", "/api/labels", {"rows": [row], "label": "x"})[0] == 404
        assert not {one["row"] for one in client.json("/api/neighbours/0?count=500")["results"]} & set(gone)


def test_a_picture_that_has_gone_is_a_404_and_the_rest_goes_on(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pictures = Path(shutil.copytree(trained[0], tmp_path / "pictures"))
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    with served(run) as client:
        path = Path(client.json("/api/pictures/3")["path"])
        assert client.send("GET", "/pictures/2")[0] == 200
        path.unlink()
        status, _, content = client.send("GET", "/pictures/3")
        assert status == 404 and b"can't be read" in content
        assert client.send("GET", "/pictures/4")[0] == 200
        assert client.json("/api/neighbours/3")["results"]


def test_names_that_are_no_utf8_are_shown_and_asked_for(tmp_path: Path) -> None:
    """Old disks hold such names: every view answers, and what it calls a label can be asked for."""
    pictures = picture_folder(tmp_path / "pictures", COUNT)
    os.rename(pictures / "red", os.fsencode(pictures) + b"/r\xe9d")
    os.rename(pictures / "blue" / "0002.png", os.fsencode(pictures / "blue") + b"/\xff\xe9.png")
    folder = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    outliers(folder, say=None)
    with served(folder) as client:
        assert client.json("/api/collection")["labels"] == ["blue", "green", "r\ufffdd"]
        listing = client.json("/api/pictures?label=r%EF%BF%BDd")
        assert listing["total"] == sum(row % 3 == 0 for row in range(COUNT))
        assert client.json("/api/pictures?where=*.png&count=500")["total"] == COUNT
        for path in ("outliers", "look-alikes?threshold=0.6", "neighbours/2?count=39", "labels", "proposals"):
            client.json(f"/api/{path}")
        assert "r\ufffdd" in client.json("/api/pictures?label=pink", status=400)["detail"]
        row = next(
            one["row"] for one in client.json("/api/pictures?count=500")["pictures"] if "\ufffd\ufffd" in one["id"]
        )
        assert client.send("GET", f"/pictures/{row}")[0] == 200


def test_every_start_of_the_server_has_its_own_pictures(trained: tuple[Path, Path]) -> None:
    """A browser keeps pictures by their address: `start` is part of it."""
    with served(trained[1]) as one, served(trained[1]) as other:
        assert one.json("/api/collection")["start"] != other.json("/api/collection")["start"]
