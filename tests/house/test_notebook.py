"""docs/notebook.ipynb is run in a Jupyter kernel, and gives what it is kept with; a bar there is one that moves."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
_SHOWN = re.compile(r'src="data:image/jpeg;base64,([^"]+)"')


def run(*words: Path) -> list[dict[str, Any]]:
    """The cells after `python docs/notebook.py IN OUT`."""
    environment = os.environ | {"PYTHONPATH": os.fspath(ROOT / "src"), "IPYTHONDIR": os.fspath(words[-1].parent)}
    command = [sys.executable, ROOT / "docs" / "notebook.py", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return cells_of(words[-1])


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return cells


def is_bar(output: dict[str, Any]) -> bool:
    """A bar is shown where work takes longer than two seconds: its last line stays."""
    return output["output_type"] == "display_data" and bool(
        re.search(", done in [0-9]", "".join(output["data"]["text/plain"]))
    )


def outlined(cell: dict[str, Any]) -> list[Any]:
    """What must be the same wherever the notebook is run: all but fractions, ports, pixels, and which are the alike."""
    found = []
    for output in (one for one in cell["outputs"] if not is_bar(one)):
        if output["output_type"] == "stream":
            found.append((output["name"], words_of(output["text"])))
            continue
        shown = {kind: "".join(text) for kind, text in output["data"].items()}
        page = shown.get("text/html", "")
        captions = re.findall(r"<p>(.*?)</p>", page)
        found.append((output["output_type"], sorted(shown), captions, len(_SHOWN.findall(page)), "<iframe" in page))
        if not page:
            found.append(words_of(shown["text/plain"]))
    return found


def words_of(text: str | Sequence[str]) -> list[str]:
    """Without the lines of a table, whose pictures and scores are each processor's own."""
    lines = "".join(text).splitlines()
    return [" ".join(line.split()) for line in lines if not re.match(r"\d+ +\S+#\d+ ", line)]


def facts_of(cell: dict[str, Any]) -> str:
    (output,) = [one for one in cell["outputs"] if one["output_type"] == "execute_result"]
    return "".join(output["data"]["text/html" if "text/html" in output["data"] else "text/plain"])


@pytest.mark.slow
def test_the_notebook_gives_what_it_is_kept_with(tmp_path: Path) -> None:
    kept, now = (
        cells_of(ROOT / "docs" / "notebook.ipynb"),
        run(ROOT / "docs" / "notebook.ipynb", tmp_path / "now.ipynb"),
    )
    assert [cell["source"] for cell in now] == [cell["source"] for cell in kept]
    code = [(before, after) for before, after in zip(kept, now, strict=True) if after["cell_type"] == "code"]
    for before, after in code:
        assert outlined(after) == outlined(before), after["source"]
    shown = next(cell for _, cell in code if cell["source"] == ["c[:20]"])
    images = [Image.open(io.BytesIO(base64.b64decode(one))) for one in _SHOWN.findall(facts_of(shown))]
    assert len(images) == 20 and {image.format for image in images} == {"JPEG"}
    searched = next(cell for _, cell in code if cell["source"][0].startswith("found = c.search(17"))
    labels = re.findall(r"<figcaption>(\d) · ", facts_of(searched))
    assert len(labels) == 12 and labels.count("7") > 6, "digit 17 is a 7, and so are those that are most like it"
    text = (ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8")
    assert "/tmp" not in text and os.fspath(Path.home()) not in text and "Traceback" not in text


@pytest.mark.slow
def test_a_bar_in_a_notebook_moves_in_its_place(tmp_path: Path) -> None:
    """One output, replaced again and again, whose last state is a line of text; no codes of a terminal."""
    code = """\
import sys
from instdisc import progress
progress.QUIET_SECONDS = progress._CELL_SECONDS = 0
sent = []
publisher = get_ipython().display_pub
publish = publisher.publish
def noted(data, *args, **more):
    sent.append((data, more.get("update", False)))
    publish(data, *args, **more)
publisher.publish = noted
with progress.Bar(3, "Reading <pictures>", "pictures") as bar:
    for number in range(3):
        bar.advance(note="[slow]")
assert [update for _, update in sent] == [False, True, True, True]
lines = [data["text/plain"].split(",")[0] for data, _ in sent]
assert lines == [f"Reading <pictures>: {n} of 3 pictures" for n in (1, 2, 3, 3)]
assert 'value="2" max="3"' in sent[1][0]["text/html"] and "&lt;pictures&gt;" in sent[1][0]["text/html"]
assert "[slow]" in sent[1][0]["text/html"]
"""
    cell = {"cell_type": "code", "id": "bar", "metadata": {}, "execution_count": None, "outputs": [], "source": code}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "bar.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    (ran,) = run(tmp_path / "bar.ipynb", tmp_path / "ran.ipynb")
    (output,) = ran["outputs"]
    assert output["output_type"] == "display_data" and list(output["data"]) == ["text/plain"]
    assert re.fullmatch(r"Reading <pictures>: 3 of 3 pictures, done in \d+ s", "".join(output["data"]["text/plain"]))
