"""`instdisc train RUN --add`: a run that grows by new pictures, and drops those that are gone.

Rows of pictures that are kept stay as they are; rows of new and of edited pictures start as the run's own encoder
embeds them; then old and new take part in a short run. All of it happens in RUN/growing/, a run folder of its own: a
kill leaves RUN untouched, and --resume goes on. At the end its files are put in the places of RUN's, all or none.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instdisc import ranks
from instdisc.checkpoint import Checkpoint
from instdisc.data.loading.quarantine import Quarantine
from instdisc.encoder.backbones import evaluating
from instdisc.errors import InputError, advice
from instdisc.files import csv_text, held, read_json, replace_together, write_json, write_text, write_whole
from instdisc.jobs import journal, review
from instdisc.jobs.additions import Grown, gather
from instdisc.jobs.collection import Collection
from instdisc.jobs.identity import unreadable_before
from instdisc.jobs.index import changing, recompute
from instdisc.jobs.monitor import evaluation_view
from instdisc.jobs.run import Run
from instdisc.jobs.start import Start
from instdisc.jobs.train import RunResult, train_on
from instdisc.runs import RunFolder
from instdisc.search.store import Changes, write_changes
from instdisc.training import Settings, Training

SHARE, RATE = 0.1, 0.5  # of the epochs and of the learning rate of the run's start: chosen by runs/adding.py
_WARMUP = 0.1  # of the short run
_BATCH = 256
_PLAN, _ROWS = "plan.json", "rows.npy"  # what the end of an addition needs, in RUN/growing/
Say = Callable[[str], None] | None


def grow(
    run: str | Path,
    source: Any = None,
    *,
    labels: Any = None,
    split: str | None = None,
    limit: int | None = None,
    train_source: Any = None,
    resume: bool = False,
    device: str = "auto",
    say: Say = print,
    **overrides: Any,
) -> RunResult:
    """Take new pictures into a run and train on for a little; pictures that have gone leave it.

    source: where new pictures are, beside those that came to the run's own sources and to its index since; as `train`
        takes it, with labels, split, limit. train_source: where the run's own pictures are now, if they were moved.
    resume: go on with an addition that was interrupted, or start it where there is none.
    overrides: any field of Settings; without epochs or minutes, a tenth of the run's epochs, at half its learning rate.
    Ids, hand labels and tags of kept pictures stay. Raises InputError for an invalid argument. Examples:

        grow("runs/mine")                                    # pictures that came to the folder it was trained on
        grow("runs/mine", "new/", epochs=5)
    """
    with ranks.distributed():
        if ranks.world() > 1:
            raise InputError("An addition is one process's work: start it without torchrun.")
    folder = RunFolder(run)
    if "opened" in folder.read_config()["chosen"]:
        raise InputError(
            f"{folder.path} was opened and not trained, so there is nothing to train on: `instdisc open` the pictures "
            f"again, or add them by `instdisc index {folder.path} --add`."
        )
    log: Callable[[str], None] = say if say is not None else _silent
    stage = RunFolder(folder.growing)

    def told(words: str) -> None:  # of a run in RUN/growing/, which is at its end RUN itself
        log(words.replace(str(stage.path), str(folder.path)))

    with held(folder.lock, "training there"):
        if stage.exists() and not resume:
            raise InputError(
                f"{folder.path} holds an addition that was interrupted: go on with it by --resume, or delete "
                f"{stage.path} to begin again."
            )
        begun = Run(stage.path) if stage.exists() else None
        if begun is not None:
            facts = begun.facts
            start = Start(begun.source(), facts["source"], Settings.from_dict(facts["settings"]), overrides)
        else:
            given = None if source is None else {"given": source, "labels": labels, "split": split, "limit": limit}
            collection = Collection(folder.path, train_source=train_source)
            grown = gather(collection, given, say)
            if not grown.changes_anything:
                log("Nothing has changed: every picture is in the run, as it is now.")
                return _ended(folder, collection.saved, len(collection.rows))
            start = _begun(collection, grown, overrides, ranks.device(device).type)
            _prepare(stage, grown)
            log(f"Adding: {grown.words}.")
        found = train_on(start, stage, begun, None, device, told)
        if not found.finished:
            return replace(found, path=folder.path)
        _take_over(folder, stage, device, say)
    log(f"The addition is in {folder.path}.")
    return replace(found, path=folder.path)


def _ended(folder: RunFolder, saved: Checkpoint, count: int) -> RunResult:
    """What is said of a run to which nothing was added."""
    return RunResult(folder.path, count, float(saved.facts["epoch"]), float(saved.facts["seconds"]), True, 0)


def _begun(collection: Collection, grown: Grown, overrides: dict[str, Any], kind: str) -> Start:
    """The short run: its pictures, settings, and what it starts from. kind: of the device."""
    facts, saved = collection.facts, collection.saved
    before = list(facts.get("grown", ()))
    settings = Settings.from_dict(facts["settings"])
    if settings.objective == "parametric":
        raise InputError("A run with objective=parametric has a weight for each picture and can't grow: train again.")
    done, whole = float(saved.facts.get("epoch", 0.0)), float(saved.facts.get("progress", 1.0))
    if whole < 1 and not {"epochs", "minutes"} & overrides.keys():
        raise InputError(
            f"{collection.folder.path} has not ended: go on with `instdisc train {facts['source']['given']} --out "
            f"{collection.folder.path} --resume`, or say by --epochs or --minutes how long the addition trains."
        )
    past = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "epochs": done,
        "step": saved.step,
        "settings": facts["settings"],
        "pictures": len(collection.rows),
        "new": int(grown.fresh.sum()),
        "gone": grown.gone,
    }
    first = before[0] if before else past
    origin = Settings.from_dict(first["settings"])
    chosen = replace(
        short_run(origin, float(first["epochs"])),
        seed=origin.seed + len(before) + 1,
        pretrained=settings.pretrained,
        bank_dtype=facts["chosen"].get("bank_dtype", settings.bank_dtype),
        precision=facts["chosen"]["precision"] if facts["chosen"]["device"].startswith(kind) else settings.precision,
    )
    if chosen.with_overrides(overrides).encoder != settings.encoder:
        raise InputError(
            "An addition goes on with the network of the run: leave its settings and the size as they are."
        )
    if chosen.pretrained is not False:  # whatever has become of the file that the run began with
        chosen = replace(chosen, pretrained=str(saved.path.absolute() / "encoder.safetensors"))
    return Start(
        grown.source, grown.described, chosen, overrides, [*before, past], partial(_warm, saved=saved, grown=grown)
    )


def short_run(origin: Settings, epochs: float) -> Settings:
    """The settings of an addition, from those of the run at its start and the epochs that it took.

    Views are whole all the time, and the bank is full from the first step. Examples:

        short_run(Settings(epochs=200), 200.0).epochs        # 20
    """
    length = max(1.0, SHARE * epochs * origin.growth.mean_cost)
    return replace(
        origin,
        epochs=length,
        minutes=None,
        warmup=_WARMUP * length,
        schedule="cosine",
        lr=RATE * origin.lr,
        vector_lr=RATE * origin.vector_lr,
        fill_epochs=0.0,
        group_from=0.0,
        early_sizes=(),
        grow_at=(),
    )


def _warm(training: Training, *, saved: Checkpoint, grown: Grown) -> None:
    """Weights of the run; bank rows of kept pictures; rows of the others as the encoder embeds their pictures."""
    training.encoder.load_state_dict(saved.tensors("encoder"))
    terms = training.terms.state_dict()
    before_terms = saved.tensors("objective") if terms and (saved.path / "objective.safetensors").is_file() else {}
    if {name: values.shape for name, values in terms.items()} == {n: v.shape for n, v in before_terms.items()}:
        training.terms.load_state_dict(before_terms)  # another objective may have been set
    rows, pictures, bank = saved.bank_rows(), training.pictures, training.bank
    before = grown.bank_row[pictures.rows]  # the bank row that each instance had, -1 for none
    edges = np.cumsum([0, *map(len, rows)])
    for shard, first, last in zip(rows, edges[:-1], edges[1:], strict=True):
        here = np.flatnonzero((before >= first) & (before < last))
        for some in np.array_split(here, -(-len(here) // 65_536)) if len(here) else []:
            bank.fill(torch.from_numpy(some), shard[torch.from_numpy(before[some] - first)])
    fresh = np.flatnonzero(before < 0)
    pieces = [fresh[start : start + _BATCH] for start in range(0, len(fresh), _BATCH)]
    with evaluating(training.encoder):
        for batch in pictures.batches(pieces):
            bank.fill(batch.indices, training.encoder(evaluation_view(training, batch)))
    training.save()


def _prepare(stage: RunFolder, grown: Grown) -> None:
    """A new RUN/growing/ with what its end needs; whatever a kill left there, which was no run yet, goes."""
    shutil.rmtree(stage.path, ignore_errors=True)
    try:
        stage.path.mkdir()
        np.save(stage.path / _ROWS, grown.new_row)
    except OSError as error:
        raise InputError(f"{stage.path} can't be made ({error.strerror or error}): {advice(error)}.") from None
    write_json(stage.path / _PLAN, {"parts": grown.parts, "moved": grown.moved})


def _take_over(folder: RunFolder, stage: RunFolder, device: str, say: Say) -> None:
    """Put the files of the addition in the places of the run's, with its collection as it is by now."""
    plan, new_row = read_json(stage.path / _PLAN), np.load(stage.path / _ROWS)
    with changing(folder.path):
        old = Collection(folder.path)
        grown = Run(stage.path)
        before, count = old.changes, len(grown.rows)
        taken, later = before.added[: plan["parts"]], before.added[plan["parts"] :]
        if len(old.rows) + sum(len(part.vectors) for part in taken) != len(new_row):
            raise InputError(
                f"The index of {folder.path} was reset while the addition went on: delete {stage.path}, and start the "
                "addition again."
            )
        new_row = _by_instances(grown.rows, new_row)
        rows = np.r_[new_row, count + np.arange(sum(len(part.vectors) for part in later))]
        changes = Changes(
            grown.checkpoint.step,
            added=tuple(replace(part, name="") for part in later),
            removed=_mapped(rows, before.removed),
            tags={name: mapped for name, marked in before.tags.items() if len(mapped := _mapped(rows, marked))},
        )
        write_changes(stage.index, changes)
        if before.recomputed is not None or before.added:
            recompute(stage.path, device=device, say=say)
        number = 1 + len(old.facts.get("grown", ()))
        _keep_past(folder, grown, number)
        if plan["moved"]:
            _move_labels(old.run, stage, plan["moved"])
        names = dict.fromkeys((_PLAN, _ROWS, "index/lock"), "") | {
            path.relative_to(stage.path).as_posix(): f"tensorboard/grown-{number}/{path.name}"
            for path in stage.tensorboard.rglob("*")
            if path.is_file()
        }
        replace_together(folder.path, stage.path, _outdated(folder), names)


