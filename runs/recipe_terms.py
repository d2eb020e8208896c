"""Ways of training tried by choose_recipe.py: each is a Training with a step of its own.

Not part of the library: what wins moves there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from instdisc.data.loading.dataset import Batch
from instdisc.shapes import Float, Tensor
from instdisc.training import Training


class Extra(Training):
    """A step whose loss has one more part, over the embedding of the whole views."""

    def part(self, features: Float[Tensor, "views_batch dim"], images: Batch) -> Tensor | float:
        """What is added to the loss."""
        raise NotImplementedError

    def step(self, parts: Iterator[Batch], planned: int) -> dict[str, torch.Tensor]:
        self._set_learning_rate()
        counting = self.counting
        (part,) = parts
        indices = part.indices.repeat(self.settings.views)
        images = self._views(part)
        with self._autocast:
            features = self._forward(images)
        losses = {name: self.weights[name] * self.terms[name](features, indices, self.bank) for name in counting}
        (sum(losses.values()) + self.part(features, part)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.bank.update(indices, features.detach())
        self.step_number += 1
        return {name: losses[name].detach() if name in losses else torch.zeros(()) for name in self.terms}


class Spread(Extra):
    """The batch's embeddings spread by a log-determinant (Yu et al. 2020), fading out early in the run."""

    weight, until = 0.5, 0.4

    def part(self, features: Tensor, images: Batch) -> Tensor | float:
        weight = self.weight * (1 - self.progress / self.until)
        if weight <= 0:
            return 0.0
        loss = torch.zeros(())
        for view in features.float().chunk(self.settings.views):
            count, dim = view.shape
            gram = torch.eye(dim) + dim / (0.2 * count) * view.T @ view
            loss = loss - torch.linalg.cholesky(gram).diagonal().log().sum() / dim
        return weight * loss


class Local(Extra):
    """Multi-crop (Caron et al. 2020): small views of small parts beside the whole ones, in the later part of the run.

    They meet the rows of the bank, and the whole views as constants; never one another.
    """

    count, scale, side, begin, share = 4, (0.08, 0.4), 0.5, 0.3, 0.5

    def part(self, features: Tensor, images: Batch) -> Tensor | float:
        if self.progress < self.begin:
            return 0.0
        size = 4 * round(self.side * self.view_size / 4)
        augment = replace(self.augment, size=size, scale=self.scale)
        aspects = self.pictures.aspects[images.indices]
        views = [
            augment(images.images, images.indices, aspects, seed=self.settings.seed, step=self.step_number, view=view)
            for view in range(2, 2 + self.count)
        ]
        with _still_statistics(self.encoder), self._autocast:
            local = self._forward(torch.cat(views)).float()
        indices = images.indices.repeat(self.count)
        bank = self.terms[self.settings.objective](local, indices, self.bank)
        whole = features.detach().float()
        batch = len(images.indices)
        scores = local @ whole.T / self.settings.temperature
        own = torch.arange(batch).repeat(self.count)[:, None] == torch.arange(batch).repeat(self.settings.views)
        others = scores.masked_fill(own, -torch.inf).logsumexp(1)
        noise = self.terms["views"].noise
        rows = self.bank.log_partition(
            local, self.settings.temperature, among=noise.indices(indices, self.bank), without=indices
        )
        others = torch.stack([others, rows.masked_fill(torch.isneginf(rows), -torch.inf)]).logsumexp(0)
        positives = scores[own].reshape(len(local), -1)
        contrast = nn.functional.softplus(others[:, None] - positives).mean()
        return self.share * (bank + contrast)


@contextmanager
def _still_statistics(encoder: nn.Module) -> Iterator[None]:
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


WAYS: dict[str, type[Training]] = {"spread": Spread, "local": Local}
