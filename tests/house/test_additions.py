"""What the project promises of its rooms: a toy of each kind is added to a copy of it, in as few files as promised.

Each toy brings its file, its lines in files that stand, and its own tests, which run in the copy.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "src/instdisc"
AUGMENT, CONFIG = f"{PACKAGE}/data/augment/__init__.py", f"{PACKAGE}/training/config.py"
PAGE = f"{PACKAGE}/serve/page"


@dataclass(frozen=True)
class Toy:
    """What is added. most: files, its tests among them. lines: (file, a text in it, what stands there then)."""

    most: int
    files: dict[str, str]
    lines: tuple[tuple[str, str, str], ...]
    then: tuple[str, ...] = ()  # a script to run: it renews a page


TOYS = {
    "objective": Toy(
        3,
        {
            f"{PACKAGE}/objectives/centre.py": '''\
"""Towards the mean of the bank."""

import torch

from instdisc.objectives.term import Objective


class Centre(Objective):
    """1 - the cosine of a picture and the mean row."""

    @classmethod
    def from_settings(cls, settings, instances):
        return cls()

    def forward(self, features, indices, bank):
        return (1 - features.float() @ torch.nn.functional.normalize(bank.rows.float().mean(0), dim=0)).mean()
''',
            "tests/objectives/test_objectives_centre.py": """\
from tiny_runs import made_pictures, tiny

from instdisc.jobs.train import train


def test_a_run_trains_by_it(tmp_path):
    run = train(made_pictures(40), tmp_path / "run", tiny(objective="centre", epochs=1), say=None)
    assert run.finished and all(line["losses"].keys() == {"centre"} for line in run.metrics() if "losses" in line)
""",
        },
        (
            (
                f"{PACKAGE}/objectives/__init__.py",
                "from instdisc.objectives.nce import NCE\n",
                "from instdisc.objectives.centre import Centre\nfrom instdisc.objectives.nce import NCE\n",
            ),
            (f"{PACKAGE}/objectives/__init__.py", '    "nce": NCE,\n', '    "nce": NCE,\n    "centre": Centre,\n'),
        ),
    ),
    "file format": Toy(
        3,
        {
            f"{PACKAGE}/data/decoding/toy.py": '''\
"""A mark, width, height, and grey values."""

from PIL import ImageFile


class ToyFile(ImageFile.ImageFile):
    """Opened by its header; Pillow loads the rest."""

    format = "TOY"

    def _open(self):
        self._size, self._mode = tuple(self.fp.read(6)[4:]), "L"
        self.tile = [("raw", (0, 0, *self.size), 6, ("L", 0, 1))]
''',
            "tests/data/test_data_toy.py": """\
import numpy as np

from instdisc.data import open_source
from instdisc.data.decoding.decode import decode, format_and_size


def test_a_folder_of_them_is_read(tmp_path):
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    (tmp_path / "in").mkdir()
    for name in ("1.toy", "2.toy", "3"):
        (tmp_path / "in" / name).write_bytes(b"TOYP\\x08\\x06" + values.tobytes())
    source = open_source(str(tmp_path / "in"), index_folder=tmp_path / "index")
    assert len(source) == 3 and format_and_size(source.read(2)) == ("toy", 8, 6)
    assert np.array_equal(decode(source.read(2)), np.repeat(values[..., None], 3, axis=2))
""",
        },
        (
            (
                f"{PACKAGE}/data/decoding/formats.py",
                "import TiffFile\n",
                "import TiffFile\nfrom instdisc.data.decoding.toy import ToyFile\n",
            ),
            (
                f"{PACKAGE}/data/decoding/formats.py",
                '        (rb"GIF8[79]a"',
                '        (rb"TOYP", Format("toy", opened=ToyFile, endings="toy")),\n        (rb"GIF8[79]a"',
            ),
        ),
    ),
    "picture source": Toy(
        3,
        {
            f"{PACKAGE}/data/sources/stripes.py": '''\
"""Stripes, lying and standing."""

import numpy as np


def stripes(split):
    pictures = np.zeros((20, 8, 8), np.uint8)
    pictures[:10, ::2], pictures[10:, :, ::2] = 255, 255
    return pictures, (np.repeat([0, 1], 10), ["lying", "standing"])
''',
            "tests/data/test_data_stripes.py": """\
from tiny_runs import tiny

from instdisc.data.sources.open import open_source
from instdisc.jobs.train import train


