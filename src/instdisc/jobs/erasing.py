"""The files of a run folder without some pictures, each written to RUN/purging/ under its name."""

from __future__ import annotations

import copy
import csv
import io
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from instdisc.checkpoint import STATE, Checkpoint, DamagedError, open_checkpoint, write_state, write_tensors
from instdisc.data.loading.pixel_cache import PixelCache
from instdisc.data.sources.source import Source
from instdisc.data.sources.subset import Subset
from instdisc.data.storage.scan import cache_folder
from instdisc.files import file_digest, write_arrow, write_json, write_text, write_whole
from instdisc.jobs import journal, review, sets
from instdisc.jobs.collection import Collection
from instdisc.jobs.copies import marks_now
from instdisc.runs import RunFolder
from instdisc.search.fingerprints import RECORD
from instdisc.search.store import Part, write_changes
from instdisc.training import Settings

_SHEETS = {".png", ".html", ".jpg"}
_LISTS = {".csv", ".txt"}


class Erasing:
    """Writes what is left. rows: of the collection, ascending. drop: files that go whole; erased: file -> what went.

    locations: where the pictures stood and stand. forgotten: all their names, as text.
    """

    def __init__(self, collection: Collection, rows: np.ndarray) -> None:
        self._collection, self._rows = collection, rows
        self._folder = collection.folder
        self._stage = RunFolder(self._folder.purging)
        self._training = len(collection.rows)
        self._own = rows[rows < self._training]
        entries = collection.index.entries(rows)
        positions = {one.path for one in entries}
        positions |= (
            {collection.location(row) for row in self._own.tolist()} if collection.moved_to is not None else set()
        )
        self.locations = sorted(os.fsencode(position) for position in positions)
        self._forgotten = {one.id for one in entries} | positions
        self.drop: list[Path] = []
        self.erased: dict[str, str] = {}

    def instances(self) -> None:
        """instances.arrow without their lines."""
        table = self._collection.run.instances
        keep = np.ones(len(table), dtype=bool)
        keep[self._own] = False
        write_arrow(self._stage.instances, table.filter(pa.array(keep)).combine_chunks())
        self._wrote(self._folder.instances, f"{len(self._own)} rows: id, path, size and date")

    def config(self) -> None:
        """config.json without their paths, and without what the pixels of one that is looked at hash to."""
        facts = copy.deepcopy(self._collection.facts)
        data = facts["data"]
        gone = set(self._collection.run.instances["row"].to_numpy()[self._own].tolist())
        if isinstance(before := data.get("pixels"), list):
            count = max(data["rows"], 1)
            looked = np.unique(np.linspace(0, count - 1, 16).astype(np.int64)).tolist()
            data["pixels"] = [
                None if row in gone else one for row, one in zip(looked, before, strict=len(looked) == len(before))
            ]
        data["readable"] = self._training - len(self._own)
        data["purged"] = data.get("purged", 0) + len(self._rows)
        source = facts["source"]
        for described in (source, *source.get("more", ())):
            described["given"] = self._without(described["given"])
        if any(name in source["name"] for name in self._forgotten):
            source["name"] = str(source["given"][0] if isinstance(source["given"], list) else source["given"])
        write_json(self._stage.config, facts)
        self._wrote(self._folder.config, "hashes of their pixels, and their paths where the source was a list")

    def features(self) -> None:
        """RUN/features/ goes: a training that goes on computes it again."""
        self.drop += [path for path in self._folder.features.rglob("*") if path.is_file()]

    def checkpoints(self) -> None:
        """Every checkpoint without their rows of the bank; a damaged one goes."""
        for path in sorted(self._folder.checkpoints.glob("*")):
            try:
                saved = open_checkpoint(path)
            except (DamagedError, NotADirectoryError):
                self.drop += [file for file in path.rglob("*") if file.is_file()]
                continue
            self._checkpoint(saved)

    def _checkpoint(self, saved: Checkpoint) -> None:
        target = self._stage.checkpoints / saved.path.name
        target.mkdir(parents=True)
        facts = dict(saved.facts)
        facts["bank"] = {**facts["bank"], "instances": facts["bank"]["instances"] - len(self._own)}
        own_weights = Settings.from_dict(self._collection.facts["settings"]).objective == "parametric"
        files = {}
        for file in sorted(saved.path.iterdir()):
            if file.name == STATE:
                continue
            if file.name.startswith("bank-"):
                self._shard(file, target / file.name)
            elif own_weights and file.stem in ("objective", "optimizer"):
                self._weights(file, target / file.name)
            new = target / file.name
            files[file.name] = file_digest(new if new.exists() else file)
            if new.exists():
                self._wrote(file, f"{len(self._own)} rows")
        write_state(target, saved.step, facts, files)

    def _shard(self, file: Path, target: Path) -> None:
        with safe_open(file, framework="pt") as shard:
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 - no mapping
            first, last = (int((shard.metadata() or {})[name]) for name in ("start", "stop"))
        kept = np.setdiff1d(np.arange(first, last), self._own)
        start, stop = (number - int((self._own < number).sum()) for number in (first, last))
        left = {name: values[torch.from_numpy(kept - first)] for name, values in tensors.items()}
        write_tensors(target, left, start=str(start), stop=str(stop))

    def _weights(self, file: Path, target: Path) -> None:
        """Tensors with a row for each picture: of an objective with a weight for each, and of its optimizer."""
        with safe_open(file, framework="pt") as group:
            tensors = {name: group.get_tensor(name) for name in group.keys()}  # noqa: SIM118 - no mapping
        keep = torch.from_numpy(np.setdiff1d(np.arange(self._training), self._own))
        write_tensors(
            target,
            {
                name: values[keep] if values.ndim == 2 and len(values) == self._training else values
                for name, values in tensors.items()
            },
        )

    def index(self) -> None:
        """RUN/index/ without their vectors, marks and lines; graph and unfinished work go, to be made again."""
        folder = self._folder.index
        kept = (folder / "lock", self._folder.thumbnails)
        files = [path for path in folder.rglob("*") if path.is_file() and path not in kept]
        if (folder / "index.json").is_file():
            changes, made, first, added = self._collection.changes, None, self._training, []
            if changes.recomputed is not None:
                made = self._part(changes.recomputed, self._own)
            for part in changes.added:
                mine = self._rows[(self._rows >= first) & (self._rows < first + len(part.vectors))] - first
                first += len(part.vectors)
                if len(mine) < len(part.vectors):
                    added.append(self._part(part, mine))
            write_changes(
                self._stage.index,
                replace(
                    changes,
                    recomputed=made,
                    added=tuple(added),
                    removed=self._moved(changes.removed),
                    tags={name: rows for name, marked in changes.tags.items() if len(rows := self._moved(marked))},
                ),
            )
            self._wrote(folder / "index.json", f"{len(self._rows)} rows: vectors, names, tags")
        self.drop += files

    def _part(self, part: Part, gone: np.ndarray) -> Part:
        keep = np.setdiff1d(np.arange(len(part.vectors)), gone)
        source: Mapping[str, Any] | None = part.source
        if source is not None:
            source = {**source, "given": self._without(source["given"])}
        return Part(
            part.vectors[torch.from_numpy(keep)].clone(),
            None if part.pictures is None else part.pictures.take(pa.array(keep)).combine_chunks(),
            source,
            stamps=None if part.stamps is None else part.stamps[keep],
        )

    def thumbnails(self) -> None:
        """Those of the pictures that stay, as their files are now; what belongs to no such file goes."""
        file = self._folder.thumbnails
        if not file.is_file():
            return
        self.drop.append(file)
        try:
            found = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return
        if found.dtype != RECORD or found.ndim != 1:
            return
        stay = np.setdiff1d(np.arange(len(self._collection.index)), self._rows)
        marks = {mark.tobytes() for mark in marks_now(self._collection, stay)}
        keep = np.array([mark.tobytes() in marks for mark in found["mark"]], dtype=bool)
        content = io.BytesIO()
        np.save(content, found[keep])
        write_whole(self._stage.thumbnails, content.getvalue())
        self._wrote(file, f"{int((~keep).sum())} thumbnails")

    def plane(self) -> None:
        """RUN/map/ without their points."""
        file = self._folder.map
        if not file.is_file():
            return
        try:
            with safe_open(file, framework="pt") as opened:
                facts, rows, points = opened.metadata(), opened.get_tensor("rows").numpy(), opened.get_tensor("points")
        except (OSError, SafetensorError):
            self.drop.append(file)
            return
        keep = ~np.isin(rows, self._rows)
        left = {"rows": torch.from_numpy(self._numbers(rows[keep])), "points": points[torch.from_numpy(keep)]}
        write_whole(self._stage.map, save(left, metadata=facts))
        self._wrote(file, f"{int((~keep).sum())} points")

    def journal(self) -> None:
        """RUN/labels/journal.jsonl and RUN/review/journal.jsonl without what was done to them."""
        found = journal.rewritten(self._folder, lambda path: None if path in self._forgotten else path)
        if found is not None:
            write_whole(self._stage.journal, found[0])
            self._wrote(self._folder.journal, f"{found[1]} changes of labels")
        found = review.rewritten(self._folder, lambda path: None if path in self._forgotten else path)
        if found is not None:
            write_whole(self._stage.review, found[0])
            self._wrote(self._folder.review, f"{found[1]} decisions")

    def sets(self) -> None:
        """RUN/sets/ without their ids."""
        names = self._forgotten | {
            name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in self._forgotten
        }
        found = sets.rewritten(
            self._folder, self._forgotten.__contains__, lambda text: any(name in text for name in names)
        )
        for name, (kept, gone) in found.items():
            write_json(self._stage.sets / f"{name}.json", {"made": kept.made, "origin": kept.origin, "ids": kept.ids})
            self._wrote(self._folder.sets / f"{name}.json", f"{gone} ids")

    def tables(self) -> None:
        """Lists without the lines that name them; contact sheets and pages, which show pictures, go."""
        known = {self._folder.purging, self._folder.purged, self._folder.tensorboard}
        plots = (self._folder.curves, self._folder.few_labels_plot)
        for file in sorted(self._folder.path.rglob("*")):
            if not file.is_file() or known & set(file.parents) or file in self.drop:
                continue
            if (file.suffix in _SHEETS and file not in plots) or any(
                parent.name.startswith(".evaluating-") for parent in file.parents
            ):
                self.drop.append(file)
            elif file.suffix in _LISTS:
                self._list(file)

    def _list(self, file: Path) -> None:
        text = file.read_bytes().decode("utf-8", "surrogateescape")
        if not any(name in text for name in self._forgotten):
            return
        if file.suffix == ".txt":
            lines = text.splitlines(keepends=True)
            new = "".join(line for line in lines if line.rstrip("\r\n") not in self._forgotten)
            gone = sum(line.rstrip("\r\n") in self._forgotten for line in lines)
        else:
            table = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
            left = [line for line in table if not self._forgotten & set(line)]
            out = io.StringIO(newline="")
            csv.writer(out, lineterminator="\n").writerows(left)
            new, gone = out.getvalue(), len(table) - len(left)
        if gone:
            target = self._stage.path / file.relative_to(self._folder.path)
            write_text(target, new)
            self._wrote(file, f"{gone} lines")

    def _wrote(self, file: Path, what: str) -> None:
        self.erased[file.relative_to(self._folder.path).as_posix()] = what

    def _without(self, given: Any) -> Any:
        return [one for one in given if one not in self._forgotten] if isinstance(given, list) else given

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        """The numbers that rows have once those that go are gone."""
        return rows - np.searchsorted(self._rows, rows)

    def _moved(self, marked: np.ndarray) -> np.ndarray:
        return self._numbers(np.setdiff1d(marked, self._rows))


def erase_cached_pixels(collection: Collection, rows: np.ndarray) -> dict[str, str]:
    """Blacken the stored pixels of pictures wherever a training kept them; what was done, by the cache's name.

    It is done before anything else is: pixels that are missing are decoded again where they are needed.
    """
    own = rows[rows < len(collection.rows)]
    if not collection.has_pictures():
        return {}
    source = collection.training_source()
    folder = cache_folder() / "pixels"
    settings = Settings.from_dict(collection.facts["settings"])
    sources: list[tuple[Source, np.ndarray]] = [(source, collection.rows[own])]
    sources.append((Subset(source, collection.rows), own))
    done = {}
    for opened, positions in sources:
        for side in {settings.stored_side}:
            cache = PixelCache.of(opened, folder, side)
            if count := cache.erase(positions):
                done[f"cache/{cache.path.name}"] = f"the stored pixels of {count}"
    return done
