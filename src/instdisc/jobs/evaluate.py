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

from instdisc import ranks
from instdisc.allocator import keep_freed_memory
from instdisc.data.decoding.decode import decode
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.encoder import Encoder, build_encoder
from instdisc.errors import InputError
from instdisc.evaluation.baselines import knn_accuracy
from instdisc.evaluation.quality import health, sample_rows
from instdisc.files import write_json
from instdisc.jobs.frozen import compared_with, published_knn
from instdisc.jobs.measures import (
    bank_quality,
    best_vectors,
    check_measures,
    further_measures,
    needs_levels,
    own_bank_rows,
    plain,
)
from instdisc.jobs.run import Run
from instdisc.jobs.semi import METHODS, SHARES, check_shares, few_labels
from instdisc.jobs.sources import log_lines, look_at
from instdisc.jobs.vectors import PIXEL_SIDE, Vectors, collect_vectors, whitened, with_bank_rows
from instdisc.jobs.voting import check_votes, everywhere, neighbours_of, temperature_of
from instdisc.neighbours import top_k
from instdisc.progress import Bar
from instdisc.report import few_labels_plot, neighbour_sheet
from instdisc.runs import RunFolder
from instdisc.shapes import Float, Tensor
from instdisc.training import Settings
from instdisc.version import __version__

