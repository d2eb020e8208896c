"""Files written whole, locked, and read with their faults named.

    with replacing(path) as temporary:      # a reader sees the old file or the new one, never a part
        save(temporary)
    write_json(path, {"rate": 0.03})        # the same for small ones; write_text and csv_text, write_arrow for tables
    replace_together(folder, staged, drop)  # many files of a folder, all or none
    append_json(path, {"undo": name})       # a line of a journal; read_json_lines reads what is whole

Every file that outlives a command is written here, but those that grow in place (a pixel cache, metrics.jsonl), the
folder of a checkpoint, and the two files of `embed`, which are renamed together.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from instdisc.errors import InputError, advice, is_shortage

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

_REPLACING, _REPLACING_LOCK = "replacing.json", ".replacing.lock"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError with the file's name when it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if is_shortage(error):
            raise
        raise InputError(
            f"{path} can't be read ({error}): the file is damaged, restore it or start a new run."
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: a JSON object was expected.")
    return value


def append_json(path: Path, line: Mapping[str, Any]) -> None:
    """A line at the end of a file, on the disk when this returns. What a crash left of a line stays one by itself."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")
            stream.write(json.dumps(line).encode("ascii") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise InputError(f"{path} could not be written ({error.strerror or error}): {advice(error)}.") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that `append_json` wrote; the half of a line that a crash left is none."""
    if not path.is_file():
        return []
    found = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: after a rename, a power cut can't undo it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_digest(path: Path) -> dict[str, Any]:
    """The length of a file in bytes and its SHA-256, to know later that it is the same."""
    with open(path, "rb") as content:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone with what this lock file stands for: other processes wait here. A file system without locks has none.

    The system releases the lock when the process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        _lock(file, wait=True)
        yield


@contextmanager
def held(path: Path, doing: str) -> Iterator[None]:
    """`locked` that does not wait: InputError, which says who is there, where another process is."""
    who = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with path.open("a+", encoding="utf-8") as file:
        if not _lock(file, wait=False):
            file.seek(0)
            other = file.read().strip() or "another process"
            raise InputError(f"{path.parent} is held by {other}, which is {doing}: wait for its end, or end it.")
        file.truncate(0)
        file.write(who)
        file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Whether a process has the lock of this lock file now."""
    with path.open("ab") as file:
        return not _lock(file, wait=False)


def _lock(file: IO[Any], *, wait: bool) -> bool:
    """Whether nobody else has the lock; true on a file system without locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(2**30)  # far behind what is written there: Windows lets nobody read a locked byte
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return wait
    except OSError:
        pass
    return True


@contextmanager
def replacing(path: Path, remedy: str = "") -> Iterator[Path]:
    """A temporary file beside `path`: it takes that name when the block has ended and the disk has all of it.

    If the block fails, the temporary file goes and `path` stays as it was. remedy: what to do where the system refuses
    to write, in place of the usual advice. Raises InputError there.
    """
    # Several machines that share a disk may write one file at once, and may have equal process numbers.
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    except OSError as error:
        why = f"{path} could not be written ({error.strerror or error}): {remedy or advice(error)}."
        raise InputError(why) from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Wait until the disk has all of a file."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes | str) -> None:
    """`replacing` for what is in memory."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of indented JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))  # of a name on disk that is not UTF-8: JSON's escapes


def write_text(path: Path, text: str) -> None:
    """`write_whole`; names that are not UTF-8 keep their bytes."""
    write_whole(path, text.encode("utf-8", "surrogateescape"))


def write_arrow(path: Path, table: pa.Table, *, chunk: int | None = None, remedy: str = "") -> None:
    """An Arrow file, whole or not at all; InputError where it can't be written.

    chunk: rows in a batch at most. remedy: as `replacing` takes it.
    """
    import pyarrow as pa

    with (
        replacing(path, remedy) as temporary,
        pa.OSFile(os.fsencode(temporary), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=chunk)


def csv_text(columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A CSV file with a heading."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, plainly. Raises OSError where the system refuses."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: values.contiguous() for name, values in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from None


def replace_together(folder: Path, staged: Path, drop: Iterable[Path], names: Mapping[str, str] | None = None) -> None:
    """Put every file of `staged`, a folder inside, in the place of its name in `folder`, and remove others, as one.

    drop: files of `folder` to remove. names: other names for some of the staged, relative to both folders; "" for what
    is of no use any more.
    All is on the disk before replacing.json says what will be done; from then on a kill is made good by `settle`, which
    everybody calls who opens the folder. Raises InputError where the disk can't be written: nothing has changed then.
    """
    put = {path.relative_to(staged).as_posix(): path for path in sorted(staged.rglob("*")) if path.is_file()}
    for path in put.values():
        sync_file(path)
    targets = {name: target for name in put if (target := (names or {}).get(name, name))}
    dropped = {path.relative_to(folder).as_posix() for path in drop} - set(targets.values())
    plan = {"staged": staged.relative_to(folder).as_posix(), "put": targets, "drop": sorted(dropped)}
    with locked(folder / _REPLACING_LOCK):
        write_whole(folder / _REPLACING, json.dumps(plan))
        _replace(folder)


def settle(folder: Path) -> bool:
    """Finish what a kill left of `replace_together` in this folder; whether there was anything."""
    if not (folder / _REPLACING).is_file():
        return False
    try:
        with locked(folder / _REPLACING_LOCK):  # whoever is at it now is waited for
            if not (folder / _REPLACING).is_file():
                return False
            _replace(folder)
    except OSError as error:
        raise InputError(
            f"{folder} was left in the middle of a change, which can't be finished ({error.strerror or error}): "
            f"{advice(error)}."
        ) from None
    return True


def _replace(folder: Path) -> None:
    """Carry out replacing.json, from wherever it stands. A stranger may have written it: nothing outside is touched."""
    plan = read_json(folder / _REPLACING)
    try:
        named = [plan["staged"], *plan["drop"], *plan["put"].values()]
        inside = all(_is_inside(folder, name) for name in named + [f"{plan['staged']}/{name}" for name in plan["put"]])
    except (KeyError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise InputError(f"{folder / _REPLACING} names files outside of the run folder: restore the folder.")
    staged, changed = folder / plan["staged"], {folder}
    for name in plan["drop"]:
        (folder / name).unlink(missing_ok=True)
        changed.add((folder / name).parent)
    for name, target in plan["put"].items():
        if (staged / name).exists():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / name, folder / target)
        changed.add((folder / target).parent)
    for parent in sorted(changed, reverse=True):
        if parent.is_dir():
            sync_folder(parent)
            if parent != folder and not any(parent.iterdir()):
                parent.rmdir()
    shutil.rmtree(staged, ignore_errors=True)
    sync_folder(folder)
    (folder / _REPLACING).unlink()
    sync_folder(folder)


def _is_inside(folder: Path, name: str) -> bool:
    return (
        name != ""
        and (folder / name).parent.resolve().is_relative_to(folder.resolve())
        and ".." not in Path(name).parts
    )
