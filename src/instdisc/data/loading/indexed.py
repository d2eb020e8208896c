"""Any data set with the number of each instance: what a bank must know beside the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import Dataset


class IndexedDataset(Dataset[tuple[Any, int]]):
    """A map-style data set whose samples are (picture, index): `index` is the picture's row of the bank.

    dataset: anything with `len` and `[index]`: torchvision's, `datasets.Dataset`, a tensor, a list. picture: what of a
    sample is the picture; without it the sample, of a tuple or list the first, of a mapping its "image".

    Examples:
        >>> from instdisc import IndexedDataset
        >>> digits = IndexedDataset([("zero.png", 0), ("one.png", 1)])
        >>> len(digits), digits[1]
        (2, ('one.png', 1))
    """

    def __init__(self, dataset: Any, picture: Callable[[Any], Any] | None = None) -> None:
        self.dataset, self.picture = dataset, picture or _picture_of

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.picture(self.dataset[index]), index


def _picture_of(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return sample["image"]
    return sample[0] if isinstance(sample, tuple | list) else sample
