"""What every test stands on: one thread, a home folder of its own, no network by accident, the real pictures if any.

The environment is set while this file loads, before any test imports torch, so that the processes that tests start
inherit it too. Nothing of instdisc may be imported here at the top: jaxtyping's pytest plugin checks only what is
imported after it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_HOME = Path(tempfile.mkdtemp(prefix="instdisc-tests-"))

os.environ.update(
    {
        # Two OpenMP programs on two cores slow each other several times over; one thread each is faster and repeatable.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # Caches, settings and downloads go to a folder that is removed at the end, never to the person's own.
        "HOME": str(_HOME),
        "XDG_CACHE_HOME": str(_HOME / ".cache"),
        "XDG_CONFIG_HOME": str(_HOME / ".config"),
        "XDG_DATA_HOME": str(_HOME / ".local" / "share"),
        "MPLCONFIGDIR": str(_HOME / ".config" / "matplotlib"),
        "MPLBACKEND": "Agg",
        # A test that reaches for the Hugging Face hub has a fault; it fails at once and says so.
        "HF_HUB_OFFLINE": "1",
        # The same words in the same lines wherever the tests run.
        "COLUMNS": "120",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
)
for _name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
    os.environ.pop(_name, None)


def pytest_unconfigure() -> None:
    """Remove the tests' home folder."""
    shutil.rmtree(_HOME, ignore_errors=True)


# The longest files, longest first: they begin first, so that at the end no process works alone (`make test` prints the
# seconds of each). The others follow in their own order.
LONGEST = (
    "stress/test_hosts.py",
    "training/test_pretend_device.py",
    "stress/test_killing.py",
    "stress/test_strange_users.py",
    "house/test_docs_collection.py",
    "house/test_docs_readme.py",
    "cli/test_cli.py",
    "house/test_docs_ranks.py",
    "jobs/test_jobs.py",
    "jobs/test_jobs_reproduce.py",
    "house/test_docs_published.py",
    "training/test_training_resume.py",
    "stress/test_hostile_parsers.py",
    "house/test_additions.py",
    "serve/test_serve_page.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    here = Path(__file__).parent
    if lost := [name for name in LONGEST if not (here / name).is_file()]:
        raise pytest.UsageError(f"LONGEST in {__file__} names what is not there: {', '.join(lost)}")
    place = {here / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


_SECONDS: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the time of each file, whichever process ran it."""
    _SECONDS[report.nodeid.partition("::")[0]] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The files that took longest."""
    if len(_SECONDS) > 1:
        terminalreporter.section(f"seconds of the {min(20, len(_SECONDS))} longest of {len(_SECONDS)} files")
        for file, seconds in _SECONDS.most_common(20):
            terminalreporter.line(f"{seconds:8.1f}  {file}")


@pytest.fixture(autouse=True)
def _pytest_hears_what_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line sets a hook of its own in front of pytest's, which turns ignored exceptions into failures."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures, which are not part of the project: cifar10-train.parquet, cifar10-test.parquet,
    photos.parquet. It stands at $INSTDISC_TEST_DATA or at ../shared/data beside the checkout; a test that needs it is
    skipped where there is none."""
    named = os.environ.get("INSTDISC_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real pictures at {folder}: set INSTDISC_TEST_DATA to a folder that holds them")
    return folder


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy, for a test to change, of the run that its file trains once: the last thing that its `trained` gives."""
    return Path(shutil.copytree(request.getfixturevalue("trained")[-1], tmp_path / "run"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, one for the tests of a file; a test that needs it is skipped without playwright."""
    from browsing import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`instdisc WORDS` in this process: exit status, standard output, standard error."""

    def act(*words: Any) -> tuple[int, str, str]:
        from instdisc import cli

        monkeypatch.setattr(sys, "argv", ["instdisc", *map(str, words)])
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        told = capsys.readouterr()
        return status, told.out, told.err

    return act


@pytest.fixture
def said(command: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """said("info", folder, code=0): what `instdisc info folder` prints, on one line; its exit status is checked."""

    def act(*words: Any, code: int = 0) -> str:
        status, out, errors = command(*words)
        assert status == code, out + errors
        return " ".join((out + errors).split())

    return act
