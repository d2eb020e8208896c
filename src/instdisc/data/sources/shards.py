"""One pass over a tar shard: where its pictures begin, their keys and labels, and what is skipped.

Two rules for the key of a member. WebDataset's: the name up to its first dot; members of one key that stand together
are one sample, of one picture. The plain one, for an archive of ordinary files: the name up to its last dot, each
picture a sample. The plain rule holds where every member is a picture, or the label of one: there it loses nothing.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from instdisc.data.storage.kinds import (
    HEAD,
    PICTURE,
    has_picture_name,
    is_sure,
    kind_of_content,
    kind_of_folder,
    kind_of_name,
)
from instdisc.data.storage.remote import open_file, seekable
from instdisc.data.storage.scan import Columns, chunks
from instdisc.data.storage.skipped import Skipped
from instdisc.data.storage.urls import reason
from instdisc.errors import InputError
from instdisc.progress import Bar

_LABEL_BYTES = 2**20  # a .cls or .json larger than this is no label
_BY_CONTENT = "by content"  # a picture whose name does not say so
_LABELS = ("cls", "json")  # of one picture the first is taken
_MOST_NAMED = 100  # members of one kind that the index keeps of each shard
_MEMBERS = pa.schema(
    [
        ("name", pa.large_binary()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("kind", pa.string()),  # PICTURE, _BY_CONTENT, one of _LABELS, or a kind of what is skipped
        ("label", pa.string()),
    ]
)
_ROWS = pa.schema([("key", pa.large_binary()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.string())])
_APART = pa.schema([("name", pa.large_binary()), ("key", pa.large_binary()), ("label", pa.string())])


class Shard(NamedTuple):
    """rows: key, offset, size and label of each picture, in their order. whole: whether the shard has its end."""

    rows: pa.Table
    whole: bool
    skipped: Skipped

    def facts(self) -> dict[str, Any]:
        """What the index keeps beside the rows."""
        return {"rows": len(self.rows), "skipped": self.skipped.to_facts(_MOST_NAMED)}


class _Member(NamedTuple):
    name: bytes
    offset: int
    size: int
    kind: str
    label: str | None


def scan(location: str, stamp: tuple[int, int], bar: Bar) -> Shard:
    """Read all headers of a shard, and the labels. stamp: its size and version. InputError where it is no tar."""
    members, links, whole = Columns(_MEMBERS), [], True
    with open_file(seekable(location, *stamp), stamp[0]) as file:
        try:
            archive = tarfile.TarFile(fileobj=file)
        except (tarfile.TarError, OSError) as error:
            raise InputError(f"{location} is no plain tar file ({reason(error)}): unpack or replace it.") from error
        try:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every header it ever read
                if member.islnk() or member.issym():
                    links.append((os.fsencode(member.name), _target(member)))
                elif not member.isdir():
                    described = _describe(member, file)
                    members.add(*described)
                    bar.advance(described.kind in (PICTURE, _BY_CONTENT))
        except (tarfile.TarError, OSError):
            whole = False
    table = members.table()
    skipped = Skipped()
    if not whole:
        skipped.add("cut", [location], 1)
    rows = (_plainly if _is_plain(table) else _by_samples)(table, location, skipped)
    for name, kind in _kinds_of_links(links, table):
        skipped.add(kind, [_place(location, name)], 1)
    return Shard(_distinct(rows), whole, skipped)


def _describe(member: tarfile.TarInfo, file: Any) -> _Member:
    name = os.fsencode(member.name)
    folder, _, last = name.rpartition(b"/")
    kind = _kind_of_folders(folder) or (kind_of_name(last) if member.isreg() else "other")
    label = None
    if kind is None and (ending := last.rpartition(b".")[2].lower().decode(errors="replace")) in _LABELS:
        label = _label(member, ending, file)
        kind = "other" if label is None else ending
    elif not is_sure(kind):
        kind = kind_of_content(kind, _content(file, member, HEAD)) or _BY_CONTENT
    return _Member(name, member.offset_data, member.size, kind or PICTURE, label)


@functools.lru_cache(maxsize=1024)
def _kind_of_folders(folder: bytes) -> str | None:
    """Why what lies in a folder is left out; None if it is not."""
    parts = (part for part in folder.split(b"/") if part not in (b"", b".", b".."))
    return next((kind for part in parts if (kind := kind_of_folder(part)) is not None), None)


def _target(member: tarfile.TarInfo) -> bytes:
    """The name that a link stands for: of a hard link as it is written, of a symbolic one below the link's folder."""
    target = member.linkname if member.islnk() else os.path.join(os.path.dirname(member.name), member.linkname)
    return os.fsencode(os.path.normpath(target))


