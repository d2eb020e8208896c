"""The losses of a run between the device, where they come to be, and the host, which checks and writes them.

On a CPU, and where ranks must agree at each step anyway, they are read at once. On a GPU to read a number is to wait
until all that the device was given is done, so they are read together once a line of the metrics, and a step late,
while the device works on that step: a loss that is no number is found at most one line late. Before anything is saved
everything is read, and so nothing that has diverged is saved.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from instdisc import ranks
from instdisc.errors import InputError
from instdisc.shapes import Float
from instdisc.transfer import Arriving

if TYPE_CHECKING:
    from instdisc.training.loop import Training


class _Line(NamedTuple):
    """A line whose losses are on their way: what it says beside them, the steps, the watched numbers' names."""

    facts: dict[str, Any]
    steps: list[int]
    watched: list[str]
    numbers: Arriving


class Ledger:
    """What of a training is not read yet."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._at_once = training.device.type == "cpu" or ranks.world() > 1
        self._unread: list[tuple[int, Tensor]] = []
        self._line: _Line | None = None

    def add(self, losses: Float[Tensor, " terms"], *, settle: bool) -> None:
        """The terms of the step that was made, over all ranks; settle: all is to be read and found good, to be saved.

        Raises InputError where a loss, or a weight that would be saved, is no finite number.
        """
        self._unread.append((self._training.step_number, losses))
        self._finish_line()
        if settle or self._at_once:
            steps, numbers = zip(*self._unread, strict=True)
            self._unread = []
            self._enter(list(steps), torch.cat(numbers).tolist())
        if settle and not self._weights_are_finite():
            self._raise(self._training.step_number, self._last)

    def write(self, *, now: bool) -> None:
        """A line of the metrics ends with the step that was made. now: it is written before anything else is done."""
        metrics = self._training.metrics
        watched = metrics.watched(self._training)
        numbers = [losses for _, losses in self._unread] + [number.float().reshape(1) for number in watched.values()]
        together = torch.cat(numbers) if numbers else torch.empty(0)
        steps = [step for step, _ in self._unread]
        self._line = _Line(metrics.line(self._training), steps, list(watched), Arriving(together))
        self._unread = []
        if now or self._at_once:
            self._finish_line()

    def _finish_line(self) -> None:
        if self._line is None:
            return
        line, self._line = self._line, None
        numbers = line.numbers.result().tolist()
        count = len(numbers) - len(line.watched)
        self._enter(line.steps, numbers[:count])
        watched = dict(zip(line.watched, numbers[count:], strict=True))
        self._training.metrics.write(self._training, line.facts, watched)

    def _enter(self, steps: list[int], numbers: list[float]) -> None:
        names = list(self._training.terms)
        for position, step in enumerate(steps):
            self._last = dict(zip(names, numbers[position * len(names) : (position + 1) * len(names)], strict=True))
            self._training.metrics.add(self._last)
            if not all(math.isfinite(value) for value in self._last.values()):
                self._raise(step, self._last)

    def _weights_are_finite(self) -> bool:
        parameters = [*self._training.encoder.parameters(), *self._training.terms.parameters()]
        return bool(torch.stack([torch.isfinite(parameter).all() for parameter in parameters]).all())

    def _raise(self, step: int, losses: dict[str, float]) -> None:
        training = self._training
        training.metrics.diagnose(training, losses, step)
        rounded = " or precision=float32" if training.precision != "float32" else ""
        spelled = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        raise InputError(
            f"The training diverged at step {step}: a loss or a weight is no finite number any more ({spelled}); start "
            f"a new run with an lr below {training.settings.lr:g}{rounded}; what was found is in "
            f"{training.run.diagnosis}, and the checkpoints in {training.run.checkpoints} are from before."
        )
