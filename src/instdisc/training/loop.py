"""The training loop: the algorithm in `Training.step`, and around it what keeps a long run safe and seen.

    training = Training(run, settings, pictures, encoder, device, precision)
    training.resume()              # from the last whole checkpoint, if there is one
    training.fit(monitor)          # until the epochs or the minutes are over, or Ctrl-C

Nothing else writes the bank. Every random number is a function of (seed, step, picture), so a run that was stopped
anywhere continues to the same numbers.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from instdisc import checkpoint, ranks
from instdisc.bank import MemoryBank, choose_rows
from instdisc.data.loading.dataset import Batch, Pictures
from instdisc.data.loading.kept import KeptViews
from instdisc.data.loading.sampler import Order
from instdisc.encoder import Encoder
from instdisc.errors import InputError, is_shortage
from instdisc.runs import RunFolder
from instdisc.training import weight_gradients
from instdisc.training.batch_statistics import shared_statistics
from instdisc.training.config import Settings
from instdisc.training.ledger import Ledger
from instdisc.training.metrics import Measurement, Metrics
from instdisc.training.optimizer_state import flatten_optimizer, unflatten_optimizer
from instdisc.training.optimizers import make_optimizer

Monitor = Callable[["Training"], Measurement]
_LOGS_PER_EPOCH = 10


class Training:
    """One run in memory: encoder, terms, bank, optimizer, and how far it has come.

    pictures: pixels, or the features of a frozen backbone (KeptViews). device: where everything is. precision:
    "float32" or "bfloat16" (autocast). order: by pictures without one. compiled: the encoder goes through
    torch.compile.

    Examples:
        >>> import numpy as np, torch
        >>> from instdisc import data, encoder, runs, training
        >>> settings = training.Settings(backbone="conv6", width=4, dim=8, size=16, batch=16, epochs=2)
        >>> pictures = data.open_pictures(data.open_source(np.zeros((32, 16, 16, 3), np.uint8)), 16, "cpu")
        >>> made = encoder.build_encoder(settings.encoder)
        >>> run = training.Training(runs.RunFolder("."), settings, pictures, made, torch.device("cpu"))
        >>> run.metrics.listen(lambda sentence: None, None)
        >>> run.fit()
        >>> run.step_number, run.epoch, run.bank.rows.shape
        (4, 2, torch.Size([32, 8]))
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        pictures: Pictures,
        encoder: Encoder,
        device: torch.device,
        precision: str = "float32",
        order: Order | None = None,
        compiled: bool = False,
    ) -> None:
        self.order, self.compiled = order or Order(), compiled
        self.run, self.settings, self.pictures, self.device, self.precision = run, settings, pictures, device, precision
        per_step = max(1, ranks.world() * settings.accumulate)
        self.batches_per_epoch = math.ceil(pictures.count / settings.batch)
        if pictures.count // self.batches_per_epoch < 2 * per_step:
            raise InputError(
                f"{pictures.count} pictures in batches of {settings.batch} are too few for {ranks.world()} process(es) "
                f"with accumulate {settings.accumulate}: each needs two pictures a step."
            )
        self.total_steps = max(1, round(settings.epochs * self.batches_per_epoch))
        self.encoder = encoder.to(device)
        if device.type != "mps":  # convolutions are faster in this layout on CPUs and GPUs, in either precision
            self.encoder = self.encoder.to(memory_format=torch.channels_last)
        if settings.sync_batchnorm and ranks.world() > 1:
            shared_statistics(self.encoder, device)
        if settings.unfreeze != "all":
            self.encoder.freeze(settings.unfreeze)
        if weight_gradients.pays(device, precision) and not compiled:
            weight_gradients.by_products(self.encoder)
        self.kinds = settings.terms(pictures.count, encoder.channels)
        self.terms = nn.ModuleDict(self.kinds).to(device)
        self.rows = choose_rows(pictures.count, settings.dim, device, settings.bank_dtype, settings.bank_storage)
        self.bank = MemoryBank(
            pictures.count,
            settings.dim,
            momentum=settings.bank_momentum,
            seed=settings.seed,
            dtype=self.rows.dtype,
            device=device,
            storage=self.rows.storage,
            folder=run.path,
        )
        preprocessing = encoder.preprocessing
        self.augment = settings.augmentation(preprocessing.mean, preprocessing.std)  # to whole views
        self.augmentations = {size: replace(self.augment, size=size) for size in settings.view_sizes}
        self.schedule, self.weights = settings.learning_rate(), settings.weights()
        self.optimizer = make_optimizer(settings, self.encoder, self.terms)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._parallel = ranks.data_parallel(self.encoder)
        self._parallel_terms = {name: ranks.data_parallel(term) for name, term in self.terms.items()}
        # Batches come in two lengths at most: a static graph for each is faster than one for any length.
        self._forward = torch.compile(self._parallel, dynamic=False) if compiled else self._parallel
        self.metrics, self.ledger = Metrics(run, list(self.terms)), Ledger(self)
        self.step_number, self.seconds, self.progress = 0, 0.0, 0.0
        self.interrupted = False
        self._asked_to_stop = False
        self._autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")

    def fit(self, monitor: Monitor | None = None) -> None:
        """Train to the end of the run. Ctrl-C saves and ends after the step in hand; a second one ends at once."""
        started = time.monotonic() - self.seconds
        saved = time.monotonic()
        over = self.finished
        if over:
            return
        with self._interruptible(), self.metrics.showing(self):
            while not over:
                epoch, first = divmod(self.step_number, self.batches_per_epoch)
                for parts, planned in self._steps_of(epoch, first):
                    self.encoder.train()
                    losses = self.step(parts, planned)
                    self.seconds = time.monotonic() - started
                    due = time.monotonic() - saved >= 60 * self.settings.checkpoint_minutes
                    save = self._agree(losses, due)
                    ended = self.step_number % self.batches_per_epoch == 0
                    over = self.finished or self.interrupted
                    log_every = max(1, self.batches_per_epoch // _LOGS_PER_EPOCH)
                    regular = ended and self.epoch % self.settings.monitor_epochs == 0
                    measure = monitor is not None and (regular or self.finished)
                    # No line for an interruption: a resumed run writes the lines of an uninterrupted one.
                    if self.step_number % log_every == 0 or ended or self.finished:
                        self.ledger.write(now=save or measure)
                    if monitor is not None and measure:
                        self.metrics.measured(self, monitor(self))
                        self.seconds = time.monotonic() - started
                    if save:
                        self.save()
                        saved = time.monotonic()
                    if over:
                        break

    def step(self, parts: Iterator[Batch], planned: int) -> dict[str, torch.Tensor]:
        """One step of the optimizer from a global batch of `planned` pictures, this rank's part in `accumulate` pieces.

        Returns the terms' values of this rank, each weighted by its part of the global batch: their sum over ranks is
        the loss. The pieces equal one large batch, the bank's update included.
        """
        self._set_learning_rate()
        counting = self.counting
        shares = {name: torch.zeros((), device=self.device) for name in self.terms}
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        for number, part in enumerate(parts):
            indices = part.indices.repeat(self.settings.views)
            self._read_ahead(part.indices, counting)
            images = self._views(part)
            last = number == self.settings.accumulate - 1
            with nullcontext() if last else self._no_sync():
                encoded = self._encoded(images)
                features = encoded["embedding"]
                losses = {
                    name: self.weights[name]
                    * self._parallel_terms[name](encoded[self.kinds[name].reads], indices, self.bank)
                    for name in counting
                }
                share = len(part.indices) / planned
                # data-parallel averaging divides by the ranks; a picture that could not be read counts as zero
                (sum(losses.values()) * (share * ranks.world())).backward()
            seen.append((indices, features.detach()))
            for name, loss in losses.items():
                shares[name] = shares[name] + share * loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.bank.update(torch.cat([indices for indices, _ in seen]), torch.cat([features for _, features in seen]))
        self.step_number += 1
        return shares

    @property
    def counting(self) -> list[str]:
        """The terms of the loss that count in the step in hand."""
        filling = self.step_number < self.settings.fill_epochs * self.batches_per_epoch
        return [
            name
            for name, term in self.kinds.items()
            if self.progress >= term.begins and not (filling and term.waits_for_bank)
        ]

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step_number // self.batches_per_epoch

    @property
    def view_size(self) -> int:
        """Side of the views of the step in hand, pixels."""
        return self.settings.view_size(self.progress)

    @property
    def done(self) -> tuple[int, int, str]:
        """How far the run is, of how much, in which unit: seconds, steps, or work where steps differ in that."""
        if self.settings.minutes is not None:
            return int(self.seconds), round(60 * self.settings.minutes), "s"
        if self.settings.early_sizes:
            return int(100 * self.progress), 100, "%"
        return self.step_number, self.total_steps, "steps"

    @property
    def finished(self) -> bool:
        """Whether the epochs or the minutes are over."""
        if self.settings.minutes is not None:
            return self.progress >= 1
        return self.step_number >= self.total_steps

    def save(self) -> None:
        """A whole checkpoint of this moment."""
        ranks.average_buffers(self.encoder)
        tensors, rest = flatten_optimizer(self.optimizer.state_dict())
        groups = {"encoder": self.encoder.state_dict(), "objective": self.terms.state_dict(), "optimizer": tensors}
        checkpoint.save(
            self.run.checkpoints,
            step=self.step_number,
            tensors={name: group for name, group in groups.items() if group},  # an exact softmax has no state
            facts={
                "epoch": self.step_number / self.batches_per_epoch,
                "seconds": self.seconds,
                "progress": self.progress,
                "bank": self.bank.state(),
                "optimizer": rest,
                "metrics": self.metrics.state(),
            },
            shards={"bank": checkpoint.Shard(self.bank.tensors(), self.bank.start, self.bank.stop)},
            keep=self.settings.keep_checkpoints,
        )

    def resume(self) -> bool:
        """Go back to the last whole checkpoint; whether there was one."""
        found = checkpoint.latest(self.run.checkpoints)
        if found is None:
            self.metrics.rewind(0, None)
            return False
        try:
            self.encoder.load_state_dict(found.tensors("encoder"))
            if self.terms.state_dict():
                self.terms.load_state_dict(found.tensors("objective"))
            tensors = found.tensors("optimizer") if "$tensor" in str(found.facts["optimizer"]) else {}
            self.optimizer.load_state_dict(unflatten_optimizer(tensors, found.facts["optimizer"]))
            found.rows("bank", self.bank.start, self.bank.stop, into=self.bank.tensors())
            self.bank.updates = int(found.facts["bank"]["updates"])
            self.step_number = found.step
            self.seconds, self.progress = float(found.facts["seconds"]), float(found.facts["progress"])
            self.metrics.rewind(found.step, found.facts["metrics"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            if is_shortage(error):
                raise
            why = " ".join(str(error).split())[:300]  # torch lists every tensor on a line of its own
            raise InputError(f"{found.path} does not fit the settings of {self.run.path} ({why}).") from None
        found.restore_random()
        return True

    def _steps_of(self, epoch: int, first: int) -> Iterator[tuple[Iterator[Batch], int]]:
        """The steps of an epoch from the step `first` on: this rank's pieces of a batch, and the size of the whole one.

        An epoch is cut into batches whose sizes differ by one at most: no partial last batch, none dropped.
        """
        batches = self.order.batches(self.pictures.count, self.batches_per_epoch, seed=self.settings.seed, epoch=epoch)[
            first:
        ]
        pieces: list[np.ndarray] = []
        for batch in batches:
            begin, end = ranks.share(len(batch))
            pieces.extend(np.array_split(batch[begin:end], self.settings.accumulate))
        stream = iter(self.pictures.batches(pieces))
        for batch in batches:
            yield (self._next(stream) for _ in range(self.settings.accumulate)), len(batch)

    def _next(self, stream: Iterator[Batch]) -> Batch:
        part = next(stream, None)  # a piece without a readable picture is skipped, so the stream can end early
        if part is None or len(part.indices) < 2:
            raise InputError(
                f"So many pictures can't be read that a batch is empty (see {self.run.quarantine}): remove them, take "
                "a larger batch, or set storage=cache, which knows them before it starts."
            )
        return part

    def _views(self, part: Batch) -> torch.Tensor:
        views = [self.random_view(part, self.view_size, self.step_number, view) for view in range(self.settings.views)]
        self.metrics.count(len(part.indices), part.waited)
        return views[0] if len(views) == 1 else torch.cat(views)

    def random_view(self, part: Batch, size: int, step: int, view: int) -> torch.Tensor:
        """A random view of each picture, of `size` pixels, normalised; or the features of one that are kept."""
        if isinstance(self.pictures, KeptViews):
            return self.pictures.random_view(part, seed=self.settings.seed, step=step, view=view)
        aspects = self.pictures.aspects[part.indices]
        augment = self.augmentations[size]
        return augment(part.images, part.indices, aspects, seed=self.settings.seed, step=step, view=view)

    def _encoded(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The embedding of views, and the pooled features where a term reads them."""
        with self._autocast:
            if any(term.reads == "pooled" for term in self.kinds.values()):
                return dict(zip(("embedding", "pooled"), self._forward(images, with_pooled=True), strict=True))
            return {"embedding": self._forward(images)}

    def _read_ahead(self, indices: torch.Tensor, terms: Sequence[str]) -> None:
        """Have the rows that these terms will ask for, on all ranks, come from the disk while the encoder works."""
        if self.rows.storage != "disk":
            return
        everyones = ranks.gather(indices)
        self.bank.expect(everyones)
        for name in terms:
            rows = self.kinds[name].rows_needed(everyones, self.bank)
            if rows is not None:
                self.bank.expect(rows)

    def _set_learning_rate(self) -> None:
        if self.settings.minutes is None:
            self.progress = self.settings.growth.progress(self.step_number / self.total_steps)
        factor = self.schedule.factor(self.progress)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor

    @contextmanager
    def _no_sync(self) -> Iterator[None]:
        """Gradients of this piece stay on this rank until the last piece of the step."""
        modules = [self._parallel, *self._parallel_terms.values()]
        waiting = [module.no_sync() for module in modules if isinstance(module, DistributedDataParallel)]
        with _all(waiting):
            yield

    def _agree(self, losses: dict[str, torch.Tensor], due: bool) -> bool:
        """Bring together what all ranks must decide alike, in one sum: losses, a wish to stop, the clock, a save.

        Returns whether to save now. Raises InputError where the run has diverged, and never saves that.
        """
        main = ranks.is_main()
        minutes = self.settings.minutes
        clock = self.seconds / (60 * minutes) if minutes is not None else 0.0
        flags = [float(self._asked_to_stop), clock if main else 0.0, float(due and main)]
        together = torch.stack([loss.float() for loss in losses.values()])
        if ranks.world() > 1:  # alone, nothing has to be asked of the device
            together = ranks.total(torch.cat([together, torch.tensor(flags, device=self.device)])).cpu()
            together, flags = together[:-3], together[-3:].tolist()
        self.interrupted = flags[0] > 0
        if minutes is not None:
            self.progress = min(1.0, flags[1])
        elif self.finished:
            self.progress = 1.0
        save = flags[2] > 0 or self.finished or self.interrupted
        self.ledger.add(together, settle=save)
        self.metrics.advance(self.optimizer.param_groups[0]["lr"], self.done[0])
        return save

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: Any) -> None:
            # Only `_agree` turns the wish into `interrupted`: a rank that saw the signal first must not leave alone.
            if self._asked_to_stop:
                raise KeyboardInterrupt
            self._asked_to_stop = True
            self.metrics.say("Stopping after this step, and saving. Press Ctrl-C again to stop at once.")

        previous = signal.signal(signal.SIGINT, stop)
        previous_term = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
            signal.signal(signal.SIGTERM, previous_term)


@contextmanager
def _all(managers: Sequence[AbstractContextManager[Any]]) -> Iterator[None]:
    if not managers:
        yield
        return
    with managers[0], _all(managers[1:]):
        yield
