"""Every setting is described: its values are taken, its default is the real one, and the page in docs is today's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from instdisc.errors import InputError
from instdisc.training import PRESETS, Settings, described
from instdisc.training.describing import Setting

ROOT = Path(__file__).parents[2]


def test_every_setting_is_described_in_a_sentence() -> None:
    assert [setting.name for setting in described()] == [field.name for field in fields(Settings)][1:]
    assert all(setting.text.endswith(".") and len(setting.text) > 10 for setting in described())


@pytest.mark.parametrize("setting", described(), ids=lambda setting: setting.name)
def test_its_default_is_what_a_command_line_may_give(setting: Setting) -> None:
    assert Settings().with_overrides({setting.name: setting.default}) == Settings()
    for preset, value in setting.presets.items():
        made = PRESETS[preset](None)
        assert getattr(made.with_overrides({setting.name: value}), setting.name) == getattr(made, setting.name)


@pytest.mark.parametrize("setting", described(), ids=lambda setting: setting.name)
def test_the_words_that_it_lists_are_all_it_takes(setting: Setting) -> None:
    words = setting.values.replace(" or ", ", ").split(", ")
    if {"text", "whole number", "number", "numbers", "two numbers"} & set(words):
        return
    for word in words:
        Settings().with_overrides({setting.name: word})
    with pytest.raises(InputError, match=setting.name):
        Settings().with_overrides({setting.name: "another"})


def test_a_preset_is_its_differences_from_the_defaults() -> None:
    for name in sorted(PRESETS.keys() - {"default"}):
        differences = {setting.name: setting.presets[name] for setting in described() if name in setting.presets}
        made = Settings().with_overrides({"minutes": "none", **differences}).to_dict()
        assert made == PRESETS[name](None).to_dict() | {"preset": "custom"}


def test_the_page_is_made_from_them(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("settings.md", "settings.py"):
        (folder / name).write_bytes((ROOT / "docs" / name).read_bytes())
    subprocess.run([sys.executable, folder / "settings.py"], check=True)
    assert (folder / "settings.md").read_bytes() == (ROOT / "docs" / "settings.md").read_bytes()


def test_the_command_shows_them_all() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "instdisc", "train", "--help-settings"], capture_output=True, text=True, check=True
    ).stdout
    assert all(f"  {setting.name}={setting.default}  (" in shown for setting in described())
    assert "laptop_cifar10: conv7" in shown
