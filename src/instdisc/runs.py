"""The names of the files in a run folder.

    RUN/config.json        every setting, as it was used          RUN/metrics.jsonl     one line for each logged step
    RUN/instances.arrow    which picture each bank row belongs to RUN/quarantine.csv    pictures that could not be read
    RUN/checkpoints/       the last whole states of the run       RUN/evaluation.json   what `evaluate` measured
    RUN/search_vectors.safetensors    the map from the encoder's features to the vectors that people search by
    RUN/tensorboard/       the metrics for TensorBoard            RUN/diagnosis/        what was saved at a NaN loss
    RUN/index/             pictures added and removed, recomputed vectors, tags: what `index` did; each one's
                           neighbours; the graph of `--approximate`; thumbnails, by which copies are proven
    RUN/duplicates/        what `duplicates` found              RUN/outliers/         what `outliers` found
    RUN/labels/            labels given by hand, and the journal by which each act can be undone; the order of the
                           classes; what `label` proposes; the labels of a table or list that the run began with
    RUN/review/            what was decided on copies, look-alikes, outliers, doubtful labels and unreadable files
    RUN/sets/              sets of pictures with a name, as lists of ids
    RUN/map/               the collection in the plane
    RUN/given.parquet      what came with vectors that were made elsewhere: id, location, label, other columns
    RUN/features/          of a frozen backbone, until the training has ended
    RUN/train.lock         who trains here, while it is held
    RUN/growing/           an addition (`train RUN --add`) that has not ended
    RUN/purged/            receipts of what `index RUN --purge` erased
    RUN/replacing.json     files that are being put in the places of others, all or none

Training and everything after it meet in these files only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from instdisc.errors import InputError
from instdisc.files import read_json, settle

GIVEN_LABELS = "labels/given.csv"  # in a run folder
FORMAT = 1  # of the whole folder: a newer one is refused, an older one is brought up to date when it is opened


class RunFolder:
    """Paths inside one run folder. Nothing is made or read until it is asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.instances = self.path / "instances.arrow"
        self.lock = self.path / "train.lock"
        self.growing = self.path / "growing"
        self.purging = self.path / "purging"
        self.purged = self.path / "purged"
        self.metrics = self.path / "metrics.jsonl"
        self.quarantine = self.path / "quarantine.csv"
        self.checkpoints = self.path / "checkpoints"
        self.features = self.path / "features"
        self.given = self.path / "given.parquet"
        self.search_vectors = self.path / "search_vectors.safetensors"
        self.evaluation = self.path / "evaluation.json"
        self.tensorboard = self.path / "tensorboard"
        self.diagnosis = self.path / "diagnosis"
        self.index = self.path / "index"
        self.duplicates = self.path / "duplicates"
        self.outliers = self.path / "outliers"
        self.map = self.path / "map" / "map.safetensors"
        self.labels = self.path / "labels"
        self.hand_labels = self.labels / "hand.csv"
        self.journal = self.labels / "journal.jsonl"
        self.classes = self.labels / "classes.json"
        self.review = self.path / "review" / "journal.jsonl"
        self.sets = self.path / "sets"
        self.thumbnails = self.index / "thumbnails.npy"
        self.links = self.index / "links.usearch"
        self.neighbour_graph = self.index / "graph.safetensors"
        self.neighbours_sheet = self.path / "neighbours.png"
        self.curves = self.path / "curves.png"
        self.few_labels_plot = self.path / "semi.png"
        self.few_labels_draws = self.path / "semi.json"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config.is_file()

    def read_config(self) -> dict[str, Any]:
        """config.json as a dict; InputError when the folder is no run, is damaged, or is newer than this version."""
        if not self.path.is_dir():
            raise InputError(
                f"There is no run folder at {self.path}: give the folder that `instdisc train --out` made."
            )
        if not self.config.is_file():
            raise InputError(f"{self.path} is not a run folder: it has no config.json.")
        settle(self.path)
        require_utf8(self.path)
        config = read_json(self.config)
        found = config.get("format")
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise InputError(f"{self.config} does not say its format: the run folder is damaged, or of something else.")
        if found > FORMAT:
            raise InputError(
                f"{self.path} was made by a newer version of instdisc (format {found}, this version reads up to "
                f"{FORMAT}): upgrade instdisc to open it."
            )
        return config


def require_utf8(path: Path) -> None:
    """InputError for a path that is not UTF-8, which safetensors and ONNX can't open."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path} is not UTF-8, as this folder's name must be: choose another, or rename it.") from None
