"""`instdisc train`: from a source of pictures to a run folder with a trained encoder and its bank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from instdisc import ranks
from instdisc.allocator import keep_freed_memory
from instdisc.checkpoint import load_encoder
from instdisc.data.loading.dataset import Pictures, open_pictures
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.loading.sampler import Order, check_order, choose_order
from instdisc.data.sources.gathered import Gathered
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.data.sources.subset import Subset
from instdisc.data.storage.kinds import is_systems
from instdisc.encoder import Encoder
from instdisc.errors import InputError, counted, refusal
from instdisc.files import held
from instdisc.jobs.frozen import encoder_of
from instdisc.jobs.identity import as_before, later_parts, news
from instdisc.jobs.kept import Features, Noted, forget_features, kept_views
from instdisc.jobs.monitor import make_monitor
from instdisc.jobs.run import Run
from instdisc.jobs.search_vectors import finish_search_vectors
from instdisc.jobs.sources import (
    Look,
    changed_since,
    check_instances,
    describe_source,
    findable,
    log_lines,
    look_at,
)
from instdisc.jobs.start import Start, write_training
from instdisc.jobs.train_log import closing, log_settings, log_source, log_training
from instdisc.runs import RunFolder, require_utf8
from instdisc.training import DataFacts, Settings, Training, choose_compile, choose_precision, preset, read_metrics
from instdisc.training.config_file import read_recipe

FEWEST = 16  # pictures; below, there is nothing to tell apart
# What a start that failed leaves in a folder that is no run yet: config.json comes last.
_BEFORE_CONFIG = ("features", "quarantine.csv", "instances.arrow", ".instances.arrow.", "train.lock", ".config.json.")


@dataclass(frozen=True)
class RunResult:
    """A run folder and what came of it. finished: False when it was interrupted and can be resumed."""

    path: Path
    instances: int
    epochs: float
    seconds: float
    finished: bool
    quarantined: int

    def encoder(self) -> Encoder:
        """The trained encoder, as `instdisc.load` gives it."""
        return load_encoder(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_metrics(RunFolder(self.path))


def train(
    source: Any,
    out: str | Path,
    preset: str | Settings = "default",
    *,
    resume: bool | Literal["auto"] = False,
    labels: Any = None,
    split: str | None = None,
    limit: int | None = None,
    test: Any = None,
    train_source: Any = None,
    device: str = "auto",
    say: Callable[[str], None] | None = print,
    config: str | Path | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    **overrides: Any,
) -> RunResult:
    """Train an encoder on unlabelled pictures, and leave it with its bank in the run folder `out`.

    source: see `instdisc.data.open_source`. preset: a name (default, paper_cifar10, ...), or whole Settings.
    resume: go on from the last checkpoint of `out`, with the same settings and pictures; "auto": where there is a run,
        and start it where there is none, as a launcher needs that starts the same command again after a failure.
    labels, test: labels of the source, and other pictures with labels, for measuring while it trains: the training
        itself never sees a label.
    train_source: where the pictures of a run that is resumed are now, if they were moved.
    say: takes each line that tells what was chosen and how it goes; None = silence.
    config: a run's config.json, or a JSON or TOML file of settings, in place of a preset.
    on_log: is called with each line of metrics.jsonl as a dict, by the main process. If it raises an exception, that is
        said, it is not called again, and the training goes on.
    overrides: any field of Settings by name, over the preset or the file. Raises InputError for an invalid argument.

    Examples:
        >>> import numpy as np
        >>> import instdisc
        >>> pictures = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
        >>> small = dict(backbone="conv6", width=4, dim=8, size=16, batch=8, negatives=8, epochs=1)
        >>> run = instdisc.train(pictures, "runs/small", device="cpu", say=None, **small)
        >>> run.finished, run.instances, run.epochs
        (True, 40, 1.0)
    """
    if config is not None:
        if preset != "default":
            raise InputError("config says what the run starts from: leave out preset, or name it in that file.")
        preset, overrides = read_recipe(config, overrides)
    with ranks.distributed():
        log: Callable[[str], None] = say if say is not None and ranks.is_main() else (lambda _: None)
        folder = RunFolder(out)
        if resume == "auto":  # the main rank's word: it makes the folder, and another may look before or after that
            resume = bool(ranks.broadcast_object(folder.exists()))
        check_folder(folder, resume)
        with _alone(folder, resume):
            earlier = Run(folder.path) if resume else None
            location = findable(source if train_source is None else train_source)
            try:
                opened = _open_in_turn(location, labels=labels, split=split, limit=limit)
            except InputError as error:
                if earlier is None or train_source is not None:
                    raise
                raise InputError(
                    f"{error} If the pictures are elsewhere now, name the new location with --train-source."
                ) from None
            described = describe_source(location, labels, split, limit, beginning=True)
            if described["given"] is None:
                log(f"{opened.name} is in memory: later commands need the same pictures as train_source.")
            start = Start(opened, described, preset, overrides, on_log=on_log)
            return train_on(start, folder, earlier, test, device, log)


def train_on(
    start: Start, run: RunFolder, before: Run | None, test: Any, asked_device: str, say: Callable[[str], None]
) -> RunResult:
    """`train` of pictures that are open, in a run folder that is held, by every rank. before: the run that goes on."""
    device = ranks.device(asked_device)
    keep_freed_memory(device.type)
    earlier = None if before is None else before.facts
    if earlier is not None and "opened" in earlier["chosen"]:
        raise InputError(f"{run.path} was opened and not trained, so there is nothing to resume: start a new run.")
    source = start.source if before is None else _source_of(before, start.source)
    settings, look = _settled(source, start.recipe, start.overrides, device, run, earlier)
    if before is not None and (isinstance(source, Gathered) or before.facts["data"].get("purged")):
        if isinstance(source, Gathered):
            log_lines(say, news(run, source))
        source = Subset(source, before.rows)
    log_source(say, source, look)
    log_settings(say, settings)
    check_order(settings.order, source.groups(), source.name)
    encoder = encoder_of(settings, look.side).to(device)  # an unknown name is refused before all is read
    quarantine = Quarantine(run.quarantine, strict=settings.strict)
    if source.skipped and ranks.is_main():
        quarantine.skip(source.skipped.lines(source.name))
        say(f"Skipped: each is named in {run.quarantine}.")
    pictures = _ready(run, source, settings, encoder, quarantine, before, say)
    say(f"Data: {pictures.why}")
    if before is not None:
        check_instances(run, before.rows, source.rows[pictures.rows] if isinstance(source, Subset) else pictures.rows)
        log_lines(say, changed_since(before.instances, source, pictures.rows))
    # A run of a version without this choice went by pictures.
    order = choose_order(pictures, settings.order, earlier and earlier["chosen"].get("order", Order().facts()))
    if earlier is None:
        precision = _precision(settings, encoder, device, say)
    else:
        precision = earlier["chosen"]["precision"]
        settings = replace(settings, bank_dtype=earlier["chosen"].get("bank_dtype", settings.bank_dtype))
    compiled = _compiled(earlier, settings, encoder, device, precision, pictures.count, say)
    training = Training(run, settings, pictures, encoder, device, precision, order, compiled)
    log_training(say, training, order)
    training.metrics.listen(say, start.on_log)
    if device.type == "cpu" and not settings.features_are_kept:
        for augment in training.augmentations.values():
            augment.prepare(settings.stored_side)
    if start.warm is not None and earlier is None:
        start.warm(training)
    if earlier is None and ranks.is_main():
        write_training(training, source, start)
    ranks.barrier()
    torch.manual_seed(settings.seed)  # for backbones with dropout, the only ones that use torch's own generator
    if before is not None:
        found = training.resume()
        at = f"Resumed at epoch {training.step_number / training.batches_per_epoch:.1f}, step {training.step_number}."
        say(at if found else "There is no checkpoint yet: from the start.")
    monitor = make_monitor(settings, source, pictures, _held_out(test, source, say))
    started = time.monotonic()
    training.fit(monitor)
    if training.finished:
        finish_search_vectors(training, say)
        forget_features(run)
    say(closing(run, training, quarantine, time.monotonic() - started))
    return RunResult(
        run.path,
        pictures.count,
        training.step_number / training.batches_per_epoch,
        training.seconds,
        training.finished,
        quarantine.count,
    )


def _source_of(run: Run, opened: Source) -> Source:
    """The pictures of a run that goes on, in what was opened; those that came since are left out."""
    if isinstance(opened, Gathered):
        return opened
    return as_before(run.folder, run.facts, [opened, *later_parts(run.facts)])


def _settled(
    source: Source,
    recipe: str | Settings,
    overrides: Mapping[str, Any],
    device: torch.device,
    run: RunFolder,
    earlier: Mapping[str, Any] | None,
) -> tuple[Settings, Look]:
    """The settings for these pictures, and what they look like. earlier: config.json of the run that goes on."""
    if len(source) < FEWEST:
        have = counted(len(source), "picture")
        raise InputError(f"{source.name} has {have}: at least {FEWEST} are needed to tell apart.")
    look = look_at(source)
    settings = (
        recipe if isinstance(recipe, Settings) else preset(recipe, DataFacts(len(source), look.side, device.type))
    )
    settings = settings.with_overrides(overrides)
    if earlier is not None:
        before = Settings.from_dict(earlier["settings"])
        settings = replace(settings, preset=before.preset)
        if "partition" not in overrides and before.partition == "first_batch":  # once the default of every run
            settings = replace(settings, partition="first_batch")
        _check_same(run, earlier, settings)
    return settings, look


def _ready(
    run: RunFolder,
    source: Source,
    settings: Settings,
    encoder: Encoder,
    quarantine: Quarantine,
    before: Run | None,
    say: Callable[[str], None],
) -> Pictures:
    """The pictures, ready to be asked for, or the features of a frozen backbone in their device.

    InputError where too few can be read.
    """
    device, earlier = next(encoder.parameters()).device, None if before is None else before.facts
    if settings.features_are_kept:
        once = replace(settings, storage="workers" if settings.storage == "auto" else settings.storage)
        pixels = _opened(source, once, device, Noted(strict=settings.strict), None)
        pictures: Pictures = kept_views(run, Features(source, pixels, encoder, settings), quarantine, before, say)
    else:
        pictures = _opened(source, settings, device, quarantine, earlier)
    if pictures.count < FEWEST:
        found = f"Only {counted(pictures.count, 'picture')} of {source.name} can be read"
        raise InputError(f"{found}, and at least {FEWEST} are needed: see {quarantine.path}.")
    return pictures


def _precision(settings: Settings, encoder: Encoder, device: torch.device, say: Callable[[str], None]) -> str:
    if settings.features_are_kept:
        return "float32"  # as a head always is
    choice = choose_precision(encoder, device, settings.precision, settings.batch)
    say(f"Precision: {choice.why}")
    return choice.precision


def _opened(
    source: Source,
    settings: Settings,
    device: torch.device,
    quarantine: Quarantine,
    earlier: Mapping[str, Any] | None,
) -> Pictures:
    """The pictures' pixels, ready to be asked for."""

    def opened(storage: str) -> Pictures:
        return open_pictures(
            source,
            settings.stored_side,
            device,
            storage=storage,
            workers=settings.workers,
            strict=settings.strict,
            quarantine=quarantine,
        )

    pictures = opened(settings.storage)
    if earlier and earlier["chosen"]["storage"] == "workers" and pictures.count < earlier["data"]["readable"]:
        pictures.close()
        pictures = opened("workers")  # it began so, and counts those too that turn out unreadable only later
    return pictures


