"""What each setting of a run is: its values, its default, and what the presets make of it.

    for setting in described():
        print(setting.name, setting.values, setting.default, setting.text)

It is read from the fields of `Settings` and the docstrings under them: `instdisc train --help-settings` and
docs/settings.md show it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from instdisc.objectives import OBJECTIVES
from instdisc.training.config import Settings
from instdisc.training.presets import PRESETS

_GROUPS = {  # the first setting of each, in their order
    "backbone": "Encoder",
    "objective": "Objective",
    "views": "Views and bank",
    "batch": "Optimizer and length",
    "crop_scale": "Augmentation",
    "precision": "Machine",
    "order": "Loading",
    "monitor_epochs": "Measuring and saving",
}
_WORDS = {"int": "whole number", "float": "number", "str": "text", "None": "none"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    group: a heading. values: what it may be, in words. default, presets (preset -> value, where it is another): as
    `--set NAME=VALUE` takes them, "" for no numbers.

    Examples:
        >>> from instdisc.training import described
        >>> optimizer = next(setting for setting in described() if setting.name == "optimizer")
        >>> optimizer.group, optimizer.values, optimizer.default, optimizer.presets["digits"]
        ('Optimizer and length', 'sgd or muon', 'sgd', 'muon')
    """

    name: str
    group: str
    values: str
    default: str
    presets: dict[str, str]
    text: str


@cache
def described() -> tuple[Setting, ...]:
    """All settings but the preset's name, in the order of `Settings`.

    Examples:
        >>> from instdisc.training import described
        >>> {setting.name: setting.default for setting in described() if setting.group == "Encoder"}["dim"]
        '128'
    """
    base = Settings()
    fixed = {name: _fixed(make) for name, make in PRESETS.items()}
    settings, group = [], ""
    for name, annotation, text in _fields():
        if name == "preset":
            continue
        group = _GROUPS.get(name, group)
        default = getattr(base, name)
        others = {
            preset: getattr(made, name)
            for preset, made in fixed.items()
            if made is not None and getattr(made, name) != default
        }
        values = list(OBJECTIVES) if name == "objective" else _values(annotation)
        told = {preset: written(value) for preset, value in others.items()}
        settings.append(Setting(name, group, _listed(values), written(default), told, text))
    return tuple(settings)


def written(value: Any) -> str:
    """A value as `--set NAME=VALUE` takes it."""
    if isinstance(value, tuple):
        return ",".join(f"{one:g}" for one in value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fixed(make: Callable[[Any], Settings]) -> Settings | None:
    """The settings of a preset; None of the one that looks at the pictures first."""
    return None if make is PRESETS["default"] else make(None)


def _fields() -> Iterator[tuple[str, ast.expr, str]]:
    (whole,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(whole, ast.ClassDef)
    for field, below in zip(whole.body, whole.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            yield field.target.id, field.annotation, " ".join(str(text).split())


def _listed(words: list[str]) -> str:
    """ "sgd or muon", "true, false or auto"."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _values(annotation: ast.expr) -> list[str]:
    """What a type may hold, in words."""
    if isinstance(annotation, ast.BinOp):
        return _values(annotation.left) + _values(annotation.right)
    if isinstance(annotation, ast.Subscript):
        inside = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if ast.unparse(annotation.value) == "Literal":
            return [str(one.value) for one in inside if isinstance(one, ast.Constant)]
        return ["two numbers" if len(inside) == 2 and ast.unparse(inside[1]) != "..." else "numbers"]
    kind = ast.unparse(annotation)
    return ["true", "false"] if kind == "bool" else [_WORDS[kind]]
