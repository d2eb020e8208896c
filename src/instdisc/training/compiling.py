"""Whether the encoder goes through torch.compile: it takes minutes to begin, and pays in a long run, or not at all."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from instdisc import ranks
from instdisc.data.storage.scan import cache_folder
from instdisc.encoder import Encoder
from instdisc.files import write_json
from instdisc.progress import duration
from instdisc.training.trial import Trial, fastest

_TRIAL_SECONDS = 90.0  # what a trial takes, about
_SHARE = 0.05  # of the run's time that a trial may take


@dataclass(frozen=True)
class Compilation:
    """compiled: whether it does; why: one sentence for the person."""

    compiled: bool
    why: str


def choose_compile(
    encoder: Encoder, device: torch.device, precision: str, batch: int, steps: int, seconds: float, sizes: int = 1
) -> Compilation:
    """What a trial on this device shows to be sooner done over so many steps. Rank 0 decides.

    seconds: of the run where that is known, else 0. sizes: that views have in the run, each compiled by itself. What
    a trial gave is remembered for this device, torch, encoder, precision and batch, in the cache folder.

    Examples:
        >>> import torch
        >>> from instdisc.encoder import EncoderConfig, build_encoder
        >>> from instdisc.training import choose_compile
        >>> encoder = build_encoder(EncoderConfig("conv6", dim=8, width=4, image_size=16))
        >>> cpu = torch.device("cpu")
        >>> choose_compile(encoder, cpu, "float32", batch=8, steps=100, seconds=60.0).compiled  # in so short a run
        False
    """
    return ranks.on_main(lambda: _choose(encoder, device, precision, batch, steps, seconds, sizes))


def _choose(
    encoder: Encoder, device: torch.device, precision: str, batch: int, steps: int, seconds: float, sizes: int
) -> Compilation:
    file = _file_of(encoder, device, precision, batch)
    found: dict[str, float] = {}
    with suppress(OSError, ValueError, AttributeError, TypeError):  # damaged: it is tried again
        found = {name: float(value) for name, value in json.loads(file.read_text(encoding="utf-8")).items()}
    if found.keys() != {"eager", "compiled", "compiling"}:
        trial = Trial(encoder, device, batch)
        ways: dict[str, Callable[[], None]] = {"eager": partial(trial.step, precision)}
        eager = fastest(ways)["eager"]
        seconds = seconds or steps * eager
        if seconds * _SHARE < _TRIAL_SECONDS:
            return Compilation(
                False,
                f"not compiled: to try it takes {duration(_TRIAL_SECONDS)}, and the run is not long enough.",
            )
        try:
            ways["compiled"] = partial(trial.step, precision, torch.compile(trial.module, dynamic=False))
            started = time.perf_counter()
            ways["compiled"]()
            compiling = time.perf_counter() - started
            found = fastest(ways)
        except Exception as error:  # of torch's compilers, or for want of one: no run depends on them
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            return Compilation(False, f"not compiled: torch.compile does not work here ({reason}).")
        found["compiling"] = compiling
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, found)
    steps = steps if not seconds else round(seconds / found["eager"])
    # Batches come in two lengths, and each is compiled.
    pays = steps * (found["eager"] - found["compiled"]) > 2 * sizes * found["compiling"]
    rates = f"{batch / found['compiled']:,.0f} images/s in a trial, and {batch / found['eager']:,.0f} without"
    return Compilation(pays, f"{'compiled' if pays else 'not compiled'}: {rates}.")


def _file_of(encoder: Encoder, device: torch.device, precision: str, batch: int) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {torch.get_num_threads()}"
    facts = [torch.__version__, name, encoder.describe(), precision, batch]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "trials" / f"compile-{digest[:32]}.json"
