"""Each life of the tool (tests/support/lives.py), cut short at random moments or under a hardship, and gone on with.

    with killing() as ask:
        counts = ask(life="labels", trial="kill", times=10, seed=0)

One process imports everything, starts no thread, and forks for each round, which takes tenths of a second. A round:
the command in a fresh folder, cut short; what anybody then finds must be what an uninterrupted life passes through, and
no less than before; the same command again, to its end; the result must be that of the uninterrupted one.

    kill         SIGKILL, half of them by the clock, half just before a file is opened to write, renamed or removed
    interrupt    SIGINT by the clock: no traceback
    full disk    a tmpfs with less room than is needed; without the right to mount, a limit on the length of files
    read-only    the file system, or without that right the files
    descriptors  fewer than are needed
    memory       less address space than is needed

A hardship begins after a kill, in a folder where some of the work is done, and ends with status 0 or with one sentence.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from forks import Ended, Lost, Prepare, at_changes, at_end, limit, live, told
from lives import FROM_A_RUN, LIVES, Found, Life, hurried, made

from instdisc.errors import InputError

TRIALS = ("kill", "interrupt", "full disk", "read-only", "descriptors", "memory")


@dataclass(frozen=True)
class Known:
    """The uninterrupted life. possible: all pieces that ever stand; changes: opens to write, renames, removals."""

    start: Found
    possible: dict[str, str]
    end: str
    seconds: float
    changes: int
    memory: tuple[int, int]  # address space before and at most, bytes
    grows: int  # bytes on the disk
    longest: int  # bytes of the largest file


def look(life: Life, folder: Path) -> Found:
    """What is found in a folder; Lost where it can't be opened."""
    return Found(**told(lambda: asdict(life.look(folder))))


# ---------------------------------------------------------------------------------------------------------------------
# One process for all trials


