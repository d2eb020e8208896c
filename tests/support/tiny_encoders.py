"""A small encoder and made pictures, for the tests of encoding."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import nn

from instdisc.encoder import Encoder, build_encoder

TINY = {"backbone": "conv6", "width": 4, "dim": 16, "image_size": 32}


def tiny(**changes: object) -> Encoder:
    """A small encoder whose batch statistics are not those of a fresh one, so that the modes differ."""
    encoder = build_encoder({**TINY, **changes}, seed=3)
    generator = torch.Generator().manual_seed(0)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return encoder


def arrays(count: int, height: int = 32, width: int = 32) -> list[np.ndarray]:
    draws = np.random.default_rng(count)
    return list(draws.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without detail finer than some pixels, on which good resizing methods agree."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(7 * rows + 3 * columns), np.cos(5 * columns), np.sin(9 * rows * columns)]
    return np.uint8(127.5 + 120 * np.stack(waves, axis=-1))


def png(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()
