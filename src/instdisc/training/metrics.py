"""What a run shows and writes while it goes: a bar, a line an epoch, metrics.jsonl, TensorBoard, a diagnosis of a NaN.

One line of metrics.jsonl holds step, epoch, seconds, learning rate, each term of the loss and their sum, images a
second, the share of time spent waiting for data and, where views grow, their side; a line with `measured` holds a
measurement of quality instead.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from instdisc import ranks
from instdisc.files import write_json, write_whole
from instdisc.progress import Bar
from instdisc.runs import RunFolder
from instdisc.system import Rivals, processes_here, usable_cores

if TYPE_CHECKING:
    from instdisc.training.loop import Training

_RIVALS_SECONDS = 5.0  # for which other programs are watched at least


class Measurement(NamedTuple):
    """What a monitor found: numbers by name, and a sentence where something is wrong.

    Examples:
        >>> from instdisc.training import Measurement
        >>> Measurement({"knn": 0.81, "effective_rank": 37.2})  # what the monitor of Training.fit returns
        Measurement(numbers={'knn': 0.81, 'effective_rank': 37.2}, warning='')
    """

    numbers: dict[str, float]
    warning: str = ""


class Metrics:
    """Sums since the last line, and the places they are written to; only the main rank writes and shows."""

    def __init__(self, run: RunFolder, terms: list[str]) -> None:
        self.run, self.terms = run, terms
        self.latest: dict[str, float] = {}
        self._sums = dict.fromkeys(terms, 0.0)
        self._steps, self._rate, self._images, self._waited = 0, 0.0, 0, 0.0
        self._clock = time.monotonic()
        self._bar: Bar | None = None
        self._board: Any = None
        self._warned = False
        self._shown = ""
        self._say: Callable[[str], None] = print
        self._on_log: Callable[[dict[str, Any]], None] | None = None
        self._rivals: Rivals | None = Rivals(_RIVALS_SECONDS)

    def listen(self, say: Callable[[str], None], on_log: Callable[[dict[str, Any]], None] | None) -> None:
        """Who is told each sentence, and is given each line that is written."""
        self._say, self._on_log = say, on_log

    def count(self, pictures: int, waited: float) -> None:
        """A piece of a batch came in: so many pictures, after so many seconds of waiting."""
        self._images += pictures
        self._waited += waited

    def add(self, losses: dict[str, float]) -> None:
        """The terms of one step, over all ranks."""
        for name in self.terms:
            self._sums[name] += losses[name]
        self._steps += 1
        self._shown = ", ".join(f"{name} {losses[name]:.3f}" for name in self.terms)

    def advance(self, rate: float, done: int) -> None:
        """A step was made, at this learning rate; done: how far the bar is then."""
        self._rate = rate
        if self._bar is not None:
            self._bar.advance(done - self._bar.done, self._shown)

    def state(self) -> dict[str, Any]:
        """The sums, for a checkpoint between two lines."""
        return {"sums": dict(self._sums), "steps": self._steps}

    def rewind(self, step: int, state: dict[str, Any] | None) -> None:
        """Drop the lines after `step`, which a resumed run writes again, and take up the sums of that moment."""
        if state is not None:
            self._sums, self._steps = dict(state["sums"]), int(state["steps"])
        if ranks.is_main() and self.run.metrics.is_file():
            kept = [line for line in read_metrics(self.run) if line["step"] <= step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_whole(self.run.metrics, text)

    @contextmanager
    def showing(self, training: Training) -> Iterator[None]:
        """Show a bar while the run goes."""
        done, total, unit = training.done
        self._board = _open_board(self.run, training.step_number) if ranks.is_main() else None
        self._clock = time.monotonic()
        with Bar(total, "Training", unit, enabled=ranks.is_main()) as bar:
            bar.start_from(done)
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None
                if self._board is not None:
                    self._board.close()

    def say(self, words: str) -> None:
        """A sentence for the person, above the bar."""
        if ranks.is_main():
            self._say(words)
            sys.stdout.flush()  # whoever reads it through a pipe waits for it

    def line(self, training: Training) -> dict[str, Any]:
        """What the line of this step says beside losses, which may be known only later; another line begins here."""
        took = max(time.monotonic() - self._clock, 1e-9)
        line: dict[str, Any] = {
            "step": training.step_number,
            "epoch": round(training.step_number / training.batches_per_epoch, 4),
            "seconds": round(training.seconds, 3),
            "lr": self._rate,
            "loss": math.nan,
            "losses": {},
            "images_per_second": round(self._images * ranks.world() / took, 1),
            "waiting": round(self._waited / took, 4),
        }
        if training.settings.early_sizes:
            line["size"] = training.view_size
        self._images, self._waited = 0, 0.0
        self._clock = time.monotonic()
        return line

    def watched(self, training: Training) -> dict[str, torch.Tensor]:
        """Numbers of the terms that a line has too, where they are: NCE's log Z."""
        buffers = (dict(term.named_buffers()) for term in training.kinds.values())
        watched = (term.watched for term in training.kinds.values())
        return {
            name: there[name] for names, there in zip(watched, buffers, strict=True) for name in names if name in there
        }

    def write(self, training: Training, line: dict[str, Any], watched: dict[str, float]) -> None:
        """Complete a line by the sums since the last one, and write it; at the end of an epoch to the screen too."""
        if self._steps == 0:
            return
        losses = {name: total / self._steps for name, total in self._sums.items()}
        line |= {"loss": sum(losses.values()), "losses": losses}
        line |= {name: value for name, value in watched.items() if math.isfinite(value)}
        self._append(line)
        self.latest = {**line, **losses}
        if line["step"] % training.batches_per_epoch == 0:
            filling = line["step"] <= training.settings.fill_epochs * training.batches_per_epoch
            waiting = [name for name, term in training.terms.items() if filling and term.waits_for_bank]
            self.say(_sentence(line, waiting))
        self._sums, self._steps = dict.fromkeys(self.terms, 0.0), 0
        self._tell_of_rivals(training)

    def _tell_of_rivals(self, training: Training) -> None:
        """Say once that other programs slow the training down more than need be: threads wait for each other."""
        threads, cores = torch.get_num_threads(), usable_cores()
        alone = processes_here() == 1 and not training.pictures.processes  # these would count as other programs
        if self._rivals is None or training.device.type != "cpu" or threads < 2 or not alone:
            return
        busy = self._rivals.cores()
        if busy >= 0.6 and threads > cores - busy:
            self._rivals = None
            fewer = max(1, int(cores - busy))
            self.say(
                f"  Other programs keep {busy:.1f} of {cores} cores busy; threads wait for each other. Fewer may be "
                f"faster: stop, and go on by --resume with OMP_NUM_THREADS={fewer} before the command."
            )

    def measured(self, training: Training, found: Measurement) -> None:
        """A measurement of quality: written, shown, and its warning said once."""
        line = {
            "step": training.step_number,
            "epoch": round(training.step_number / training.batches_per_epoch, 4),
            "seconds": round(training.seconds, 3),
            "measured": found.numbers,
        }
        self._append(line)
        shown = (f"{_NAMES.get(name, name)} {_shown(name, value)}" for name, value in found.numbers.items())
        self.say("  " + ", ".join(shown))
        if found.warning and not self._warned:
            self._warned = True
            self.say(f"  Warning: {found.warning}")
        self._clock = time.monotonic()

    def diagnose(self, training: Training, losses: dict[str, float], step: int) -> None:
        """Save what is needed to understand that the loss of a step is no number: RUN/diagnosis/."""
        if not ranks.is_main():
            return
        weights = {name: value for name, value in training.encoder.state_dict().items() if value.is_floating_point()}
        write_json(
            self.run.diagnosis / "nan.json",
            {
                "step": step,
                "epoch": step / training.batches_per_epoch,
                "losses": {name: str(value) for name, value in losses.items()},
                "lr": training.optimizer.param_groups[0]["lr"],
                "settings": training.settings.to_dict(),
                "precision": training.precision,
                "bank_rows_not_finite": int((~torch.isfinite(training.bank.rows)).any(1).sum()),
                "weights": {
                    name: {"largest": str(float(value.abs().max())), "not_finite": int((~torch.isfinite(value)).sum())}
                    for name, value in weights.items()
                    if value.numel()
                },
                "last_good_line": self.latest,
            },
        )

    def _append(self, line: dict[str, Any]) -> None:
        if not ranks.is_main():
            return
        with open(self.run.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in _flat(line):
                if name not in ("step",):
                    self._board.add_scalar(name, value, line["step"])
        if self._on_log is not None:
            try:
                self._on_log(copy.deepcopy(line))
            except Exception as error:  # of a tracker that can't be reached, say: no reason to lose a night's work
                self._on_log = None
                self.say(
                    f"  on_log failed ({type(error).__name__}: {error}) and is not called again. The training goes on; "
                    f"all lines are in {self.run.metrics}."
                )


def read_metrics(run: RunFolder) -> list[dict[str, Any]]:
    r"""The whole lines of metrics.jsonl; a last one cut short by a kill is left out.

    Examples:
        >>> from pathlib import Path
        >>> from instdisc.runs import RunFolder
        >>> from instdisc.training import read_metrics
        >>> _ = Path("metrics.jsonl").write_text('{"step": 10, "loss": 5.4}\n{"step": 20, "lo')
        >>> read_metrics(RunFolder("."))
        [{'step': 10, 'loss': 5.4}]
    """
    lines = []
    for text in run.metrics.read_text(encoding="utf-8").splitlines() if run.metrics.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


_NAMES = {
    "knn": "kNN",
    "knn_test": "kNN on the test pictures",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "effective_rank": "effective rank",
}


def _shown(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name.startswith("knn") else f"{value:.3g}"


def _sentence(line: dict[str, Any], waiting: list[str]) -> str:
    losses = ", ".join(f"{name} {value:.4f}" for name, value in line["losses"].items() if name not in waiting)
    if waiting:
        losses += f" ({', '.join(waiting)} once the bank is filled)"
    return (
        f"epoch {line['epoch']:.0f}: {losses}, {line['images_per_second']:,.0f} images/s, "
        f"waiting for data {100 * line['waiting']:.0f} %"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, float(value)


def _open_board(run: RunFolder, step: int) -> Any:
    """TensorBoard's writer, where it is installed; steps that a resumed run repeats are dropped from its record."""
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(run.tensorboard), purge_step=step + 1 if step else None)
    except (ImportError, UnicodeEncodeError):  # it has no way to write below a folder whose name is not UTF-8
        return None
