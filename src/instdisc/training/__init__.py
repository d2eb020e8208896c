"""Training: the settings of a run, the presets, and the loop."""

from __future__ import annotations

from instdisc.training.compiling import choose_compile
from instdisc.training.config import Settings
from instdisc.training.describing import Setting, described
from instdisc.training.loop import Training
from instdisc.training.memory import step_memory
from instdisc.training.metrics import Measurement, read_metrics
from instdisc.training.precision import choose_precision
from instdisc.training.presets import PRESETS, DataFacts, preset

__all__ = [
    "PRESETS",
    "DataFacts",
    "Measurement",
    "Setting",
    "Settings",
    "Training",
    "choose_compile",
    "choose_precision",
    "described",
    "preset",
    "read_metrics",
    "step_memory",
]