def test_the_name_is_a_source_and_is_trained_on(tmp_path):
    found = open_source("stripes", split="all")
    assert len(found) == 20 and found.label_names == ["lying", "standing"]
    assert train("stripes", tmp_path / "run", tiny(epochs=1, batch=5, negatives=4), say=None).finished
""",
        },
        (
            (
                f"{PACKAGE}/data/sources/builtin.py",
                "from instdisc.data.storage.scan",
                "from instdisc.data.sources.stripes import stripes\nfrom instdisc.data.storage.scan",
            ),
            (
                f"{PACKAGE}/data/sources/builtin.py",
                '    "digits": (',
                '    "stripes": (("all",), stripes),\n    "digits": (',
            ),
        ),
    ),
    "evaluator": Toy(
        3,
        {
            f"{PACKAGE}/evaluation/spread.py": '''\
"""How far vectors stand from their mean."""

import numpy as np


def spread(vectors):
    return float(np.linalg.norm(vectors - vectors.mean(0), axis=1).mean())


def section(train, test, device):
    found = spread(np.asarray(train.trained))
    return {"spread": {"value": found, "sentences": [f"Spread {found:.2f}: the mean distance to the mean."]}}
''',
            "tests/evaluation/test_evaluation_spread.py": """\
import numpy as np
from tiny_runs import picture_folder, tiny

from instdisc.evaluation.spread import spread
from instdisc.jobs.train import train


def test_the_command_measures_it_and_says_it(tmp_path, said):
    assert spread(np.array([[0.0, 1], [0, -1]])) == 1
    run = train(picture_folder(tmp_path / "pictures", 30), tmp_path / "run", tiny(epochs=1), say=None).path
    assert "Spread 0." in said("evaluate", run, "--with", "spread", "--device", "cpu")
    assert "choose from" in said("evaluate", run, "--with", "sprd", code=1) and '"spread"' not in said("info", run)
""",
        },
        (
            (
                f"{PACKAGE}/jobs/measures.py",
                "from instdisc.evaluation.svm",
                "from instdisc.evaluation.spread import section as spread_section\nfrom instdisc.evaluation.svm",
            ),
            (
                f"{PACKAGE}/jobs/measures.py",
                '    "retrieval": _retrievals,\n',
                '    "retrieval": _retrievals,\n    "spread": spread_section,\n',
            ),
        ),
    ),
    "augmentation": Toy(
        5,
        {
            f"{PACKAGE}/data/augment/solarise.py": '''\
"""Bright values turned dark."""

import torch

from instdisc.draws import uniforms

_STREAM = 0x501A


def solarised(images, indices, share, *, seed, step, view):
    chosen = uniforms(indices, 1, seed=seed, step=step, stream=_STREAM + view)[:, 0] < share
    return torch.where(chosen[:, None, None, None] & (images > 127), 255 - images, images)
''',
            "tests/data/test_augment_solarise.py": """\
import torch
from tiny_runs import made_pictures, tiny

from instdisc.data import Augmentation
from instdisc.jobs.train import train


def test_what_is_bright_turns_dark_and_a_run_trains_so(tmp_path):
    plain = dict(size=8, scale=(1, 1), ratio=(1, 1), jitter=0, grey=0, mean=(0, 0, 0), std=(1, 1, 1))
    given = (torch.full((4, 3, 8, 8), 200, dtype=torch.uint8), torch.arange(4), torch.ones(4))
    assert torch.allclose(Augmentation(**plain, solarise=1.0)(*given, seed=0, step=0), torch.tensor(55 / 255))
    assert torch.allclose(Augmentation(**plain)(*given, seed=0, step=0), torch.tensor(200 / 255))
    assert train(made_pictures(40), tmp_path / "run", tiny(solarise=0.5, epochs=1), say=None).finished
