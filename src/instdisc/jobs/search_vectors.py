"""The map to search vectors (encoder/whitening.py) of a run: fitted at its end, or later for a run that has none.

It is fitted on a sample of the training pictures, as they are, in seconds; RUN/search_vectors.safetensors keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from instdisc import draws, ranks
from instdisc.data.loading.kept import KeptViews
from instdisc.data.sources.source import Source
from instdisc.encoder import Encoder
from instdisc.encoder.backbones import DEVIATION, evaluating
from instdisc.encoder.embed import stream
from instdisc.encoder.whitening import Moments, NoSearchVectorsError, Whitening, fit_whitening, load_whitening
from instdisc.errors import InputError
from instdisc.jobs.monitor import evaluation_view
from instdisc.progress import Bar
from instdisc.runs import RunFolder
from instdisc.shapes import Int, Tensor
from instdisc.training import Settings, Training

SAMPLE = 5_000  # pictures: more change nothing that can be measured (results/search_vectors.json)
_BATCH = 256
_APART = (1 << 40) + 1  # as the step of a draw: no step of a run, and not the monitor's
Say = Callable[[str], None]


def finish_search_vectors(training: Training, say: Say) -> None:
    """Fit the map at the end of a run and keep it, unless that was done; every rank calls it.

    Says so, and leaves the run without a map, where none can be made: before the first epoch has ended, of features
    that are all equal.
    """
    run, pictures, encoder = training.run, training.pictures, training.encoder
    if ranks.on_main(lambda: has_map(run, training.step_number)):
        return
    if training.epoch < 1:
        say("Search vectors: none, as the run ended before its first epoch did. Searches use the embedding.")
        return
    sample = sample_of(np.arange(pictures.count), training.settings.seed)
    start, stop = ranks.share(len(sample))
    rows = sample[start:stop]
    pieces = [rows[first : first + _BATCH] for first in range(0, len(rows), _BATCH)]

    def blocks() -> Iterator[Tensor]:
        for batch in pictures.batches(pieces):
            if isinstance(pictures, KeptViews):
                yield pictures.whole_levels(batch)
            else:
                yield evaluation_view(training, batch)

    try:
        published = training.settings.goes_on
        whitening = fitted(encoder, blocks(), training.step_number, stop - start, published=published)
    except NoSearchVectorsError as error:
        say(f"Search vectors: none. {error} Searches use the embedding.")
        return
    ranks.on_main(lambda: whitening.save(run.search_vectors))
    say(f"Search vectors: {described(whitening)}.")


def fit_from_source(
    run: RunFolder, encoder: Encoder, source: Source, rows: Int[np.ndarray, " pictures"], step: int, seed: int = 0
) -> Whitening:
    """Fit the map on pictures read from `source` (some of `rows`), keep it in the run folder, and give it back.

    Every rank calls it. Raises NoSearchVectorsError where none can be made.
    """
    sample = sample_of(rows, seed)
    start, stop = ranks.share(len(sample))
    device = next(encoder.parameters()).device
    chunks = stream(
        source,
        encoder.preprocessing,
        lambda pixels: {"pixels": encoder.preprocessing.normalise(pixels.to(device))},
        batch=_BATCH,
        on_unreadable=_skipped,
        rows=sample[start:stop],
    )
    images = (values["pixels"].to(device) for _, values in chunks)
    published = Settings.from_dict(run.read_config()["settings"]).goes_on
    whitening = fitted(encoder, images, step, stop - start, published=published)
    ranks.on_main(lambda: whitening.save(run.search_vectors))
    return whitening


def fitted(encoder: Encoder, images: Iterable[Tensor], step: int, count: int, *, published: bool = False) -> Whitening:
    """The map of an encoder's features of these normalised pictures, `count` in all, this rank's share of them.

    published: of a network that stays near a published one: the map is of its end and its last stages. Of such a one
    the blocks may be these features themselves, (block, width).
    """
    stages = encoder.frozen_levels() if published else encoder.search_levels()
    shown = Bar(count, "Fitting search vectors", "pictures", enabled=ranks.is_main())
    with evaluating(encoder), ranks.fail_together(), shown as bar:
        moments = Moments(tuple(stages.values()), next(encoder.parameters()).device)
        for block in images:
            moments.add(block if block.ndim == 2 else encoder.stage_features(block, tuple(stages)))
            bar.advance(len(block))
    return fit_whitening(moments.total(), tuple(stages), step=step)


def sample_of(rows: Int[np.ndarray, " pictures"], seed: int) -> Int[np.ndarray, " sample"]:
    """At most 5,000 of them, drawn once for all, ascending."""
    if len(rows) <= SAMPLE:
        return rows
    return np.sort(rows[draws.permutation(len(rows), seed=seed, step=_APART)[:SAMPLE]])


def has_map(run: RunFolder, step: int) -> bool:
    """Whether the run has a whole map for this step: a damaged one is made again."""
    try:
        return load_whitening(run.search_vectors, step) is not None
    except InputError:
        return False


def described(whitening: Whitening) -> str:
    """The map in words."""
    facts = whitening.facts
    stages = [name for name in facts.stages if not name.endswith(DEVIATION)]
    both = " (mean and deviation)" if len(stages) < len(facts.stages) else ""
    return (
        f"{whitening.dim} dimensions from {', '.join(stages)}{both}, whitened on {facts.pictures:,} pictures; "
        "the embedding stays for evaluations of the method"
    )


def _skipped(row: int, name: str, reason: str) -> None:
    """A picture that can't be read is listed by what embeds it."""
