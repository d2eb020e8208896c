"""Two runs side by side, by the API: held against the same computed plainly."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import COUNT, Client, Other, Told, beside, made_collection, served
from tiny_runs import picture_folder, tiny

from instdisc.errors import InputError
from instdisc.jobs.train import train
from instdisc.serve.opening import Opening
from instdisc.serve.serve import serve

K, VOTERS = 10, 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_collection(tmp_path_factory.mktemp("compare"))


@pytest.fixture
def client(run: Path) -> Iterator[Client]:
    with served(beside(run)) as client:
        yield client


@pytest.fixture(scope="module")
def plain(trained: tuple[Path, Path]) -> dict[str, Any]:
    """Of the pictures that both have: rows, cosines of each with each in both runs, colours."""
    first, second = Told(trained[1]), Other(trained[1])
    rows = np.setdiff1d(np.arange(COUNT), Other.gone)
    cosines = []
    for opened in (first, second):
        vectors = torch.cat(opened.index.parts).numpy()[rows].astype(np.float64)
        found = vectors @ vectors.T
        np.fill_diagonal(found, -np.inf)
        cosines.append(found)
    labels = np.array([one.label for one in first.index.entries(rows)])
    return {"rows": rows, "cosines": cosines, "labels": labels}


def nearest(cosines: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


def right(cosines: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the 20 nearest others name each: votes of exp(cosine / 0.1)."""
    names, answer = np.unique(labels), []
    for row, near in enumerate(nearest(cosines, VOTERS)):
        weights = np.exp((cosines[row, near] - cosines[row, near[0]]) / 0.1)
        answer.append(names[np.argmax([weights[labels[near] == name].sum() for name in names])] == labels[row])
    return np.array(answer)


def test_what_both_are_is_said(client: Client, run: Path) -> None:
    found = client.json("/api/compare")
    assert found["matched"] == COUNT - 2
    assert found["first"] == {"name": "first", "vectors": "embedding", "dim": 8, "pictures": COUNT}
    assert found["second"] == {"name": "second", "vectors": "embedding", "dim": 6, "pictures": COUNT - 2}
    assert found["measured"] == [] and found["note"] == "Neither run was evaluated."
    assert client.json("/api/collection")["beside"] == "second"


def test_neighbours_of_both_runs(client: Client, plain: dict[str, Any]) -> None:
    rows = plain["rows"]
    for row in (0, 6, 39):
        found = client.json(f"/api/compare/{row}?count=12")
        position = int(np.searchsorted(rows, row))
        for side, cosines in zip(("first", "second"), plain["cosines"], strict=True):
            near = nearest(cosines, 12)[position]
            assert [one["row"] for one in found[side]] == rows[near].tolist()
            assert [one["score"] for one in found[side]] == pytest.approx(cosines[position, near].tolist(), abs=1e-5)
        own, others = ({one["row"] for one in found[side][:K]} for side in ("first", "second"))
        assert found["shared"] == len(own & others)
    assert "is not in second" in client.json(f"/api/compare/{Other.gone[0]}", status=400)["detail"]


def test_the_most_changed_come_first(client: Client, plain: dict[str, Any]) -> None:
    rows = plain["rows"]
    one, two = (nearest(cosines, K) for cosines in plain["cosines"])
    shared = {int(row): len(set(a) & set(b)) for row, a, b in zip(rows, one, two, strict=True)}
    found = client.json("/api/compare/changed?count=50")
    assert found["total"] == COUNT - 2
    listed = [one["picture"]["row"] for one in found["pictures"]]
    assert sorted(listed) == rows.tolist()
    assert [one["shared"] for one in found["pictures"]] == [shared[row] for row in listed] == sorted(shared.values())
    assert len(set(shared.values())) > 3
    assert client.json("/api/compare/changed?start=3&count=2")["pictures"] == [
        client.json("/api/compare/changed?count=9")["pictures"][place] for place in (3, 4)
    ]
    order = [one["row"] for one in client.json("/api/pictures?sort=changed&count=100")["pictures"]]
    assert order == [*listed, *Other.gone], "those of one run alone at the end"


def test_which_run_is_right(client: Client, plain: dict[str, Any]) -> None:
    rows, labels = plain["rows"], plain["labels"]
    first, second = (right(cosines, labels) for cosines in plain["cosines"])
    sets = {"both": first & second, "first": first & ~second, "second": ~first & second, "neither": ~first & ~second}
    found = client.json("/api/compare/agreement")
    assert found == {"labelled": COUNT - 2} | {name: int(mask.sum()) for name, mask in sets.items()}
    assert found["first"] > 0 and found["both"] > 0
    for name, mask in sets.items():
        listed = [one["row"] for one in client.json(f"/api/pictures?verdict={name}&count=100")["pictures"]]
        assert listed == rows[mask].tolist()
    colours = client.json("/api/map/colours?by=compare")
    assert colours["names"] == ["both right", "only first right", "only second right", "neither right"]
    assert colours["none"] == "no label, or in one run"
    shown = np.frombuffer(client.send("GET", "/api/map/points")[2][: 4 * COUNT], "<i4")
    codes = dict(zip(shown.tolist(), colours["codes"], strict=True))
    assert codes == dict.fromkeys(Other.gone, -1) | {
        int(row): code for code, mask in enumerate(sets.values()) for row in rows[mask]
    }
    # A label by hand counts at once.
    row = int(rows[sets["both"]][0])
    client.json("/api/labels", {"rows": [row], "label": next(one for one in labels if one != labels[rows == row][0])})
    assert client.json("/api/compare/agreement")["both"] < found["both"]


