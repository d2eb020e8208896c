"""What a step of training takes of a device's memory, computed from a forward pass of a few pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instdisc import ranks
from instdisc.encoder import Encoder
from instdisc.system import free_memory, readable_bytes
from instdisc.training.config import Settings
from instdisc.training.trial import Trial

_FEW, _MORE = 2, 6  # pictures: what does not grow with them, as weights in half precision, cancels out


@dataclass(frozen=True)
class StepMemory:
    """step: bytes beside weights, bank and pictures; free: on the device now; why: one sentence for the person."""

    step: int
    free: int
    why: str


def step_memory(
    encoder: Encoder, settings: Settings, device: torch.device, precision: str, free: int | None = None
) -> StepMemory:
    """What the largest step of a run will take at once on this rank, about, beside what is free on the device.

    Maps that the backward pass needs are counted in a forward pass, for the views of a batch; to them come the gradient
    of the largest map, gradients and the optimizer's numbers for each weight. Nothing of the encoder changes.

    Examples:
        >>> import torch
        >>> from instdisc.encoder import build_encoder
        >>> from instdisc.training import Settings, step_memory
        >>> settings = Settings(backbone="conv6", width=4, dim=8, size=16, batch=64, views=2)
        >>> step_memory(build_encoder(settings.encoder), settings, torch.device("cpu"), "float32", 10**9).why
        'a step of 128 views of 16 px takes about 5.8 MB, and 1.0 GB are free.'
    """
    views = math.ceil(settings.batch / ranks.world() / settings.accumulate) * settings.views
    kept, largest = _kept_bytes(encoder, device, precision)
    learning = sum(weight.numel() * weight.itemsize for weight in encoder.parameters() if weight.requires_grad)
    step = int(views * (kept + 2 * largest)) + 2 * learning  # its gradient, and the optimizer's momentum
    free = free_memory(device) if free is None else free
    why = (
        f"a step of {views:,} views of {settings.size} px takes about {readable_bytes(step)}, "
        f"and {readable_bytes(free)} are free."
    )
    if step > free:
        why += f" If it is refused: --set accumulate={2 * settings.accumulate} takes half as much, or a smaller batch."
    return StepMemory(step, free, why)


def _kept_bytes(encoder: Encoder, device: torch.device, precision: str) -> tuple[float, float]:
    """Bytes a picture that a forward pass keeps for the backward pass, and those of its largest map."""
    few, more = (_Kept(encoder, device, precision, pictures) for pictures in (_FEW, _MORE))
    return (more.total - few.total) / (_MORE - _FEW), more.largest / _MORE


class _Kept:
    """total, largest: bytes of what a forward pass of so many pictures keeps; what is kept twice counts once."""

    def __init__(self, encoder: Encoder, device: torch.device, precision: str, pictures: int) -> None:
        trial = Trial(encoder, device, pictures)
        self._seen: dict[int, torch.UntypedStorage] = {}
        with (
            torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            features: Any = trial.module(trial.images)
        weights = {id(weight.untyped_storage()) for weight in trial.module.parameters()}
        sizes = [storage.nbytes() for one, storage in self._seen.items() if one not in weights]
        self.total, self.largest = sum(sizes), max(sizes, default=0)
        del features  # with it the graph goes

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._seen[id(storage)] = storage
        return tensor
