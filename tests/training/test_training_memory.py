"""What a step takes of memory: against torch's own record of it, and against a count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import made_pictures, tiny
from torch import nn

from instdisc.encoder import Encoder, EncoderConfig, build_encoder
from instdisc.jobs.train import train
from instdisc.training import Settings, step_memory
from instdisc.training.trial import Trial

CPU = torch.device("cpu")


def peak_of(encoder: Encoder, batch: int, precision: str = "float32") -> int:
    """The most that a forward and backward pass holds at once, by what torch writes down of each block."""
    trial = Trial(encoder, CPU, batch)
    trial.step(precision)  # gradients are there from now on
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        trial.step(precision)
    held, peak = 0, 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    ("backbone", "width", "size"), [("conv6", 16, 32), ("conv7", 32, 32), ("resnet18", 16, 64), ("resnet50", 16, 64)]
)
def test_it_is_about_what_torch_takes(backbone: str, width: int, size: int) -> None:
    settings = Settings(backbone=backbone, width=width, dim=32, size=size, batch=48, views=1)
    encoder = build_encoder(settings.encoder)
    weights = sum(weight.numel() * 4 for weight in encoder.parameters())
    computed = step_memory(encoder, settings, CPU, "float32").step - 2 * weights
    taken = peak_of(encoder, 48)
    assert 0.9 * taken < computed < 1.6 * taken


def test_it_grows_with_batch_and_views_and_shrinks_with_pieces() -> None:
    encoder = build_encoder(EncoderConfig("conv6", dim=8, width=4, image_size=16))
    weights = 2 * sum(weight.numel() * 4 for weight in encoder.parameters())

    def step(**changed: int) -> int:
        settings = Settings(backbone="conv6", width=4, dim=8, size=16, **{"batch": 32, "views": 1} | changed)
        return step_memory(encoder, settings, CPU, "float32").step - weights

    one = step()
    assert step(batch=64) == step(views=2) == pytest.approx(2 * one, abs=2)
    assert step(batch=64, accumulate=4) == pytest.approx(one / 2, abs=2)


def test_in_half_precision_weights_that_are_copied_for_it_count_once() -> None:
    encoder = build_encoder(EncoderConfig("conv6", dim=8, width=32, image_size=16))  # many weights, small maps
    settings = Settings(backbone="conv6", width=32, dim=8, size=16, batch=24)
    weights = sum(weight.numel() * 4 for weight in encoder.parameters())
    computed = step_memory(encoder, settings, CPU, "bfloat16").step - 2 * weights
    taken = peak_of(encoder, 24, "bfloat16")
    assert 0.9 * (taken - weights) < computed < 1.6 * taken


def test_the_encoder_stays_as_it_is() -> None:
    encoder = build_encoder(EncoderConfig("resnet18", dim=8, width=8, image_size=32)).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    step_memory(encoder, Settings(backbone="resnet18", width=8, dim=8, size=32), CPU, "float32")
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(weight.grad is None for weight in encoder.parameters()) and torch.equal(torch.get_rng_state(), state)


def test_weights_that_do_not_learn_have_no_gradient() -> None:
    encoder = build_encoder(EncoderConfig("conv6", dim=8, width=64, image_size=16))
    settings = Settings(backbone="conv6", width=64, dim=8, size=16, batch=4)
    whole = step_memory(encoder, settings, CPU, "float32").step
    for weight in nn.ModuleList(encoder.backbone.children()).parameters():
        weight.requires_grad_(False)
    assert step_memory(encoder, settings, CPU, "float32").step < whole / 2


def test_the_person_is_told_and_what_to_do_where_it_is_too_much(tmp_path: Path) -> None:
    settings = Settings(backbone="conv6", width=4, dim=8, size=16, batch=64)
    encoder = build_encoder(settings.encoder)
    roomy = step_memory(encoder, settings, CPU, "float32", free=10**12).why
    tight = step_memory(encoder, settings, CPU, "float32", free=10**5).why
    assert "1.0 TB are free" in roomy and "accumulate" not in roomy
    assert "and 100 kB are free" in tight and "--set accumulate=2 takes half as much" in tight
    said: list[str] = []
    train(made_pictures(24), tmp_path / "run", tiny(epochs=1), say=said.append)
    assert [line for line in said if line.startswith("Memory: a step of ") and line.endswith("are free.")]
