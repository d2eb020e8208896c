"""scikit-learn's form: pictures in, unit vectors out, in a Pipeline.

model = make_pipeline(InstanceDiscrimination(epochs=20), LinearSVC()).fit(images, labels)
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from instdisc.encoder import Encoder
from instdisc.jobs.train import train
from instdisc.shapes import Float


class InstanceDiscrimination(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Learn an encoder from pictures alone (`fit`) and turn pictures into its unit vectors (`transform`).

    X: an array (n, height, width), (n, height, width, 3), or whatever else `instdisc.train` takes. y is
    passed over: labels are never used. preset, epochs, minutes, seed, device, settings: as `instdisc.train`;
    out: keep the run in this folder, or throw it away when it is None.

    After `fit`: encoder_. The vectors are search vectors, as `Encoder.embed` gives them.
    """

    def __init__(
        self,
        preset: str = "default",
        *,
        epochs: float | None = None,
        minutes: float | None = None,
        seed: int = 0,
        device: str = "auto",
        settings: dict[str, Any] | None = None,
        out: str | Path | None = None,
    ) -> None:
        self.preset = preset
        self.epochs = epochs
        self.minutes = minutes
        self.seed = seed
        self.device = device
        self.settings = settings
        self.out = out

    def fit(self, X: Any, y: Any = None) -> InstanceDiscrimination:
        """Train on the pictures."""
        length = {name: value for name in ("epochs", "minutes") if (value := getattr(self, name)) is not None}
        options = {"seed": self.seed, "device": self.device, **length, **(self.settings or {})}
        if self.out is not None:
            self.encoder_ = train(X, self.out, self.preset, say=None, **options).encoder()
        else:
            with tempfile.TemporaryDirectory(prefix="instdisc-") as folder:
                self.encoder_ = train(X, Path(folder) / "run", self.preset, say=None, **options).encoder()
        self._n_features_out = self.encoder_.dimensions()
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "pictures dim"]:
        """Unit vectors, float32 (n, dim)."""
        check_is_fitted(self, "encoder_")
        encoder: Encoder = self.encoder_
        return np.asarray(encoder.embed(X if isinstance(X, np.ndarray) else list(X)).numpy())

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "encoder_")
