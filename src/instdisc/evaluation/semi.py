"""Learning from a few labels: a trained encoder, or a fresh one, goes on learning with a classifier on its features.

    tuned = FineTuning(augmentation).fit(encoder, pictures, instances, labels)    # `instances` are those with labels
    tuned.accuracy(test_pictures, test_labels)

The paper's semi-supervised test: what a share of the labels is worth with and without what was learned
from all the pictures. A linear layer stands on the backbone's pooled features, and both learn by AdamW with a cosine
schedule after a short warm-up, from random crops. The encoder that was given is left as it is.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from instdisc import draws
from instdisc.data.augment import Augmentation, centre
from instdisc.data.loading.dataset import Pictures
from instdisc.encoder import Encoder
from instdisc.encoder.embed import autocast
from instdisc.errors import InputError
from instdisc.evaluation.rows import integers
from instdisc.progress import Bar
from instdisc.schedule import Schedule
from instdisc.shapes import Float, Tensor

_BATCH = 128
_TEST_BATCH = 512
_WARMUP = 0.05  # of the steps
_VIEWS = 50_000  # seen in all where labels are few: more epochs then, within bounds
_FEWEST_EPOCHS, _MOST_EPOCHS = 30, 200


class FineTuning:
    """A classifier made of an encoder's backbone and a linear layer, trained on labelled pictures.

    augmentation: of the training pictures. rate: AdamW's learning rate at its highest. epochs: passes over the labelled
    pictures; None = about 50,000 views in all, between 30 and 200 passes. precision: as in `Encoder.embed`.
    After `fit`: `classes_` (ascending) and `network_`, normalised pictures to a score for each of them.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        *,
        rate: float = 1e-3,
        weight_decay: float = 0.05,
        epochs: int | None = None,
        precision: str = "auto",
        seed: int = 0,
    ) -> None:
        if rate <= 0 or weight_decay < 0 or (epochs is not None and epochs < 1):
            raise InputError(
                "Fine-tuning takes a positive rate, at least one epoch and no negative weight decay, "
                f"not {rate}, {epochs} and {weight_decay}."
            )
        self.augmentation, self.rate, self.weight_decay = augmentation, rate, weight_decay
        self.epochs, self.precision, self.seed = epochs, precision, seed

    def fit(
        self,
        encoder: Encoder,
        pictures: Pictures,
        instances: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> FineTuning:
        """Learn from the pictures `instances` (n numbers of `pictures`) with their labels (n whole numbers from 0).

        A picture that stands there several times is seen as often in each epoch. weights: float (n), of each picture's
        part of the loss, as sure as its label is; None = 1 each. Raises InputError where there are fewer than two
        classes.
        """
        values = integers(labels, len(instances))
        self.classes_, codes = np.unique(values, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError("Fine-tuning tells classes apart: the labels name fewer than two.")
        device, self._view = pictures.device, encoder.preprocessing
        of_instance = torch.zeros(pictures.count, dtype=torch.long, device=device)
        of_instance[torch.from_numpy(instances).to(device)] = torch.from_numpy(codes).to(device)
        sure = torch.ones(pictures.count, device=device)
        if weights is not None:
            sure[torch.from_numpy(instances).to(device)] = torch.from_numpy(weights).float().to(device)
        network = _with_classifier(encoder, len(self.classes_)).to(device)
        self.network_ = network.to(memory_format=torch.channels_last) if device.type != "mps" else network
        epochs = self.epochs or max(_FEWEST_EPOCHS, min(_MOST_EPOCHS, _VIEWS // len(instances)))
        per_epoch = max(1, round(len(instances) / min(_BATCH, max(2, len(instances) // 8))))
        orders = (draws.permutation(len(instances), seed=self.seed, step=epoch) for epoch in range(epochs))
        parts = (part for order in orders for part in np.array_split(instances[order], per_epoch))
        decayed = [parameter for parameter in self.network_.parameters() if parameter.ndim > 1]
        plain = [parameter for parameter in self.network_.parameters() if parameter.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=self.rate,
        )
        steps = epochs * per_epoch
        schedule = Schedule("cosine", warmup=_WARMUP)
        self.network_.train()
        with Bar(steps, f"Fine-tuning on {len(instances):,} labels", "steps") as bar:
            for step, batch in enumerate(pictures.batches(parts)):
                if len(batch.indices) < 2:  # batch statistics need two
                    continue
                images = self.augmentation(
                    batch.images, batch.indices, pictures.aspects[batch.indices], seed=self.seed, step=step
                )
                with autocast(device, self.precision):
                    scores = self.network_(images)
                losses = cross_entropy(scores.float(), of_instance[batch.indices], reduction="none")
                (sure[batch.indices] * losses).mean().backward()
                for group in optimizer.param_groups:
                    group["lr"] = self.rate * schedule.factor((step + 0.5) / steps)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                bar.advance()
        return self

    def predict(self, pictures: Pictures, instances: np.ndarray) -> np.ndarray:
        """The label of each picture, seen as for evaluation; -1 for one that can't be read."""
        found = np.full(pictures.count, -1)
        view = self._view
        parts = [instances[first : first + _TEST_BATCH] for first in range(0, len(instances), _TEST_BATCH)]
        self.network_.eval()
        with torch.no_grad():
            for batch in pictures.batches(parts):
                seen = centre(
                    batch.images,
                    pictures.aspects[batch.indices],
                    size=view.size,
                    crop_fraction=view.crop_fraction,
                    mean=view.mean,
                    std=view.std,
                )
                with autocast(pictures.device, self.precision):
                    scores = self.network_(seen)
                found[batch.indices.cpu().numpy()] = self.classes_[scores.argmax(1).cpu().numpy()]
        return found[instances]

    def accuracy(self, pictures: Pictures, labels: np.ndarray) -> float:
        """The share of all labelled pictures that are named rightly, in [0, 1]; labels: one each, negative = none."""
        values = integers(labels, pictures.count)
        known = np.flatnonzero(values >= 0)
        if not len(known):
            raise InputError("No test picture has a label, and accuracy needs labels: name them with --labels.")
        return float((self.predict(pictures, known) == values[known]).mean())


class _Classifier(nn.Module):
    def __init__(self, backbone: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.top = nn.Linear(channels, classes)
        nn.init.zeros_(self.top.weight)
        nn.init.zeros_(self.top.bias)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return self.top(self.backbone(images))


def _with_classifier(encoder: Encoder, classes: int) -> nn.Module:
    """A copy of the backbone under a new linear layer, which starts from zero: all classes alike."""
    return _Classifier(copy.deepcopy(encoder.backbone), encoder.channels, classes)