""",
        },
        (
            (
                AUGMENT,
                "from instdisc.draws import uniforms\n",
                "from instdisc.data.augment.solarise import solarised\nfrom instdisc.draws import uniforms\n",
            ),
            (AUGMENT, "    blur: float = 0.0\n", "    blur: float = 0.0\n    solarise: float = 0.0\n"),
            (
                AUGMENT,
                "        height, width = images.shape[2:]\n",
                "        height, width = images.shape[2:]\n        if self.solarise > 0:\n"
                "            images = solarised(images, indices, self.solarise, seed=seed, step=step, view=view)\n",
            ),
            (
                CONFIG,
                "    blur: float = 0.0\n",
                '    solarise: float = 0.0\n    """Probability of a solarised view."""\n    blur: float = 0.0\n',
            ),
            (
                CONFIG,
                "            blur=self.blur,\n",
                "            blur=self.blur,\n            solarise=self.solarise,\n",
            ),
        ),
        then=("docs/settings.py",),
    ),
    "page view": Toy(
        5,
        {
            f"{PACKAGE}/serve/routes/shapes.py": '''\
"""How many numbers a picture's vector has."""

from fastapi import APIRouter

from instdisc.serve.routes import TheSession

router = APIRouter()


@router.get("/api/shapes")
def shapes(session: TheSession) -> dict[str, int]:
    """Pictures, and the dimensions of their vectors."""
    index = session.opened.index
    return {"pictures": len(index), "dimensions": index.dim}
''',
            f"{PAGE}/shapes.js": """\
// How many numbers a picture's vector has.
import { ask, h } from "./dom.js";

export async function shapes() {
  const found = await ask("api/shapes");
  return [h("h1", {}, "Shapes"), h("p", {}, `${found.pictures} vectors of ${found.dimensions} numbers.`)];
}
""",
            "tests/serve/test_serve_shapes.py": """\
import pytest
from serving import served
from tiny_runs import picture_folder, tiny

from instdisc.jobs.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    return train(picture_folder(folder / "pictures", 30), folder / "run", tiny(epochs=1), say=None).path


def test_the_api_and_the_files_are_served(run):
    with served(run) as client:
        assert client.json("/api/shapes")["pictures"] == 30
        assert b"export async function shapes" in client.send("GET", "/shapes.js")[2]
        assert b'href="#/shapes"' in client.send("GET", "/")[2]


def test_the_page_shows_it(run):
    browsing = pytest.importorskip("browsing")
    if browsing.CHROMIUM is None:
        pytest.skip("no Chromium here: apt install chromium")
    with served(run) as client, browsing.chromium() as browser:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.click("nav a[data-view=shapes]")
        page.wait_for_selector("text=/^30 vectors of [0-9]+ numbers.$/", timeout=120_000)
""",
        },
        (
            (
                f"{PAGE}/app.js",
                'import { map } from "./map.js";\n',
                'import { map } from "./map.js";\nimport { shapes } from "./shapes.js";\n',
            ),
            (f"{PAGE}/app.js", "    const shown = { ", "    const shown = { shapes, "),
            (f"{PAGE}/index.html", "</nav>\n", '<a href="#/shapes" data-view="shapes">Shapes</a>\n</nav>\n'),
        ),
    ),
}


def contents(folder: Path) -> dict[str, bytes]:
    """The project's files in a copy, what runs left aside."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def here(folder: Path) -> dict[str, str]:
    """The environment of somebody who works in that copy."""
    return {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}


def add(toy: Toy, folder: Path) -> set[str]:
    """The files that adding it changed."""
    before = contents(folder)
    for name, text in toy.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, old, new in toy.lines:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text, f"{name} has changed: where does a new one go now? It had {old!r}"
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    for script in toy.then:
        subprocess.run([sys.executable, script], cwd=folder, env=here(folder), check=True)
    after = contents(folder)
    return {name for name in after if before.get(name) != after[name]}


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, set[str]], str]:
    """All of them in one copy: the files of each, and what pytest said of their tests there."""
    folder = tmp_path_factory.mktemp("project")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("src", "docs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    files = {name: add(toy, folder) for name, toy in TOYS.items()}
    tests = [name for toy in TOYS.values() for name in toy.files if "/test_" in name]
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-n", "0", *tests]
    done = subprocess.run(command, cwd=folder, env=here(folder), capture_output=True, text=True, timeout=500)
    return files, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOYS)
def test_a_new_one_touches_few_files_and_works(kind: str, added: tuple[dict[str, set[str]], str]) -> None:
    files, told = added
    assert len(files[kind]) <= TOYS[kind].most, sorted(files[kind])
    (tests,) = (name for name in files[kind] if "/test_" in name)
    assert re.search(rf"^PASSED {tests}::", told, flags=re.MULTILINE), told[-4000:]
    assert not re.search(rf"^(FAILED|ERROR) {tests}", told, flags=re.MULTILINE), told[-4000:]
