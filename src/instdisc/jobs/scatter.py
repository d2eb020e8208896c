"""How far random views of a picture lie from it, in a published encoder's features: what search vectors weigh down.

    whitening = fit_whitening(moments, stages, scatter=view_scatter(encoder, source, rows))

A network that this run has trained on random views hardly sees them any more; a published one does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from instdisc import draws, ranks
from instdisc.data.augment import centre
from instdisc.data.loading.dataset import open_pictures
from instdisc.data.sources.source import Source
from instdisc.data.sources.subset import Subset
from instdisc.encoder import Encoder
from instdisc.encoder.backbones import evaluating
from instdisc.encoder.whitening import Moments
from instdisc.progress import Bar
from instdisc.shapes import Int
from instdisc.training import DataFacts, preset

VIEWED = 500  # pictures: twice as many gave 0.2 points more on CIFAR-10, and none on digits and photographs
_BATCH = 64
_APART = (1 << 40) + 3  # as the step of a draw: no step of a run


def view_scatter(encoder: Encoder, source: Source, rows: Int[np.ndarray, " pictures"], *, seed: int = 0) -> Moments:
    """Moments of (a random view's features - the picture's own), by one view of at most 500 of `rows`.

    The levels are `encoder.frozen_levels()`, side by side; the views those of the preset from_pretrained. Every rank
    calls it, and has the sums over all. Raises what reading the pictures raises.
    """
    view, device = encoder.preprocessing, next(encoder.parameters()).device
    sample = rows
    if len(rows) > VIEWED:
        sample = np.sort(rows[draws.permutation(len(rows), seed=seed, step=_APART)[:VIEWED]])
    start, stop = ranks.share(len(sample))
    settings = replace(preset("from_pretrained", DataFacts(len(rows), view.size, device.type)), size=view.size)
    augment, levels = settings.augmentation(view.mean, view.std), encoder.frozen_levels()
    moments = Moments(tuple(levels.values()), device)
    if stop > start:
        chosen = Subset(source, sample[start:stop])
        pictures = open_pictures(chosen, settings.stored_side, device, storage="workers", workers=0)
        bar = Bar(pictures.count, "Looking at random views", "pictures", enabled=ranks.is_main())
        with evaluating(encoder), bar:
            order = np.arange(pictures.count)
            for batch in pictures.batches([order[at : at + _BATCH] for at in range(0, len(order), _BATCH)]):
                aspects = pictures.aspects[batch.indices]
                whole = centre(
                    batch.images,
                    aspects,
                    size=view.size,
                    crop_fraction=view.crop_fraction,
                    mean=view.mean,
                    std=view.std,
                )
                own = torch.from_numpy(sample[start + pictures.rows[batch.indices.cpu().numpy()]]).to(device)
                shown = augment(batch.images, own, aspects, seed=seed, step=_APART)
                both = [encoder.stage_features(images, tuple(levels)) for images in (shown, whole)]
                moments.add(both[0] - both[1])
                bar.advance(len(whole))
        pictures.close()
    return moments.total()
