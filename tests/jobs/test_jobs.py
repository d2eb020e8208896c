"""What the commands do, as functions: evaluate, embed and info on a run, and what they leave untouched."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_runs import CLASSES, made_pictures, picture_folder, tiny

import instdisc
from instdisc import checkpoint
from instdisc.checkpoint import latest
from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.evaluation.knn import KNN
from instdisc.evaluation.probe import LinearProbe
from instdisc.evaluation.retrieval import retrieval
from instdisc.evaluation.semi import FineTuning
from instdisc.evaluation.svm import LinearSVM
from instdisc.jobs import evaluate as jobs_evaluate
from instdisc.jobs.compare import compare
from instdisc.jobs.embed import embed
from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.info import info
from instdisc.jobs.semi import METHODS
from instdisc.jobs.train import train
from instdisc.runs import RunFolder

COUNT = 61


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of pictures in three class folders, and a run on it. Tests that change either take a copy."""
    folder = tmp_path_factory.mktemp("jobs")
    pictures = picture_folder(folder / "pictures", COUNT)
    train(pictures, folder / "run", tiny(epochs=4, monitor_epochs=2), say=None)
    return pictures, folder / "run"


@pytest.fixture
def copied(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same run in a place of its own; it was trained on the original pictures."""
    pictures, run = trained
    shutil.copytree(run, tmp_path / "run")
    return pictures, tmp_path / "run"


def measured(run: Path, source: Any = None, **options: Any) -> dict[str, Any]:
    return evaluate(run, source, **{"device": "cpu", "say": None, **options})


def refused(act: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        act(*arguments, **options)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


# ---------------------------------------------------------------------------------------------------------------------
# evaluate


def test_leave_one_out_is_the_knn_of_recomputed_vectors(copied: tuple[Path, Path]) -> None:
    pictures, run = copied
    report = measured(run, neighbours=7, temperature=0.1)
    assert json.loads(RunFolder(run).evaluation.read_text()) == report
    source = open_source(pictures)
    vectors = instdisc.load(run).embed(source)
    labels = source.labels
    assert labels is not None
    scores = (vectors @ vectors.T).double().fill_diagonal_(-2)
    right = 0
    for row in range(COUNT):  # the equation, one picture at a time
        near = scores[row].topk(7)
        votes = np.zeros(CLASSES)
        for score, place in zip(near.values, near.indices, strict=True):
            votes[labels[place]] += np.exp(float(score) / 0.1)
        right += votes.argmax() == labels[row]
    assert report["knn"]["top1"] == pytest.approx(right / COUNT)
    assert report["knn"]["top5"] == 1.0, "there are three classes"
    low, high = report["knn"]["interval"]
    assert 0 <= low < report["knn"]["top1"] <= high <= 1
    for name in ("raw_pixels", "raw_pixels_centred", "untrained"):
        assert 0 <= report["baselines"][name]["top1"] <= 1
    assert report["baselines"]["raw_pixels_centred"]["top1"] > 0.8, "the classes are colours"
    pixels = torch.from_numpy(np.stack([np.asarray(source_picture) for source_picture in decoded(source)]))
    knn = KNN(7, 0.1).fit(pixels.permute(0, 3, 1, 2).flatten(1), labels)
    assert report["baselines"]["raw_pixels"]["top1"] == pytest.approx(knn.leave_one_out().top1)
    settings = report["settings"]
    assert (settings["neighbours"], settings["temperature"]) == (7, 0.1)
    assert "leave-one-out" in settings["mode"]
    assert report["device"] == "cpu"
    assert report["seconds"] > 0
    assert report["step"] == 16
    assert report["quality"]["rows"] == COUNT
    assert (run / report["neighbours_sheet"]).read_bytes().startswith(b"\x89PNG")


def decoded(source: Any) -> list[np.ndarray]:
    from instdisc.data.decoding.decode import decode

    return [decode(source.read(row)) for row in range(len(source))]


def test_test_pictures_with_recomputed_vectors_and_with_the_bank(copied: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = copied
    tests = picture_folder(tmp_path / "tests", 40, seed=9)
    encoder = instdisc.load(run)
    train_source, test_source = open_source(pictures), open_source(tests)
    queries = encoder.embed(test_source, vectors="embedding")
    known, labels = encoder.embed(train_source, vectors="embedding"), train_source.labels
    recomputed = KNN(5).fit(known, labels).evaluate(queries, test_source.labels)
    searched = KNN(5).fit(encoder.embed(train_source), labels).evaluate(encoder.embed(test_source), test_source.labels)
    saved = latest(RunFolder(run).checkpoints)
    assert saved is not None
    rows = saved.rows("bank", 0, COUNT)["rows"]
    from_bank = KNN(5).fit(rows, train_source.labels).evaluate(queries, test_source.labels)

    report = measured(run, tests, neighbours=5)
    assert report["knn"]["top1"] == recomputed.top1
    assert report["knn_search"]["top1"] == searched.top1
    assert report["knn"]["count"] == report["knn_search"]["count"] == 40
    assert report["settings"]["mode"] == "test pictures"
    assert report["settings"]["train_vectors"] == "recomputed without augmentation"
    with_bank = measured(run, tests, neighbours=5, bank=True)
    assert with_bank["knn"]["top1"] == from_bank.top1
    assert with_bank["settings"]["train_vectors"] == "bank rows"
    assert with_bank["baselines"] == report["baselines"]
    loo = measured(run, neighbours=5, bank=True)
    assert loo["knn"]["top1"] == KNN(5).fit(rows, train_source.labels).leave_one_out().top1


@pytest.mark.fault("a corrupt or truncated picture kills the run after hours")
def test_bank_rows_find_their_pictures_where_some_could_not_be_read(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", COUNT)
    for name in ("blue/0002.png", "green/0001.png", "red/0030.png"):
        (pictures / name).write_bytes(b"no picture")
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None)
    assert (run.instances, run.quarantined) == (COUNT - 3, 3)
    report = measured(run.path, neighbours=5, bank=True)
    source = open_source(pictures)
    good = np.array([row for row in range(COUNT) if "no picture" not in str(source.read(row))])
    saved = latest(RunFolder(run.path).checkpoints)
    assert saved is not None and source.labels is not None
    rows = saved.rows("bank", 0, COUNT - 3)["rows"]
    assert report["knn"]["count"] == COUNT - 3
    assert report["knn"]["top1"] == KNN(5).fit(rows, source.labels[good]).leave_one_out().top1


def test_further_measures_are_those_of_the_parts(copied: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = copied
    tests = picture_folder(tmp_path / "tests", 40, seed=9)
    encoder, train_source, test_source = instdisc.load(run), open_source(pictures), open_source(tests)
    features, asked = encoder.features(train_source), encoder.features(test_source)
    features["search vectors"], asked["search vectors"] = encoder.embed(train_source), encoder.embed(test_source)
    report = measured(run, tests, neighbours=5, measures=("svm", "linear", "retrieval"))
    levels = ["stage1", "stage2", "stage3", "embedding", "search vectors"]
    assert list(report["svm"]["levels"]) == levels, "the backbone's end is stage3"
    for name, kind in (("svm", LinearSVM), ("linear", LinearProbe)):
        for level, found in report[name]["levels"].items():
            alone = kind().fit(features[level], train_source.labels).evaluate(asked[level], test_source.labels)
            assert (found["top1"], found["chosen"]) == (alone.top1, alone.chosen)
            assert found["dim"] == features[level].shape[1] and found["interval"][0] < found["interval"][1]
    for name, level in (("retrieval", "embedding"), ("retrieval_search", "search vectors")):
        found = retrieval(features[level], train_source.labels, asked[level], test_source.labels)
        assert report[name]["mean_average_precision"] == pytest.approx(found.mean_average_precision, abs=1e-4)
        assert report[name]["recall"]["5"] == pytest.approx(found.recall[5], abs=0.026)

    bank = measured(run, neighbours=5, measures=["quality"], bank=True)["bank_quality"]
    saved = latest(RunFolder(run).checkpoints)
    assert saved is not None
    rows = saved.rows("bank", 0, COUNT)["rows"]
    assert bank["bank_drift"] == pytest.approx(float((1 - (rows * features["embedding"]).sum(1)).mean()), abs=1e-5)
    earlier = latest(RunFolder(run).checkpoints, before=saved.step)
    assert ("since_step" in bank) == (earlier is not None)
    assert all(sentence.endswith(".") for sentence in bank["sentences"])

    held_out = measured(run, neighbours=5, measures=["svm"])["svm"]
    assert held_out["mode"] == "12 training pictures that were held out"
    assert held_out["levels"]["embedding"]["count"] == 12
    assert 'no measurement "smv"' in refused(measured, run, measures=["smv"])


def test_test_pictures_may_have_other_classes(copied: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = copied
    tests = picture_folder(tmp_path / "tests", 40, seed=9)
    shutil.rmtree(tests / "blue")  # the first of the training classes
    shutil.copytree(tests / "red", tests / "zebra")  # one that training never saw
    known, asked = open_source(pictures), open_source(tests)
    assert known.label_names == ["blue", "green", "red"] and asked.label_names == ["green", "red", "zebra"]
    encoder = instdisc.load(run)
    told = KNN(5).fit(encoder.embed(known), known.labels).predict(encoder.embed(asked))
    right = [
        known.label_names[one] == asked.label_names[wanted] for one, wanted in zip(told, asked.labels, strict=True)
    ]
    assert 0 < sum(right) < len(right)
    assert measured(run, tests, neighbours=5)["knn"]["top1"] == np.mean(right)
    assert compare(run, run, tests, neighbours=5, say=None)["runs"]["first"]["top1"] == np.mean(right)
    (tests / "red").rename(tests / "rot")
    shutil.rmtree(tests / "green")
    assert "none of those of" in refused(measured, run, tests)


@pytest.mark.slow
def test_few_labels(copied: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, run = copied
    tests = picture_folder(tmp_path / "tests", 40, seed=9)
    shares = (0.5, 0.2)
    monkeypatch.setattr("instdisc.evaluation.semi._FEWEST_EPOCHS", 2)
    monkeypatch.setattr("instdisc.evaluation.semi._MOST_EPOCHS", 10)
    monkeypatch.setattr("instdisc.jobs.semi._SPREAD_VIEWS", 240)
    asked: list[tuple[str, np.ndarray, np.ndarray]] = []
    fit = FineTuning.fit

    def noted(self: FineTuning, encoder: Any, opened: Any, *given: Any) -> FineTuning:
        instances, labels, sure = given
        kind = "spread" if sure is not None else "trained" if torch.equal(next(encoder.parameters()), own) else "fresh"
        asked.append((kind, opened.rows[instances], labels))
        return fit(self, encoder, opened, *given)

    own = next(instdisc.load(run).parameters())
    monkeypatch.setattr(FineTuning, "fit", noted)
    found = measured(run, tests, neighbours=5, measures=["semi"], shares=shares)["semi"]
    known = open_source(pictures).labels
    assert known is not None and found["mode"] == "test pictures"
    assert [row["labels"] for row in found["shares"]] == [12, 30]
    assert [which for which, _, _ in asked] == ["trained", "fresh", "spread"] * 6
    for (_, rows, labels), (_, same, _), (_, all_rows, names) in zip(asked[::3], asked[1::3], asked[2::3], strict=True):
        assert np.array_equal(known[rows], labels), "each label is its own picture's"
        assert np.array_equal(rows, same) and len(np.unique(rows)) == len(rows), "both see the same pictures"
        by_hand = np.isin(all_rows, rows)
        assert np.array_equal(known[all_rows[by_hand]], names[by_hand]), "labels by hand stay"
        assert len(np.unique(all_rows)) == len(known), "the others have the names that spread to them"
    assert [np.bincount(labels).tolist() for _, _, labels in asked[::9]] == [[4, 4, 4], [10, 10, 10]]
    assert not np.array_equal(asked[0][1], asked[3][1]), "another draw, other pictures"
    for row in found["shares"]:
        for method in METHODS:
            assert row[method]["mean"] == pytest.approx(np.mean(row[method]["values"]))
            assert row[method]["std"] == pytest.approx(np.std(row[method]["values"], ddof=1))
    assert found["plot"] is None or (run / found["plot"]).is_file()

    asked.clear()
    more = measured(run, tests, neighbours=5, measures=["semi"], shares=(*shares, 0.4))["semi"]
    assert [row["share"] for row in more["shares"]] == [0.2, 0.4, 0.5]
    assert [more["shares"][0], more["shares"][2]] == found["shares"]
    assert len(asked) == 3 * 3, "what was done before is kept"

    (run / "semi.json").unlink()
    asked.clear()

    def interrupted(self: FineTuning, *given: Any) -> FineTuning:
        if len(asked) == 7:
            raise KeyboardInterrupt
        return noted(self, *given)

    monkeypatch.setattr(FineTuning, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(run, tests, neighbours=5, measures=["semi"], shares=shares)
    monkeypatch.setattr(FineTuning, "fit", noted)
    asked.clear()
    assert measured(run, tests, neighbours=5, measures=["semi"], shares=shares)["semi"] == found
    assert len(asked) == 3 * 4, "two draws were done before"

    asked.clear()
    held_out = measured(run, neighbours=5, measures=["semi"], shares=shares)["semi"]
    assert held_out["mode"] == "12 training pictures that were held out"
    assert [row["labels"] for row in held_out["shares"]] == [10, 24]
    for wrong in ([], [0.0], [0.1, 1.5]):
        assert "above 0 and at most 100 %" in refused(evaluate, run, measures=["semi"], shares=wrong, say=None)


def test_two_runs_on_the_same_test_pictures(copied: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = copied
    other = train(pictures, tmp_path / "other", tiny(epochs=1, seed=8), say=None).path
    tests = picture_folder(tmp_path / "tests", 40, seed=9)
    (tests / "red" / "0000.png").write_bytes(b"no picture")
    report = compare(run, other, tests, neighbours=5, say=None)
    assert report["test"]["pictures"] == 39
    known, asked = open_source(pictures), open_source(tests)
    good = np.array([row for row in range(40) if asked.location(row) != str(tests / "red" / "0000.png")])
    right = []
    for path in (run, other):
        encoder = instdisc.load(path)
        queries = encoder.embed([asked.location(int(row)) for row in good])
        knn = KNN(5).fit(encoder.embed(known), known.labels)
        right.append(knn.predict(queries).numpy() == asked.labels[good])
    assert [found["top1"] for found in report["runs"].values()] == [hits.mean() for hits in right]
    assert report["paired"]["only_first"] == (right[0] & ~right[1]).sum()
    assert compare(run, run, tests, neighbours=5, say=None)["paired"]["probability"] == 1.0
    assert "but there are only 61" in refused(compare, run, other, tests, neighbours=100, say=None)
    by_all = compare(run, run, tests, say=None)["runs"]["first"]  # nobody asked for 200
    assert by_all["neighbours"] == 61


@pytest.mark.fault("k larger than the bank crashes")
def test_neighbours_that_are_not_there(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = copied
    assert measured(run)["settings"]["neighbours"] == COUNT - 1, "200, or as many as there are"

    def embedded(*_: Any, **__: Any) -> None:
        raise AssertionError("hours of embedding came before the refusal")

    monkeypatch.setattr(jobs_evaluate, "collect_vectors", embedded)
    assert f"a picture has {COUNT - 1} labelled others" in refused(measured, run, neighbours=COUNT)
    assert "neighbours is 0" in refused(measured, run, neighbours=0)
    assert "temperature is -1.0" in refused(measured, run, temperature=-1)
    assert 'The temperature is a number or "run"' in refused(measured, run, temperature="warm")


def test_without_labels_the_quality_is_still_there(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for file in picture_folder(tmp_path / "labelled", COUNT).glob("*/*.png"):
        shutil.copy(file, pictures)
    run = train(pictures, tmp_path / "run", tiny(epochs=1), say=None).path
    report = measured(run)
    assert "knn" not in report
    assert 1 <= report["quality"]["effective_rank"] <= 8
    assert report["quality"]["sentence"]
    labels = tmp_path / "labels.csv"
    names = sorted(path.name for path in pictures.iterdir())
    labels.write_text("path,label\n" + "".join(f"{name},{int(name[:4]) % CLASSES}\n" for name in names))
    assert measured(run, labels=labels)["knn"]["count"] == COUNT


@pytest.mark.fault("evaluation overwrites the training bank")
def test_evaluation_changes_nothing_of_the_run(copied: tuple[Path, Path]) -> None:
    _, run = copied

    def state() -> dict[str, str]:
        files = [path for path in run.rglob("*") if path.is_file()]
        return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = state()
    measured(run, bank=True)
    after = state()
    assert set(after) - set(before) == {"evaluation.json", "neighbours.png"}
    assert {name: after[name] for name in before} == before


@pytest.mark.fault("best epoch picked on the test set and reported as the result")
def test_the_last_step_is_reported_though_an_earlier_one_was_better(copied: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, run = copied
    tests = picture_folder(tmp_path / "tests", 40, seed=9)
    better = measured(run, tests, neighbours=5)["knn"]["top1"]
    found = latest(RunFolder(run).checkpoints)
    assert found is not None
    weights = found.tensors("encoder")
    weights["head.weight"] = torch.zeros_like(weights["head.weight"])
    checkpoint.save(
        RunFolder(run).checkpoints,
        step=20,
        tensors={"encoder": weights},
        facts=found.facts,
        shards={"bank": checkpoint.Shard(found.rows("bank", 0, COUNT), 0, COUNT)},
        keep=9,
    )
    report = measured(run, tests, neighbours=5)
    encoder = instdisc.load(run)
    assert report["step"] == 20 and encoder.origin.startswith("step 20 ")
    known, asked = open_source(pictures), open_source(tests)
    expected = KNN(5).fit(encoder.embed(known), known.labels).evaluate(encoder.embed(asked), asked.labels)
    assert report["knn"]["top1"] == expected.top1 < better


def test_a_checkpoint_saved_meanwhile_does_not_mix_two_steps(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that still trains saves a step between any two looks at its folder."""
    _, run = copied
    steps = iter(range(100, 200))
    real = checkpoint.latest

    def saving(folder: Path, **options: Any) -> Any:
        found = real(folder, **options)
        assert found is not None
        rows = found.rows("bank", 0, COUNT)["rows"]
        weights = {name: values * 0 for name, values in found.tensors("encoder").items()}
        checkpoint.save(
            folder,
            step=next(steps),
            tensors={"encoder": weights},
            facts=found.facts,
            shards={"bank": checkpoint.Shard({"rows": rows.flip(0)}, 0, COUNT)},
            keep=9,
        )
        return found

    expected = measured(run, neighbours=5, bank=True)
    monkeypatch.setattr(checkpoint, "latest", saving)
    report = measured(run, neighbours=5, bank=True)
    assert report["step"] == 16
    assert report["knn"] == expected["knn"]
    assert report["quality"] == expected["quality"], "zero weights would have collapsed"


def test_a_run_finds_its_pictures_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture_folder(tmp_path / "a" / "digits", COUNT)  # a folder that is called as a known data set is
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    runs = [
        train(given, f"../run-{number}", tiny(epochs=0.5), say=None).path.absolute()
        for number, given in enumerate(["./digits", "digits/*/*.png", ["digits/red", "digits/green"]])
    ]
    named = train("digits", "../run-named", tiny(epochs=0.05), limit=80, say=None).path.absolute()
    resolved = [path.resolve() for path in runs]
    monkeypatch.chdir(tmp_path / "b")
    for run in resolved:
        assert measured(run)["quality"]["rows"] > 30
    assert measured(named.resolve())["knn"]["count"] == 80
    (tmp_path / "a").rename(tmp_path / "c")
    assert "does not exist" in refused(measured, resolved[0])
    assert measured(resolved[0], train_source=tmp_path / "c" / "digits")["quality"]["rows"] == COUNT
    other = picture_folder(tmp_path / "other", COUNT - 1)
    assert "has other pictures now" in refused(measured, resolved[0], train_source=other)


def test_arrays_are_given_again(tmp_path: Path) -> None:
    run = train(made_pictures(COUNT), tmp_path / "run", tiny(epochs=1), limit=50, say=None).path
    assert "trained on pictures in memory" in refused(measured, run)
    assert measured(run, train_source=made_pictures(COUNT))["quality"]["rows"] == 50


# ---------------------------------------------------------------------------------------------------------------------
# embed


@pytest.mark.parametrize(("suffix", "vectors"), [(".parquet", "search"), (".npy", "embedding")])
def test_embed_writes_the_vectors_of_the_encoder(
    trained: tuple[Path, Path], tmp_path: Path, suffix: str, vectors: str
) -> None:
    pictures, run = trained
    out = tmp_path / f"vectors{suffix}"
    written = embed(run, pictures, out, device="cpu", batch=16, vectors=vectors, say=None)
    expected = instdisc.load(run).embed(pictures, vectors=vectors).numpy()
    assert (written.count, written.dim, written.unreadable) == (COUNT, expected.shape[1], 0)
    source = open_source(pictures)
    table = pq.read_table(out if suffix == ".parquet" else tmp_path / "vectors.ids.parquet")
    vectors = np.load(out) if suffix == ".npy" else np.stack(table["vector"].to_numpy())
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert table["id"].to_pylist() == [source.identifier(row) for row in range(COUNT)]
    assert source.labels is not None
    assert table["label"].to_pylist() == source.labels.tolist()


def test_embed_in_another_precision(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """Near the vectors in float32 and not those; a name that is none is refused before anything is written."""
    pictures, run = trained
    exact = embed(run, pictures, tmp_path / "v.npy", device="cpu", say=None)
    near = embed(run, pictures, tmp_path / "w.npy", device="cpu", precision="bfloat16", say=None)
    vectors, others = np.load(exact.path), np.load(near.path)
    assert not np.array_equal(vectors, others)
    assert (vectors * others).sum(1).min() > 0.99
    assert 'not "half"' in refused(embed, run, pictures, tmp_path / "x.npy", precision="half", say=None)
    assert not list(tmp_path.glob("x.*"))


def test_embed_goes_on_where_it_was_cut_off(
    copied: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instdisc import embeddings
    from instdisc.encoder import Encoder
    from instdisc.jobs import embed as jobs_embed

    pictures, run = copied
    real, embedded = Encoder.embed_stream, []

    def failing(self: Encoder, *arguments: Any, **options: Any) -> Any:
        if len(embedded) == fails_at:
            raise KeyboardInterrupt
        embedded.append(options["rows"])
        return real(self, *arguments, **options)

    def in_small_parts(*arguments: Any, **options: Any) -> Any:
        return embeddings.write_embeddings(*arguments, **options, chunk=10)

    monkeypatch.setattr(Encoder, "embed_stream", failing)
    monkeypatch.setattr(jobs_embed, "write_embeddings", in_small_parts)
    fails_at = 3
    with pytest.raises(KeyboardInterrupt):
        embed(run, pictures, tmp_path / "v.npy", device="cpu", say=None)
    fails_at = 99
    written = embed(run, pictures, tmp_path / "v.npy", device="cpu", say=None)
    assert written.reused == 30
    assert np.concatenate(embedded).tolist() == list(range(COUNT)), "nothing twice"
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), instdisc.load(run).embed(pictures).numpy(), atol=1e-5)

    # The same run trained on is another encoder.
    fails_at = len(embedded) + 1
    with pytest.raises(KeyboardInterrupt):
        embed(run, pictures, tmp_path / "w.npy", device="cpu", say=None)
    fails_at = 999
    found = latest(RunFolder(run).checkpoints)
    assert found is not None
    weights = {name: values * 2 for name, values in found.tensors("encoder").items()}
    checkpoint.save(RunFolder(run).checkpoints, step=99, tensors={"encoder": weights}, facts={})
    assert "another encoder" in refused(embed, run, pictures, tmp_path / "w.npy", device="cpu", say=None)
    assert embed(run, pictures, tmp_path / "w.npy", device="cpu", say=None, restart=True).reused == 0


# ---------------------------------------------------------------------------------------------------------------------
# info, and the Python names


def test_info_on_a_run_and_on_pictures(copied: tuple[Path, Path]) -> None:
    pictures, run = copied
    facts = info(str(run))
    assert facts["pictures"].startswith(f"{COUNT} of ")
    assert "conv6, 16 px, linear head, 8 dimensions" in facts["encoder"]
    assert facts["checkpoint"].startswith("step 16, epoch 4.0")
    assert "at first" in facts["loss"]
    assert "knn" in facts["last measured"]
    assert "evaluated" not in facts
    measured(run)
    assert info(run)["evaluated"].startswith("kNN: search vectors ")
    facts = info(pictures)
    assert facts["pictures"] == str(COUNT)
    assert "16×16" in facts["sizes"]
    assert facts["labels"].startswith("3 classes: ")
    (pictures.parent / "empty").mkdir(exist_ok=True)
    assert "holds no pictures" in refused(info, pictures.parent / "empty")


def test_info_tells_the_loss_from_when_the_bank_has_its_say(copied: tuple[Path, Path]) -> None:
    """Before that it is of other terms alone; a loss that falls would look as if it had risen."""
    _, run = copied
    settings = json.loads((run / "config.json").read_text())
    settings["settings"]["fill_epochs"] = 2.0
    (run / "config.json").write_text(json.dumps(settings))
    lines = [
        {"step": 4 * epoch, "epoch": float(epoch), "loss": [2.0, 1.5, 9.0, 7.25][epoch - 1]} for epoch in (1, 2, 3, 4)
    ]
    for count, words in (
        (2, "1.500 while the bank is being filled"),
        (4, "9.000 at first, 7.250 at last (from epoch 2 on, when the bank was full)"),
    ):
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:count]))
        assert info(run)["loss"] == words


