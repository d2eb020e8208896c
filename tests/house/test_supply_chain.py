"""What an installation brings stands under licences that are permitted (runs/supply_chain.py)."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "runs"))
from supply_chain import brought, licence_of


def test_all_that_an_installation_brings_is_permitted() -> None:
    found = {package.metadata["Name"]: licence_of(package) for package in brought("instdisc", frozenset({"dev"}))}
    assert {name for name, licence in found.items() if licence is None} == set()
    assert found.keys() >= {"torch", "numpy", "pillow", "matplotlib"} and len(found) > 60


def test_a_plain_installation_has_no_extras() -> None:
    ours = {package.metadata["Name"].lower() for package in brought("instdisc")}
    assert ours >= {"torch", "scikit-learn", "starlette", "markupsafe"}, "what is required by what is required, too"
    assert not ours & {"pytest", "lightly", "mypy", "matplotlib"}


@pytest.mark.parametrize(
    ("headers", "licence"),
    [
        ("License-Expression: MIT", "MIT"),
        ("License-Expression: Apache-2.0 WITH LLVM-exception AND (0BSD OR MIT)", "0BSD and Apache-2.0 and MIT"),
        ("License-Expression: MIT AND GPL-3.0-only", None),
        ("License-Expression: LGPL-3.0-only", "LGPL"),
        ("License: GPLv3", None),
        ("License: BSD 3-Clause", "BSD"),
        ("License: Copyright (c) somebody\nClassifier: License :: OSI Approved :: BSD License", "BSD"),
        ("Classifier: License :: OSI Approved :: GNU Affero General Public License v3", None),
        ("Summary: MIT people made this", None),
    ],
)
def test_a_licence_is_known_by_what_the_metadata_says(headers: str, licence: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "made-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: made\nVersion: 1.0\n{headers}\n\n")
    assert licence_of(metadata.PathDistribution(folder)) == licence
