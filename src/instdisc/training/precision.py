"""Which precision a step runs in: float32 or bfloat16 autocast, whichever a short trial on this device shows faster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from instdisc import ranks
from instdisc.encoder import Encoder
from instdisc.training.trial import Trial, fastest


@dataclass(frozen=True)
class Choice:
    """precision: "float32" or "bfloat16"; why: one sentence for the person."""

    precision: str
    why: str


def choose_precision(encoder: Encoder, device: torch.device, asked: str, batch: int) -> Choice:
    """What was asked for, or for "auto" the faster of the two on this device, timed on made pictures by rank 0.

    Examples:
        >>> import torch
        >>> from instdisc.encoder import EncoderConfig, build_encoder
        >>> from instdisc.training import choose_precision
        >>> encoder = build_encoder(EncoderConfig("conv6", dim=8, width=4, image_size=16))
        >>> choose_precision(encoder, torch.device("cpu"), "bfloat16", batch=8).why
        'bfloat16, as asked for.'
        >>> choose_precision(encoder, torch.device("cpu"), "auto", batch=8).precision in ("float32", "bfloat16")
        True
    """
    if asked != "auto":
        return Choice(asked, f"{asked}, as asked for.")
    speeds = None
    if ranks.is_main():
        batch = max(2, min(batch, 64))  # batch statistics need two
        speeds = _images_per_second(encoder, device, batch)
    speeds = ranks.broadcast_object(speeds)
    best = max(_PRECISIONS, key=lambda precision: speeds[precision])
    other = next(precision for precision in _PRECISIONS if precision != best)
    return Choice(
        best,
        f"{best}: {speeds[best]:,.0f} images/s in a short trial, where {other} gave {speeds[other]:,.0f}.",
    )


_PRECISIONS = ("float32", "bfloat16")
# Processors without bfloat16 instructions take twenty times as long in it, minutes for some networks: a few pictures
# show that, and only what they leave open is tried with many.
_FEW, _HOPELESS = 4, 4.0


def _images_per_second(encoder: Encoder, device: torch.device, batch: int) -> dict[str, float]:
    def tried(pictures: int, *, more: bool) -> dict[str, float]:
        trial = Trial(encoder, device, pictures)
        return fastest({precision: partial(trial.step, precision) for precision in _PRECISIONS}, more=more)

    pictures = min(batch, _FEW)
    seconds = tried(pictures, more=False)
    if max(seconds.values()) < _HOPELESS * min(seconds.values()):
        pictures, seconds = batch, tried(batch, more=True)
    return {precision: pictures / least for precision, least in seconds.items()}