def test_public_names(tmp_path: Path) -> None:
    run = instdisc.train(made_pictures(COUNT), tmp_path / "run", tiny(), epochs=1, lr=0.05, say=None)
    assert run.finished and run.instances == COUNT and run.epochs == 1
    assert json.loads((run.path / "config.json").read_text())["settings"]["lr"] == 0.05
    vectors = instdisc.load(run.path).embed(made_pictures(5))
    assert vectors.shape == (5, instdisc.load(run.path).dimensions()) and vectors.dtype == torch.float32
    assert instdisc.load(run.path).embed(made_pictures(5), vectors="embedding").shape == (5, 8)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    assert torch.equal(run.encoder().embed(made_pictures(5)), vectors)
    assert "at least 16 are needed" in refused(instdisc.train, made_pictures(9), tmp_path / "few", say=None)
    assert "is no setting" in refused(instdisc.train, made_pictures(COUNT), tmp_path / "x", speed=9, say=None)


def test_what_is_refused_is_refused_before_the_pictures_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instdisc.jobs import train as jobs_train

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("all pictures were read before the refusal")

    monkeypatch.setattr(jobs_train, "open_pictures", read)
    pictures = made_pictures(COUNT)
    for wrong in ({"backbone": "resnot18"}, {"crop_scale": "0.9,0.1"}, {"temperature": 0}, {"size": 2}):
        refused(train, pictures, tmp_path / "run", tiny(), say=None, **wrong)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["train.lock"]
