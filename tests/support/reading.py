"""A reader of README.md and docs/*.md, who runs every command and every line of Python there.

    follow("docs/collection.md", tmp_path, subtests)

A page is read from top to bottom in one new folder. Its blocks are marked by the language after the three backticks:

    bash      run by `bash -euo pipefail`
    console   lines that begin with `$ ` are run, with their continuations after a backslash; the others are output
    python    run in one interpreter for the whole page, so that names stay from block to block
    others    (text, json, csv, toml, ...) are not run; a block without a language, or in sh, shell or py, is an error

The folder holds, to begin with: `pictures/` (60 small JPEGs in the class folders cat, dog and ship), `new/` (6 more,
without classes), `cat.jpg` and `dog.jpg`. There is no `runs/`.

A comment on a line of its own above a block changes how it is run; several may stand there:

    <!-- test: skip REASON -->            it is not run: needs a network, a GPU, an hour
    <!-- test: replace "A" with "B" -->   so that `--minutes 60` is tried as `--epochs 1`; A must be there
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
# A file stays in one process of pytest: the long pages have files of their own, the others are test_docs.py's.
FILES = {
    "test_docs_collection": ["docs/collection.md"],
    "test_docs_published": ["docs/published.md"],
    "test_docs_ranks": ["docs/hosts.md", "docs/settings.md"],
    "test_docs_readme": ["README.md", "docs/start.md"],
}
RUN = {"bash", "console", "python"}
REFUSED = {"", "sh", "shell", "zsh", "py", "python3", "pycon"}

LIMIT = 1000  # seconds for one block: a busy machine is no fault of the page
THREADS = "1"  # two programs of two threads each on two cores take twice the processor time

FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>```+)(?P<language>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=ticks) *$",
    flags=re.MULTILINE | re.DOTALL,
)
COMMENTS = re.compile(r"(?:^ *<!--.*?-->\s*\n)+\s*\Z", flags=re.MULTILINE)
DIRECTIVE = re.compile(r"<!-- test: (?P<verb>\w+)(?P<rest>.*?) -->")
REPLACE = re.compile(r'\s+"(?P<old>[^"]+)" with "(?P<new>[^"]*)"\s*')

# Reads one block a line, as JSON, runs it, and answers null or the traceback on a pipe of its own: what the block
# itself prints goes to standard output like any program's.
INTERPRETER = """
import json, os, sys, traceback
names = {"__name__": "__main__"}
answers = os.fdopen(int(sys.argv[1]), "w")
for line in sys.stdin:
    try:
        exec(compile(json.loads(line), "<the page's python>", "exec"), names)
        answer = None
    except BaseException:
        answer = traceback.format_exc()
    sys.stdout.flush()
    print(json.dumps(answer), file=answers, flush=True)
"""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page: what to run, and why not to."""

    line: int  # of the opening fence, from 1
    language: str
    code: str
    skip: str = ""  # the reason; empty: run it


def pages_of(file: str) -> list[str]:
    """The pages that a file of tests follows."""
    taken = [page for pages in FILES.values() for page in pages]
    return FILES.get(Path(file).stem) or [page for page in PAGES if page not in taken]


def follow(page: str, folder: Path, subtests: pytest.Subtests) -> None:
    """Run a page, from top to bottom, in `folder`: a subtest for each block."""
    prepare(folder)
    blocks = [block for block in blocks_of((ROOT / page).read_text(encoding="utf-8")) if block.language in RUN]
    with reading(folder) as reader:
        for block in blocks:
            with subtests.test(msg=f"{page}, line {block.line}"):
                if block.skip:
                    pytest.skip(block.skip)
                reader.follow(block)


def blocks_of(text: str) -> list[Block]:
    """The blocks of a page in order, with the comments above them carried out.

    Raises ValueError, with the line, for a language that hides a block from this test and a comment it can't follow.
    """
    blocks = []
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        words = fence["language"].split()
        language = words[0] if words else ""
        if language in REFUSED:
            raise ValueError(f"line {line}: say bash, console or python, or text for what is not run, not {language!r}")
        code = re.sub(rf"^{fence['indent']}", "", fence["body"], flags=re.MULTILINE)
        skip = ""
        above = COMMENTS.search(text, 0, fence.start())
        for directive in DIRECTIVE.finditer(above[0] if above else ""):
            code, skip = carry_out(directive["verb"], directive["rest"], code, skip, line)
        blocks.append(Block(line, language, code, skip))
    return blocks