def test_hidden_pictures_are_compared_no_more(client: Client) -> None:
    client.json("/api/review/outliers", {"choices": [{"row": 3, "choice": "remove"}]})
    client.json("/api/review/hide", {})
    assert client.json("/api/compare")["matched"] == COUNT - 3
    assert client.json("/api/compare/changed")["total"] == COUNT - 3
    for row in (0, 6):
        assert 3 not in {one["row"] for one in client.json(f"/api/compare/{row}?count=100")["second"]}


def test_measures_of_both_in_one_table(client: Client, run: Path) -> None:
    """Both sides are one folder here, but for what the vectors are."""
    from instdisc.jobs.evaluate import evaluate

    report = evaluate(run, say=None)
    found = client.json("/api/compare")
    lines = {one["name"]: (one["first"], one["second"]) for one in found["measured"]}
    low, high = (100 * one for one in report["knn"]["interval"])
    words = f"{100 * report['knn']['top1']:.2f} % ({low:.1f}–{high:.1f})"
    plain = [one.replace("\N{NO-BREAK SPACE}", " ") for one in lines["kNN, embedding"]]
    assert plain == [words, words] and found["note"] == ""
    (run / "evaluation.json").write_text("{")
    assert client.json("/api/compare")["note"] == "Neither run was evaluated."


def test_one_run_alone_is_not_compared(run: Path) -> None:
    with served(Told(run)) as client:
        for path in ("", "/agreement", "/changed", "/3"):
            assert "instdisc serve A B" in client.json(f"/api/compare{path}", status=404)["detail"]
        for asked in ("sort=changed", "verdict=both"):
            assert "instdisc serve A B" in client.json(f"/api/pictures?{asked}", status=400)["detail"]
        assert client.json("/api/collection")["beside"] == ""
        assert client.send("GET", "/api/map/colours?by=compare")[0] == 404


def test_labels_of_one_class_say_nothing(run: Path) -> None:
    first, second = Told(run), Other(run)
    first.index.labels[:] = -1
    first.collection.source_labels[:] = -1
    with served(Opening("first", lambda: first, beside=("second", second))) as client:
        assert client.json("/api/compare/agreement") == dict.fromkeys(
            ("labelled", "both", "first", "second", "neither"), 0
        )
        assert "two classes" in client.json("/api/map/colours?by=compare")["note"]


def test_two_runs_without_a_common_picture_are_refused(run: Path, tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "elsewhere", 18)
    for place, file in enumerate(sorted(pictures.glob("*/*.png"))):
        file.rename(file.with_name(f"x{place}.png"))
    other = train(pictures, tmp_path / "other", tiny(epochs=1), say=None).path
    with pytest.raises(InputError, match="have no picture in common, by their ids"):
        serve(run, beside=other, bank=True, device="cpu")
    with pytest.raises(InputError, match="There is no run folder at"):
        serve(run, beside=tmp_path / "none", bank=True, device="cpu")


def test_a_second_run_whose_pictures_were_moved_is_told_where_they_are(
    run: Path, trained: tuple[Path, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    import uvicorn

    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(trained[0], before)
    other = train(before, tmp_path / "moved", tiny(epochs=1), say=None).path
    before.rename(after)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    serve(run, beside=other, device="cpu", say=lambda words: None)
    told = capsys.readouterr().err
    assert "name the new location with --beside-source" in told and f"{other} (embedding vectors)" in told
    serve(run, beside=other, beside_source=after, device="cpu", say=lambda words: None)
    assert f"{other} (search vectors)" in capsys.readouterr().err
    with pytest.raises(InputError, match="name both runs"):
        serve(run, beside_source=after, bank=True, device="cpu")


def test_the_start_says_both_runs_their_vectors_and_how_many_match(
    run: Path, trained: tuple[Path, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    import uvicorn

    other = train(trained[0], tmp_path / "run2", tiny(epochs=1, dim=12), say=None).path
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    serve(run, beside=other, bank=True, device="cpu", say=lambda words: None)
    told = capsys.readouterr().err
    assert f"Comparing {run} (embedding vectors) with {other} (embedding vectors): {COUNT} pictures are in both" in told
