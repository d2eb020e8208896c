"""`instdisc evaluate`: how good a run's vectors are, beside what raw pixels and an untrained encoder give.

All vectors (vectors.py) are kept in files beside the run while the evaluation lasts, so that memory does not grow with
the collection; with several ranks each holds its share.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instdisc import __version__, checkpoint, ranks
from instdisc.allocator import keep_freed_memory
from instdisc.data.decode import decode
from instdisc.data.source import Source, open_source
from instdisc.encoder import build_encoder
from instdisc.errors import InputError
from instdisc.evaluation.baselines import knn_accuracy
from instdisc.evaluation.knn import KNN, KNNResult
from instdisc.evaluation.quality import health, sample_rows
from instdisc.jobs.measures import bank_quality, check_measures, further_measures, needs_levels
from instdisc.jobs.semi import METHODS, SHARES, check_shares, few_labels
from instdisc.jobs.sources import look_at, read_facts, read_rows, reopen
from instdisc.jobs.vectors import PIXEL_SIDE, Vectors, collect_vectors, stages_of, whitened, with_bank_rows
from instdisc.neighbours import top_k
from instdisc.progress import Bar
from instdisc.report import few_labels_plot, neighbour_sheet
from instdisc.runs import RunFolder, write_json
from instdisc.shapes import Float, Tensor
from instdisc.training import Settings

NEIGHBOURS = 200
_UNTRAINED_SEED = 12345
_SHEET_QUERIES, _SHEET_NEIGHBOURS = 10, 10


def evaluate(
    run: str | Path,
    source: Any = None,
    *,
    measures: Sequence[str] = ("knn",),
    neighbours: int | None = None,
    temperature: float | str = 0.07,
    bank: bool = False,
    labels: Any = None,
    train_source: Any = None,
    shares: Sequence[float] = SHARES,
    device: str = "auto",
    batch: int = 256,
    say: Callable[[str], None] | None = print,
) -> dict[str, Any]:
    """Weighted kNN of a run's vectors, with baselines; also written to RUN/evaluation.json.

    `knn` and `retrieval` of the report are of the embedding, by which the method is judged; `knn_search` and
    `retrieval_search` of the search vectors, by which people search, where the run has them. So with the baselines: an
    untrained encoder's embedding, and its features whitened as search vectors are.

    source: labelled test pictures, classified by the training pictures; None = leave-one-out on the training pictures
        (for svm and linear: a fifth of them, held out).
    measures: beside knn, which is always there: "svm" and "linear" (classifiers on every level of features),
        "semi" (fine-tuning with some `shares` of the labels), "retrieval" (mean average precision, recall), "quality"
        (drift of the bank, neighbours since the save before).
    neighbours: k; None = 200, or as many as there are. temperature: of the votes, or "run" for the run's own.
    bank: take the bank's own rows for the training pictures, and not vectors recomputed without augmentation.
    labels: of `source`, or of the training pictures without one. train_source: where the training pictures are now.
    Raises InputError, with a sentence for a person, for what can't be.
    """
    with ranks.together():
        return _evaluate(
            run, source, list(measures), neighbours, temperature, bank, labels, train_source, shares, device, batch, say
        )


def _evaluate(
    run: str | Path,
    source: Any,
    measures: list[str],
    neighbours: int | None,
    temperature: float | str,
    bank: bool,
    labels: Any,
    train_source: Any,
    shares: Sequence[float],
    device: str,
    batch: int,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    started = time.monotonic()
    folder = RunFolder(run)
    facts = read_facts(folder)
    check_measures(measures)
    check_shares(shares)
    votes_temperature = float(facts["settings"]["temperature"]) if temperature == "run" else _number(temperature)
    place = ranks.device(device)
    keep_freed_memory(place.type)
    saved = checkpoint.latest(folder.checkpoints)  # once: encoder and bank of one step, though the run may still train
    encoder = checkpoint.load_encoder(run, saved).to(place)
    assert saved is not None  # load_encoder refuses that
    training = reopen(folder, facts, train_source)
    if source is None and labels is not None:
        training.set_labels(labels)
    testing = None if source is None else open_source(source, labels=labels)
    if testing is not None:
        testing.number_like(training)
    _check_votes(neighbours, votes_temperature, training, leave_one_out=testing is None)
    bank_rows = _own_bank_rows(folder, saved, len(training)) if bank or "quality" in measures else None
    fresh = build_encoder(encoder.config, seed=_UNTRAINED_SEED).to(place)
    fresh_stages = stages_of(fresh)
    tell = say if say is not None and ranks.is_main() else None
    # pixels are compared at the pictures' own size where that is small: enlarging them would only blur them
    side = min(PIXEL_SIDE, encoder.preprocessing.size, look_at(training).side)
    aside = _scratch(folder)
    try:
        train, test = (
            None
            if of is None
            else collect_vectors(
                of, encoder, fresh, side, aside / name, batch, tell, with_levels=needs_levels(measures)
            )
            for name, of in (("train", training), ("test", testing))
        )
        assert train is not None
        own = None if bank_rows is None or "quality" not in measures else bank_quality(folder, saved, *bank_rows, train)
        if bank and bank_rows is not None:
            train = with_bank_rows(train, *bank_rows)
        report: dict[str, Any] = {
            "run": str(folder.path),
            "step": saved.step,
            "epoch": saved.facts.get("epoch"),
            "train": {"source": training.name, "pictures": _everywhere(len(train.rows))},
            "test": None if test is None or testing is None else _about(testing, test),
            "quality": asdict(health(_sample_of_all((test or train).trained, place))),
        }
        if own is not None:
            report["bank_quality"] = own
        known = train.labels is not None and (test is None or test.labels is not None)
        if known:
            k = _how_many(neighbours, train, leave_one_out=test is None)
            train, test = _with_untrained_whitened(train, test, list(fresh_stages.values()))
            report |= _accuracies(train, test, k, votes_temperature, place)
            mode = "test pictures" if test is not None else "leave-one-out on the training pictures"
            report["settings"] = {
                "neighbours": k,
                "temperature": votes_temperature,
                "mode": mode,
                "train_vectors": "bank rows" if bank else "recomputed without augmentation",
                "raw_pixels_side": int((train.pixels.shape[1] // 3) ** 0.5),
                "untrained_seed": _UNTRAINED_SEED,
            }
            report |= further_measures(measures, train, test, place)
            if "semi" in measures:
                chosen = facts["chosen"]
                report["semi"] = few_labels(
                    encoder,
                    partial(build_encoder, encoder.config),
                    training,
                    train,
                    testing,
                    test,
                    Settings.from_dict(facts["settings"]),
                    tell or (lambda _: None),
                    folder.few_labels_draws,
                    shares=shares,
                    # What the trial of the training found faster, where this is the same kind of device.
                    precision=chosen["precision"] if chosen["device"].startswith(place.type) else "auto",
                )
                report["semi"]["plot"] = _draw_semi(folder, report["semi"])
        if ranks.is_main() and ranks.world() == 1:
            report["neighbours_sheet"] = _draw_sheet(folder, training, train, testing, test)
        ranks.barrier()  # on success only: after an error on one rank the others would never come here
    finally:
        if ranks.is_main():
            shutil.rmtree(aside, ignore_errors=True)
    report |= {
        "device": str(place),
        "ranks": ranks.world(),
        "seconds": round(time.monotonic() - started, 2),
        "date": time.strftime("%Y-%m-%d"),
        "instdisc": __version__,
    }
    if ranks.is_main():
        write_json(folder.evaluation, report)
    return report


def _number(temperature: float | str) -> float:
    try:
        return float(temperature)
    except ValueError:
        raise InputError(f'The temperature is a number or "run", not "{temperature}".') from None


def _scratch(folder: RunFolder) -> Path:
    """One folder for all ranks, beside the run's files, for vectors that need not fit memory."""
    made = None
    if ranks.is_main():
        try:
            made = tempfile.mkdtemp(prefix=".evaluating-", dir=folder.path)
        except OSError:  # a run on a read-only disk can be evaluated too, but not write its evaluation.json
            made = tempfile.mkdtemp(prefix="instdisc-")
    return Path(ranks.broadcast_object(made))


