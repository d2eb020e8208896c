"""Batch normalisation over the whole global batch: several ranks then train as one does.

    encoder = shared_statistics(encoder, device)

On GPUs that is torch's SyncBatchNorm, which has no CPU kernel; elsewhere `SharedBatchNorm`, by two sums over all ranks.
timm's BatchNormAct2d keeps its dropout and activation, under their names.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from instdisc import ranks


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm of any number of dimensions with the mean and variance of all ranks' batches; alone, the usual one.

    It takes the place of another, with its weights, and does what that does after normalising.
    """

    def __init__(self, other: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__(other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats)
        self.drop, self.act = (getattr(other, name, nn.Identity()) for name in ("drop", "act"))
        self.load_state_dict(other.state_dict())
        self.train(other.training)

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, ...) normalised; differentiable through the statistics, on every rank."""
        alone = not self.training or ranks.world() == 1
        answer: Tensor = self.act(self.drop(super().forward(input) if alone else self._shared(input)))
        return answer

    def _shared(self, input: Tensor) -> Tensor:
        along = [0, *range(2, input.dim())]
        values = input.float()
        count = ranks.total(torch.tensor(input.numel() // input.shape[1], dtype=torch.float64)).item()
        mean = _over_ranks(values.sum(along)) / count
        shape = [1, -1] + [1] * (input.dim() - 2)
        centred = values - mean.view(shape)
        variance = _over_ranks(centred.square().sum(along)) / count
        self._follow(mean.detach(), variance.detach() * (count / max(1.0, count - 1)))
        found = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            found = found * self.weight.view(shape) + self.bias.view(shape)
        return found.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


def _over_ranks(sums: Tensor) -> Tensor:
    return ranks.gather_with_gradient(sums[None]).sum(0)


def shared_statistics(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with every BatchNorm over all ranks, weights and names as they were."""
    if device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm

        return cast(nn.Module, convert_sync_batchnorm(module))
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, SharedBatchNorm(child).to(device))
        else:
            shared_statistics(child, device)
    return module
