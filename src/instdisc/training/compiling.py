"""Whether the encoder goes through torch.compile: it takes minutes to begin, and pays in a long run, or not at all."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from instdisc import ranks
from instdisc.data.index import cache_folder
from instdisc.encoder import Encoder
from instdisc.progress import duration
from instdisc.runs import write_json

_TRIAL_SECONDS = 90.0  # what a trial takes, about
_SHARE = 0.05  # of the run's time that a trial may take
_ROUNDS = 5


@dataclass(frozen=True)
class Compilation:
    """compiled: whether it does; why: one sentence for the person."""

    compiled: bool
    why: str


def choose_compile(
    encoder: Encoder, device: torch.device, asked: bool | str, precision: str, batch: int, steps: int, seconds: float
) -> Compilation:
    """What was asked for, or for "auto" what a trial on this device shows to be sooner done over so many steps.

    seconds: of the run where that is known, else 0. Rank 0 decides. What a trial gave is remembered for this device,
    torch, encoder, precision and batch, in the cache folder.
    """
    if asked != "auto":
        return Compilation(bool(asked), f"{'' if asked else 'not '}compiled, as asked for.")
    return ranks.on_main(lambda: _choose(encoder, device, precision, batch, steps, seconds))


def _choose(
    encoder: Encoder, device: torch.device, precision: str, batch: int, steps: int, seconds: float
) -> Compilation:
    file = _file_of(encoder, device, precision, batch)
    found: dict[str, float] = {}
    with suppress(OSError, ValueError, AttributeError, TypeError):  # damaged: it is tried again
        found = {name: float(value) for name, value in json.loads(file.read_text(encoding="utf-8")).items()}
    if found.keys() != {"eager", "compiled", "compiling"}:
        module, images, act = _step(encoder, device, precision, batch)
        eager = _fastest({"eager": lambda: act(module, images)})["eager"]
        seconds = seconds or steps * eager
        if seconds * _SHARE < _TRIAL_SECONDS:
            return Compilation(
                False,
                f"not compiled: to try it takes {duration(_TRIAL_SECONDS)}, and the run is not long enough.",
            )
        try:
            faster = torch.compile(module, dynamic=False)
            started = time.perf_counter()
            act(faster, images)
            compiling = time.perf_counter() - started
            found = _fastest({"eager": lambda: act(module, images), "compiled": lambda: act(faster, images)})
        except Exception as error:  # of torch's compilers, or for want of one: no run depends on them
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            return Compilation(False, f"not compiled: torch.compile does not work here ({reason}).")
        found["compiling"] = compiling
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, found)
    steps = steps if not seconds else round(seconds / found["eager"])
    # Batches come in two sizes, and each is compiled.
    pays = steps * (found["eager"] - found["compiled"]) > 2 * found["compiling"]
    rates = f"{batch / found['compiled']:,.0f} images/s in a trial, and {batch / found['eager']:,.0f} without"
    return Compilation(pays, f"{'compiled' if pays else 'not compiled'}: {rates}.")


def _file_of(encoder: Encoder, device: torch.device, precision: str, batch: int) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {torch.get_num_threads()}"
    facts = [torch.__version__, name, encoder.describe(), precision, batch]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "trials" / f"compile-{digest[:32]}.json"


def _step(
    encoder: Encoder, device: torch.device, precision: str, batch: int
) -> tuple[torch.nn.Module, torch.Tensor, Callable[[Any, torch.Tensor], None]]:
    """A copy of the encoder, made pictures, and what is timed: forward and backward, until the device has done it."""
    module: torch.nn.Module = copy.deepcopy(encoder).to(device).train()
    size = encoder.preprocessing.size
    images = torch.linspace(-2, 2, batch * 3 * size * size, device=device).reshape(batch, 3, size, size)
    if device.type != "mps":  # as the training loop lays it out
        module = module.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)

    def act(module: Any, images: torch.Tensor) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            features = module(images)
        features.sum().backward()
        float(features.detach()[0, 0])  # waits for the device

    return module, images, act


def _fastest(ways: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The least seconds of each, in turns, after one that is not counted."""
    fastest = dict.fromkeys(ways, float("inf"))
    for number in range(_ROUNDS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:
                fastest[name] = min(fastest[name], time.perf_counter() - started)
    return fastest
