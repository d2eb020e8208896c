"""A whole run on disk, saved and restored: what is half written is never taken for whole.

A checkpoint is a folder RUN/checkpoints/step-000001234/ with one safetensors file a named group of tensors
(encoder.safetensors, optimizer.safetensors, ...), one a rank for what the ranks share out
(bank-00000-of-00002.safetensors) and for each rank's random states, and state.json with the facts and the length and
SHA-256 of every file. It is filled under another name in the same folder, synced to the disk, and then renamed: a kill
or a full disk at any moment leaves the one before.

    save(folder, step=1234, tensors={"encoder": encoder.state_dict()}, facts={"epoch": 3}, shards={"bank": shard})
    checkpoint = latest(folder)
    checkpoint.tensors("encoder"), checkpoint.facts["epoch"], checkpoint.rows("bank", start, stop)
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from instdisc import ranks
from instdisc.bank import Rows
from instdisc.encoder import Encoder, EncoderConfig, build_encoder, load_whitening
from instdisc.errors import InputError, is_shortage
from instdisc.files import file_digest, sync_file, sync_folder
from instdisc.runs import FORMAT, RunFolder
from instdisc.shapes import Tensor

STATE = "state.json"
_NAME = re.compile(r"step-(\d{9,})")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ENCODER = "has vectors made elsewhere and no encoder: `instdisc open PICTURES --encoder NAME` makes a run with one."
_BLOCK = 65_536  # rows copied at a time: 32 MB of 128 floats
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """This rank's part of tensors whose rows are shared out: rows [start, stop), so tensors (stop − start, ...)."""

    tensors: Mapping[str, Tensor]
    start: int
    stop: int