def _by_instances(kept: np.ndarray, new_row: np.ndarray) -> np.ndarray:
    """Rows of the gathered pictures as rows of the collection: those that could not be read have none."""
    position = np.full(int(max(kept.max(), new_row.max())) + 2, -1)
    position[kept] = np.arange(len(kept))
    return position[new_row]  # -1 takes the last, which is -1


def _mapped(rows: np.ndarray, marked: np.ndarray) -> np.ndarray:
    found = rows[marked]
    return np.sort(found[found >= 0])


def _keep_past(folder: RunFolder, grown: Run, number: int) -> None:
    """Metrics and evaluation of before, under names with a number; pictures that can't be read still are listed."""
    there = {os.fsdecode(name) for name in grown.instances["location"].to_pylist()}
    listed = Quarantine(grown.folder.quarantine)
    for identifier, path, reason in unreadable_before(folder):
        if path not in there:
            listed.add(identifier, path, reason)
    for file in (folder.metrics, folder.evaluation):
        if file.is_file():
            shutil.copyfile(file, grown.path / f"{file.stem}-{number}{file.suffix}")


def _move_labels(run: Run, stage: RunFolder, moved: dict[str, str]) -> None:
    """The labels by hand, their journal and the decisions of a review, with the paths as they are now."""
    lines = [(moved.get(path, path), label, when) for path, (label, when) in run.hand_labels().items()]
    if lines:
        write_text(stage.hand_labels, csv_text(journal.COLUMNS, lines))
    if (found := journal.rewritten(run.folder, lambda path: moved.get(path, path))) is not None:
        write_whole(stage.journal, found[0])
    if (found := review.rewritten(run.folder, lambda path: moved.get(path, path))) is not None:
        write_whole(stage.review, found[0])


def _outdated(folder: RunFolder) -> list[Path]:
    """What belongs to the run as it was: checkpoints, vectors, its map and graph."""
    whole = [path for path in folder.checkpoints.rglob("*") if path.is_file()]
    index = [
        path
        for path in folder.index.rglob("*")
        if path.is_file() and path not in (folder.thumbnails, folder.index / "lock")
    ]
    single = [folder.map, folder.search_vectors, folder.metrics, folder.evaluation, folder.quarantine]
    return [*whole, *index, *(path for path in single if path.is_file())]


def _silent(_: str) -> None:
    """Take no notice."""
