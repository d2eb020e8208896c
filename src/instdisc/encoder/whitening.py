"""Search vectors: features of the encoder's stages over the picture, whitened by a linear map fitted without labels.

    moments = Moments([64, 64, 128, 128])           # channels of each level
    for features in batches:                        # (batch, 384) float32
        moments.add(features)
    whitening = fit_whitening(moments.total(), ("stage2", "stage2 std", "stage3", "stage3 std"))
    vectors = whitening(features)                   # (batch, 256) float32, unit rows

The training pulls all pictures apart in the head's numbers, and pooled features before the head keep more of what is in
a picture, but a few directions, those of brightness and contrast mostly, make up most of their length. The map takes
the mean away, gives each stage the same total variance, and divides each principal direction by (about) its standard
deviation, so that cosines see them all. Mean and covariance come from sums in float64 over one pass, in fixed memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import nn

from instdisc import ranks
from instdisc.encoder.backbones import DEVIATION
from instdisc.errors import InputError, is_shortage
from instdisc.files import write_whole
from instdisc.shapes import Float, Tensor

FORMAT = 2  # 1: the means of stages alone; read as it is
DIMENSIONS = 256  # of a search vector, at most: twice the paper's 128 in memory and time of a search
WIDTH = 4096  # numbers of the levels together, at most: the covariance of more takes minutes to decompose
SHRINKAGE = 0.003  # chosen by runs/search_vectors.py
_LEAST_PICTURES = 16
_FLAT = 1e-9  # an eigenvalue below this share of the largest is rounding, not variance
_FACTS = "whitening"


class NoSearchVectorsError(InputError):
    """No map can be made of these features: the message says why."""


class Moments:
    """Sums over rows of features, in float64: what the mean and the covariance are made of.

    channels: of each stage; the rows are the stages' features side by side, (batch, sum of channels).
    """

    def __init__(self, channels: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.channels = tuple(channels)
        width = sum(self.channels)
        torch_device = (
            torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
        )  # no float64 there
        self.count = torch.zeros((), dtype=torch.float64, device=torch_device)
        self.sums = torch.zeros(width, dtype=torch.float64, device=torch_device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=torch_device)

    def add(self, features: Float[Tensor, "batch width"]) -> None:
        """Count these rows in."""
        rows = features.detach().to(self.sums.device).double()
        self.count += len(rows)
        self.sums += rows.sum(0)
        self.products.addmm_(rows.T, rows)

    def total(self) -> Moments:
        """The moments over the rows of all ranks, on each of them."""
        whole = Moments(self.channels, self.sums.device)
        whole.count, whole.sums, whole.products = map(ranks.total, (self.count, self.sums, self.products))
        return whole

    @property
    def mean(self) -> Float[Tensor, " width"]:
        """The mean of the rows."""
        return self.sums / self.count

    @property
    def covariance(self) -> Float[Tensor, "width width"]:
        """The covariance of the rows, divided by their number."""
        return self.products / self.count - torch.outer(self.mean, self.mean)


@dataclass(frozen=True)
class Facts:
    """What a map was made of. stages: the levels, in the order of the features. pictures: that it was fitted on.

    shrinkage: added to each variance, as a share of the largest (see `fit_whitening`). step: of the checkpoint whose
    features they are, -1 where there is none.
    """

    stages: tuple[str, ...]
    channels: tuple[int, ...]
    pictures: int
    shrinkage: float
    step: int = -1
    format: int = FORMAT


class Whitening(nn.Module):
    """The map itself: unit((features - mean) @ matrix), in float32. Its buffers are not in the encoder's state_dict."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: Float[Tensor, " width"], matrix: Float[Tensor, "width dim"], facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.register_buffer("mean", mean.float(), persistent=False)
        self.register_buffer("matrix", matrix.float().contiguous(), persistent=False)

    @property
    def dim(self) -> int:
        """Dimensions of a search vector."""
        return int(self.matrix.shape[1])

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch dim"]:
        """Search vectors of stages' pooled features side by side; a row equal to the mean becomes zero."""
        with torch.autocast(features.device.type, enabled=False):
            return nn.functional.normalize((features.float() - self.mean) @ self.matrix, dim=1, eps=1e-12)

    def of(self, levels: Mapping[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """Search vectors of the pooled features of the encoder's levels, by name."""
        return self(torch.cat([levels[name] for name in self.facts.stages], dim=1))

    @property
    def digest(self) -> str:
        """Another one for every other map: 16 hexadecimal digits."""
        content = self.mean.cpu().numpy().tobytes() + self.matrix.cpu().numpy().tobytes()
        return hashlib.sha256(content + repr(self.facts.stages).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write the map as a safetensors file, whole or not at all. Raises InputError where the disk refuses."""
        facts = json.dumps(asdict(self.facts))
        tensors = {"mean": self.mean.cpu().contiguous(), "matrix": self.matrix.cpu().contiguous()}
        write_whole(path, serialised(tensors, {_FACTS: facts}))

    @classmethod
    def load(cls, path: Path) -> Whitening:
        """The map that `save` wrote. Raises InputError for a damaged or newer file, which says what to do."""
        try:
            with safe_open(path, framework="pt") as file:
                known: dict[str, Any] = json.loads((file.metadata() or {})[_FACTS])
                mean, matrix = file.get_tensor("mean"), file.get_tensor("matrix")
            if isinstance(known.get("format"), int) and known["format"] > FORMAT:
                raise InputError(f"{path} was made by a newer version of instdisc: upgrade instdisc.")
            facts = Facts(**{**known, "stages": tuple(known["stages"]), "channels": tuple(known["channels"])})
            width = sum(facts.channels)
            fits = mean.shape == (width,) and matrix.ndim == 2 and len(matrix) == width
            fits = fits and 1 <= matrix.shape[1] <= width
            if not fits or len(facts.stages) != len(facts.channels):
                raise ValueError("its parts do not belong together")
            if not (mean.isfinite().all() and matrix.isfinite().all()):
                raise ValueError("it holds NaN or infinity")
        except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
            if is_shortage(error):
                raise
            raise InputError(
                f"{path} is damaged ({error}): delete it, then make the search vectors again with "
                f"`instdisc index {os.fspath(path.parent)} --recompute`."
            ) from None
        return cls(mean, matrix, facts)


def fit_whitening(
    moments: Moments,
    stages: Sequence[str],
    *,
    dimensions: int = DIMENSIONS,
    shrinkage: float = SHRINKAGE,
    step: int = -1,
) -> Whitening:
    """The map that whitens the features that `moments` has counted.

    Each stage is first divided by the root of its total variance, so that none rules by its scale. Of the covariance's
    eigenvectors those of the largest eigenvalues l are taken, at most `dimensions`, and each is divided by
    sqrt(l + s · largest), s = shrinkage · (1 + width / pictures): where pictures are few, small eigenvalues are chance,
    and without any shrinkage all pictures of a fit to fewer than `width` would lie equally far apart. Less of it helps
    votes of many neighbours, more of it the nearest few. Raises NoSearchVectorsError where no map can be made of these
    features: fewer than 16 pictures, all features equal, NaN.
    """
    pictures = int(moments.count)
    if pictures < _LEAST_PICTURES:
        raise NoSearchVectorsError(f"They need at least {_LEAST_PICTURES} pictures, and there are {pictures}.")
    mean, covariance = moments.mean.cpu(), moments.covariance.cpu()
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise NoSearchVectorsError("The features of some pictures are NaN or infinite: use an earlier checkpoint.")
    variances = torch.stack([part.clamp_min(0).sum() for part in covariance.diagonal().split(list(moments.channels))])
    # What is left of equal numbers by rounding: the products of float64 sums are right to some 1e-13 of the squares.
    squares = torch.stack([part.square().sum() for part in mean.split(list(moments.channels))])
    varied = variances > 1e-10 * squares.clamp_min(1e-30)
    if not varied.any():
        raise NoSearchVectorsError("All pictures have the same features.")
    scales = torch.where(varied, variances.clamp_min(1e-300).rsqrt(), torch.zeros(()).double())
    scale = scales.repeat_interleave(torch.tensor(moments.channels))
    values, directions = torch.linalg.eigh(covariance * torch.outer(scale, scale))
    values, directions = values.flip(0).clamp_min(0), directions.flip(1)
    taken = min(dimensions, int((values > _FLAT * values[0]).sum()), pictures - 1)
    values, directions = values[:taken], directions[:, :taken]
    largest = directions.abs().argmax(0)  # an eigenvector's sign is free: the same everywhere
    directions = directions * directions[largest, torch.arange(taken)].sign()
    added = shrinkage * (1 + len(mean) / pictures) * values[0]
    matrix = scale[:, None] * directions * (values + added).rsqrt()
    facts = Facts(tuple(stages), moments.channels, pictures, shrinkage, step)
    return Whitening(mean, matrix, facts)


def load_whitening(path: Path, step: int, channels: Mapping[str, int] | None = None) -> Whitening | None:
    """The map in a run folder, if it was made of this step's features; None where there is none, or an older one.

    channels: of the encoder's levels by name, to check that it fits. Raises InputError for a damaged file, and for one
    of another encoder.

    Examples:
        >>> from pathlib import Path
        >>> import torch
        >>> from instdisc.encoder.whitening import Moments, fit_whitening, load_whitening
        >>> moments = Moments([8])
        >>> moments.add(torch.eye(8).repeat(4, 1))  # 32 pictures
        >>> fit_whitening(moments, ["stage1"], dimensions=4, step=500).save(Path("search_vectors.safetensors"))
        >>> load_whitening(Path("search_vectors.safetensors"), step=500)(torch.eye(8)).shape
        torch.Size([8, 4])
    """
    if not path.is_file():
        return None
    whitening = Whitening.load(path)
    if whitening.facts.step != step:
        return None
    levels = (name.removesuffix(DEVIATION) for name in whitening.facts.stages)
    made_of = dict(zip(levels, whitening.facts.channels, strict=True))
    if channels is not None and any(channels.get(name) != width for name, width in made_of.items()):
        raise InputError(f"{path} belongs to another encoder: delete it, or restore the run folder.")
    return whitening
