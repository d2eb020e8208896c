"""Runs docs/notebook.ipynb in a Jupyter kernel and keeps what it gives; needs nbclient and ipykernel (the extra `dev`).

python docs/notebook.py                   # in its place
python docs/notebook.py IN.ipynb OUT.ipynb
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

KEPT = Path(__file__).with_name("notebook.ipynb")


def run(given: Path, kept: Path) -> None:
    """Run every cell in a folder of its own that is removed afterwards; the first that fails raises its error."""
    notebook = nbformat.read(given, nbformat.current_nbformat)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}, record_timing=False)
        client.execute()
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(notebook, kept)


if __name__ == "__main__":
    given, kept = (*map(Path, sys.argv[1:]), KEPT, KEPT)[:2]
    run(given, kept)
    print(f"Run and kept in {kept}.")