def _kinds_of_links(links: list[tuple[bytes, bytes]], members: pa.Table) -> Iterator[tuple[bytes, str]]:
    """A link to a picture of the shard is that picture once more; others have nothing behind them."""
    if not links:
        return
    pictures = {os.path.normpath(name) for name in members.filter(_are_pictures(members))["name"].to_pylist()}
    pictures |= {os.path.normpath(name) for name, target in links if target in pictures}  # a link to a link
    for name, target in links:
        yield name, "link" if target in pictures else "dangling" if has_picture_name(name) else "other"


def _content(file: Any, member: tarfile.TarInfo, most: int) -> bytes:
    file.seek(member.offset_data)
    content: bytes = file.read(min(member.size, most))
    return content


def _label(member: tarfile.TarInfo, ending: str, file: Any) -> str | None:
    if member.size > _LABEL_BYTES:
        return None
    content = _content(file, member, _LABEL_BYTES)
    if ending == "cls":
        return content.decode(errors="replace").strip()
    try:
        facts = json.loads(content)
    except ValueError:
        return None
    label = facts.get("label") if isinstance(facts, dict) else None
    return str(label) if isinstance(label, str | int) else None


def _place(location: str, name: bytes) -> str:
    return f"{location}#{os.fsdecode(name)}"


def _walk(table: pa.Table) -> Iterator[_Member]:
    for start, stop in chunks(len(table)):
        yield from map(_Member._make, zip(*table.slice(start, stop - start).to_pydict().values(), strict=True))


