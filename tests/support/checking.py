"""What jaxtyping checks signatures with under pytest: beartype, with an int welcome where a float is asked for.

That is what PEP 484 says and mypy does: `temperature=1` is right. pyproject.toml names this file in pytest's options.
"""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
