"""Data sets known by name: digits (scikit-learn ships it), cifar10, cifar100 and stl10 (torchvision downloads them)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from instdisc.data.sources.arrays import ArraySource
from instdisc.data.sources.labels import Encoded
from instdisc.data.storage.scan import cache_folder
from instdisc.errors import InputError

Load = Callable[[str], tuple[np.ndarray, Encoded]]  # the pictures and the labels of a split


def open_named(name: str, split: str | None = None, limit: int | None = None) -> ArraySource:
    """Open one of `NAMES`; what has to be downloaded goes to the user's cache folder, once.

    Raises InputError for a split that it has not, and when it can be neither found nor downloaded.
    """
    splits, load = NAMES[name]
    if split is not None and split not in splits:
        known = f"its splits are {', '.join(splits)}" if splits else "leave split out, it has none"
        raise InputError(f"{name} has no split {split}: {known}.")
    part = split or (splits[0] if splits else "")
    pictures, labels = load(part)
    title = f"{name}-{part}" if part else name
    return ArraySource(title, pictures, labels, limit=limit, reopen=(open_named, (name, split, limit)))


def _digits(_: str) -> tuple[np.ndarray, Encoded]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 17 shades, 0..16
    return pictures, (digits.target.astype(np.int64), [str(name) for name in digits.target_names])


def _cifar(name: str) -> Load:
    def load(split: str) -> tuple[np.ndarray, Encoded]:
        from torchvision import datasets

        kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        data = _download(name, lambda folder: kind(folder, train=split == "train", download=True))
        return data.data, (np.asarray(data.targets, dtype=np.int64), list(data.classes))

    return load


def _stl10(split: str) -> tuple[np.ndarray, Encoded]:
    from torchvision import datasets

    data = _download("stl10", lambda folder: datasets.STL10(folder, split=split, download=True))
    # (n, 3, 96, 96) turned without a copy: 100,000 unlabelled pictures are 2.8 GB
    return data.data.transpose(0, 2, 3, 1), (np.asarray(data.labels, dtype=np.int64), list(data.classes))


def _download(name: str, make: Callable[[str], Any]) -> Any:
    folder = cache_folder() / "datasets" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return make(str(folder))
    except (OSError, RuntimeError) as error:  # no network, no room; a file that fails its checksum
        raise InputError(
            f"{name} could not be downloaded to {folder} ({str(error)[:200]}): "
            "connect to the network for the first use, or give the pictures as a folder or Parquet file."
        ) from error


# name -> its splits (the first is the default), and what loads one
NAMES: dict[str, tuple[tuple[str, ...], Load]] = {
    "digits": ((), _digits),
    "cifar10": (("train", "test"), _cifar("cifar10")),
    "cifar100": (("train", "test"), _cifar("cifar100")),
    "stl10": (("train", "test", "unlabeled"), _stl10),
}
