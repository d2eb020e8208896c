"""Values of settings from text: as a command line or a file of settings has them."""

from __future__ import annotations

import math
from typing import Any, get_args

from instdisc.errors import InputError


def convert(name: str, value: Any, hint: Any) -> Any:
    """A value as the field has it; text (from a command line) is read as the field's type."""
    options = get_args(hint) or (hint,)
    if isinstance(options[0], str):  # a Literal
        if value not in options:
            raise InputError(f'{name} is one of {", ".join(map(str, options))}, not "{value}".')
        return value
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        if type(None) in options:
            return None
        raise InputError(f"{name} needs a value.")
    if hint == tuple[float, ...] or hint == tuple[float, float]:
        parts = value.replace(",", " ").split() if isinstance(value, str) else value
        try:
            numbers = tuple(float(part) for part in parts)
        except (TypeError, ValueError):
            raise InputError(f'{name} is a list of numbers like 0.2,1.0, not "{value}".') from None
        if hint == tuple[float, float] and len(numbers) != 2:
            raise InputError(f'{name} is two numbers like 0.2,1.0, not "{value}".')
        return numbers
    if bool in options:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "yes", "1", "on", "false", "no", "0", "off"):
            return str(value).lower() in ("true", "yes", "1", "on")
        if str in options:
            return str(value)
        words = [word for option in options for word in get_args(option)]  # of a Literal beside bool
        if value in words:
            return value
        allowed = ["true", "false", *words]
        raise InputError(f'{name} is {", ".join(allowed[:-1])} or {allowed[-1]}, not "{value}".')
    kind = int if int in options else float if float in options else str
    if kind is not str and isinstance(value, bool):
        raise InputError(f'{name} is {"a whole number" if kind is int else "a number"}, not "{str(value).lower()}".')
    if kind is str:
        return str(value)
    try:
        number = kind(value)
        if isinstance(value, float) and number != value:
            raise ValueError
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InputError(f'{name} is {"a whole number" if kind is int else "a number"}, not "{value}".') from None
    return number
