"""`instdisc open VECTORS [SOURCE]`: a collection on vectors that were made elsewhere, as a run folder. No encoder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from instdisc import checkpoint
from instdisc.data.sources.given import GivenSource, read_vectors
from instdisc.data.sources.open import open_source
from instdisc.encoder import unit_length
from instdisc.errors import InputError, counted
from instdisc.files import held, write_whole
from instdisc.jobs.open import BEGUN, FEWEST, begin, refuse_run
from instdisc.jobs.sources import describe_source, findable, log_lines
from instdisc.jobs.start import write_start
from instdisc.jobs.train import RunResult, check_folder
from instdisc.runs import RunFolder
from instdisc.shapes import Tensor
from instdisc.training import Settings

_BLOCK = 65_536


def open_vectors(
    vectors: str | Path,
    out: str | Path,
    pictures: Any = None,
    *,
    column: str | None = None,
    labels: Any = None,
    split: str | None = None,
    limit: int | None = None,
    say: Callable[[str], None] | None = print,
) -> RunResult:
    """Make a run folder of vectors in a .npy or .parquet file (see `read_vectors`), scaled to unit length.

    pictures: their source, matched by path or id; None = without. labels, split, limit: of the pictures; labels of the
    table otherwise. column: which one of a Parquet file holds the vectors, where several might. All that needs no
    encoder works on the run; other columns stay in RUN/given.parquet. Vectors that can't be used (NaN, zeros, none) are
    left out, and listed in RUN/quarantine.csv.
    Raises InputError for an invalid argument.

        open_vectors("vectors.parquet", "runs/opened", "pictures/")
    """
    run, log, path = RunFolder(out), say or (lambda _: None), Path(vectors)
    refuse_run(run)
    given = read_vectors(path, column)
    count, dim = given.vectors.shape
    if count < FEWEST:
        raise InputError(f"{path} has {counted(count, 'vector')} that can be used: there is nothing to compare.")
    opened = None if pictures is None else open_source(findable(pictures), split=split, limit=limit)
    source = GivenSource(str(path), given.table, opened)
    if labels is not None:
        source.set_labels(labels)
    log(f"Vectors: {count:,} of {dim} dimensions in {path}.")
    if opened is not None:
        found = len(source.with_picture)
        if not found:
            first = source.identifier(0)
            raise InputError(
                f"No vector of {path} belongs to a picture of {opened.name}: the first has the id {first}."
            )
        log(f"  {found:,} of them have a picture in {opened.name}, which holds {len(opened):,}.")
    log_lines(log, source.label_notes)
    check_folder(run, resume=False, begun=BEGUN)
    with held(run.lock, "opening it"):
        quarantine = begin(run)
        for line in given.unusable:
            quarantine.add(*line)
        if given.unusable:
            left_out = counted(len(given.unusable), "vector is", "vectors are")
            log(f"  {left_out} left out, as they can't be used: see {run.quarantine}.")
        table = pa.BufferOutputStream()
        pq.write_table(given.table, table)
        write_whole(run.given, table.getvalue().to_pybytes())
        shard = checkpoint.Shard({"rows": _unit(given.vectors)}, 0, count)
        facts = {"epoch": 0, "seconds": 0, "bank": {"instances": count, "updates": 0}}
        checkpoint.save(run.checkpoints, step=0, tensors={}, facts=facts, shards={"bank": shard})
        write_start(
            run,
            source,
            describe_source(pictures, labels, split, limit),
            np.arange(count),
            settings=Settings(preset="opened").to_dict(),
            encoder={"backbone": None, "dim": dim},
            chosen={
                "opened": {"vectors": os.path.abspath(path)},
                **dict.fromkeys(("device", "device_name", "precision", "storage"), "none"),
            },
        )
        (run.path / BEGUN).rmdir()
    log(f"{counted(count, 'vector is', 'vectors are')} in {run.path}. Searching by other pictures needs an encoder.")
    return RunResult(run.path, count, 0.0, 0.0, True, quarantine.count)


def _unit(vectors: np.ndarray) -> Tensor:
    """The same to unit length, in the precision they have."""
    answer = torch.from_numpy(vectors)
    for start in range(0, len(answer), _BLOCK):
        answer[start : start + _BLOCK] = unit_length(answer[start : start + _BLOCK].float())
    return answer