class Killer:
    """The work of one process: pictures and a run, made once, and what each uninterrupted life does."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.known: dict[str, Known] = {}
        hurried()
        told(lambda: _quietly(made, place))
        self.mounts = os.geteuid() == 0 and shutil.which("mount") is not None and self._can_mount()

    def _can_mount(self) -> bool:
        folder = self.place / "mounted"
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
        return True

    def know(self, name: str) -> Known:
        """Live it three times, once with a history: all must agree."""
        if name in self.known:
            return self.known[name]
        life, notes = LIVES[name], self.place / "notes.json"

        def imported() -> None:
            modules, status = sorted(sys.modules), Path("/proc/self/status").read_text()
            peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmPeak:"))
            notes.write_text(json.dumps({"modules": modules, "peak": peak}))

        def count(changes: int) -> None:
            notes.with_name("changes").write_text(str(changes))

        with self.folder(name) as (folder, said):  # the parent imports what this one does, so that no fork needs to
            start, before = look(life, folder), _bytes_in(folder)
            self.must_end(name, live(self.words(name, folder), folder, said, lambda: at_end(imported)))
            first = look(life, folder)
            grows = _bytes_in(folder) - before
            longest = max(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for module in json.loads(notes.read_text())["modules"]:
            with contextlib.suppress(Exception):
                import_module(module)
        assert len(os.listdir("/proc/self/task")) == 1, "an import started a thread, which a fork would lose"
        with self.folder(name) as (folder, said):
            self.must_end(name, live([*self.words(name, folder), *life.history], folder, said, life.keep))
            history = look(life, folder)
        with self.folder(name) as (folder, said):

            def noting() -> None:
                at_end(imported)
                at_changes(folder, count)()

            began = time.monotonic()
            self.must_end(name, live(self.words(name, folder), folder, said, noting))
            seconds = time.monotonic() - began
            second = look(life, folder)
        assert first.end and first.end == second.end, f"{name} does not repeat itself"
        possible = first.pieces | history.pieces
        assert possible.items() >= second.pieces.items(), f"{name} does not repeat itself"
        changes = int(notes.with_name("changes").read_text())
        memory = (_address_space(), json.loads(notes.read_text())["peak"])
        self.known[name] = Known(start, possible, first.end, seconds, changes, memory, grows, longest)
        return self.known[name]

    def words(self, name: str, folder: Path) -> list[Any]:
        return LIVES[name].words(self.place, folder)

    def must_end(self, name: str, ended: Ended) -> None:
        done = LIVES[name].done
        if ended.status != 0 and not (ended.status == 1 and done and done in ended.errors):
            raise Lost(f"status {ended.status} when nothing was in its way: {ended.errors[-2000:]}")

    @contextlib.contextmanager
    def folder(self, name: str, *, mounted: bool = False) -> Iterator[tuple[Path, Path]]:
        """A fresh folder for one round, and where its words go. The same path each time: it is part of some results."""
        folder = self.place / "round"
        folder.mkdir()
        if mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "none", folder], check=True)
        try:
            if name in FROM_A_RUN:
                shutil.copytree(self.place / "before" / "run", folder / "run")
            yield folder, self.place / "said"
        finally:
            if mounted:
                subprocess.run(["umount", "-l", folder], check=True)
            shutil.rmtree(folder)

    def trial(self, life: str, trial: str, times: int, seed: int) -> dict[str, Any]:
        """Many rounds of one trial on one life: counts, and the first things that went wrong."""
        known = self.know(life)
        draw = random.Random(f"{life} {trial} {seed}")
        counts = {"tried": 0, "hit": 0, "survived": 0, "lost": 0, "went through": 0, "one sentence": 0, "died": 0}
        faults: list[str] = []
        sentences: dict[str, int] = {}
        act = {"kill": self._kill, "interrupt": self._interrupt}.get(trial, self._hardship)
        while counts["hit"] < times and counts["tried"] < 8 * times:
            counts["tried"] += 1
            with self.folder(life, mounted=self.mounts and trial in ("full disk", "read-only")) as (folder, said):
                try:
                    ended = act(life, trial, known, draw, folder, said)
                    self.check(life, known, folder, known.start)
                    self.finish(life, known, folder, said)
                except Lost as fault:
                    counts["lost"] += 1
                    faults.append(str(fault))
                    ended = None
                else:
                    counts["survived"] += 1
            if ended is None:
                counts["hit"] += 1
                continue
            kind = {0: "went through", 1: "one sentence", 130: "one sentence"}.get(ended.status or 0, "died")
            counts[kind] += 1
            counts["hit"] += ended.status != 0
            if kind == "one sentence":
                words = _sentence(ended).replace(str(self.place), "").replace(sys.prefix, "")
                sentences[words] = sentences.get(words, 0) + 1
        return (
            {"life": life, "trial": trial, "seconds": round(known.seconds, 3), "mounted": self.mounts}
            | counts
            | {
                "faults": faults[:5],
                "sentences": sentences,
            }
        )

    def check(self, name: str, known: Known, folder: Path, least: Found) -> Found:
        """Look, and compare with the uninterrupted life: nothing that it never passes through, no less than `least`."""
        found = look(LIVES[name], folder)
        for piece, value in found.pieces.items():
            if value not in (known.possible.get(piece), known.start.pieces.get(piece)):
                raise Lost(f"{piece} is none that an uninterrupted life passes through")
        if found.progress < least.progress:
            raise Lost(f"it had come to {least.progress}, and is at {found.progress}")
        return found

    def finish(self, name: str, known: Known, folder: Path, said: Path) -> None:
        """The same command to its end: the same result, and nothing half-written left beside it."""
        self.must_end(name, live(self.words(name, folder), folder, said))
        found = self.check(name, known, folder, known.start)
        if found.end != known.end:
            raise Lost("it went on to another result")

    def _kill(self, life: str, trial: str, known: Known, draw: random.Random, folder: Path, said: Path) -> Ended:
        words = self.words(life, folder)
        if draw.random() < 0.5:
            return live(words, folder, said, after=draw.uniform(0, known.seconds), by=signal.SIGKILL)
        chosen = draw.randint(1, known.changes)

        def count(changes: int) -> None:
            if changes == chosen:
                os.kill(os.getpid(), signal.SIGKILL)

        return live(words, folder, said, at_changes(folder, count))

    def _interrupt(self, life: str, trial: str, known: Known, draw: random.Random, folder: Path, said: Path) -> Ended:
        ended = live(self.words(life, folder), folder, said, after=draw.uniform(0, known.seconds), by=signal.SIGINT)
        # Where a library's own code swallows a Ctrl-C (status 0), the person presses again.
        if ended.status not in (0, 130) or (ended.status and "Traceback" in ended.errors):
            raise Lost(f"status {ended.status} after Ctrl-C: {ended.errors[-2000:]}")
        return ended

    def _hardship(self, life: str, trial: str, known: Known, draw: random.Random, folder: Path, said: Path) -> Ended:
        self._kill(life, trial, known, draw, folder, said)
        before = self.check(life, known, folder, known.start)
        prepare: Prepare | None = None
        end: Prepare | None = None
        share = draw.random()
        if trial == "full disk" and self.mounts:
            _remount(folder, f"size={max(4096, _used(folder) + 4096 * draw.randrange(max(1, known.grows // 4096)))}")
            end = lambda: _remount(folder, "size=256m")  # noqa: E731
        elif trial == "full disk":
            prepare = limit(resource.RLIMIT_FSIZE, int(share * known.longest))
        elif trial == "read-only" and self.mounts:
            _remount(folder, "ro")
            end = lambda: _remount(folder, "rw")  # noqa: E731
        elif trial == "read-only":
            _permit(folder, writing=False)
            end = lambda: _permit(folder, writing=True)  # noqa: E731
        elif trial == "descriptors":
            prepare = limit(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) + draw.randint(0, 8))
        else:
            low, high = known.memory
            prepare = limit(resource.RLIMIT_AS, int(low + share**2 * max(0, high - low)))
        try:
            ended = live(self.words(life, folder), folder, said, prepare)
        finally:
            if end is not None:
                end()
        if ended.status == 1:
            _sentence(ended)
        elif ended.status is None or (ended.status and trial != "memory") or "Traceback" in ended.errors:
            raise Lost(f"status {ended.status}: {ended.errors[-2000:]}")
        found = self.check(life, known, folder, before)
        if ended.status == 0 and found.end != known.end and trial != "read-only":
            raise Lost("it says that all went well, and the result is another")
        return ended


def _sentence(ended: Ended) -> str:
    """The one sentence on standard error; Lost where there is something else."""
    lines = [line for line in ended.errors.splitlines() if line.strip()]
    if ended.status == 130:
        return lines[-1] if lines else "stopped and saved"
    if not lines or not lines[-1].startswith("instdisc: ") or "Traceback" in ended.errors:
        raise Lost(f"no sentence: {ended.errors[-2000:]}")
    return lines[-1]


def _quietly(act: Callable[[Path], None], place: Path) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        act(place)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _used(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def _permit(folder: Path, *, writing: bool) -> None:
    for path in [folder, *folder.rglob("*")]:
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if writing else mode & ~0o222)


def _bytes_in(folder: Path) -> int:
    return sum(4096 * -(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def killing() -> Iterator[Callable[..., dict[str, Any]]]:
    """The process, as a function: ask(life="labels", trial="kill", times=10, seed=0)."""
    alone = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    alone |= {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # else pyarrow starts a thread when it is imported
    words = [sys.executable, __file__]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | alone
    ) as it:
        assert it.stdin is not None and it.stdout is not None

        def ask(**what: Any) -> dict[str, Any]:
            it.stdin.write(json.dumps(what) + "\n")
            it.stdin.flush()
            answer = json.loads(it.stdout.readline())
            if "error" in answer:
                raise AssertionError(answer["error"])
            return answer

        yield ask
        it.stdin.close()


def main() -> None:
    """Answer one line after the other."""
    with tempfile.TemporaryDirectory(prefix="instdisc-killing-") as place:
        killer = Killer(Path(place))
        for line in sys.stdin:
            try:
                answer = killer.trial(**json.loads(line))
            except (Lost, InputError, AssertionError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
