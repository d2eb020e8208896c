"""torch.compile is chosen where it pays over the run: the trial's clock and its compiler are ours here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import made_pictures, tiny

from instdisc.encoder import build_encoder
from instdisc.errors import InputError
from instdisc.jobs.train import train
from instdisc.training import Settings, choose_compile, compiling

CPU = torch.device("cpu")


class Compiled:
    """As torch's OptimizedModule: called like the module, and asked for its length where it is taken for a truth."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self._module(images)

    def __len__(self) -> int:
        raise TypeError("Encoder does not support len()")


class Compiler:
    """torch.compile without a compiler (dynamo can't look through this suite's type checks).

    By our clock what it makes takes `share` of the time.
    """

    def __init__(self, share: float) -> None:
        self.share, self.asked = share, 0

    def __call__(self, module: torch.nn.Module, **_: Any) -> Any:
        self.asked += 1
        return Compiled(module)

    def fastest(self, ways: dict[str, Any]) -> dict[str, float]:
        for way in ways.values():
            way()
        return {name: 0.1 * (self.share if name == "compiled" else 1.0) for name in ways}


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    made = Compiler(0.8)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "compile", made)
    monkeypatch.setattr(compiling, "fastest", made.fastest)
    return made


def choose(steps: int, seconds: float = 0.0, batch: int = 16, sizes: int = 1) -> compiling.Compilation:
    encoder = build_encoder(tiny().encoder, seed=0)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = choose_compile(encoder, CPU, "float32", batch, steps, seconds, sizes)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items()), "it leaves no trace"
    return found


def test_a_short_run_is_not_worth_a_trial(compiler: Compiler) -> None:
    found = choose(steps=1000)  # of 0.1 s
    assert not found.compiled and "the run is not long enough" in found.why and compiler.asked == 0
    assert not choose(steps=10**6, seconds=60).compiled and compiler.asked == 0, "its minutes are what counts"


def test_a_long_run_is_compiled_where_it_is_sooner_done(compiler: Compiler) -> None:
    found = choose(steps=100_000)
    assert found.compiled and found.why == "compiled: 200 images/s in a trial, and 160 without."
    assert compiler.asked == 1


def test_a_trial_is_remembered_for_this_encoder_and_batch(compiler: Compiler) -> None:
    assert choose(steps=100_000).compiled
    assert choose(steps=200_000).compiled and compiler.asked == 1
    assert choose(steps=100_000, batch=32).compiled and compiler.asked == 2
    (file, _) = sorted(Path(compiling.cache_folder() / "trials").iterdir())
    for damage in ("{", "{}", '{"eager": 1}', "[]"):
        for each in Path(compiling.cache_folder() / "trials").iterdir():
            each.write_text(damage)
        assert choose(steps=100_000).compiled
    assert compiler.asked > 2 and file.read_text().startswith("{")


def test_what_was_tried_before_serves_a_short_run_too(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to compile is counted, not the time to try."""
    clock = iter(range(0, 10**6, 30))  # compiling takes 30 s
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    assert choose(steps=100_000).compiled
    assert choose(steps=4_000).compiled  # saves 80 s, and costs 60 for two lengths of a batch
    assert not choose(steps=4_000, sizes=2).compiled
    assert not choose(steps=2_000).compiled


def test_a_slower_one_and_one_that_fails_are_left(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.share = 1.1
    found = choose(steps=100_000)
    assert not found.compiled and found.why.startswith("not compiled: 145 images/s")

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found.\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    found = choose(steps=100_000, batch=8)
    assert not found.compiled and found.why.endswith("(InvalidCxxCompiler: No working C++ compiler found).")


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_asked_for_is_done(asked: bool, compiler: Compiler, tmp_path: Path) -> None:
    said: list[str] = []
    train(made_pictures(48), tmp_path / "run", tiny(compile=asked, epochs=1), say=said.append)
    assert compiler.asked == asked and not any(line.startswith("Encoder: ") for line in said)


def test_the_setting_is_one_of_three() -> None:
    assert Settings().with_overrides({"compile": "auto"}).compile == "auto"
    assert Settings().with_overrides({"compile": "yes"}).compile is True
    with pytest.raises(InputError, match='compile is true, false or auto, not "maybe"'):
        Settings().with_overrides({"compile": "maybe"})


def test_a_run_keeps_what_was_chosen_when_it_is_resumed(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiling, "_TRIAL_SECONDS", 0.0)
    compiler.share = 0.0001
    clock = iter(range(10**6))
    said: list[str] = []
    pictures, settings = made_pictures(48), tiny(compile="auto", epochs=1)
    with monkeypatch.context() as patched:
        patched.setattr(time, "perf_counter", lambda: next(clock) * 1e-6)
        train(pictures, tmp_path / "run", settings, say=said.append)
    assert any(line.startswith("Encoder: compiled: ") for line in said) and compiler.asked == 2  # the trial, the run
    compiler.share = 2.0
    said.clear()
    train(pictures, tmp_path / "run", settings, resume=True, say=said.append)
    assert compiler.asked == 3 and not any(line.startswith("Encoder: ") for line in said)
