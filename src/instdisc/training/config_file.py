"""Settings in a file: a run's own config.json, or JSON or TOML that a person wrote.

recipe, overrides = read_recipe("runs/mine/config.json")         # all of its settings
recipe, overrides = read_recipe("mine.toml")                     # preset = "default", lr = 0.1, ...
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instdisc.errors import InputError
from instdisc.training.config import Settings


def read_recipe(
    file: str | os.PathLike[str], given: Mapping[str, Any] | None = None
) -> tuple[str | Settings, dict[str, Any]]:
    """What a run starts from by a file: whole settings or the name of a preset, and the settings over it.

    file: a run's config.json, or its folder; or JSON or TOML (*.toml) with settings by their names, and with the name
    of a preset as `preset` if it is not default, in a section `settings` or without one. given: settings from
    elsewhere, which stand over those of the file. Raises InputError, naming the file, for an unreadable file, an
    unknown setting, and an invalid value.
    """
    path = Path(file)
    path = path / "config.json" if path.is_dir() else path
    facts, given = _read(path), dict(given or {})
    values = facts.get("settings", facts)
    if not isinstance(values, dict):
        raise InputError(f"{path}: settings is a {type(values).__name__}, not a section of names and values.")
    name = values.get("preset", "default")
    if not isinstance(name, str):
        raise InputError(f"{path}: preset is a name as default, not {json.dumps(name, default=str)}.")
    values = {key: value for key, value in values.items() if key != "preset"}
    try:
        if "settings" in facts and "instdisc" in facts:  # a run's own, which has them all
            return Settings.from_dict(facts["settings"]), given
        values = Settings.converted(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if "epochs" in given and "minutes" not in given:  # who counts in epochs does not go by the file's clock
        values.pop("minutes", None)
    return name, values | given


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except OSError as error:
        why = error.strerror
        raise InputError(f"{path} can't be read ({why}): name a run's config.json, or a file of settings.") from None
    except (ValueError, RecursionError) as error:
        form = "TOML" if path.suffix.lower() == ".toml" else "JSON"
        raise InputError(f"{path} is no {form} ({error}): correct it, or name a run's config.json.") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, not settings by their names.")
    return found
