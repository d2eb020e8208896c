"""How far a measured share may be from the true one."""

from __future__ import annotations

import math

_Z_95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


def wilson(hits: int, count: int, z: float = _Z_95) -> tuple[float, float]:
    """Wilson's score interval for `hits` of `count` independent trials, as (low, high) shares; 95 % by default.

    Unlike the textbook p ± z·sqrt(p(1 - p)/n) it stays inside [0, 1] and holds for small counts and for shares
    near 0 or 1; without a trial nothing is known: (0, 1). Wilson, J. American Statistical Association 22 (1927).
    """
    if count == 0:
        return 0.0, 1.0
    share = hits / count
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At 0 and at n hits the bound is exactly 0 or 1; rounding would leave it a hair off.
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == count else centre + half
    return low, high
