"""What a person named (files, folders, patterns; paths or URLs) as one source: its kind, and its split."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from instdisc.data.sources.classes import splits_among
from instdisc.data.sources.source import Source
from instdisc.data.storage.kinds import (
    HEAD,
    KINDS,
    NOT_READ,
    PICTURE,
    has_picture_name,
    is_sure,
    kind_of_content,
    kind_of_name,
    reason_of,
)
from instdisc.data.storage.remote import exists, expand, names_below
from instdisc.data.storage.skipped import Skipped
from instdisc.data.storage.urls import is_url, without_secrets
from instdisc.errors import InputError, refusal

_FILES = {"parquet": "Parquet files", "tar": "tar shards", PICTURE: "picture files"}


def open_places(given: Sequence[str], split: str | None, index_folder: Path | None, limit: int | None) -> Source:
    """Files, folders and patterns: one kind of source for all of them together."""
    from instdisc.data.sources.folder import open_files, open_folders
    from instdisc.data.sources.parquet import open_parquet
    from instdisc.data.sources.tar import open_tar

    name = without_secrets(given[0])
    name = name if len(given) == 1 else f"{name} and {len(given) - 1} more"
    expanded = [location for text in given for location in expand(_local(os.fsdecode(text)))]
    locations, kind, skipped = _sorted_out(name, expanded)
    chosen_by_name = len(locations) == len(given)
    choices: list[str] = []
    if kind == "folders":
        chosen = [_split_folder(location, split) for location in locations]
        folder = open_folders(name, chosen, index_folder, limit)
        held = folder.archives()
        if held is None:
            if split is not None and chosen == locations:
                there = sorted(entry.name for location in locations for entry in _folders_in(location))
                raise InputError(
                    f"{name} has no folder {split} in it: leave split out, or name one{_in_brackets(there)}."
                )
            folder.skipped.merge(skipped)
            return folder
        kind, files = held
        skipped.merge(folder.skipped_for(kind))
        split = split if chosen == locations else None  # the folder has made the choice
        locations, chosen_by_name = files, False
    if split is not None:
        named = _words(locations)
        locations = [location for location, words in zip(locations, named, strict=True) if split in words]
        if not locations or kind == "picture files":
            known = _in_brackets(splits_among(word for words in named for word in words))
            raise InputError(f"{name} has no file named for the split {split}: leave split out, or name one{known}.")
    elif kind != "picture files" and not chosen_by_name:
        splits = splits_among(word for words in _words(locations) for word in words)
        if len(splits) > 1:
            told = f"{', '.join(splits[:-1])} and {splits[-1]}"
            one = "train" if "train" in splits else splits[0]
            choices.append(f"Its files are of the splits {told}, and all are taken: --split {one} takes one alone.")
    opened: Source
    if kind == "Parquet files":
        opened = open_parquet(name, locations, index_folder, limit)
    elif kind == "tar shards":
        opened = open_tar(name, locations, index_folder, limit)
    else:
        opened = open_files(name, locations, index_folder, limit)
    opened.choices = (*choices, *opened.choices)
    opened.skipped.merge(skipped)
    return opened


def _folders_in(location: str) -> list[os.DirEntry[str]]:
    if is_url(location):
        return []
    with os.scandir(location) as entries:
        return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _in_brackets(names: Sequence[str]) -> str:
    """ " that is there (test, train)", with the first few."""
    return " that is there" + (f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else "")


def _sorted_out(name: str, locations: Sequence[str]) -> tuple[list[str], str, Skipped]:
    """The locations of the kind that is there, that kind, and what else was named; InputError for two kinds, or none.

    A shell writes out `photos/*`: a list may hold what is no picture. A location that is named alone must be one.
    """
    skipped = Skipped()
    kept: list[str] = []
    kinds: set[str] = set()
    for location in locations:
        kind = _kind(location, alone=len(locations) == 1)
        if kind in KINDS:
            skipped.add(kind, [location], 1)
        else:
            kinds.add(kind)
            kept.append(location)
    if not kept:
        raise InputError(_no_picture(locations[0], _kind(locations[0], alone=False)))
    if len(kinds) > 1:
        raise InputError(f"{name} mixes {' and '.join(sorted(kinds))}: give one kind at a time.")
    return kept, kinds.pop(), skipped


def _kind(location: str, alone: bool) -> str:
    """What a location is: folders, Parquet files, tar shards or picture files (plural: for messages); else of `KINDS`.

    alone: what was named by itself is a picture if its bytes are, whatever its name says.
    """
    local = not is_url(location)
    name = os.fsencode(location.rpartition("/")[2] if local else _file_of_url(location))
    if local and os.path.isdir(location):
        return "folders"
    if local and not os.path.lexists(location) and not has_picture_name(name):
        raise InputError(f"{location} does not exist: check the path.")
    kind = kind_of_name(name)
    if kind in ("parquet", "tar"):
        return _FILES[kind]
    if not local:
        return "folders" if kind is None else _FILES.get(kind, kind)
    if not is_sure(kind) or kind == "hidden" or (alone and kind != PICTURE):
        start = _start_of(location)
        if start.startswith(b"PAR1"):
            return "Parquet files"
        if start[257:262] == b"ustar":
            return "tar shards"
        if kind != "raw":
            kind = kind_of_content(kind, start)
    kind = "other" if kind is None else kind
    return _FILES.get(kind, kind)


def _file_of_url(url: str) -> str:
    """The last name of a URL's path; empty for a server, and for a folder that is written as one."""
    path = url.partition("://")[2].partition("?")[0]
    return path.rpartition("/")[2]


def _start_of(location: str) -> bytes:
    """The first bytes of a file; none of what is no file, or a link into nothing. InputError where they are refused."""
    if not os.path.isfile(location):
        return b""
    try:
        with open(location, "rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise InputError(
            refusal(error) or f"{location} cannot be opened ({error.strerror}): check the path."
        ) from error


def _no_picture(location: str, kind: str) -> str:
    if kind in NOT_READ:
        return f"{location} is {reason_of(kind).replace(' is not read', ', which is not read')}."
    return f"{location} is no picture, Parquet file or tar shard: give one of these, or a folder of pictures."


def _split_folder(location: str, split: str | None) -> str:
    """The folder of a split inside, if there is one."""
    if split is None:
        return location
    inside = location.rstrip("/") + "/" + split
    if is_url(location):
        return inside if exists(inside) else location
    return inside if os.path.isdir(inside) else location


def _words(locations: Sequence[str]) -> list[list[str]]:
    """The words of each name below the folder of all: `data/train-00001-of-00004.parquet` -> data, train, 00001, ..."""
    return [re.split("[-._/]", name) for name in names_below(locations)]


def _local(text: str) -> str:
    """`file:///x` and `~/x` as plain paths."""
    location = text.removeprefix("file://")
    return location if is_url(location) else os.path.expanduser(location)
