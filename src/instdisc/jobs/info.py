"""`instdisc info`: what a run folder or a source of pictures holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from instdisc.data.sources.open import open_source
from instdisc.errors import InputError
from instdisc.files import read_json
from instdisc.jobs.run import Run
from instdisc.jobs.sources import look_at
from instdisc.progress import duration
from instdisc.runs import RunFolder
from instdisc.training import read_metrics


def info(location: Any, split: str | None = None) -> dict[str, str]:
    """Facts for a person, name -> words, of a run folder or of a source, or several locations. split: a part of it."""
    folder = RunFolder(location) if isinstance(location, str | Path) else None
    if folder is not None and folder.exists():
        return about_run(Run(folder.path, verify=()))
    return _of_source(location, split)


def about_run(run: Run) -> dict[str, str]:
    """`info` of a run that is open already."""
    try:
        return _of_run(run)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # whatever its files say, or don't
        raise InputError(f"{run.path} can't be described ({error!r}): the run folder is damaged.") from None


def _of_run(run: Run) -> dict[str, str]:
    folder, config = run.folder, run.facts
    if run.given:
        return _of_vectors(run)
    settings, data, opened = config["settings"], config["data"], config["chosen"].get("opened")
    facts = {
        "run": str(folder.path),
        "made": f"{config['created']} by instdisc {config['instdisc']}",
        "pictures": f"{data['readable']:,} of {config['source']['name']}"
        + (f" ({data['rows'] - data['readable']} could not be read)" if data["rows"] != data["readable"] else ""),
        "preset": settings["preset"],
        "encoder": f"{settings['backbone']}, {settings['size']} px, {settings['head']} head, "
        f"{settings['dim']} dimensions",
        "objective": f"{settings['objective']}, temperature {settings['temperature']:g}"
        if opened is None
        else f"none: the encoder is a published one, with weights of {opened['weights'] or 'timm'}",
        "ran on": f"{config['chosen']['device_name']}, {config['chosen']['precision']}",
    }
    saved = run.last_checkpoint
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


def _of_vectors(run: Run) -> dict[str, str]:
    config = run.facts
    return {
        "run": str(run.path),
        "made": f"{config['created']} by instdisc {config['instdisc']}",
        "vectors": f"{config['data']['rows']:,} of {config['chosen']['opened']['vectors']}, {config['encoder']['dim']} "
        "dimensions, made elsewhere",
        "pictures": "none" if config["source"]["given"] is None else str(config["source"]["given"]),
        "encoder": "none: it can't search by other pictures",
    }


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


def _of_source(location: Any, split: str | None) -> dict[str, str]:
    source = open_source(location, split=split)
    look = look_at(source)
    facts = {
        "source": source.name,
        "pictures": f"{len(source):,}",
        "sizes": f"{look.sizes}, usual shorter side {look.side} px (of {look.looked} looked at)",
    }
    if look.unreadable:
        facts["unreadable"] = f"{look.unreadable} of the {look.looked} looked at"
    if source.labels_problem is not None:
        facts["labels"] = f"invalid (training needs none). {source.labels_problem}"
    elif source.labels is None:
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