class DamagedError(Exception):
    """A checkpoint that is not whole: its message says what is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk. facts: what `save` was given. Tensors are read when asked for."""

    path: Path
    step: int
    facts: dict[str, Any]

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The tensors of a group, on the CPU. Raises InputError if the checkpoint has none of this name."""
        file = self.path / f"{group}.safetensors"
        if not file.is_file():
            raise InputError(f'The checkpoint {self.path} holds no "{group}".')
        with _as_written(file):
            return load_file(file)

    def rows(self, group: str, start: int, stop: int, *, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Rows [start, stop) of each of a sharded group's tensors, from however many shards they were saved in.

        Only these rows are read: another number of ranks can take its shares of a bank that fits none of them whole.
        into: tensors of stop - start rows that take them, so that they are held once; others are made.
        Raises InputError if the shards do not hold all of them, ValueError if they are others than `into` names.
        """
        taken, found = dict(into or {}), set[str]()
        missing = stop - start
        for file in self._shards(group):
            with _as_written(file), safe_open(file, framework="pt") as shard:
                held = shard.metadata() or {"start": "0", "stop": "0"}
                first, last = int(held["start"]), int(held["stop"])
                begin, end = max(first, start), min(last, stop)
                for name in shard.keys():  # noqa: SIM118 - a safetensors file is no mapping
                    found.add(name)
                    part = shard.get_slice(name)
                    if name not in taken:
                        taken[name] = part[:0].new_empty(stop - start, *part.get_shape()[1:])
                    for row in range(begin, end, _BLOCK):
                        block = part[row - first : min(row + _BLOCK, end) - first]
                        taken[name][row - start :][: len(block)] = block
                missing -= max(0, end - begin)
        if missing or not taken:
            raise InputError(f'The checkpoint {self.path} does not hold rows {start} to {stop} of "{group}".')
        if into is not None and found != into.keys():
            raise ValueError(f"it holds {', '.join(sorted(found))}, not {', '.join(sorted(into))}")
        return taken

    def bank_rows(self) -> list[Rows]:
        """All rows of the bank as they are kept, by shards in order, mapped from the files."""
        with _as_written(self.path):
            shards = [Rows(shard["rows"], shard.get("scales")) for shard in self.mapped("bank")]
            shapes = [shard.shape for shard in shards if shard.scales is None or shard.scales.shape == shard.shape[:1]]
            if len(shapes) < len(shards) or any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
                raise ValueError("the shards of the bank do not fit together")
        return shards

    def bank(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the bank as float32, whatever they are kept in, widened a block at a time."""
        shards = self.bank_rows()
        if not 0 <= start <= stop <= sum(map(len, shards)):
            raise InputError(f"The checkpoint {self.path} does not hold rows {start} to {stop} of the bank.")
        answer, first = torch.empty(stop - start, shards[0].shape[1]), 0
        for shard in shards:
            begin, end = max(start - first, 0), min(stop - first, len(shard))
            for row in range(begin, end, _BLOCK):
                block = shard[row : min(row + _BLOCK, end)]
                answer[first + row - start :][: len(block)] = block
            first += len(shard)
        return answer

    def mapped(self, group: str) -> list[dict[str, Tensor]]:
        """The tensors of each of a group's shards, in order, mapped from the files: read when they are used."""
        found = []
        for file in self._shards(group):
            with _as_written(file), safe_open(file, framework="pt") as shard:
                found.append({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118 - no mapping
        if not found:
            raise InputError(f'The checkpoint {self.path} holds no "{group}".')
        return found

    def restore_random(self) -> None:
        """Sets torch's generators (CPU, and this rank's accelerator) to where they were at the save.

        A rank that did not exist then keeps the state it has.
        """
        file = self.path / _shard_name("random", ranks.rank(), len(self._shards("random")))
        if not file.is_file():
            return
        with _as_written(file):
            states = load_file(file)
            torch.set_rng_state(states["cpu"])
            if "cuda" in states and torch.cuda.is_available():
                torch.cuda.set_rng_state(states["cuda"])
            if "mps" in states and torch.backends.mps.is_available():
                torch.mps.set_rng_state(states["mps"])

    def _shards(self, group: str) -> list[Path]:
        found = [(_SHARD.fullmatch(file.name), file) for file in sorted(self.path.iterdir())]
        return [file for match, file in found if match is not None and match[1] == group]


def save(
    folder: Path,
    *,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any],
    shards: Mapping[str, Shard] | None = None,
    keep: int = 2,
) -> Path:
    """Saves a checkpoint in `folder`, then removes all but the `keep` newest; its path. Every rank must call this.

    tensors: group -> name -> tensor, the same on every rank; the main rank writes them. Groups of one tensor dict each.
    facts: what JSON can hold. shards: what each rank holds a part of. Random states are added for every rank.
    A step that stands whole already is left as it is. Raises InputError, on every rank, if the disk is full or can't be
    written; what stood before still stands.
    """
    final = folder / f"step-{step:09d}"
    temporary = folder / f".{final.name}.tmp"
    if ranks.broadcast_object(ranks.is_main() and _is_whole(final)):  # it stands already
        return final

    def prepare() -> None:
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        if final.exists():  # damaged, or it would be standing
            _discard(final)
        temporary.mkdir(parents=True)

    def write() -> None:
        for name, shard in {"random": Shard(_random_states(), 0, 0), **(shards or {})}.items():
            file = temporary / _shard_name(name, ranks.rank(), ranks.world())
            write_tensors(file, shard.tensors, start=str(shard.start), stop=str(shard.stop))
        if ranks.is_main():
            for name, group in tensors.items():
                write_tensors(temporary / f"{name}.safetensors", group)

    def finish() -> None:
        write_state(temporary, step, facts, {file.name: file_digest(file) for file in sorted(temporary.iterdir())})
        os.rename(temporary, final)
        sync_folder(folder)
        for old in [path for path in _listed(folder) if _step(path) <= step][max(keep, 1) :]:
            _discard(old)

    # Agree after each part: no rank writes into a folder that another has given up, or that has been renamed.
    for act, by_all in ((prepare, False), (write, True), (finish, False)):
        problem = _attempt(act) if by_all or ranks.is_main() else None
        if ranks.any_rank(problem is not None):
            if ranks.is_main():
                shutil.rmtree(temporary, ignore_errors=True)
            raise _as_input_error(problem, folder, step) from problem
    return final


def write_state(folder: Path, step: int, facts: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """state.json: the facts, and what `file_digest` says of each file; with it a checkpoint is whole."""
    state = json.loads(_json({"format": FORMAT, "step": step, "facts": dict(facts), "files": dict(files)}))
    (folder / STATE).write_bytes(_json(state | {"sha256": _digest(state)}))
    sync_file(folder / STATE)
    sync_folder(folder)


def latest(
    folder: Path,
    *,
    before: int | None = None,
    verify: Collection[str] | None = None,
    warn: Callable[[str], None] = _log.warning,
) -> Checkpoint | None:
    """The newest whole checkpoint of a folder; None if there is none. Says through `warn` which damaged ones it passes.

    before: only checkpoints of earlier steps.
    verify: names of the groups whose bytes are compared with their SHA-256; None = all. Lengths are always compared.
    Raises InputError if the newest was written by a later version of this program.
    """
    for path in _listed(folder):
        if before is not None and _step(path) >= before:
            continue
        try:
            return open_checkpoint(path, verify=verify)
        except DamagedError as error:
            warn(f"The checkpoint {path} is damaged ({error}): it is skipped.")
    return None


def open_checkpoint(path: Path, *, verify: Collection[str] | None = None) -> Checkpoint:
    """The checkpoint in this folder, as `latest` takes it. Raises DamagedError if it is not whole."""
    try:
        state = json.loads((path / STATE).read_bytes())
        version = state["format"]
        if isinstance(version, int) and version > FORMAT:
            raise InputError(f"{path} was written by a newer version of instdisc (format {version}): update instdisc.")
        if state.pop("sha256") != _digest(state):
            raise DamagedError(f"{STATE} was changed")
        checkpoint = Checkpoint(path, state["step"], state["facts"])
        files = [(name, expected["bytes"], expected) for name, expected in state["files"].items()]
    except OSError as error:
        if is_shortage(error):
            raise
        raise DamagedError(f"{STATE} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{STATE} is not what was written") from error
    for name, size, expected in files:
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise DamagedError(f"{name} is {'cut short' if file.is_file() else 'missing'}")
        if (verify is None or _group(name) in verify) and file_digest(file) != expected:
            raise DamagedError(f"{name} was changed")
    return checkpoint


def load_encoder(
    run: str | os.PathLike[str], checkpoint: Checkpoint | None = None, facts: Mapping[str, Any] | None = None
) -> Encoder:
    """The encoder of a run's last whole checkpoint, on the CPU, evaluating; at the run's end with its search vectors.

    checkpoint, facts: one of the run's that is open already, instead of the last, and its config.json as it was read.
    Raises InputError, in a sentence, for a folder that is no run, is damaged, has no checkpoint yet, or is newer.

    Examples:
        >>> import instdisc
        >>> small = dict(limit=40, width=4, dim=8, size=16, batch=8, negatives=8, epochs=1)
        >>> run = instdisc.train("digits", "runs/small", device="cpu", say=None, **small)
        >>> instdisc.load("runs/small").dimensions("embedding")  # of what its embed(pictures) gives
        8
    """
    folder = RunFolder(run)
    config = folder.read_config() if facts is None else facts
    try:
        if config["encoder"].get("backbone", "") is None:
            raise InputError(f"{folder.path} {_NO_ENCODER}")
        encoder = build_encoder(EncoderConfig.from_dict(config["encoder"] | {"pretrained": False}))  # weights: below
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder.config} does not describe an encoder: the run folder is damaged.") from error
    if (checkpoint := checkpoint or latest(folder.checkpoints, verify=("encoder",))) is None:
        raise InputError(f"{folder.path} holds no whole checkpoint yet: train it first, or resume it.")
    try:
        encoder.load_state_dict(checkpoint.tensors("encoder"))
    except RuntimeError as error:
        if is_shortage(error):
            raise
        raise InputError(f"The weights in {checkpoint.path} do not fit the encoder in {folder.config}.") from error
    encoder.origin = f"step {checkpoint.step} of {folder.path}"
    encoder.whitening = load_whitening(folder.search_vectors, checkpoint.step, encoder.level_channels())
    return encoder.eval()


@contextmanager
def _as_written(file: Path) -> Iterator[None]:
    """InputError where a file is not what `save` writes though its hash is right, as of a stranger's making."""
    try:
        yield
    except (SafetensorError, ValueError, LookupError, TypeError, RuntimeError) as error:
        if is_shortage(error):
            raise
        raise InputError(f"{file} does not hold what a checkpoint does ({error}): restore the run folder.") from error


def write_tensors(file: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """A group's file, on the disk when it returns."""
    plain: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous()
        location = values.untyped_storage().data_ptr()
        plain[name] = values.clone() if location in memory else values  # tied weights: safetensors stores no aliases
        memory.add(location)
    # Metadata without any tensor would be written as a header that safetensors itself can't read.
    save_file(plain, file, metadata if plain and metadata else None)
    sync_file(file)


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _attempt(act: Callable[[], None]) -> Exception | None:
    try:
        act()
    except Exception as error:  # whatever it is, the other ranks must hear of it before this one leaves
        return error
    return None


def _as_input_error(problem: Exception | None, folder: Path, step: int) -> Exception:
    """What to raise: a sentence for what a disk can do, the error itself for a fault of the program."""
    start = f"The checkpoint of step {step} could not be written to {folder}"
    end = "The ones before it are untouched"
    if problem is None:
        return InputError(f"{start}: another process failed to write its part. {end}.")
    if not isinstance(problem, OSError | SafetensorError):
        return problem
    # safetensors writes in Rust and keeps the system's error number in its message only
    number = re.search(r"\(os error (\d+)\)", str(problem))
    if (problem.errno if isinstance(problem, OSError) else int(number[1]) if number else None) in _FULL:
        return InputError(f"{start}: the disk is full. {end}; make room, then resume.")
    return InputError(f"{start} ({problem}). {end}; put that right, then resume.")


def _shard_name(group: str, rank: int, world: int) -> str:
    return f"{group}-{rank:05d}-of-{world:05d}.safetensors"


def _group(name: str) -> str:
    return match[1] if (match := _SHARD.fullmatch(name)) else name.removesuffix(".safetensors")


def _json(state: dict[str, Any]) -> bytes:
    return json.dumps(state, indent=1, allow_nan=False).encode()


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _listed(folder: Path) -> list[Path]:
    """The checkpoints' folders, newest first."""
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _is_whole(path: Path) -> bool:
    with suppress(DamagedError):
        return bool(open_checkpoint(path))
    return False


def _discard(path: Path) -> None:
    """Removes a checkpoint; renamed first, so that a kill halfway leaves a leftover and not a damaged checkpoint."""
    os.rename(path, doomed := path.with_name(f".{path.name}.tmp"))
    shutil.rmtree(doomed)
