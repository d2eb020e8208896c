"""`instdisc report`: one HTML file about one or several runs, to look at and to send.

Everything comes from the run folder and the training pictures: its search vectors, which are computed once where they
are missing, or the rows of the bank where the run has none.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from instdisc import draws
from instdisc.data.decoding.decode import UnreadableError, decode
from instdisc.data.sources.source import Source
from instdisc.errors import InputError
from instdisc.evaluation.knn import KNN
from instdisc.files import read_json, write_whole
from instdisc.jobs.index import searchable
from instdisc.jobs.info import about_run
from instdisc.jobs.measures import knn_rows
from instdisc.jobs.run import Run
from instdisc.neighbours import top_k
from instdisc.report import Accuracy, Confusion, Gallery, Map, PageRun, page, training_curves
from instdisc.runs import RunFolder
from instdisc.shapes import Float, Tensor

QUERIES, NEIGHBOURS = 10, 10  # of the gallery
MOST_POINTS = 2_500  # of the map, and pictures tried for the confusions
CONFUSIONS, EXAMPLES = 8, 6
_VOTERS = 200
_THUMBNAIL, _POINT = 96, 48  # pixels a side
_SEED = 0


def report(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    train_source: Any = None,
    say: Callable[[str], None] | None = print,
) -> Path:
    """Write the report of `runs` to the HTML file `out`, which opens without a network.

    train_source: where the training pictures are now, if they were moved. Raises InputError for an invalid argument.
    """
    if not runs:
        raise InputError("A report needs at least one run folder.")
    log = say if say is not None else (lambda _: None)
    opened = [Run(run, train_source=train_source, verify=None) for run in runs]
    settings = [run.facts["settings"] for run in opened]
    names = {name for one in settings for name in one}
    different = frozenset(name for name in names if len(runs) > 1 and len({str(one.get(name)) for one in settings}) > 1)
    pages = []
    for run in opened:
        log(f"Looking at {run.path}.")
        pages.append(_page_run(run, different, log))
    title = " and ".join(str(run) for run in runs)
    write_whole(Path(out), page(pages, f"instdisc: {title}"))
    return Path(out)


def _page_run(run: Run, different: frozenset[str], log: Callable[[str], None]) -> PageRun:
    folder = run.folder
    if run.last_checkpoint is None:
        raise InputError(f"{folder.path} has no checkpoint yet: there is nothing to report.")
    source, rows = run.source(), run.rows
    collection = searchable(run, say=log)
    vectors = collection.index.vectors(np.arange(len(rows)))
    kind = "search vectors" if collection.vectors == "search" else "vectors"
    labels = None if source.labels is None else source.labels[rows]
    order = draws.permutation(len(rows), seed=_SEED, step=0)
    sample = np.sort(order[:MOST_POINTS])
    accuracies, about, sentences = _evaluation(folder)
    log("  The gallery and the confusions.")
    gallery = _gallery(source, rows, vectors, labels, order)
    confusions = [] if labels is None else _confusions(source, rows, vectors, labels, sample)
    log(f"  The map of {len(sample):,} pictures.")
    return PageRun(
        name=str(folder.path),
        facts={name: words for name, words in about_run(run).items() if name != "run"},
        settings=run.facts["settings"],
        curves=_curves(folder),
        few_labels=_few_labels(folder),
        accuracies=accuracies,
        about_accuracies=about,
        sentences=sentences,
        gallery=gallery,
        confusions=confusions,
        map=_map(source, rows, vectors, labels, sample, kind),
        different=different,
    )


def _evaluation(folder: RunFolder) -> tuple[list[Accuracy], str, list[str]]:
    """The lines of evaluation.json, where there is one."""
    if not folder.evaluation.is_file():
        return [], "", ["It was not evaluated yet: instdisc evaluate measures it."]
    found = read_json(folder.evaluation)
    sentences = [found["quality"]["sentence"], *found.get("bank_quality", {"sentences": []})["sentences"]]
    if "knn" not in found:
        return [], "", sentences
    lines = [(f"kNN, {words}", one) for words, one in knn_rows(found)]
    for kind, words in (("svm", "linear SVM"), ("linear", "linear probe")):
        lines += [(f"{words}, {level}", one) for level, one in found.get(kind, {"levels": {}})["levels"].items()]
    settings = found["settings"]
    return (
        [Accuracy(name, one["top1"], tuple(one["interval"]), one["top5"]) for name, one in lines],
        f"Weighted kNN, k = {settings['neighbours']}, {settings['mode']}.",
        sentences,
    )


def _few_labels(folder: RunFolder) -> bytes | None:
    """The drawing of the last evaluation, if that one was of few labels."""
    measured = folder.evaluation.is_file() and read_json(folder.evaluation).get("semi", {}).get("plot")
    return folder.few_labels_plot.read_bytes() if measured and folder.few_labels_plot.is_file() else None


def _curves(folder: RunFolder) -> bytes | None:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            training_curves(folder.metrics, Path(scratch) / "curves.png")
        except InputError:  # without matplotlib, or before the first epoch: a report without curves
            return None
        return (Path(scratch) / "curves.png").read_bytes()


def _gallery(
    source: Source, rows: np.ndarray, vectors: Float[Tensor, "n dim"], labels: np.ndarray | None, order: np.ndarray
) -> list[Gallery]:
    """Some pictures, of different classes where there are labels, and their neighbours."""
    chosen = order[:QUERIES]
    if labels is not None:
        _, first = np.unique(labels[order], return_index=True)
        chosen = np.concatenate([order[np.sort(first)], np.delete(order, first)])[:QUERIES]
    count = min(NEIGHBOURS, len(rows) - 1)
    positions = torch.from_numpy(chosen)
    scores, found = top_k(vectors[positions], vectors, count, exclude=positions)
    gallery = []
    for query, line, cosines in zip(chosen.tolist(), found.tolist(), scores.tolist(), strict=True):
        neighbours = [
            (_thumbnail(source, int(rows[row]), _THUMBNAIL), _label(source, labels, row), cosine)
            for row, cosine in zip(line, cosines, strict=True)
        ]
        gallery.append(
            Gallery(_thumbnail(source, int(rows[query]), _THUMBNAIL), _label(source, labels, query), neighbours)
        )
    return gallery


def _confusions(
    source: Source, rows: np.ndarray, vectors: Float[Tensor, "n dim"], labels: np.ndarray, sample: np.ndarray
) -> list[Confusion]:
    """What a sample is taken for by the other pictures: the pairs of classes that are mixed up most often."""
    others = labels.copy()
    others[sample] = -1  # the sample does not vote, so that no picture is its own neighbour
    voters = int((others >= 0).sum())
    if voters < _VOTERS:  # a small collection: half of the sample is tried by the rest
        sample = sample[: len(sample) // 2]
        others = labels.copy()
        others[sample] = -1
        voters = int((others >= 0).sum())
    asked = sample[labels[sample] >= 0]
    if not voters or not len(asked):
        return []
    named = KNN(min(_VOTERS, voters)).fit(vectors, others).predict(vectors[torch.from_numpy(asked)]).numpy()
    wrong = named != labels[asked]
    pairs = Counter(zip(labels[asked][wrong].tolist(), named[wrong].tolist(), strict=True))
    found = []
    for (true, taken), count in pairs.most_common(CONFUSIONS):
        examples = asked[wrong & (labels[asked] == true) & (named == taken)][:EXAMPLES]
        pictures = [_thumbnail(source, int(rows[row]), _THUMBNAIL) for row in examples]
        found.append(Confusion(source.class_name(true), source.class_name(taken), count, pictures))
    return found


def _map(
    source: Source,
    rows: np.ndarray,
    vectors: Float[Tensor, "n dim"],
    labels: np.ndarray | None,
    sample: np.ndarray,
    kind: str,
) -> Map | None:
    """t-SNE of a sample of the rows: cosine distances, from the two main directions on."""
    if len(sample) < 10:
        return None
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(sample) - 1) / 3)
    shown_at = vectors[torch.from_numpy(sample)].numpy()
    points = TSNE(perplexity=perplexity, init="pca", random_state=_SEED, metric="cosine").fit_transform(shown_at)
    columns = int(np.ceil(len(sample) ** 0.5))
    sheet = Image.new("RGB", (columns * _POINT, -(-len(sample) // columns) * _POINT))
    for number, row in enumerate(sample):
        corner = (number % columns * _POINT, number // columns * _POINT)
        sheet.paste(_square(source, int(rows[row]), _POINT), corner)
    shown = np.full(len(sample), -1) if labels is None else labels[sample]
    known = np.unique(shown[shown >= 0])
    codes = np.where(shown >= 0, np.searchsorted(known, shown), -1)
    return Map(
        points.astype(float),
        codes,
        [source.class_name(int(value)) for value in known],
        _jpeg(sheet, quality=70),
        columns,
        _POINT,
        f"t-SNE of the {kind} of {len(sample):,} pictures (perplexity {perplexity:.0f}): near means alike; "
        "distances between groups mean little. Point at one to see its picture.",
    )


def _label(source: Source, labels: np.ndarray | None, row: int) -> str:
    return "" if labels is None else source.class_name(int(labels[row]))


def _thumbnail(source: Source, row: int, side: int) -> bytes:
    return _jpeg(_square(source, row, side), quality=80)


def _square(source: Source, row: int, side: int) -> Image.Image:
    """The middle of a picture as a square; grey where it can't be read any more."""
    try:
        picture = Image.fromarray(decode(source.read(row)))
    except UnreadableError:
        return Image.new("RGB", (side, side), (128, 128, 128))
    # few pixels shown large should look like pixels and not like a blurred photograph
    enlarged = min(picture.size) < side
    method = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return ImageOps.fit(picture, (side, side), method)


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return content.getvalue()
