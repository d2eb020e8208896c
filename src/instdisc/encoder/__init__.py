"""Pictures to unit vectors: a backbone, a head, and the preprocessing that travels with them."""

from instdisc.encoder.backbones import evaluating
from instdisc.encoder.config import EncoderConfig
from instdisc.encoder.encoder import Encoder, build_encoder, unit_length
from instdisc.encoder.preprocessing import Preprocessing
from instdisc.encoder.small import SMALL_ENCODERS
from instdisc.encoder.whitening import load_whitening

__all__ = [
    "SMALL_ENCODERS",
    "Encoder",
    "EncoderConfig",
    "Preprocessing",
    "build_encoder",
    "evaluating",
    "load_whitening",
    "unit_length",
]