_UNTRAINED_SEED = 12345
_SHEET_QUERIES, _SHEET_NEIGHBOURS = 10, 10
Opened = tuple[tuple[Source, Vectors], tuple[Source | None, Vectors | None]]  # training, test


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
    published: str | None = None,
    weights: str | Path | None = None,
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
    published, weights: a published encoder to compare with, frozen (jobs/frozen.py): its name, its safetensors file.
    labels: of `source`, or of the training pictures without one. train_source: where the training pictures are now.
    Raises InputError for an invalid argument.
    """
    with ranks.distributed():
        return _evaluate(
            Run(run, train_source=train_source, verify=None),
            source,
            list(measures),
            neighbours,
            temperature,
            bank,
            labels,
            shares,
            device,
            batch,
            (published, weights),
            say,
        )


def _evaluate(
    run: Run,
    source: Any,
    measures: list[str],
    neighbours: int | None,
    temperature: float | str,
    bank: bool,
    labels: Any,
    shares: Sequence[float],
    device: str,
    batch: int,
    published: tuple[str | None, str | Path | None],
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    started = time.monotonic()
    check_measures(measures)
    check_shares(shares)
    votes_temperature = temperature_of(temperature, run.facts)
    torch_device = ranks.device(device)
    keep_freed_memory(torch_device.type)
    encoder = run.encoder(device)
    training, testing = _sources(run, source, labels)
    log = say if say is not None and ranks.is_main() else None
    log_lines(log, (testing or training).label_notes)
    check_votes(neighbours, votes_temperature, training, leave_one_out=testing is None)
    bank_rows = own_bank_rows(run, len(training)) if bank or "quality" in measures else None
    random = replace(encoder.config, pretrained=False)  # whatever the run began with
    fresh = build_encoder(random, seed=_UNTRAINED_SEED).to(torch_device)
    # pixels are compared at the pictures' own size where that is small: enlarging them would only blur them
    shown = look_at(training).side
    side = min(PIXEL_SIDE, encoder.preprocessing.size, shown)
    other = compared_with(*published, shown, torch_device, log)
    scratch = _scratch(run.folder)
    levels = needs_levels(measures)
    try:
        train = collect_vectors(training, encoder, fresh, side, scratch / "train", batch, log, with_levels=levels)
        test = None
        if testing is not None:
            test = collect_vectors(testing, encoder, fresh, side, scratch / "test", batch, log, with_levels=levels)
        own = None if bank_rows is None or "quality" not in measures else bank_quality(run, *bank_rows, train)
        if bank and bank_rows is not None:
            train = with_bank_rows(train, *bank_rows)
        report = _without_labels(run, ((training, train), (testing, test)), torch_device)
        if own is not None:
            report["bank_quality"] = own
        if train.labels is not None and (test is None or test.labels is not None):
            k = neighbours_of(neighbours, train, leave_one_out=test is None)
            train, test = _with_untrained_whitened(train, test, list(fresh.search_levels().values()))
            report |= _accuracies(train, test, k, votes_temperature, torch_device)
            if other is not None:
                votes = {"neighbours": k, "temperature": votes_temperature}
                report["baselines"] |= published_knn(other, training, testing, scratch, **votes)
            report["best"] = best_vectors(report)
            how = _how(k, votes_temperature, train, test, bank)
            report["settings"] = how | {"published": None if other is None else other.origin}
            report |= further_measures(measures, train, test, torch_device)
            opened = (training, train), (testing, test)
            if "semi" in measures:
                report["semi"] = _with_few_labels(run, encoder, opened, shares, torch_device, log)
        if ranks.is_main() and ranks.world() == 1:
            report["neighbours_sheet"] = _draw_sheet(run.folder, training, train, testing, test)
        ranks.barrier()  # on success only: after an error on one rank the others would never come here
    finally:
        if ranks.is_main():
            shutil.rmtree(scratch, ignore_errors=True)
    return _written(run.folder, report | _when(torch_device, started))


def _written(folder: RunFolder, report: dict[str, Any]) -> dict[str, Any]:
    """The report, kept in the run."""
    if ranks.is_main():
        write_json(folder.evaluation, report)
    return report


def _how(k: int, temperature: float, train: Vectors, test: Vectors | None, bank: bool) -> dict[str, Any]:
    """What the accuracies were measured with."""
    return {
        "neighbours": k,
        "temperature": temperature,
        "mode": "leave-one-out on the training pictures" if test is None else "test pictures",
        "train_vectors": "bank rows" if bank else "recomputed without augmentation",
        "raw_pixels_side": int((train.pixels.shape[1] // 3) ** 0.5),
        "untrained_seed": _UNTRAINED_SEED,
    }


def _when(device: torch.device, started: float) -> dict[str, Any]:
    """Where and when it was measured, and how long that took."""
    seconds = round(time.monotonic() - started, 2)
    here = {"device": str(device), "ranks": ranks.world(), "seconds": seconds}
    return here | {"date": time.strftime("%Y-%m-%d"), "instdisc": __version__}


def _sources(run: Run, source: Any, labels: Any) -> tuple[Source, Source | None]:
    """The training pictures, and the test pictures if there are any, their classes numbered alike."""
    training = run.source()
    if source is None and labels is not None:
        training.set_labels(labels)
    testing = None if source is None else open_source(source, labels=labels)
    if testing is not None:
        testing.number_like(training)
    return training, testing


def _without_labels(run: Run, opened: Opened, device: torch.device) -> dict[str, Any]:
    """The report as far as it needs no labels, and why there are none, if there should be."""
    (training, train), (testing, test) = opened
    report = {
        "run": str(run.path),
        "step": run.checkpoint.step,
        "epoch": run.checkpoint.facts.get("epoch"),
        "train": {"source": training.name, "pictures": everywhere(len(train.rows))},
        "test": None if test is None or testing is None else _about(testing, test),
        "quality": asdict(health(_sample_of_all((test or train).trained, device))),
    }
    problems = [of.labels_problem for of in (training, testing) if of is not None and of.labels_problem]
    return report | ({"labels_problem": problems[0]} if problems else {})


def _with_few_labels(
    run: Run,
    encoder: Encoder,
    opened: Opened,
    shares: Sequence[float],
    device: torch.device,
    log: Callable[[str], None] | None,
) -> dict[str, Any]:
    """What few labels give, with its plot. opened: sources and vectors of the training and the test pictures."""
    (training, train), (testing, test) = opened
    chosen = run.facts["chosen"]
    found = few_labels(
        encoder,
        partial(build_encoder, replace(encoder.config, pretrained=False)),
        training,
        train,
        testing,
        test,
        Settings.from_dict(run.facts["settings"]),
        log or (lambda _: None),
        run.folder.few_labels_draws,
        shares=shares,
        # What the trial of the training found faster, where this is the same kind of device.
        precision=chosen["precision"] if chosen["device"].startswith(device.type) else "auto",
    )
    return found | {"plot": _draw_semi(run.folder, found)}


def _scratch(folder: RunFolder) -> Path:
    """One folder for all ranks, beside the run's files, for vectors that need not fit memory."""
    made = None
    if ranks.is_main():
        try:
            made = tempfile.mkdtemp(prefix=".evaluating-", dir=folder.path)
        except OSError:  # a run on a read-only disk can be evaluated too, but not write its evaluation.json
            made = tempfile.mkdtemp(prefix="instdisc-")
    return Path(ranks.broadcast_object(made))


def _sample_of_all(vectors: np.ndarray, device: torch.device) -> Float[Tensor, "sample dim"]:
    """At most 4,096 vectors of all ranks together, for the label-free figures."""
    own = sample_rows(torch.from_numpy(vectors), 4096 // ranks.world())
    return ranks.gather(own.to(device)).cpu()


def _accuracies(
    train: Vectors, test: Vectors | None, neighbours: int, temperature: float, torch_device: torch.device
) -> dict[str, Any]:
    device = torch_device if torch_device.type == "cuda" else torch.device("cpu")

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
        return plain(result)

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


def _about(source: Source, vectors: Vectors) -> dict[str, Any]:
    return {
        "source": source.name,
        "pictures": everywhere(len(vectors.rows)),
        "unreadable": everywhere(vectors.unreadable),
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
