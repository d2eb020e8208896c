"""What the loops beside this file share: handwritten digits, an encoder, a bank, an objective and an augmentation."""

from dataclasses import dataclass, field

import torch
from sklearn.datasets import load_digits

from instdisc import Augmentation, IndexedDataset, MemoryBank, objectives
from instdisc.encoder import EncoderConfig, build_encoder


@dataclass
class Parts:
    """Of the method; a loop adds a loader and an optimizer."""

    encoder: torch.nn.Module
    dim: int
    objective: torch.nn.Module
    augment: Augmentation
    data: IndexedDataset
    labels: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def new_bank(self) -> MemoryBank:
        """Each process's part of the rows: to be made once the processes have met."""
        return MemoryBank(len(self.data), self.dim)


def digits() -> Parts:
    """1,797 digits of 8 pixels a side, stored as uint8 (3, 8, 8)."""
    found = load_digits()
    images = torch.from_numpy(found.images * 255 / 16).to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
    return Parts(
        build_encoder(EncoderConfig(backbone="conv6", width=16, dim=64, image_size=16), seed=0),
        64,
        objectives.NonParametricSoftmax(temperature=0.1),
        Augmentation(16, scale=(0.5, 1.0), grey=0.0, jitter=0.5, hue=0.0),
        IndexedDataset(images),
        torch.from_numpy(found.target),
    )