def _check_votes(neighbours: int | None, temperature: float, training: Source, *, leave_one_out: bool) -> None:
    """Refuse a k or a temperature that can't be before everything is embedded, which can take hours."""
    KNN(NEIGHBOURS if neighbours is None else neighbours, temperature)
    if neighbours is not None and training.labels is not None:
        most = int((training.labels >= 0).sum()) - leave_one_out
        if neighbours > most:
            raise InputError(
                f"{neighbours} neighbours were asked for, but a picture has {most} labelled others: lower k."
            )


def _own_bank_rows(folder: RunFolder, saved: checkpoint.Checkpoint, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """For this rank's share of the source: the source rows that have a bank row, and those rows (n, dim) float32."""
    rows = read_rows(folder)
    low, high = np.searchsorted(rows, ranks.share(pictures)).tolist()
    return rows[low:high], saved.bank(low, high).numpy()


def _sample_of_all(vectors: np.ndarray, place: torch.device) -> Float[Tensor, "sample dim"]:
    """At most 4,096 vectors of all ranks together, for the label-free figures."""
    own = sample_rows(torch.from_numpy(vectors), 4096 // ranks.world())
    return ranks.gather(own.to(place)).cpu()


def _how_many(asked: int | None, train: Vectors, *, leave_one_out: bool) -> int:
    """k: what was asked for (kNN refuses what can't be), or 200, or all the labelled pictures there are."""
    if asked is not None:
        return asked
    assert train.labels is not None
    labelled = _everywhere(int((train.labels >= 0).sum()))
    return max(1, min(NEIGHBOURS, labelled - leave_one_out))


def _everywhere(count: int) -> int:
    return sum(ranks.sizes(count))


def _accuracies(
    train: Vectors, test: Vectors | None, neighbours: int, temperature: float, place: torch.device
) -> dict[str, Any]:
    device = place if place.type == "cuda" else torch.device("cpu")

    def measure(kind: str, *, centre: bool = False) -> dict[str, Any] | None:
        if getattr(train, kind) is None:
            return None
        result = knn_accuracy(
            getattr(train, kind),
            train.labels,
            None if test is None else getattr(test, kind),
            None if test is None else test.labels,
            neighbours=neighbours,
            temperature=temperature,
            centre=centre,
            device=device,
            sharded=True,
        )
        bar.advance()
        return _plain(result)

    with Bar(6, "Measuring kNN", "kinds of vectors", enabled=ranks.is_main()) as bar:
        found = {"knn": measure("trained"), "knn_search": measure("search")}
        baselines = {
            "untrained": measure("untrained"),
            "untrained_whitened": measure("untrained_features"),
            "raw_pixels": measure("pixels"),
            "raw_pixels_centred": measure("pixels", centre=True),
        }
    known = {name: result for name, result in found.items() if result is not None}
    return known | {"baselines": {name: result for name, result in baselines.items() if result is not None}}


def _with_untrained_whitened(
    train: Vectors, test: Vectors | None, channels: list[int]
) -> tuple[Vectors, Vectors | None]:
    """Both, with the untrained encoder's features whitened on the training pictures: an honest baseline."""
    assert train.untrained_features is not None
    asked = None if test is None else test.untrained_features
    known, found = whitened(train.untrained_features, asked, channels)
    return replace(train, untrained_features=known), None if test is None else replace(test, untrained_features=found)


def _plain(result: KNNResult) -> dict[str, Any]:
    return {"top1": result.top1, "top5": result.top5, "interval": list(result.interval), "count": result.count}


def _about(source: Source, vectors: Vectors) -> dict[str, Any]:
    return {
        "source": source.name,
        "pictures": _everywhere(len(vectors.rows)),
        "unreadable": _everywhere(vectors.unreadable),
    }


def _draw_sheet(
    folder: RunFolder, training: Source, train: Vectors, testing: Source | None, test: Vectors | None
) -> str | None:
    """RUN/neighbours.png: some pictures and their nearest neighbours, to look at."""
    asked, asked_source = (test, testing) if test is not None and testing is not None else (train, training)
    count = min(_SHEET_NEIGHBOURS, len(train.rows) - (test is None))
    chosen = np.unique(np.linspace(0, len(asked.rows) - 1, _SHEET_QUERIES).astype(int))
    if asked.labels is not None:  # one of each class is more to look at than any ten
        classes, first = np.unique(asked.labels, return_index=True)
        chosen = first[classes >= 0][:_SHEET_QUERIES]
    if len(chosen) == 0 or count < 1:
        return None
    exclude = torch.from_numpy(chosen) if test is None else None
    vectors, queries = (one.trained if one.search is None else one.search for one in (train, asked))
    asking = torch.from_numpy(np.array(queries[chosen]))
    scores, found = top_k(asking, torch.from_numpy(vectors), count, exclude=exclude)
    neighbour_sheet(
        [decode(asked_source.read(int(asked.rows[row]))) for row in chosen],
        [[decode(training.read(int(train.rows[row]))) for row in line] for line in found.tolist()],
        scores.tolist(),
        folder.neighbours_sheet,
        query_labels=_names(asked_source, asked, chosen),
        neighbour_labels=None
        if train.labels is None
        else [_names(training, train, line) or [] for line in found.numpy()],
    )
    return folder.neighbours_sheet.name


def _draw_semi(folder: RunFolder, section: dict[str, Any]) -> str | None:
    """RUN/semi.png, where matplotlib is there."""
    try:
        few_labels_plot(section["shares"], METHODS, folder.few_labels_plot)
    except InputError:
        return None
    return folder.few_labels_plot.name


def _names(source: Source, vectors: Vectors, chosen: np.ndarray) -> list[str] | None:
    """The labels of some pictures in words, "" where one has none."""
    if vectors.labels is None:
        return None
    return [source.class_name(value) for value in vectors.labels[chosen].tolist()]
