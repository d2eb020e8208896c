"""What `train` says at its start and its end."""

from __future__ import annotations

import platform
from collections.abc import Callable

import torch

from instdisc import ranks
from instdisc.data.augment import way_on_cpu
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.loading.sampler import Order
from instdisc.data.sources.source import Source
from instdisc.errors import counted
from instdisc.jobs.sources import Look
from instdisc.objectives import OBJECTIVES
from instdisc.progress import duration
from instdisc.runs import RunFolder
from instdisc.training import Settings, Training, step_memory


def log_source(log: Callable[[str], None], source: Source, look: Look) -> None:
    """How many pictures, and what was chosen, skipped, or is wrong with the labels."""
    known = " Labels were found: they serve for measuring only." if source.labels is not None else ""
    if source.labels_problem is not None:
        known = f" The labels are invalid; training needs none. {source.labels_problem}"
    log(f"Pictures: {len(source):,} in {source.name}, {look.sizes}.{known}")
    for note in (*source.notes, *source.label_notes):
        log(f"  {note}")


def log_settings(log: Callable[[str], None], settings: Settings) -> None:
    """The recipe in a sentence."""
    amount, unit = (settings.epochs, "epoch") if settings.minutes is None else (settings.minutes, "minute")
    length = f"{amount:g} {unit}" + "s" * (amount != 1)
    views = "1 view" if settings.views == 1 else f"{settings.views} views"
    *early, whole = settings.view_sizes
    sizes = f"{', '.join(map(str, early))}, then {whole}" if early else str(whole)
    described = OBJECTIVES[settings.objective].described(settings)
    log(
        f"Recipe: preset {settings.preset}: {settings.objective}{described}, temperature {settings.temperature:g}, "
        f"{views} of {sizes} px, batch {settings.batch}, lr {settings.lr:g} ({settings.schedule}), {length}."
    )


def log_training(log: Callable[[str], None], training: Training, order: Order) -> None:
    """Network, bank, augmentation, order and batch statistics."""
    settings, encoder, device = training.settings, training.encoder, training.device
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    learning = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    some = "" if learning == parameters else f", {learning / 1e6:.2f} million of them learn,"
    log(
        f"Network: {settings.backbone} with {parameters / 1e6:.2f} million weights{some} on {device_name(device)}"
        + (f", on each of {ranks.world()} ranks" if ranks.world() > 1 else "")
        + f", {settings.dim} dimensions."
    )
    log(f"Bank: {training.rows.why}")
    if not settings.features_are_kept:  # else a step is a head's, and small
        log(f"Memory: {step_memory(encoder, settings, device, training.precision).why}")
    if device.type == "cpu":
        log(f"Augmentation: {way_on_cpu()}")
    if order.by == "shards":
        log(f"Order: {order.why}")
    if ranks.world() > 1 and any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in encoder.modules()):
        log(
            "Batch statistics: shared by all ranks."
            if settings.sync_batchnorm
            else "Batch statistics: each rank's own (sync_batchnorm=true shares them)."
        )


def closing(run: RunFolder, training: Training, quarantine: Quarantine, seconds: float) -> str:
    """The last sentence of `train`."""
    unreadable = ""
    if quarantine.count:
        unreadable = f" {counted(quarantine.count, 'picture')} could not be read: see {run.quarantine}."
    if training.interrupted and not training.finished:
        epoch = training.step_number / training.batches_per_epoch
        go_on = "go on with --resume (resume=True in Python)"
        return f"Stopped and saved at epoch {epoch:.1f}; {go_on}. The run is in {run.path}.{unreadable}"
    return f"Done in {duration(seconds)}. The run is in {run.path}.{unreadable}"


def device_name(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    threads = torch.get_num_threads()
    return f"CPU ({threads} {'thread' if threads == 1 else 'threads'}, {platform.machine()})"
