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
from pathlib import Path

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
