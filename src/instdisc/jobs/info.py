"""`instdisc info`: what a run folder or a source of pictures holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from instdisc import checkpoint
from instdisc.data.source import open_source
from instdisc.errors import InputError
from instdisc.jobs.sources import look_at, read_facts
from instdisc.progress import duration
from instdisc.runs import RunFolder, read_json
from instdisc.training import read_metrics


def info(place: Any) -> dict[str, str]:
    """Facts for a person, name -> words, of a run folder or of a source."""
    folder = RunFolder(place) if isinstance(place, str | Path) else None
    if folder is not None and folder.exists():
        try:
            return _of_run(folder)
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # whatever its files say, or don't
            raise InputError(f"{folder.path} can't be described ({error!r}): the run folder is damaged.") from None
    return _of_source(place)


def _of_run(folder: RunFolder) -> dict[str, str]:
    config = read_facts(folder)
    settings, data = config["settings"], config["data"]
    facts = {
        "run": str(folder.path),
        "made": f"{config['created']} by instdisc {config['instdisc']}",
        "pictures": f"{data['readable']:,} of {config['source']['name']}"
        + (f" ({data['rows'] - data['readable']} could not be read)" if data["rows"] != data["readable"] else ""),
        "preset": settings["preset"],
        "encoder": f"{settings['backbone']}, {settings['size']} px, {settings['head']} head, {settings['dim']} numbers",
        "objective": f"{settings['objective']}, temperature {settings['temperature']:g}",
        "ran on": f"{config['chosen']['device_name']}, {config['chosen']['precision']}",
    }
    saved = checkpoint.latest(folder.checkpoints, verify=())
    if saved is None:
        facts["checkpoint"] = "none yet"
    else:
        facts["checkpoint"] = (
            f"step {saved.step:,}, epoch {saved.facts['epoch']:.1f}, after {duration(saved.facts['seconds'])}"
        )
    lines = read_metrics(folder)
    loss = _loss_of(lines, settings.get("fill_epochs", 0.0))
    measured = [line for line in lines if "measured" in line]
    if loss:
        facts["loss"] = loss
    if measured:
        facts["last measured"] = ", ".join(f"{name} {value:.3g}" for name, value in measured[-1]["measured"].items())
    if folder.evaluation.is_file():
        evaluation = read_json(folder.evaluation)
        if "knn" in evaluation:
            rows = {"search vectors": evaluation.get("knn_search"), "embedding": evaluation["knn"]}
            rows["raw pixels"] = evaluation["baselines"]["raw_pixels"]
            known = (f"{name} {100 * one['top1']:.2f} %" for name, one in rows.items() if one is not None)
            facts["evaluated"] = f"kNN: {', '.join(known)}"
    return facts


def _loss_of(lines: list[dict[str, Any]], fill_epochs: float) -> str:
    """How the loss has fallen. While the bank fills it lacks the terms of the bank, and would seem to rise later."""
    losses = [(line["loss"], line["epoch"]) for line in lines if "loss" in line]
    whole = [loss for loss, epoch in losses if epoch > fill_epochs]
    if not losses:
        return ""
    if not whole:
        return f"{losses[-1][0]:.3f} while the bank is being filled"
    since = f" (from epoch {fill_epochs:g} on, when the bank was full)" if fill_epochs else ""
    return f"{whole[0]:.3f} at first, {whole[-1]:.3f} at last{since}"


def _of_source(place: Any) -> dict[str, str]:
    source = open_source(place)
    look = look_at(source)
    facts = {
        "source": source.name,
        "pictures": f"{len(source):,}",
        "sizes": f"{look.smallest[0]}×{look.smallest[1]} to {look.largest[0]}×{look.largest[1]} px, "
        f"usual shorter side {look.side} px (of {look.looked} looked at)",
    }
    if look.unreadable:
        facts["unreadable"] = f"{look.unreadable} of the {look.looked} looked at"
    if source.labels is None:
        facts["labels"] = "none (training needs none)"
    else:
        counts = Counter(source.labels[source.labels >= 0].tolist())
        names = source.label_names
        shown = [f"{names[value] if names else value} ({count:,})" for value, count in counts.most_common(8)]
        more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
        facts["labels"] = f"{len(counts)} classes: {', '.join(shown)}{more}"
    for number, note in enumerate(source.notes, 1):
        facts[f"note {number}"] = note
    return facts
