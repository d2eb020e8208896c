"""instdisc: learn to tell pictures apart without labels, by non-parametric instance discrimination.

    run = instdisc.train("pictures/", out="runs/first")     # an encoder, a bank of one unit row a picture, a log
    encoder = instdisc.load("runs/first")
    vectors = encoder.embed(["cat.jpg", "dog.jpg"])         # (2, 128) float32, unit rows

Every public name is imported on first use (PEP 562), so `import instdisc` costs milliseconds and `instdisc --help`
never pays for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from instdisc.version import __version__ as __version__

if TYPE_CHECKING:
    from instdisc import objectives as objectives
    from instdisc.bank import MemoryBank as MemoryBank
    from instdisc.checkpoint import load_encoder as load
    from instdisc.data.augment import Augmentation as Augmentation
    from instdisc.data.loading.indexed import IndexedDataset as IndexedDataset
    from instdisc.encoder import Encoder as Encoder
    from instdisc.errors import InputError as InputError
    from instdisc.evaluation.knn import KNN as KNN
    from instdisc.jobs.estimator import InstanceDiscrimination as InstanceDiscrimination
    from instdisc.jobs.handle import Handle as open
    from instdisc.jobs.train import train as train


# public name -> (module, attribute); an attribute of None means the module itself.
_HOMES: dict[str, tuple[str, str | None]] = {
    "Augmentation": ("instdisc.data.augment", "Augmentation"),
    "Encoder": ("instdisc.encoder", "Encoder"),
    "IndexedDataset": ("instdisc.data.loading.indexed", "IndexedDataset"),
    "InputError": ("instdisc.errors", "InputError"),
    "InstanceDiscrimination": ("instdisc.jobs.estimator", "InstanceDiscrimination"),
    "KNN": ("instdisc.evaluation.knn", "KNN"),
    "MemoryBank": ("instdisc.bank", "MemoryBank"),
    "load": ("instdisc.checkpoint", "load_encoder"),
    "objectives": ("instdisc.objectives", None),
    "open": ("instdisc.jobs.handle", "Handle"),
    "train": ("instdisc.jobs.train", "train"),
}

__all__ = [
    "KNN",
    "Augmentation",
    "Encoder",
    "IndexedDataset",
    "InputError",
    "InstanceDiscrimination",
    "MemoryBank",
    "__version__",
    "load",
    "objectives",
    "open",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the home of a public name when somebody first asks for it, and remember the answer."""
    if name not in _HOMES:
        raise AttributeError(f"module 'instdisc' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    home = importlib.import_module(module)
    value = home if attribute is None else getattr(home, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
