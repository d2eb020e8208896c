"""What a person named (files, folders, patterns; paths or URLs) as one source: of which kind, and of which split."""

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
    expanded = [place for text in given for place in expand(_local(os.fsdecode(text)))]
    places, kind, skipped = _sorted_out(name, expanded)
    chosen_by_name = len(places) == len(given)
    choices: list[str] = []
    if kind == "folders":
        chosen = [_split_folder(place, split) for place in places]
        folder = open_folders(name, chosen, index_folder, limit)
        held = folder.archives()
        if held is None:
            if split is not None and chosen == places:
                there = sorted(entry.name for place in places for entry in _folders_in(place))
                raise InputError(
                    f"{name} has no folder {split} in it: leave split out, or name one{_in_brackets(there)}."
                )
            folder.skipped.merge(skipped)
            return folder
        kind, files = held
        skipped.merge(folder.skipped_for(kind))
        split = split if chosen == places else None  # the folder has made the choice
        places, chosen_by_name = files, False
    if split is not None:
        named = _words(places)
        places = [place for place, words in zip(places, named, strict=True) if split in words]
        if not places or kind == "picture files":
            known = _in_brackets(splits_among(word for words in named for word in words))
            raise InputError(f"{name} has no file named for the split {split}: leave split out, or name one{known}.")
    elif kind != "picture files" and not chosen_by_name:
        splits = splits_among(word for words in _words(places) for word in words)
        if len(splits) > 1:
            told = f"{', '.join(splits[:-1])} and {splits[-1]}"
            one = "train" if "train" in splits else splits[0]
            choices.append(f"Its files are of the splits {told}, and all are taken: --split {one} takes one alone.")
    opened: Source
    if kind == "Parquet files":
        opened = open_parquet(name, places, index_folder, limit)
    elif kind == "tar shards":
        opened = open_tar(name, places, index_folder, limit)
    else:
        opened = open_files(name, places, index_folder, limit)
    opened.choices = (*choices, *opened.choices)
    opened.skipped.merge(skipped)
    return opened


def _folders_in(place: str) -> list[os.DirEntry[str]]:
    if is_url(place):
        return []
    with os.scandir(place) as entries:
        return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _in_brackets(names: Sequence[str]) -> str:
    """ " that is there (test, train)", with the first few."""
    return " that is there" + (f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else "")


def _sorted_out(name: str, places: Sequence[str]) -> tuple[list[str], str, Skipped]:
    """The places of the kind that is there, that kind, and what else was named; InputError for two kinds, or none.

    A shell writes out `photos/*`: a list may hold what is no picture. A place that is named alone must be one.
    """
    skipped = Skipped()
    kept: list[str] = []
    kinds: set[str] = set()
    for place in places:
        kind = _kind(place, alone=len(places) == 1)
        if kind in KINDS:
            skipped.add(kind, [place], 1)
        else:
            kinds.add(kind)
            kept.append(place)
    if not kept:
        raise InputError(_no_picture(places[0], _kind(places[0], alone=False)))
    if len(kinds) > 1:
        raise InputError(f"{name} mixes {' and '.join(sorted(kinds))}: give one kind at a time.")
    return kept, kinds.pop(), skipped


def _kind(place: str, alone: bool) -> str:
    """What a place is: folders, Parquet files, tar shards or picture files (plural: for messages); else of `KINDS`.

    alone: what was named by itself is a picture if its bytes are, whatever its name says.
    """
    local = not is_url(place)
    name = os.fsencode(place.rpartition("/")[2] if local else _file_of_url(place))
    if local and os.path.isdir(place):
        return "folders"
    if local and not os.path.lexists(place) and not has_picture_name(name):
        raise InputError(f"{place} does not exist: check the path.")
    kind = kind_of_name(name)
    if kind in ("parquet", "tar"):
        return _FILES[kind]
    if not local:
        return "folders" if kind is None else _FILES.get(kind, kind)
    if not is_sure(kind) or kind == "hidden" or (alone and kind != PICTURE):
        start = _start_of(place)
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


def _start_of(place: str) -> bytes:
    """The first bytes of a file; none of what is no file, or a link into nothing. InputError where they are refused."""
    if not os.path.isfile(place):
        return b""
    try:
        with open(place, "rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise InputError(refusal(error) or f"{place} cannot be opened ({error.strerror}): check the path.") from error


def _no_picture(place: str, kind: str) -> str:
    if kind in NOT_READ:
        return f"{place} is {reason_of(kind).replace(' is not read', ', which is not read')}."
    return f"{place} is no picture, Parquet file or tar shard: give one of these, or a folder of pictures."


def _split_folder(place: str, split: str | None) -> str:
    """The folder of a split inside, if there is one."""
    if split is None:
        return place
    inside = place.rstrip("/") + "/" + split
    if is_url(place):
        return inside if exists(inside) else place
    return inside if os.path.isdir(inside) else place


def _words(places: Sequence[str]) -> list[list[str]]:
    """The words of each name below the folder of all: `data/train-00001-of-00004.parquet` -> data, train, 00001, ..."""
    return [re.split("[-._/]", name) for name in names_below(places)]


def _local(text: str) -> str:
    """`file:///x` and `~/x` as plain paths."""
    place = text.removeprefix("file://")
    return place if is_url(place) else os.path.expanduser(place)
