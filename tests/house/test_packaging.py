"""What is shipped: a wheel that holds all that is needed, one version, containers that keep the rules."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import instdisc

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPES = ("Containerfile", "Containerfile.cuda")


@pytest.mark.slow
def test_the_wheel_alone_works(tmp_path: Path) -> None:
    """Built and installed into an empty folder; what it requires comes from this environment, so nothing is fetched."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(build, check=True, cwd=tmp_path, timeout=500)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"instdisc-{instdisc.__version__}-py3-none-any.whl"
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", target, wheel], check=True, timeout=500)

    def said(*words: object) -> str:
        environment = {**os.environ, "PYTHONPATH": str(target)}
        command = [sys.executable, "-P", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("-c", "import instdisc; print(instdisc.__file__)").startswith(str(target))
    command = target / "bin" / "instdisc"
    assert "train" in said(command, "--help")
    assert "1,797" in said(command, "info", "digits")
    (installed,) = metadata.distributions(path=[str(target)])
    assert installed.version == instdisc.__version__
    ours = ROOT / "src" / "instdisc"
    shipped = {path.relative_to(target / "instdisc") for path in (target / "instdisc").rglob("*") if path.is_file()}
    wanted = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()}
    assert {path for path in wanted if "__pycache__" not in path.parts} <= shipped
    assert Path("serve/page/index.html") in shipped and Path("py.typed") in shipped


def instructions(recipe: str) -> list[tuple[str, str]]:
    """(FROM, python:3.13.9), ...: the lines of a recipe, continuations joined, remarks left out."""
    text = re.sub(r"\\\n\s*", "", (ROOT / recipe).read_text(encoding="utf-8"))
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word.upper(), rest) for word, rest in lines]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_container_is_pinned_small_and_not_root(recipe: str) -> None:
    found = instructions(recipe)
    bases = [rest.split()[0] for word, rest in found if word == "FROM"]
    assert bases and all(re.search(r":\d+\.\d+\.\d+-slim-\w+$", base) for base in bases), f"not pinned: {bases}"
    python = tuple(map(int, re.search(r":(\d+)\.(\d+)", bases[-1]).groups()))  # type: ignore[union-attr]
    assert f"Programming Language :: Python :: {python[0]}.{python[1]}" in PROJECT["classifiers"]
    for command in (rest for word, rest in found if word == "RUN" and "pip install" in rest):
        assert "--no-cache-dir" in command and "--constraint /constraints.txt" in command, command
    assert not any("apt-get" in rest and "apt/lists" not in rest for _, rest in found)
    users = [number for number, (word, rest) in enumerate(found) if word == "USER" and rest not in ("root", "0")]
    assert users and all(word not in ("RUN", "COPY", "USER") for word, _ in found[users[-1] + 1 :])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_container_installs_what_is_there_and_is_the_command(recipe: str) -> None:
    found = instructions(recipe)
    (entry,) = (json.loads(rest) for word, rest in found if word == "ENTRYPOINT")
    assert entry == ["instdisc"] and "instdisc" in PROJECT["scripts"]
    copied = [name for word, rest in found if word == "COPY" for name in rest.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    let_in = (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
    assert all(f"!{name}" in let_in for name in copied)
    (extras,) = (one for _, rest in found for one in re.findall(r"\.whl\)\[([\w,]+)\]", rest))
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name}==", pins, flags=re.MULTILINE) for name in ("torch", "torchvision", "hatchling"))