def carry_out(verb: str, rest: str, code: str, skip: str, line: int) -> tuple[str, str]:
    """The code and the reason to skip it after one comment."""
    if verb == "skip" and rest.strip():
        return code, rest.strip()
    if verb == "replace" and (change := REPLACE.fullmatch(rest)):
        if change["old"] not in code:
            raise ValueError(f"line {line}: there is no {change['old']!r} to replace")
        return code.replace(change["old"], change["new"]), skip
    raise ValueError(f"line {line}: can't follow the comment 'test: {verb}{rest}'")


def commands_of(console: str) -> str:
    """The commands of a console block: what stands after `$ `, with its continuations."""
    commands, goes_on = [], False
    for line in console.splitlines():
        if goes_on or line.startswith("$ "):
            commands.append(line if goes_on else line[2:])
            goes_on = line.endswith("\\")
    return "\n".join(commands)


def prepare(folder: Path) -> None:
    """The pictures that the pages talk about: three classes that differ in colour and pattern."""
    generator = np.random.default_rng(0)
    colours = {"cat": (200, 120, 60), "dog": (90, 140, 70), "ship": (60, 110, 200)}

    def picture(name: str) -> Image.Image:
        rows, columns = np.mgrid[0:48, 0:64]
        waves = np.sin(columns / (2 + 2 * list(colours).index(name)) + generator.uniform(0, 6)) * np.sin(rows / 5)
        noise = generator.normal(0, 20, (48, 64, 3))
        values = np.array(colours[name]) + 40 * waves[:, :, None] + noise
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))

    for name in colours:
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            picture(name).save(folder / "pictures" / name / f"{number:02}.jpg")
    (folder / "new").mkdir()
    for number, name in enumerate([*colours] * 2):
        picture(name).save(folder / "new" / f"{number}.jpg")
    picture("cat").save(folder / "cat.jpg")
    picture("dog").save(folder / "dog.jpg")


def environment() -> dict[str, str]:
    """The reader's: the commands of this installation come first, and what tests set for themselves is undone."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS}


class Reader:
    """Somebody who does what the page says, in `folder`."""

    def __init__(self, folder: Path, interpreter: subprocess.Popen[str], answers: int) -> None:
        self._folder, self._interpreter = folder, interpreter
        self._answers = os.fdopen(answers)

    def follow(self, block: Block, limit: float = LIMIT) -> None:
        """Run one block; fail with what it printed."""
        if block.language == "python":
            self._python(block.code, limit)
        else:
            code = commands_of(block.code) if block.language == "console" else block.code
            self._bash(code, limit)

    def _bash(self, code: str, limit: float) -> None:
        # A session of its own, so that what the commands started can be ended with them.
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=self._folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        with ended_after(process, limit) as late:
            printed, _ = process.communicate()
        if late.is_set():
            pytest.fail(f"not done after {limit} s:\n{code}\n{printed[-4000:]}", pytrace=False)
        if process.returncode:
            pytest.fail(f"ended with {process.returncode}:\n{code}\n{printed[-4000:]}", pytrace=False)

    def _python(self, code: str, limit: float) -> None:
        assert self._interpreter.stdin is not None
        with ended_after(self._interpreter, limit) as late:
            print(json.dumps(code), file=self._interpreter.stdin, flush=True)
            answer = self._answers.readline()
        if late.is_set() or not answer:
            pytest.fail(f"the interpreter ended, or was ended after {limit} s, at:\n{code}", pytrace=False)
        if (traceback := json.loads(answer)) is not None:
            pytest.fail(f"{code}\n{traceback}", pytrace=False)


@contextmanager
def ended_after(process: subprocess.Popen[str], limit: float) -> Iterator[threading.Event]:
    """End `process`, and all that it started, if the block has not left after `limit` seconds; the event says so."""
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(process.pid, 9)

    timer = threading.Timer(limit, end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def reading(folder: Path) -> Iterator[Reader]:
    """A reader in `folder`, with an interpreter open until the page is done."""
    ours, theirs = os.pipe()
    interpreter = subprocess.Popen(
        [sys.executable, "-c", INTERPRETER, str(theirs)],
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        text=True,
        pass_fds=[theirs],
        start_new_session=True,
    )
    os.close(theirs)
    reader = Reader(folder, interpreter, ours)
    try:
        yield reader
    finally:
        reader._answers.close()
        interpreter.communicate(timeout=500)
