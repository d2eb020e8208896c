"""`instdisc open`: a collection on a published encoder, as a run folder like any other. Nothing is trained.

The pictures go through the network once. RUN/.opening keeps the features meanwhile, so that an interrupted start goes
on; config.json comes last and makes the folder a run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from instdisc import checkpoint, ranks
from instdisc.data.loading.quarantine import Quarantine
from instdisc.data.sources.open import open_source
from instdisc.data.sources.source import Source
from instdisc.embeddings import NothingReadableError
from instdisc.encoder import Encoder
from instdisc.encoder.whitening import NoSearchVectorsError
from instdisc.errors import InputError, counted
from instdisc.files import file_digest, held
from instdisc.jobs.embed import note_unreadable
from instdisc.jobs.frozen import check_room, frozen_vectors, published_encoder
from instdisc.jobs.search_vectors import described
from instdisc.jobs.sources import describe_source, findable, look_at, stamps_of
from instdisc.jobs.start import write_start
from instdisc.jobs.train import RunResult, check_folder
from instdisc.jobs.train_log import device_name, log_source
from instdisc.runs import RunFolder
from instdisc.search.store import Changes, Part, write_changes
from instdisc.shapes import Int
from instdisc.training import DataFacts, Settings, preset

BEGUN = ".opening"
FEWEST = 2  # pictures: fewer have nothing to be compared with
Say = Callable[[str], None] | None


def open_run(
    source: Any,
    out: str | Path,
    encoder: str,
    *,
    weights: str | Path | None = None,
    size: int | None = None,
    device: str = "auto",
    say: Say = print,
    **how: Any,
) -> RunResult:
    """Embed a collection with a published encoder, frozen, and leave it in the run folder `out`.

    source: see `instdisc.data.open_source`, which takes how (labels, split, limit) too. encoder: a timm name, or one of
    our small ones. weights: a safetensors file; None = timm's own, fetched where a network is. size: side of the
    pictures the network sees, pixels; None = its own.
    Search vectors are whitened features of the stages; "embedding" vectors are the pooled features to unit length.
    Raises InputError for an invalid argument.

        open_run("pictures/", "runs/opened", "resnet50", weights="resnet50.safetensors")
    """
    started, run, log = time.monotonic(), RunFolder(out), say or (lambda _: None)
    refuse_run(run)
    opened = open_source(findable(source), **how)
    if len(opened) < FEWEST:
        raise InputError(f"{opened.name} has {counted(len(opened), 'picture')}: there is nothing to compare.")
    look = look_at(opened)
    log_source(log, opened, look)
    network = published_encoder(encoder, weights, size=size, shown=look.side)
    log(f"Encoder: {network.origin}, at {network.config.image_size} px. Nothing is trained.")
    check_folder(run, resume=False, begun=BEGUN)  # makes it
    with held(run.lock, "opening it"):
        quarantine = begin(run)
        quarantine.skip(opened.skipped.lines(opened.name))
        rows = _embedded(run, network.to(ranks.device(device)), opened, quarantine, log)
        facts = DataFacts(len(opened), look.side, "cpu")
        chosen = {
            "opened": {"encoder": encoder, **_file_facts(weights)},
            "device": str(ranks.device(device)),
            "device_name": device_name(ranks.device(device)),
            "precision": "float32" if ranks.device(device).type == "cpu" else "auto",
            "storage": "workers",
        }
        write_start(
            run,
            opened,
            describe_source(source, *(how.get(name) for name in ("labels", "split", "limit")), beginning=True),
            rows,
            settings=_settings(network, facts).to_dict(),
            encoder=network.describe(),
            chosen=chosen,
        )
        shutil.rmtree(run.path / BEGUN)
    seconds = time.monotonic() - started
    log(f"{counted(len(rows), 'picture is', 'pictures are')} in {run.path}, after {seconds:.0f} s.")
    return RunResult(run.path, len(rows), 0.0, seconds, True, quarantine.count)


def refuse_run(run: RunFolder) -> None:
    """InputError where the folder is a run already, before anything is read."""
    if run.exists():
        raise InputError(f"{run.path} holds a run already: choose another folder with --output.")


def begin(run: RunFolder) -> Quarantine:
    """An empty list of what can't be used, and no leftovers of a start that was interrupted but for its features."""
    (run.path / BEGUN).mkdir(exist_ok=True)
    for folder in (run.checkpoints, run.index):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (run.search_vectors, run.quarantine):
        file.unlink(missing_ok=True)
    return Quarantine(run.quarantine)


def _embedded(
    run: RunFolder, network: Encoder, source: Source, quarantine: Quarantine, log: Callable[[str], None]
) -> Int[np.ndarray, " read"]:
    """The rows that could be read, once checkpoint, map and vectors of all of them are in the run folder."""
    begun = run.path / BEGUN
    features = begun / "features.npy"
    check_room(begun, len(source), sum(network.frozen_levels().values()))
    try:
        found = frozen_vectors(features, network, source, say=log)
    except NothingReadableError:
        raise InputError(f"None of the pictures of {source.name} can be read: is it the right place?") from None
    note_unreadable(features, quarantine)
    if len(found.rows) < FEWEST:
        raise InputError(f"Only one picture of {source.name} can be read: see {run.quarantine}.")
    rows, bank = found.rows, {"rows": found.embedding()}
    checkpoint.save(
        run.checkpoints,
        step=0,
        tensors={"encoder": network.state_dict()},
        facts={"epoch": 0, "seconds": 0, "bank": {"instances": len(rows), "updates": 0}},
        shards={"bank": checkpoint.Shard(bank, 0, len(rows))},
    )
    try:
        whitening = found.fit()
    except NoSearchVectorsError as error:
        log(f"Search vectors: none. {error} Searches use the pooled features.")
    else:
        whitening.save(run.search_vectors)
        part = Part(found.search(whitening), stamps=stamps_of(source, rows))
        write_changes(run.index, Changes(step=0, recomputed=part, whitening=whitening.digest))
        log(f"Search vectors: {described(whitening)}.")
    return rows


def _settings(network: Encoder, facts: DataFacts) -> Settings:
    """What an evaluation with few labels starts from: the default, with this network."""
    own = network.config
    size, dim = own.image_size, own.dim
    changes: dict[str, Any] = {
        "width": None,
        "hidden": None,
        "early_sizes": (),
        "grow_at": (),
        "size": size,
        "dim": dim,
    }
    found = preset("default", facts).with_overrides({"backbone": own.backbone, "head": "none", **changes})
    return replace(found, preset="opened", pretrained=own.pretrained)


def _file_facts(weights: str | Path | None) -> dict[str, Any]:
    """Which weights they are, so that a person can tell later."""
    if weights is None:
        return {"weights": None}
    return {"weights": str(Path(weights).absolute()), **file_digest(Path(weights))}