def _are_pictures(members: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(members["kind"], pa.array([PICTURE, _BY_CONTENT]))


def _whole_keys(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Names up to the last dot, as the plain rule has it."""
    names = pc.replace_substring_regex(names, rb"^(\./)*/*", b"")
    return pc.replace_substring_regex(names, rb"\.[^./]*$", b"")


def _key(name: bytes) -> bytes:
    """A name up to the first dot, as WebDataset has it."""
    folder, _, last = name.rpartition(b"/")
    return (folder + b"/" + last.partition(b".")[0]).removeprefix(b"./").lstrip(b"/")


def _is_plain(members: pa.Table) -> bool:
    """Whether the plain rule holds: nothing there but pictures, and each has its own label or none has."""
    pictures, labels = _are_pictures(members), pc.is_in(members["kind"], pa.array(_LABELS))
    rest = members["kind"].filter(pc.invert(pc.or_(pictures, labels)))
    if pc.any(pc.is_in(rest, pa.array(["other", "label"]))).as_py():
        return False
    if not pc.any(labels).as_py():
        return True
    keys, told = (_whole_keys(members["name"].filter(chosen)) for chosen in (pictures, labels))
    alone = pc.count_distinct(keys).as_py() == len(keys)
    return alone and pc.all(pc.is_in(keys, value_set=told)).as_py() and pc.all(pc.is_in(told, value_set=keys)).as_py()


def _plainly(members: pa.Table, location: str, skipped: Skipped) -> pa.Table:
    """Every picture a row, under its name up to the last dot."""
    chosen = _are_pictures(members)
    pictures = members.filter(chosen)
    keys = _whole_keys(pictures["name"])
    labels = pa.chunked_array([pa.nulls(len(keys), pa.string())])
    for kind in _LABELS:
        told = members.filter(pc.equal(members["kind"], kind))
        labels = _labels_of(keys, labels, _whole_keys(told["name"]), told["label"])
    for member in _walk(members.filter(pc.invert(pc.or_(chosen, pc.is_in(members["kind"], pa.array(_LABELS)))))):
        skipped.add(member.kind, [_place(location, member.name)], 1)
    return pa.table([keys, pictures["offset"], pictures["size"], labels], schema=_ROWS)


def _labels_of(
    keys: pa.ChunkedArray, labels: pa.ChunkedArray, told: pa.ChunkedArray, values: pa.ChunkedArray
) -> pa.ChunkedArray:
    """The labels with those filled in that are told for keys without one."""
    if not len(told) or not len(keys):
        return labels
    return pc.coalesce(labels, values.take(pc.index_in(keys, value_set=told)))


def _by_samples(members: pa.Table, location: str, skipped: Skipped) -> pa.Table:
    """A row for each sample that has a picture. Labels that stand apart from their picture find it by the key."""
    rows = Columns(_ROWS)
    apart = {kind: Columns(_APART) for kind in _LABELS}
    there = itertools.filterfalse(lambda member: _is_nobodys(member, location, skipped), _walk(members))
    for key, group in itertools.groupby(there, lambda member: _key(member.name)):
        sample = list(group)
        pictures = [member for member in sample if member.kind == PICTURE] or [
            member for member in sample if member.kind == _BY_CONTENT
        ]
        # A plain `key.jpg` before a `key.mask.png`.
        picture = min(pictures, key=lambda member: _dots(member) > 1) if pictures else None
        labels = sorted((m for m in sample if m.kind in _LABELS and _dots(m) == 1), key=lambda m: m.kind)
        if picture is not None:
            label = labels.pop(0).label if labels else None
            rows.add(key, picture.offset, picture.size, label)
        for member in sample:
            if picture is None and any(member is label for label in labels):
                apart[member.kind].add(member.name, key, member.label)
            elif member is not picture and member.kind not in _LABELS:
                kind = "sample" if member.kind in (PICTURE, _BY_CONTENT) else member.kind
                skipped.add(kind, [_place(location, member.name)], 1)
    return _with_labels(rows.table(), {kind: found.table() for kind, found in apart.items()}, location, skipped)


def _is_nobodys(member: _Member, location: str, skipped: Skipped) -> bool:
    """Whether a member is left out whatever stands beside it; such ones are told here."""
    left_out = member.kind in ("system", "hidden", "software", "ours")
    if left_out:
        skipped.add(member.kind, [_place(location, member.name)], 1)
    return left_out


def _dots(member: _Member) -> int:
    return member.name.rpartition(b"/")[2].count(b".")


def _with_labels(rows: pa.Table, apart: dict[str, pa.Table], location: str, skipped: Skipped) -> pa.Table:
    """The rows with the labels that stood apart; those that fit no picture are told."""
    labels, open_keys = rows["label"], rows["key"].filter(pc.is_null(rows["label"]))
    for told in apart.values():
        if len(told):
            labels = _labels_of(rows["key"], labels, told["key"], told["label"])
            unfit = told["name"].filter(pc.invert(pc.is_in(told["key"], value_set=open_keys)))
            locations = (_place(location, name) for name in unfit.slice(0, _MOST_NAMED).to_pylist())
            skipped.add("label", locations, len(unfit))
    return rows.set_column(3, _ROWS.field("label"), labels)


def _distinct(table: pa.Table) -> pa.Table:
    """Samples of one name in one shard (tar allows it) get numbers behind their keys, so that ids stay ids."""
    if pc.count_distinct(table["key"]).as_py() == len(table):
        return table
    seen: dict[bytes, int] = {}
    keys = []
    for key in table["key"].to_pylist():
        seen[key] = seen.get(key, 0) + 1
        keys.append(key if seen[key] == 1 else b"%s~%d" % (key, seen[key]))
    return table.set_column(0, _ROWS.field("key"), pa.array(keys, pa.large_binary()))
