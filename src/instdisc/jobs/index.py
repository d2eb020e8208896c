"""`instdisc index`: add pictures to a run's collection, remove some, tag some, compute its vectors again.

Nothing is trained: an added picture is embedded by the encoder as it is. An embedding that was interrupted goes on
where it stopped, and a kill at any moment leaves the collection as it was before.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from instdisc import ranks
from instdisc.data.sources.open import open_source
from instdisc.data.sources.subset import Subset
from instdisc.embeddings import NothingReadableError
from instdisc.errors import InputError, advice, counted
from instdisc.files import file_digest, locked
from instdisc.jobs.collection import AnyRun, Collection, opened_collection
from instdisc.jobs.embed import embedded, forget
from instdisc.jobs.ids import distinct_ids
from instdisc.jobs.recomputing import embedded_again
from instdisc.jobs.run import Run
from instdisc.jobs.sources import describe_source, findable, log_lines, stamps_of
from instdisc.runs import RunFolder
from instdisc.search.postgres import Postgres, Synced
from instdisc.search.store import Changes, Part, read_changes, write_changes
from instdisc.system import readable_bytes

DTYPES = ("float32", "float16")
Say = Callable[[str], None] | None


def add(
    run: str | Path,
    source: Any,
    *,
    labels: Any = None,
    split: str | None = None,
    limit: int | None = None,
    bank: bool = False,
    dtype: str = "float32",
    device: str = "auto",
    say: Say = print,
) -> int:
    """Embed pictures and add them to the collection; how many. Those that are there already are skipped.

    bank: leave the vectors of the others as they are; without it they become search vectors first, where the run can
    make them. source, labels, split, limit: as `open_source` takes them; arrays in memory can't be added, since nothing
    could show them later. Raises InputError for an invalid argument.
    """
    _check_dtype(dtype)
    described = describe_source(source, labels, split, limit)
    if described["given"] is None:
        raise InputError("Pictures in memory can't be added, since they could not be shown later: save them first.")
    with ranks.distributed():
        say = say if ranks.is_main() else None
        searchable(run, bank=bank, device=device, say=say, by_ranks=True)
        with changing(run, by_ranks=True) as folder:
            collection = Collection(folder.path, by_ranks=True)
            collection.check_vectors()
            opened = open_source(findable(source), labels=labels, split=split, limit=limit)
            log_lines(say, opened.label_notes)
            table = opened.fetch_table()
            known = collection.index.rows_of([os.fsdecode(one) for one in table["location"].to_pylist()])
            rows = np.flatnonzero(known < 0)
            if say is not None and len(rows) < len(opened):
                there = len(opened) - len(rows)
                be = "is" if there == 1 else "are"
                say(f"{there:,} of {counted(len(opened), 'picture')} {be} in the collection already.")
            if not len(rows):
                return 0
            try:
                found, vectors, names = embedded(collection, Subset(opened, rows), "added", device, say)
            except NothingReadableError as error:
                if len(rows) == len(opened):
                    raise
                if say is not None:  # what can't be read was found out when the others were added
                    say(str(error))
                return 0
            rows = rows[found]
            pictures = table.take(pa.array(rows)).append_column("label", pa.array(names, pa.string()))
            pictures = _with_own_ids(collection, pictures, opened.name, say)
            part = Part(vectors.to(getattr(torch, dtype)), pictures, described, stamps=stamps_of(opened, rows))
            changes = replace(collection.changes, step=collection.saved.step, added=(*collection.changes.added, part))
            ranks.on_main(lambda: _keep(folder, changes, "added"))
            return len(rows)


def _with_own_ids(collection: Collection, pictures: pa.Table, name: str, say: Say) -> pa.Table:
    """The pictures with ids that no other of the collection has: where one has, the source's name stands in front.

    The ids that they have in their source stay in a column own_id.
    """
    taken = collection.index.pictures["id"].combine_chunks()
    ids, front = distinct_ids(pictures["id"].combine_chunks(), taken, name)
    if not front:
        return pictures
    if say is not None:
        same = pc.sum(pc.not_equal(ids, pc.cast(pictures["id"].combine_chunks(), ids.type))).as_py()
        same_ids = counted(same, "of them has the id of another", "of them have the ids of others")
        say(f"{same_ids} in the collection: {'its id begins' if same == 1 else 'their ids begin'} with {front}.")
    column, kind = pictures.schema.get_field_index("id"), pictures.schema.field("id").type
    return pictures.set_column(column, "id", pc.cast(ids, kind)).append_column("own_id", pictures["id"])


def push(run: str | Path, url: str, *, train_source: Any = None, say: Say = print) -> Synced:
    """Bring the copy of the collection on a PostgreSQL server (postgresql://...) up to date; what was sent.

    Raises InputError where the server can't be reached or has no pgvector.
    """
    collection = searchable(run, train_source=train_source, say=say)
    with Postgres(url) as store:
        name = collection.folder.path.resolve().name
        key, step, whitening = store_key(collection), collection.saved.step, collection.changes.whitening
        return store.sync(key, name, collection.index, step, whitening=whitening, show=say is not None)


def store_key(collection: Collection) -> str:
    """The same for every copy of a run folder, and no other run's."""
    created = collection.facts["created"]
    return hashlib.sha256(f"{created} {file_digest(collection.folder.instances)}".encode()).hexdigest()[:16]


def recompute(
    run: str | Path,
    *,
    vectors: str = "search",
    train_source: Any = None,
    dtype: str = "float32",
    device: str = "auto",
    say: Say = print,
) -> int:
    """Embed the whole collection again, without augmentation, in the place of the bank's rows; how many pictures.

    A row of the bank comes from an augmented view at some moment of the training; these vectors come from the pictures
    as they are. vectors: "search" or "embedding", as `Encoder.embed` takes it; a run without a map to search vectors,
    as one of an older version, is given one first. A picture that can't be read keeps its bank row, or is like no other
    (zeros) among search vectors; it is removed if it had been added.
    """
    return _recomputed(run, vectors, train_source, dtype, device, say)[1]


def _recomputed(run: str | Path, vectors: str, train_source: Any, dtype: str, device: str, say: Say) -> tuple[Run, int]:
    """`recompute`, and the run as it was opened for it, under the lock."""
    _check_dtype(dtype)
    with ranks.distributed(), changing(run, by_ranks=True) as folder:
        say = say if ranks.is_main() else None
        collection = Collection(folder.path, train_source=train_source, by_ranks=True)
        made = embedded_again(collection, vectors=vectors, dtype=dtype, device=device, say=say)
        ranks.on_main(lambda: _keep(folder, made.changes, *made.worked))
        return collection.run, made.count


def recompute_meanwhile(run: str | Path, *, train_source: Any = None, device: str = "auto") -> int:
    """`recompute` while others label, tag and hide: alone with the index at the end only. How many pictures.

    What is interrupted goes on the next time. Raises InputError where other vectors came meanwhile.
    """
    collection = Collection(run, train_source=train_source)
    made = embedded_again(collection, vectors="search", dtype=DTYPES[0], device=device, say=None, work="meanwhile-")
    with changing(run) as folder:
        now = read_changes(folder.index) or Changes(collection.saved.step)
        if now.vectors != collection.changes.vectors:
            raise InputError("Another command has changed the collection meanwhile: start again.")
        lost = np.setdiff1d(made.changes.removed, collection.changes.removed)  # they can't be read any more
        removed = np.union1d(now.removed, lost)
        _keep(folder, replace(made.changes, removed=removed, tags=now.tags), *made.worked)
    return made.count


def searchable(
    run: AnyRun,
    *,
    bank: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Say = print,
    by_ranks: bool = False,
) -> Collection:
    """The collection to search in: with search vectors, computed now and kept, where the run has a map to them.

    A run without a map (it trains still, was interrupted, or is of an older version) is searched by what is there: the
    rows of its bank. So it is where its pictures have gone. bank: compute nothing.
    """
    collection = opened_collection(run, train_source=train_source, by_ranks=by_ranks)
    if bank or collection.up_to_date or not collection.map_digest:
        collection.log_changes(say)
        return collection
    try:
        collection.training_source()
    except InputError as error:
        if collection.changes.recomputed is not None:
            raise
        if say is not None:
            say(f"Searching by the rows of the bank, as search vectors can't be made: {error}")
        return collection
    return _with_new_vectors(collection, device, say, by_ranks)


def _with_new_vectors(collection: Collection, device: str, say: Say, by_ranks: bool) -> Collection:
    run, _ = _recomputed(collection.folder.path, "search", collection.moved_to, DTYPES[0], device, say)
    return Collection(run, by_ranks=by_ranks)


def without_augmentation(
    run: AnyRun,
    *,
    bank: bool = False,
    train_source: Any = None,
    device: str = "auto",
    say: Say = print,
    by_ranks: bool = False,
) -> Collection:
    """The collection with vectors of its pictures as they are, computed now if they never were.

    They are search vectors, where the run has a map to them. bank: leave it at what is there, the rows of the bank or
    better. by_ranks: the processes of a run do it together.
    """
    collection = opened_collection(run, train_source=train_source, by_ranks=by_ranks)
    if bank or collection.up_to_date:
        collection.log_changes(say)
        return collection
    return _with_new_vectors(collection, device, say, by_ranks)


def remove(
    run: str | Path,
    *,
    where: str | None = None,
    paths: Sequence[str] | None = None,
    folders: Sequence[str | Path] = (".",),
    train_source: Any = None,
    say: Say = print,
) -> int:
    """Take pictures out of the collection, by a pattern of their ids or by their names; how many. No file is touched.

    paths: paths or ids, as people spell them, former or, with train_source, present ones; relative ones may
    begin in any of `folders`. Raises InputError where none is meant.
    """
    with changing(run) as folder:
        collection = Collection(folder.path, train_source=train_source)
        index = collection.index
        rows = np.zeros(0, np.int64) if where is None else np.flatnonzero(index.matching(where=where))
        if paths is not None:
            known = collection.rows_of(paths, folders)
            if say is not None and (known < 0).any():
                lost = paths[int(np.flatnonzero(known < 0)[0])]
                say(f"{(known < 0).sum():,} of the {len(paths):,} are not in the collection, the first is {lost}.")
            rows = np.union1d(rows, known[known >= 0])
        if not len(rows):
            raise InputError(
                f"No picture of the collection matches {where if where is not None else 'these paths'}: "
                "`instdisc search` shows how they are called."
            )
        if len(removed := np.union1d(collection.changes.removed, rows)) == len(index):
            raise InputError("That is every picture of the collection: at least one has to stay.")
        write_marks(folder, collection, replace(collection.changes, removed=removed))
        return len(rows)


def tag(run: str | Path, name: str, *, where: str | None = None, label: str | None = None, untag: bool = False) -> int:
    """Give a tag to the pictures whose id matches or that have a label, or take it from them; how many have it."""
    if not name.strip():
        raise InputError("A tag needs a name.")
    with changing(run) as folder:
        collection = Collection(folder.path)
        rows = np.flatnonzero(collection.index.matching(where=where, label=label))
        if not len(rows):
            raise InputError(f"No picture of the collection matches {where}: `instdisc search` shows their ids.")
        tags = dict(collection.changes.tags)
        tagged = tags.pop(name, np.zeros(0, np.int64))
        tagged = np.setdiff1d(tagged, rows) if untag else np.union1d(tagged, rows)
        if len(tagged):
            tags[name] = tagged
        write_marks(folder, collection, replace(collection.changes, tags=tags))
        return len(tagged)


def reset(run: str | Path) -> None:
    """Forget all of it: the collection is the training pictures, with the rows of the bank."""
    with ranks.distributed(), changing(run, by_ranks=True) as folder:
        ranks.on_main(lambda: _remove_all(folder.index))


def _remove_all(index: Path) -> None:
    (index / "index.json").unlink(missing_ok=True)  # first: without it the rest is known to be left over
    for file in index.iterdir():
        if file.name != "lock" and file.is_file():
            file.unlink()


def describe(run: str | Path) -> dict[str, str]:
    """What the collection holds, in words."""
    collection = Collection(run)
    index, changes = collection.index, collection.changes
    added = sum(len(part.vectors) for part in changes.added)
    own = "made elsewhere" if collection.given else "the rows of the bank"
    if changes.recomputed:
        own = "search vectors" if changes.whitening else "embeddings of the pictures as they are"
    size = sum(part.nbytes for part in index.parts)
    kinds = sorted({str(part.dtype).removeprefix("torch.") for part in index.parts})
    facts = {
        "pictures": f"{len(index) - int(index.removed.sum()):,}",
        "vectors": f"{own} (step {collection.saved.step:,}), {index.dim} dimensions in {' and '.join(kinds)}, "
        f"{readable_bytes(size)}",
        "added": f"{added:,}",
        "removed": f"{len(changes.removed):,}",
    }
    if index.label_names:
        facts["labels"] = ", ".join(index.label_names[:12]) + (", …" if len(index.label_names) > 12 else "")
    if index.tags:
        facts["tags"] = ", ".join(f"{name} ({len(rows):,})" for name, rows in index.tags.items())
    return facts


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise InputError(f'Vectors are kept as {" or ".join(DTYPES)}, not as "{dtype}".')


@contextmanager
def changing(run: str | Path, *, by_ranks: bool = False) -> Iterator[RunFolder]:
    """Alone with a run's index while it is changed. by_ranks: by the processes of a run together."""
    folder = RunFolder(run)
    folder.read_config()  # refuses a folder that is no run before one is made inside it
    if ranks.world() > 1 and not by_ranks:
        raise InputError("An index is changed by one process: start it without torchrun.")
    with ExitStack() as held:

        def lock() -> None:
            try:
                held.enter_context(locked(folder.index / "lock"))
            except OSError as error:
                raise InputError(f"{folder.index} can't be written ({error.strerror}): {advice(error)}.") from None

        ranks.on_main(lock)
        yield folder


def _keep(folder: RunFolder, changes: Changes, *worked: str) -> None:
    """Changes whose vectors were made by `embedded` under these names."""
    write_changes(folder.index, changes)
    forget(folder, *worked)


def write_marks(folder: RunFolder, collection: Collection, changes: Changes) -> Changes:
    """Marks alone: they hold at any step, unless there are vectors, whose step must stay."""
    vectors = changes.recomputed or changes.added
    return write_changes(folder.index, changes if vectors else replace(changes, step=collection.saved.step))
