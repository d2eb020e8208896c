"""Shared batch statistics in the place of the usual ones, in networks of timm too."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from instdisc.training.batch_statistics import SharedBatchNorm, shared_statistics


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet", "test_resnet"])
def test_a_network_does_what_it_did(name: str) -> None:
    """On one process, training and evaluating: outputs, gradients, statistics, names and values of the weights."""
    torch.manual_seed(0)
    usual = timm.create_model(name, pretrained=False, num_classes=0)
    shared = shared_statistics(copy.deepcopy(usual), torch.device("cpu"))
    assert any(isinstance(one, SharedBatchNorm) for one in shared.modules())
    images = torch.randn(4, 3, 64, 64)
    for network in (usual, shared):
        network.train()
        network(images).square().sum().backward()
    for one, other in zip(usual.parameters(), shared.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    before, after = usual.state_dict(), shared.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
    with torch.no_grad():
        assert torch.equal(usual.eval()(images), shared.eval()(images))