def _held_out(test: Any, source: Source, say: Callable[[str], None]) -> Source | None:
    """The test pictures, their classes numbered as those of the training pictures."""
    if test is None:
        return None
    found = _open_in_turn(test, labels=None, split=None, limit=None)
    found.number_like(source)
    if found.labels is None:
        why = found.labels_problem or "There are none."
        say(f"Test pictures: {found.name} has no valid labels, so nothing is measured on it. {why}")
    return found


def _open_in_turn(given: Any, **how: Any) -> Source:
    """Open a source on the main rank first, which writes its index, and then on the others, which read it."""
    if ranks.is_main():
        source = open_source(given, **how)
        _ = source.fingerprint
        ranks.barrier()
        return source
    ranks.barrier()
    return open_source(given, **how)


def check_folder(run: RunFolder, resume: bool, begun: str = "") -> None:
    """Make the run folder, if it may be one; InputError otherwise. begun: a name in it that says that work goes on."""
    if run.exists() and not resume:
        raise InputError(
            f"{run.path} holds a run already: add --resume (resume=True in Python) to go on with it, or choose another "
            "folder."
        )
    require_utf8(run.path)
    if resume and not run.exists():
        raise InputError(f"There is no run in {run.path} to resume: start one there first.")
    if run.path.exists() and not run.path.is_dir():
        raise InputError(f"{run.path} is a file: choose a folder for the run.")
    if not run.exists() and run.path.is_dir() and not (begun and (run.path / begun).is_dir()):
        names = [path.name for path in run.path.iterdir()]
        if any(not name.startswith(_BEFORE_CONFIG) and not is_systems(name) for name in names):
            raise InputError(
                f"{run.path} is not empty and holds no run: choose another folder, so that nothing is mixed."
            )
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Can't make the run folder {run.path} ({error.strerror}): choose another folder.") from None


