"""A run folder kept from each format opens in this version: it is searched, measured, trained on; a newer one is not.

tests/kept/format-1.zip holds run/, its pictures/ and answers.json, what that version itself answered.

    python tests/jobs/test_old_runs.py        # keeps a run of the present format, where none is kept yet
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import picture_folder, tiny

import instdisc
from instdisc import cli
from instdisc.errors import InputError
from instdisc.jobs.collection import Collection
from instdisc.jobs.evaluate import evaluate
from instdisc.jobs.search import search
from instdisc.jobs.train import train
from instdisc.runs import FORMAT, RunFolder
from instdisc.training import read_metrics

KEPT = Path(__file__).parents[1] / "kept"
FORMATS = range(1, FORMAT + 1)


def keep() -> None:
    """Make format-N.zip of the present format."""
    file = KEPT / f"format-{FORMAT}.zip"
    if file.exists():
        sys.exit(f"{file} is kept already: an older version must not be made by a newer one.")
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = picture_folder(folder / "pictures", 24)
        run = train(pictures, folder / "run", tiny(epochs=1, batch=12), say=None).path
        shutil.rmtree(run / "tensorboard")
        (folder / "answers.json").write_text(json.dumps(answers(run, pictures)))
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.write(path, path.relative_to(folder))


def answers(run: Path, pictures: Path) -> dict[str, list[list[float]]]:
    """Vectors of some pictures by the encoder, and those in the bank."""
    some = sorted(map(str, pictures.rglob("*.png")))[::8]
    bank = Collection(run, train_source=str(pictures)).index.vectors(np.arange(0, 24, 8))
    return {"encoder": instdisc.load(run).embed(some).tolist(), "bank": bank.tolist()}


@pytest.fixture(params=FORMATS)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with run/ and pictures/ of that format, moved to where they never were."""
    with zipfile.ZipFile(KEPT / f"format-{request.param}.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_every_format_is_kept_and_small() -> None:
    assert sorted(path.name for path in KEPT.iterdir()) == [f"format-{number}.zip" for number in FORMATS]
    assert all(path.stat().st_size < 200_000 for path in KEPT.iterdir())


def test_it_answers_as_it_did(kept: Path) -> None:
    then = json.loads((kept / "answers.json").read_text())
    now = answers(kept / "run", kept / "pictures")
    np.testing.assert_allclose(now["encoder"], then["encoder"], atol=1e-4)
    np.testing.assert_array_equal(now["bank"], then["bank"])


def test_it_is_searched_and_measured(kept: Path) -> None:
    asked = sorted((kept / "pictures").rglob("*.png"))[5]
    (found,) = search(kept / "run", [asked], neighbours=3)
    assert len(found) == 3
    evaluate(kept / "run", train_source=str(kept / "pictures"), say=None)
    assert (kept / "run" / "evaluation.json").is_file()


def test_it_is_trained_on(kept: Path) -> None:
    run = RunFolder(kept / "run")
    before = [line for line in read_metrics(run) if "loss" in line]
    config = run.config.read_bytes()
    with pytest.raises(InputError, match=r"other settings \(epochs"):
        train(kept / "pictures", run.path, tiny(epochs=2, batch=12), resume=True, say=None)
    # As if it had been interrupted: its settings said two epochs from the beginning.
    facts = json.loads(config)
    facts["settings"]["epochs"] = 2
    run.config.write_text(json.dumps(facts))
    done = train(kept / "pictures", run.path, tiny(epochs=2, batch=12), resume=True, say=None)
    after = [line for line in read_metrics(run) if "loss" in line]
    assert done.finished and done.epochs == 2
    assert before and after[: len(before)] == before and after[-1]["step"] == 2 * before[-1]["step"]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (FORMAT + 1, rf"made by a newer version of instdisc \(format {FORMAT + 1}, .*\): upgrade instdisc"),
        (0, "does not say its format"),
        ("1", "does not say its format"),
        (None, "does not say its format"),
    ],
)
def test_a_newer_run_and_one_without_a_format_are_refused(
    found: object, words: str, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(kept / "run")
    facts = json.loads(run.config.read_text())
    run.config.write_text(json.dumps(facts | {"format": found}))
    for act in (
        lambda: instdisc.load(run.path),
        lambda: evaluate(run.path, say=None),
        lambda: search(run.path, [next((kept / "pictures").rglob("*.png"))]),
        lambda: train(kept / "pictures", run.path, tiny(epochs=1, batch=12), resume=True, say=None),
    ):
        with pytest.raises(InputError, match=words):
            act()
    monkeypatch.setattr(sys, "argv", ["instdisc", "evaluate", str(run.path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out


if __name__ == "__main__":
    keep()
