"""Tables and lists that a person wrote, in whatever form a spreadsheet saves them.

    table = read_columns(path, path=("path", "id"), label=("label",))    # large_binary columns path and label
    lines = read_lines(path)                                             # a list: one name a line

Separators: comma, semicolon, tab and |, known from the first line, or named by a line `sep=;` before it. Encodings:
UTF-8, UTF-16 and UTF-32 by their marks, UTF-16 without one by its zeros. Anything else comes out as the bytes that it
is: a name on disk need not be UTF-8, and `words` takes what is none for Windows' cp1252.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from pathlib import Path

import pyarrow as pa

from instdisc.data.storage.scan import Columns
from instdisc.errors import InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATORS = ",;\t|"
_SHOWN = 80  # letters of a first line that is not understood


def read_columns(path: Path | str, /, **columns: tuple[str, ...]) -> pa.Table:
    """Columns of a table, large_binary, one line a row; lines without any value are left out.

    columns: name in the answer -> names that it may have in the table, the best first; capitals and spaces around do
    not count. A line too short has b"" there. A name that begins with "optional_" may be missing: without the prefix
    it is the name in the answer, where it is there.
    Raises InputError for a file that can't be read, and for a first line that lacks a column.
    """
    path = Path(path)
    try:
        with _opened(path) as file:
            head = file.readline()
            separator = ""
            if head.lower().startswith("sep=") and len(head.rstrip("\r\n")) == 5:
                separator, head = head[4], file.readline()
            reader, positions = _columns(head, separator or _SEPARATORS, columns)
            if positions is None:
                needed = " and ".join(_called(names) for name, names in columns.items() if not _optional(name))
                raise InputError(
                    f"{path} needs a first line with the columns {needed}, separated by commas, semicolons or tabs; "
                    f'it begins with "{head.strip()[:_SHOWN]}".'
                )
            rows = Columns(pa.schema([(name, pa.large_binary()) for name in positions]))
            for line in csv.reader(file, delimiter=reader):
                cells = [
                    os.fsencode(line[position]) if position < len(line) else b"" for position in positions.values()
                ]
                if any(cells):
                    rows.add(*cells)
            return rows.table()
    except (OSError, csv.Error, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} can't be read ({why}): check the path, and save it as CSV.") from None


def read_lines(path: Path | str) -> list[bytes]:
    """The lines of a list; blank ones are left out. A table with a column path, location or id gives that column.

    Raises InputError where the file can't be read.
    """
    try:
        with _opened(Path(path)) as file:
            text = file.read()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} can't be read ({why}): give a text file with one path a line.") from None
    lines = [os.fsencode(line.removesuffix("\r")) for line in text.split("\n") if line.strip()]
    names = ("path", "location", "id")
    if len(lines) > 1 and _columns(os.fsdecode(lines[0]), _SEPARATORS, {"path": names})[1] is not None:
        return read_columns(path, path=names)["path"].to_pylist()
    return lines


def words(cell: bytes) -> str:
    """A cell as text: UTF-8, else cp1252, as spreadsheets of Windows save."""
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return cell.decode("cp1252", "replace")


def _opened(path: Path) -> io.TextIOWrapper:
    with open(path, "rb") as file:
        head = file.read(4096)
    encoding = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and len(head) > 3:
        if 3 * head[1::2].count(0) > len(head[1::2]):
            encoding = "utf-16-le"
        elif 3 * head[::2].count(0) > len(head[::2]):
            encoding = "utf-16-be"
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    return open(path, newline="", encoding=encoding, errors=errors)


def _columns(head: str, separators: str, columns: dict[str, tuple[str, ...]]) -> tuple[str, dict[str, int] | None]:
    """The separator by which a first line has all columns, and their positions; None where there is none such."""
    for separator in separators:
        found = [name.strip().lower() for name in next(csv.reader([head], delimiter=separator), [])]
        positions = {}
        for name, names in columns.items():
            position = next((found.index(one) for one in names if one in found), None)
            if position is not None:
                positions[name.removeprefix("optional_")] = position
            elif not _optional(name):
                break
        else:
            return separator, positions
    return separators[0], None


def _optional(name: str) -> bool:
    return name.startswith("optional_")


def _called(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (or {names[1]})"
