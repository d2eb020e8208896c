"""Weight gradients by matrix products, against the library's own in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from instdisc.encoder import EncoderConfig, build_encoder
from instdisc.training.weight_gradients import ConvolutionByProducts, by_products, patches, pays


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (6, 6), (9, 9)])
def test_gradients_are_those_of_the_convolution(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(128, 136, 3, padding=1, bias=False))
    images, wanted = torch.randn(4, 128, *size), torch.randn(4, 136, *size)
    exact = copy.deepcopy(net).double()
    assert by_products(net) == 1
    inputs = images.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reached = net(inputs)
    (reached.float() * wanted).sum().backward()
    doubled = images.double().requires_grad_()
    (exact(doubled) * wanted.double()).sum().backward()
    for found, known in ((inputs.grad, doubled.grad), (net[0].weight.grad, exact[0].weight.grad)):
        assert found is not None
        assert known is not None
        assert found.shape == known.shape
        assert float((found.double() - known).norm() / known.norm()) < 0.02  # bfloat16 has three digits
    assert net[0].weight.grad.dtype == torch.float32


def test_patches_are_those_of_unfold() -> None:
    images = torch.randn(2, 5, 4, 3)
    unfolded = nn.functional.unfold(images, 3, padding=1).view(2, 5, 9, 12).permute(0, 3, 2, 1).reshape(24, 45)
    assert torch.equal(patches(images), unfolded)


def test_only_plain_wide_convolutions_change_and_the_encoder_stays_the_same() -> None:
    encoder = build_encoder(EncoderConfig(backbone="resnet18", width=64, image_size=64, head="mlp", hidden=32), seed=0)
    before, images = encoder.state_dict(), torch.randn(2, 3, 64, 64)
    encoder.eval()
    with torch.no_grad():
        embedding = encoder(images)
    count = by_products(encoder)
    changed = [module for module in encoder.modules() if isinstance(module, ConvolutionByProducts)]
    assert count == len(changed) > 0
    assert all(module.in_channels >= 128 and module.stride == (1, 1) for module in changed)
    assert encoder.state_dict().keys() == before.keys()
    with torch.no_grad():
        assert torch.equal(encoder(images), embedding)
    assert by_products(encoder) == 0  # they are what they should be


def test_it_is_for_bfloat16_on_a_cpu_with_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert pays(torch.device("cpu"), "bfloat16")
    assert not pays(torch.device("cpu"), "float32")
    assert not pays(torch.device("cuda"), "bfloat16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not pays(torch.device("cpu"), "bfloat16")
