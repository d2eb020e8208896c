"""scikit-learn's form: pictures in, unit vectors out, in a Pipeline.

model = make_pipeline(InstanceDiscrimination(epochs=20), LinearSVC()).fit(images, labels)
"""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from instdisc.data.sources.open import open_source
from instdisc.encoder import Encoder
from instdisc.errors import InputError, advice
from instdisc.jobs.train import train
from instdisc.shapes import Float
from instdisc.training import Settings


class InstanceDiscrimination(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Learn an encoder from pictures alone (`fit`) and turn pictures into its unit vectors (`transform`).

    X: an array (n, height, width), (n, height, width, 3), or whatever else `instdisc.train` takes: a folder, paths, a
    table with a column of pictures or paths. y is ignored: labels are never used. preset (a name, or whole Settings),
    epochs, minutes, seed, device: as `instdisc.train`; settings: anything else that it takes by name, as lr or limit.
    out: keep the run in this folder, or throw it away when it is None. No run is ever overwritten: where there is one
    already, as when it is fitted again or in a grid search, the folder is out-2, out-3 and so on.

    After `fit`: encoder_, and run_, the folder, where there is an `out`. The vectors are search vectors, as
    `Encoder.embed` gives them; `get_feature_names_out` names their numbers, and `set_output(transform="pandas")` puts
    them into a DataFrame under these names. A fit that is interrupted (Ctrl-C) raises KeyboardInterrupt and leaves the
    estimator as it was.

        make_pipeline(InstanceDiscrimination(), LinearSVC()).fit(frame[["path"]], frame.label)

    Examples:
        >>> import numpy as np
        >>> from instdisc import InstanceDiscrimination
        >>> pictures = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
        >>> small = dict(backbone="conv6", width=4, dim=8, size=16, batch=8, negatives=8)
        >>> model = InstanceDiscrimination(epochs=1, device="cpu", settings=small).fit(pictures)
        >>> vectors = model.transform(pictures[:3])
        >>> vectors.dtype, bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3))
        (dtype('float32'), True)
    """

    def __init__(
        self,
        preset: str | Settings = "default",
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
        """Train on the pictures, from the beginning, whatever was fitted before."""
        length = {name: value for name in ("epochs", "minutes") if (value := getattr(self, name)) is not None}
        options = {"seed": self.seed, "device": self.device, **length, **(self.settings or {})}
        with tempfile.TemporaryDirectory(prefix="instdisc-") as folder:
            out = Path(folder) / "run" if self.out is None else _own_folder(Path(self.out))
            run = train(X, out, self.preset, **({"say": None} | options))
            if not run.finished:
                raise KeyboardInterrupt
            self.encoder_ = run.encoder()
        self.__dict__.pop("run_", None)
        if self.out is not None:
            self.run_ = out
        self._n_features_out = self.encoder_.dimensions()
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "pictures dim"]:
        """Unit vectors, float32 (n, dim)."""
        check_is_fitted(self, "encoder_")
        encoder: Encoder = self.encoder_
        return np.asarray(encoder.embed(open_source(X) if isinstance(X, str | os.PathLike) else X).numpy())

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "encoder_")


def _own_folder(out: Path) -> Path:
    """The first of out, out-2, out-3, ... that holds nothing, and that no other process takes meanwhile."""
    for number in itertools.count(1):
        path = out if number == 1 else out.with_name(f"{out.name}-{number}")
        if path.is_file():
            raise InputError(f"{path} is a file: choose a folder for the runs.")
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not any(path.iterdir()):
                os.close(os.open(path / "train.lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                return path
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"The run folder {path} can't be made ({error.strerror}): {advice(error)}.") from None
    raise AssertionError("there is always one more")
