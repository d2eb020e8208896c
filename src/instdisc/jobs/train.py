"""`instdisc train`: from a source of pictures to a run folder with a trained encoder and its bank."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from instdisc import __version__, ranks
from instdisc.allocator import keep_freed_memory
from instdisc.checkpoint import load_encoder
from instdisc.data.augment import way_on_cpu
from instdisc.data.cache import fingerprint_of
from instdisc.data.order import Order, check_order, choose_order
from instdisc.data.pictures import Pictures, open_pictures
from instdisc.data.quarantine import Quarantine
from instdisc.data.source import Source, open_source
from instdisc.encoder import Encoder, build_encoder
from instdisc.errors import InputError, refusal
from instdisc.jobs.monitor import make_monitor
from instdisc.jobs.search_vectors import finish_search_vectors
from instdisc.jobs.sources import Look, check_unchanged, describe_source, findable, look_at, read_facts, read_rows
from instdisc.progress import duration
from instdisc.runs import FORMAT, RunFolder, held, require_utf8, write_json
from instdisc.training import DataFacts, Settings, Training, choose_compile, choose_precision, preset, read_metrics

FEWEST = 16  # pictures; below, there is nothing to tell apart
# What a start that failed leaves in a folder that is no run yet: config.json comes last.
_BEFORE_CONFIG = ("quarantine.csv", "instances.arrow", "train.lock", ".config.json.")


@dataclass(frozen=True)
class Run:
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
    device: str = "auto",
    say: Callable[[str], None] | None = print,
    **overrides: Any,
) -> Run:
    """Train an encoder on unlabelled pictures, and leave it with its bank in the run folder `out`.

    source: see `instdisc.data.open_source`. preset: a name (default, paper_cifar10, ...), or whole Settings.
    resume: go on from the last checkpoint of `out`, with the same settings and pictures; "auto": where there is a run,
        and start it where there is none, as a launcher needs that starts the same command again after a failure.
    labels, test: labels of the source, and other pictures with labels, for measuring while it trains: the training
        itself never sees a label.
    say: takes each line that tells what was chosen; None = silence. overrides: any field of Settings by name.
    Raises InputError, with a sentence for a person, for what can't be.
    """
    with ranks.together():
        tell: Callable[[str], None] = say if say is not None and ranks.is_main() else _silent
        folder = RunFolder(out)
        if resume == "auto":  # the main rank's word: it makes the folder, and another may look before or after that
            resume = bool(ranks.broadcast_object(folder.exists()))
        _check_folder(folder, resume)
        with _alone(folder, resume):
            return _train(source, folder, preset, resume, labels, split, limit, test, device, tell, overrides)


def _train(
    given: Any,
    run: RunFolder,
    recipe: str | Settings,
    resume: bool,
    labels: Any,
    split: str | None,
    limit: int | None,
    test: Any,
    asked_device: str,
    say: Callable[[str], None],
    overrides: Mapping[str, Any],
) -> Run:
    place = ranks.device(asked_device)
    keep_freed_memory(place.type)
    source = _open_in_turn(findable(given), labels=labels, split=split, limit=limit)
    if len(source) < FEWEST:
        raise InputError(f"{source.name} has {len(source)} pictures: at least {FEWEST} are needed to tell apart.")
    look = look_at(source)
    settings = recipe if isinstance(recipe, Settings) else preset(recipe, DataFacts(len(source), look.side, place.type))
    settings = settings.with_overrides(overrides)
    described = describe_source(given, labels, split, limit)
    earlier = read_facts(run) if resume and run.exists() else None
    if earlier is not None:
        before = Settings.from_dict(earlier["settings"])
        settings = replace(settings, preset=before.preset)
        if "partition" not in overrides and before.partition == "first_batch":  # once the default of every run
            settings = replace(settings, partition="first_batch")
        _check_same(run, earlier, settings, source)
    _say_source(say, source, look)
    _say_settings(say, settings)
    check_order(settings.order, source.groups(), source.name)

    encoder = build_encoder(settings.encoder, seed=settings.seed)  # an unknown name is refused before all is read
    try:
        encoder.check_sizes(settings.view_sizes)
    except InputError as error:  # of a preset perhaps, and the backbone of the person
        raise InputError(f"{error} Or add --set early_sizes= --set grow_at= for views of one size.") from None
    quarantine = Quarantine(run.quarantine, strict=settings.strict)

    def opened(storage: str) -> Pictures:
        return open_pictures(
            source,
            settings.stored_side,
            place,
            storage=storage,
            workers=settings.workers,
            strict=settings.strict,
            quarantine=quarantine,
        )

    pictures = opened(settings.storage)
    if earlier and earlier["chosen"]["storage"] == "workers" and pictures.count < earlier["data"]["readable"]:
        pictures.close()
        pictures = opened("workers")  # it began so, and counts those too that turn out unreadable only later
    if pictures.count < FEWEST:
        raise InputError(f"Only {pictures.count} pictures of {source.name} can be read: see {run.quarantine}.")
    say(f"Data: {pictures.why}")
    if earlier is not None:
        _check_instances(run, pictures)
    # A run of a version without this choice went by pictures.
    order = choose_order(pictures, settings.order, earlier and earlier["chosen"].get("order", Order().facts()))
    if earlier is None:
        choice = choose_precision(encoder, place, settings.precision, settings.batch)
        precision = choice.precision
        say(f"Precision: {choice.why}")
    else:
        precision = earlier["chosen"]["precision"]
        settings = replace(settings, bank_dtype=earlier["chosen"].get("bank_dtype", settings.bank_dtype))
    compiled = _compiled(earlier, settings, encoder, place, precision, pictures.count, say)
    training = Training(run, settings, pictures, encoder, place, precision, order, compiled)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    say(
        f"Network: {settings.backbone} with {parameters / 1e6:.2f} million weights on {_device_name(place)}"
        + (f", on each of {ranks.world()} ranks" if ranks.world() > 1 else "")
        + f", {settings.dim} numbers a picture."
    )
    say(f"Bank: {training.rows.why}")
    if place.type == "cpu":
        say(f"Augmentation: {way_on_cpu()}")
        for augment in training.augmentations.values():
            augment.prepare(settings.stored_side)
    if order.by == "shards":
        say(f"Order: {order.why}")
    if ranks.world() > 1 and any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in encoder.modules()):
        shared = settings.sync_batchnorm and place.type == "cuda"
        say(
            "Batch statistics: shared by all ranks."
            if shared
            else "Batch statistics: each rank's own (on GPUs, sync_batchnorm=true shares them)."
        )
    if earlier is None and ranks.is_main():
        _write_start(training, source, described)
    ranks.barrier()
    torch.manual_seed(settings.seed)  # for backbones with dropout, the only ones that use torch's own generator
    if resume:
        found = training.resume()
        at = f"epoch {training.step_number / training.batches_per_epoch:.1f}"
        say(
            f"Resumed at {at}, step {training.step_number}." if found else "There is no checkpoint yet: from the start."
        )
    held_out = None if test is None else _open_in_turn(test, labels=None, split=None, limit=None)
    if held_out is not None:
        held_out.number_like(source)
    monitor = make_monitor(settings, source, pictures, held_out)
    started = time.monotonic()
    training.fit(monitor)
    if training.finished:
        finish_search_vectors(training, say)
    say(_closing(run, training, quarantine, time.monotonic() - started))
    return Run(
        run.path,
        pictures.count,
        training.step_number / training.batches_per_epoch,
        training.seconds,
        training.finished,
        quarantine.count,
    )


def _silent(_: str) -> None:
    """Take no notice."""


def _open_in_turn(given: Any, **how: Any) -> Source:
    """Open a source on the main rank first, which writes its index, and then on the others, which read it."""
    if ranks.is_main():
        source = open_source(given, **how)
        _ = source.fingerprint
        ranks.barrier()
        return source
    ranks.barrier()
    return open_source(given, **how)


def _check_folder(run: RunFolder, resume: bool) -> None:
    if run.exists() and not resume:
        raise InputError(f"{run.path} holds a run already: add --resume to go on with it, or choose another folder.")
    require_utf8(run.path)
    if resume and not run.exists():
        raise InputError(f"There is no run in {run.path} to resume: start it without --resume.")
    if run.path.exists() and not run.path.is_dir():
        raise InputError(f"{run.path} is a file: choose a folder for the run.")
    if not run.exists() and run.path.is_dir():
        foreign = [path.name for path in run.path.iterdir() if not path.name.startswith(_BEFORE_CONFIG)]
        if foreign:
            raise InputError(
                f"{run.path} is not empty and holds no run: choose another folder, so that nothing is mixed."
            )
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The run folder {run.path} can't be made ({error.strerror}): choose another place.") from None


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
                sentence = refusal(error) or f"{run.path} can't be written ({error}): choose another place."
            except InputError as error:
                sentence = str(error)
        sentence = ranks.broadcast_object(sentence)
        if sentence is not None:
            raise InputError(sentence)
        yield


def _check_same(run: RunFolder, earlier: Mapping[str, Any], settings: Settings, source: Source) -> None:
    different = Settings.from_dict(earlier["settings"]).differences(settings)
    if different:
        raise InputError(
            f"{run.path} was started with other settings ({'; '.join(different)}): resume with the same, "
            "or start a new run."
        )
    check_unchanged(run, earlier, source)


def _compiled(
    earlier: dict[str, Any] | None,
    settings: Settings,
    encoder: Encoder,
    place: torch.device,
    precision: str,
    count: int,
    say: Callable[[str], None],
) -> bool:
    """Whether the encoder goes through torch.compile: in a resumed run as before."""
    if earlier is not None and "compile" in earlier["chosen"]:
        return earlier["chosen"]["compile"] is True
    if settings.compile != "auto":
        return bool(settings.compile)
    steps = round(settings.epochs * count / settings.batch * settings.growth.mean_cost)  # as many of whole views
    batch = max(2, settings.batch * settings.views // (settings.accumulate * ranks.world()))
    seconds, sizes = 60 * (settings.minutes or 0), len(settings.view_sizes)
    choice = choose_compile(encoder, place, precision, batch, steps, seconds, sizes)
    say(f"Encoder: {choice.why}")
    return choice.compiled


def _check_instances(run: RunFolder, pictures: Pictures) -> None:
    """Bank row i is picture i of instances.arrow: a picture more or less that can be read would move all after it."""
    held = read_rows(run)
    if not np.array_equal(held, pictures.rows):
        raise InputError(
            f"{pictures.count:,} pictures can be read now and {len(held):,} when {run.path} was started, or others: "
            "restore them, or start a new run."
        )


def _write_start(training: Training, source: Source, described: Mapping[str, Any]) -> None:
    """instances.arrow and config.json: the last makes the folder a run."""
    run, pictures = training.run, training.pictures
    table = source.fetch_table().take(pa.array(pictures.rows)).append_column("row", pa.array(pictures.rows))
    try:
        with pa.OSFile(os.fsencode(run.instances), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    except OSError as error:
        raise InputError(f"{run.instances} could not be written ({error}): make room there, then try again.") from None
    write_json(
        run.config,
        {
            "format": FORMAT,
            "instdisc": __version__,
            "torch": torch.__version__,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "source": {"name": source.name, **described},
            "data": {"rows": len(source), "readable": pictures.count, "fingerprint": fingerprint_of(source)},
            "settings": training.settings.to_dict(),
            "encoder": training.encoder.describe(),
            "chosen": {
                "device": str(training.device),
                "device_name": _device_name(training.device),
                "precision": training.precision,
                "compile": training.compiled,
                "storage": pictures.storage,
                "order": training.order.facts(),
                "bank_dtype": str(training.rows.dtype).removeprefix("torch."),
                "bank_storage": training.rows.storage,
                "ranks": ranks.world(),
            },
        },
    )


def _say_source(say: Callable[[str], None], source: Source, look: Look) -> None:
    low, high = look.smallest, look.largest
    sizes = f"{low[0]}×{low[1]} px" if low == high else f"{low[0]}×{low[1]} to {high[0]}×{high[1]} px"
    known = " Labels were found: they serve for measuring only." if source.labels is not None else ""
    say(f"Pictures: {len(source):,} in {source.name}, {sizes}.{known}")
    for note in source.notes:
        say(f"  {note}")


def _say_settings(say: Callable[[str], None], settings: Settings) -> None:
    length = f"{settings.minutes:g} minutes" if settings.minutes is not None else f"{settings.epochs:g} epochs"
    views = "1 view" if settings.views == 1 else f"{settings.views} views"
    *early, whole = settings.view_sizes
    sizes = f"{', '.join(map(str, early))}, then {whole}" if early else str(whole)
    sampled = f" with {settings.negatives:,} negatives" if settings.objective in ("nce", "sampled") else ""
    sampled += f", Z by {settings.partition}" if settings.objective == "nce" else ""
    say(
        f"Recipe: preset {settings.preset}: {settings.objective}{sampled}, temperature {settings.temperature:g}, "
        f"{views} of {sizes} px, batch {settings.batch}, lr {settings.lr:g} ({settings.schedule}), {length}."
    )


def _closing(run: RunFolder, training: Training, quarantine: Quarantine, seconds: float) -> str:
    unreadable = ""
    if quarantine.count:
        unreadable = f" {quarantine.count} pictures could not be read: see {run.quarantine}."
    if training.interrupted and not training.finished:
        epoch = training.step_number / training.batches_per_epoch
        return f"Stopped and saved at epoch {epoch:.1f}; go on with --resume. The run is in {run.path}.{unreadable}"
    return f"Done in {duration(seconds)}. The run is in {run.path}.{unreadable}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    threads = torch.get_num_threads()
    return f"CPU ({threads} {'thread' if threads == 1 else 'threads'}, {platform.machine()})"
