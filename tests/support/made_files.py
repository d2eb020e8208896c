"""Files that a test puts into a folder."""

from __future__ import annotations

from pathlib import Path


def put(folder: Path, files: dict[str, bytes]) -> Path:
    """The folder, with these files in it: path below it -> content."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
