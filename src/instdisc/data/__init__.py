"""Pictures from anywhere to batches on the device: sources, decoding, stored pixels, augmentation.

    source = open_source("pictures/")                        # rows with stable ids: sources/, a file a kind
    pictures = open_pictures(source, size=224, device=...)   # decoded once, or by workers: loading/
    view = Augmentation(size=224)(images, indices, ...)      # on whole batches, on the device: augment/

The names are imported when first asked for: listing a folder needs no torch, and a worker that decodes has no room
for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instdisc.data.augment import Augmentation as Augmentation
    from instdisc.data.decoding.decode import UnreadableError as UnreadableError
    from instdisc.data.loading.dataset import Pictures as Pictures
    from instdisc.data.loading.dataset import open_pictures as open_pictures
    from instdisc.data.loading.quarantine import Quarantine as Quarantine
    from instdisc.data.sources.open import open_source as open_source
    from instdisc.data.sources.source import Source as Source

_HOMES = {  # public name -> the module below this package that defines it
    "Augmentation": "augment",
    "Pictures": "loading.dataset",
    "Quarantine": "loading.quarantine",
    "Source": "sources.source",
    "UnreadableError": "decoding.decode",
    "open_pictures": "loading.dataset",
    "open_source": "sources.open",
}

__all__ = [
    "Augmentation",
    "Pictures",
    "Quarantine",
    "Source",
    "UnreadableError",
    "open_pictures",
    "open_source",
]


def __getattr__(name: str) -> Any:
    """Import the home of a name when somebody first asks for it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'instdisc.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"instdisc.data.{_HOMES[name]}"), name)