@contextmanager
def _alone(run: RunFolder, resume: bool) -> Iterator[None]:
    """Hold the run folder as long as it is trained on; InputError, on every rank, where another process does."""
    with ExitStack() as stack:
        sentence = None
        if ranks.is_main():
            try:
                stack.enter_context(held(run.lock, "training there"))
                if not resume:
                    run.quarantine.unlink(missing_ok=True)
            except OSError as error:
                sentence = refusal(error) or f"{run.path} can't be written ({error}): choose another folder."
            except InputError as error:
                sentence = str(error)
        sentence = ranks.broadcast_object(sentence)
        if sentence is not None:
            raise InputError(sentence)
        yield


def _check_same(run: RunFolder, earlier: Mapping[str, Any], settings: Settings) -> None:
    different = Settings.from_dict(earlier["settings"]).differences(settings)
    if different:
        raise InputError(
            f"{run.path} was started with other settings ({'; '.join(different)}): resume with the same, "
            "or start a new run."
        )


def _compiled(
    earlier: dict[str, Any] | None,
    settings: Settings,
    encoder: Encoder,
    device: torch.device,
    precision: str,
    count: int,
    say: Callable[[str], None],
) -> bool:
    """Whether the encoder goes through torch.compile: in a resumed run as before."""
    if earlier is not None and "compile" in earlier["chosen"]:
        return earlier["chosen"]["compile"] is True
    if settings.compile != "auto" or settings.features_are_kept:
        return settings.compile is True
    steps = round(settings.epochs * count / settings.batch * settings.growth.mean_cost)  # as many of whole views
    batch = max(2, settings.batch * settings.views // (settings.accumulate * ranks.world()))
    seconds, sizes = 60 * (settings.minutes or 0), len(settings.view_sizes)
    choice = choose_compile(encoder, device, precision, batch, steps, seconds, sizes)
    say(f"Encoder: {choice.why}")
    return choice.compiled
