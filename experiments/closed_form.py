"""What a closed form reaches without a network: sparse codes of patches, one linear map, kNN.

    python experiments/closed_form.py --train cifar10-train.parquet --work runs/out/closed --atoms 4096
    python experiments/closed_form.py --train cifar10-train.parquet --work runs/out/closed --atoms 4096 \\
        --test cifar10-test.parquet --out results/closed_form.json

The map is that of sparse_manifold.py. Its vectors at all positions are averaged over cells of the picture; those
averages beside one another, of unit length, are the picture's vector. kNN with k 30, τ 0.03 (as published) and with
our k 200, τ 0.07, by that vector and by its first principal components, whitened (both without labels). First come
pictures put aside from the training pictures: choose by those, and give --test once, at the end.

A mirrored picture's vector is that of the picture with some signs changed: x·y = even + odd, x·mirror(y) = even − odd.
So the neighbours among all pictures and their mirror images come from the products with the pictures alone.

Every stage leaves its result in --work and is not computed again: run the same command to go on where it stopped.
Pictures go through in blocks; needs numba (the extra "fast").
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sparse_manifold import ClosedForm, Cosines, Moments, Patches, Settings, dictionary, groups_of, solve
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runs"))
from held_out import Divided
from record import record

from instdisc.errors import InputError
from instdisc.evaluation.intervals import wilson
from instdisc.progress import Bar

BLOCK = 64  # pictures that are in work at once
WRITE_SECONDS = 10.0  # how often the vectors' state is written
CHUNK = 2048  # vectors that are read at once
CHANGES = ("k 30", "k 200", "seconds")  # what differs between the rows of one method on different pictures
VOTES = {"k 30": (30, 0.03), "k 200": (200, 0.07)}
COMPONENTS = (256, 512, 1024)
QUERIES = 2_500  # pictures that are classified in one walk over the training vectors
LARGEST_COMPONENTS = 12_000  # numbers of a vector whose covariance is still computed


# --------------------------------------------------------------------------------------------------------------------
# Vectors of pictures, as an even and an odd part under the mirror


def averages(maps: Tensor, cells: int) -> Tensor:
    """(n, dims, rows, columns) to (n, dims, cells, cells): cells of one size at even steps from edge to edge."""
    steps = [max(1, size // cells) for size in maps.shape[2:]]
    sides = [size - step * (cells - 1) for size, step in zip(maps.shape[2:], steps, strict=True)]
    return avg_pool2d(maps, sides, steps)


def mirror_parts(cells: Tensor, evens: int) -> tuple[Tensor, Tensor]:
    """(n, dims, rows, columns) to orthonormal coordinates (n, even) and (n, odd) under the picture's mirror.

    The mirror turns the columns round and changes the sign of the dims after the first `evens`.
    """
    mirrored = cells.flip(-1).clone()
    mirrored[:, evens:] *= -1
    half = cells.shape[-1] // 2
    parts = [((cells + sign * mirrored) * 0.5**0.5)[..., :half].flatten(1) for sign in (1, -1)]
    if cells.shape[-1] % 2:
        middle = cells[..., half]
        alone = middle[:, :evens].flatten(1), middle[:, evens:].flatten(1)
        parts = [torch.cat(both, 1) for both in zip(parts, alone, strict=True)]
    return parts[0], parts[1]


class Vectors:
    """float16 rows on disk, an array for each number of cells, made block by block; a run that was stopped goes on."""

    def __init__(self, folder: Path, name: str, count: int, widths: dict[int, int]) -> None:
        self.name, self.count, self.done, self.seconds = name, count, 0, 0.0
        self.state = folder / f"{name}.json"
        files = {cells: folder / f"{name}-{cells}.npy" for cells in widths}
        if self.state.is_file():
            facts = json.loads(self.state.read_text(encoding="utf-8"))
            self.done, self.seconds = facts["done"], facts["seconds"]
            missing = [file.name for file in files.values() if not file.is_file()]
            if missing or facts["count"] != count:
                raise SystemExit(f"{folder} has {name} of other --cells or pictures: choose another --work.")
            self.rows = {cells: np.lib.format.open_memmap(file, mode="r+") for cells, file in files.items()}
        else:
            self.rows = {
                cells: np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(count, widths[cells]))
                for cells, file in files.items()
            }

    def fill(self, block: Callable[[int, int], dict[int, Tensor]]) -> None:
        """Make the rows that are missing: block(first, last) gives them for each number of cells."""
        with Bar(self.count, f"Vectors of {self.name}", "pictures") as bar:
            bar.start_from(self.done)
            written = time.perf_counter()
            while self.done < self.count:
                last = min(self.done + BLOCK, self.count)
                for cells, rows in block(self.done, last).items():
                    self.rows[cells][self.done : last] = rows.numpy()
                bar.advance(last - self.done)
                self.done = last
                if (now := time.perf_counter()) - written >= WRITE_SECONDS or last == self.count:
                    self.seconds += now - written
                    written = now
                    for rows in self.rows.values():
                        rows.flush()
                    write(self.state, {"done": last, "count": self.count, "seconds": self.seconds})

    def chunks(self, cells: int) -> Iterator[Tensor]:
        """float32 rows, some at a time."""
        for start in range(0, self.count, CHUNK):
            yield torch.from_numpy(np.array(self.rows[cells][start : start + CHUNK])).float()


def write(file: Path, facts: Any) -> None:
    """JSON, written aside and renamed."""
    aside = file.with_name(file.name + ".part")
    aside.write_text(json.dumps(facts, indent=2), encoding="utf-8")
    os.replace(aside, file)


# --------------------------------------------------------------------------------------------------------------------
# Neighbours among pictures and their mirror images; principal components


def votes(queries: Tensor, chunks: Iterator[Tensor], labels: np.ndarray, split: int) -> dict[str, list[np.ndarray]]:
    """The class with the most votes for each query, by each of VOTES: first without, then with mirrored pictures.

    queries: (n, numbers), the first `split` even. chunks: the training vectors. labels: theirs, from 0.
    """
    most = max(k for k, _ in VOTES.values())
    queries = normalize(queries, dim=1)
    best = [torch.full((len(queries), most), -2.0) for _ in range(2)]
    names = [torch.zeros(len(queries), most, dtype=torch.int64) for _ in range(2)]
    start = 0
    for chunk in chunks:
        rows = normalize(chunk, dim=1)
        even, odd = (queries[:, part] @ rows[:, part].T for part in (slice(split), slice(split, None)))
        own = torch.from_numpy(labels[start : start + len(rows)]).expand(len(queries), -1)
        for which, scores in enumerate(([even + odd], [even + odd, even - odd])):
            best[which], places = torch.cat([best[which], *scores], 1).topk(most, 1)
            names[which] = torch.cat([names[which], *[own] * len(scores)], 1).gather(1, places)
        start += len(rows)
    found: dict[str, list[np.ndarray]] = {}
    for name, (k, temperature) in VOTES.items():
        found[name] = []
        for scores, classes in zip(best, names, strict=True):
            weights = ((scores[:, :k] - scores[:, :1]) / temperature).exp()
            counts = torch.zeros(len(queries), int(labels.max()) + 1).scatter_add_(1, classes[:, :k], weights)
            found[name].append(counts.argmax(1).numpy())
    return found


class Components:
    """The principal components of vectors and their mirror images, whitened: again even and odd ones."""

    def __init__(self, chunks: Iterator[Tensor], split: int) -> None:
        self.split, count = split, 0
        moments: list[Any] = [0, 0]
        total: Any = 0
        for chunk in chunks:
            rows = normalize(chunk, dim=1)
            total = total + rows[:, :split].sum(0, dtype=torch.float64)
            for which, part in enumerate((rows[:, :split], rows[:, split:])):
                moments[which] = moments[which] + part.T @ part
            count += len(rows)
        self.mean = (total / count).float()  # that of the odd part is 0: a picture and its mirror image cancel
        moments[0] = moments[0] - count * torch.outer(self.mean, self.mean)
        self.axes = [torch.linalg.eigh(moment / count) for moment in moments]

    def of(self, rows: Tensor, dims: int) -> tuple[Tensor, int]:
        """(n, dims), and how many of them are even."""
        rows = normalize(rows, dim=1)
        order = torch.cat([variances for variances, _ in self.axes]).argsort(descending=True)[:dims]
        evens = order[order < self.split], order[order >= self.split] - self.split
        parts = rows[:, : self.split] - self.mean, rows[:, self.split :]
        made = [
            part @ (axes[:, chosen] * variances[chosen].clamp_min(1e-12).rsqrt())
            for part, (variances, axes), chosen in zip(parts, self.axes, evens, strict=True)
        ]
        return torch.cat(made, 1), len(evens[0])


# --------------------------------------------------------------------------------------------------------------------
# The stages


def fitted(folder: Path, images: np.ndarray, settings: Settings) -> tuple[ClosedForm, dict[str, Any]]:
    """The map of these pictures and what it took, from the folder if it is there."""
    file, facts_file = folder / "map.safetensors", folder / "map.json"
    if facts_file.is_file():
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        if facts["settings"] != asdict(settings) or facts["pictures"] != len(images):
            raise SystemExit(f"{folder} was made with other settings or pictures: choose another --work, or delete it.")
        tensors = load_file(file)
        patches = Patches(tensors["filters"], facts["even_filters"], settings.means)
        return ClosedForm(patches, tensors["atoms"], tensors["table"], facts["evens"], settings.cosine), facts
    times = [time.perf_counter()]
    patches = Patches.fit(images, settings)
    times.append(time.perf_counter())
    atoms = dictionary(patches, images, settings)
    times.append(time.perf_counter())
    moments = gather(patches, atoms, images, settings)
    times.append(time.perf_counter())
    print(f"Solving two eigenproblems of size {len(atoms):,}", flush=True)
    table, evens, quotients = solve(*moments.matrices(), settings.dims, settings.dropped, settings.ridge)
    times.append(time.perf_counter())
    stages = ("whitening", "dictionary", "moments", "eigenproblem")
    facts = {
        "settings": asdict(settings),
        "pictures": len(images),
        "even_filters": patches.even,
        "evens": evens,
        "ones_per_patch": round(moments.ones / moments.rows, 1),
        "patches_for_moments": moments.rows,
        "quotients": [round(float(quotients[i]), 3) for i in (0, len(quotients) // 2, -1)],
        "seconds": {stage: round(b - a, 1) for stage, a, b in zip(stages, times[:-1], times[1:], strict=True)},
    }
    save_file({"filters": patches.filters, "atoms": atoms, "table": table}, file)
    write(facts_file, facts)
    return ClosedForm(patches, atoms, table, evens, settings.cosine), facts


def gather(patches: Patches, atoms: Tensor, images: np.ndarray, settings: Settings) -> Moments:
    """Moments of the codes of one group of patches a picture, of as many pictures as settings.classes says."""
    rng = np.random.default_rng([settings.seed, 3])
    order = rng.permutation(len(images))
    rounds = -(-settings.classes // len(images))  # a small collection is gone through more than once
    order = np.tile(order, rounds)[: settings.classes]
    moments, cosines = Moments(len(atoms), settings.group), Cosines(atoms, patches.even)
    with Bar(len(order), "Moments of the codes", "pictures") as bar:
        for start in range(0, len(order), BLOCK):
            rows = order[start : start + BLOCK]
            groups = groups_of(patches.of(images[rows]), settings, rng)
            moments.add(cosines.of(groups), settings.cosine)
            bar.advance(len(rows))
    return moments


def embedded(
    folder: Path, name: str, images: np.ndarray, closed: ClosedForm, cells: list[int]
) -> tuple[Vectors, dict[int, int]]:
    """The vectors of pictures, on disk; and, for each number of cells, how many of their numbers are even."""

    def block(first: int, last: int) -> dict[int, tuple[Tensor, Tensor]]:
        maps = closed.maps(images[first:last])
        return {count: mirror_parts(normalize(averages(maps, count), dim=1), closed.evens) for count in cells}

    def rows(first: int, last: int) -> dict[int, Tensor]:
        return {count: normalize(torch.cat(parts, 1), dim=1) for count, parts in block(first, last).items()}

    example = block(0, 1)
    vectors = Vectors(
        folder, name, len(images), {count: sum(p.shape[1] for p in own) for count, own in example.items()}
    )
    vectors.fill(rows)
    return vectors, {count: even.shape[1] for count, (even, _) in example.items()}


def answers(
    train: Vectors, test: Vectors, cells: int, split: int, labels: np.ndarray, truth: np.ndarray
) -> list[dict[str, Any]]:
    """Accuracies in per cent by the whole vector and by its components, without and with mirrored pictures."""
    found: list[dict[str, Any]] = []

    def measure(which: str, queries: Tensor, chunks: Callable[[], Iterator[Tensor]], split: int) -> None:
        started = time.perf_counter()
        parts = [votes(some, chunks(), labels, split) for some in queries.split(QUERIES)]
        seconds = round(time.perf_counter() - started, 1)
        for mirrored in (False, True):
            named = {k: np.concatenate([part[k][mirrored] for part in parts]) for k in VOTES}
            right = {k: round(100 * float(np.mean(classes == truth)), 2) for k, classes in named.items()}
            about = {"vectors": which, "cells": cells, "numbers": queries.shape[1], "mirrored": mirrored}
            found.append(about | right | {"seconds": seconds})
            print(found[-1], flush=True)

    queries = torch.cat(list(test.chunks(cells)))
    measure("whole", queries, lambda: train.chunks(cells), split)
    if queries.shape[1] > LARGEST_COMPONENTS:
        return found
    started = time.perf_counter()
    components = Components(train.chunks(cells), split)
    print(f"{cells} x {cells} cells: components in {time.perf_counter() - started:.1f} s", flush=True)
    for dims in COMPONENTS:
        if dims < queries.shape[1]:
            smaller, evens = components.of(queries, dims)
            rows = torch.cat([components.of(chunk, dims)[0] for chunk in train.chunks(cells)])
            measure("whitened components", smaller, lambda rows=rows: iter(rows.split(CHUNK)), evens)
    return found


def pictures_of(source: str, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """All pictures of a source, and their labels."""
    divided = Divided.of(source, held_out=0, pictures=limit)
    return divided.images, divided.labels


def main() -> None:
    """Fit the map, make the vectors, classify, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="labelled pictures, as `instdisc train` takes them")
    parser.add_argument("--test", help="classify these too, by the map and the vectors of the training pictures")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is computed")
    parser.add_argument("--held-out", type=int, default=5_000, help="training pictures that are put aside; or 0")
    parser.add_argument("--pictures", type=int, help="only so many training pictures")
    parser.add_argument("--cells", type=int, nargs="+", default=[4], help="averages over so many cells a side")
    parser.add_argument("--out", type=Path, help="where the result goes, as JSON")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    chosen = parser.parse_args()
    settings = Settings(**{name: getattr(chosen, name) for name in asdict(Settings())})
    divided = Divided.of(chosen.train, chosen.held_out, chosen.pictures)
    asked = {"held-out": (divided.out_images, divided.out_labels)} if chosen.held_out else {}
    if chosen.test:
        test = Divided.of(chosen.test, held_out=0)
        asked["test"] = test.images, test.labels
    if not asked:
        raise SystemExit("Nothing to classify: give --test or --held-out.")

    chosen.work.mkdir(parents=True, exist_ok=True)
    closed, facts = fitted(chosen.work, divided.images, settings)
    train, splits = embedded(chosen.work, "train", divided.images, closed, chosen.cells)
    seconds = facts.pop("seconds") | {"vectors of train": round(train.seconds, 1)}
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, (images, truth) in asked.items():
        vectors, _ = embedded(chosen.work, name, images, closed, chosen.cells)
        seconds[f"vectors of {name}"] = round(vectors.seconds, 1)
        tables[name] = []
        for cells in chosen.cells:
            tables[name] += answers(train, vectors, cells, splits[cells], divided.labels, truth)
    which, (_, truth) = list(asked.items())[-1]
    best = max(tables[next(iter(asked))], key=lambda row: row["k 200"])  # chosen by the held-out pictures, if any
    row = next(row for row in tables[which] if {**row, **dict.fromkeys(CHANGES)} == {**best, **dict.fromkeys(CHANGES)})
    record(
        chosen.out,
        name="closed_form",
        command=" ".join(["python", *sys.argv]),
        unit=f"kNN top-1 on {which} pictures, %, k 200, temperature 0.07",
        values=[row["k 200"]],
        seeds=[settings.seed],
        by={name: row[name] for name in ("vectors", "cells", "numbers", "mirrored")},
        interval=[100 * bound for bound in wilson(round(row["k 200"] / 100 * len(truth)), len(truth))],
        classified={name: len(truth) for name, (_, truth) in asked.items()},
        knn=tables,
        seconds=seconds,
        peak_gigabytes=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        **facts,
    )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
