"""The list of pictures that could not be read: one CSV line each (id, path, reason), written as they are met.

What a scan skipped stands there too, with a reason that begins with "skipped": such lines are no pictures of
the source, and are not counted.

Several processes of one run may share the file: lines are appended whole, and what another process has written is
read before a line is added, so a picture that two ranks meet in different epochs is still listed once.
"""

from __future__ import annotations

import csv
import io
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from instdisc.data.storage.skipped import BEGINNING
from instdisc.errors import InputError

_HEADER = ("id", "path", "reason")


class Quarantine:
    """Collects unreadable pictures, each once.

    path: the CSV file, made at the first entry and continued where it exists already; None only counts.
    strict: the first entry raises InputError instead.

    Examples:
        >>> from instdisc.data import Quarantine
        >>> unreadable = Quarantine()
        >>> for _ in range(2):
        ...     unreadable.add("cats/1.jpg", "pictures/cats/1.jpg", "the JPEG is cut short")
        >>> unreadable.count
        1
    """

    def __init__(self, path: Path | str | None = None, *, strict: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self.strict = strict
        self._identifiers: set[str] = set()
        self._skipped: set[tuple[str, str]] = set()  # id and reason
        self._known_bytes = 0
        self._lock = threading.Lock()
        self._read_new_lines()

    @property
    def count(self) -> int:
        """How many pictures are on the list, those of other processes and of earlier starts included."""
        with self._lock:
            self._read_new_lines()
            return len(self._identifiers)

    def add(self, identifier: str, location: str, reason: str) -> None:
        """Lists a picture, unless it is listed already. Raises InputError under `strict`."""
        if self.strict:
            raise InputError(
                f"{location} cannot be read: {reason}. Remove or repair it, or leave out --strict to go on without it."
            )
        with self._lock:
            self._read_new_lines()
            if identifier in self._identifiers:
                return
            self._identifiers.add(identifier)
            self._append((identifier, location, reason))

    def skip(self, lines: Iterable[tuple[str, str, str]]) -> None:
        """Lists (id, path, reason) of what a scan skipped, each once; `Skipped.lines` gives them."""
        with self._lock:
            self._read_new_lines()
            for identifier, location, reason in lines:
                if (identifier, reason) not in self._skipped:
                    self._skipped.add((identifier, reason))
                    self._append((identifier, location, reason))

    def _append(self, entry: tuple[str, str, str]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        # The first of several processes to open the file finds it empty and writes the header.
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            writer = csv.writer(text, lineterminator="\n")
            if os.fstat(handle).st_size == 0:
                writer.writerow(_HEADER)
            writer.writerow(entry)
            os.write(handle, text.getvalue().encode("utf-8", "surrogateescape"))  # names on disk need not be UTF-8
        finally:
            os.close(handle)

    def _read_new_lines(self) -> None:
        if self.path is None or not self.path.exists() or self.path.stat().st_size == self._known_bytes:
            return
        with self.path.open("rb") as file:
            file.seek(self._known_bytes)
            content = file.read()
        self._known_bytes += len(content)
        lines = csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""))
        for line in lines:
            if line and line[-1].startswith(BEGINNING):
                self._skipped.add((line[0], line[-1]))
            elif line and tuple(line) != _HEADER:
                self._identifiers.add(line[0])
