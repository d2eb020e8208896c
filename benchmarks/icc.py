"""What turning a picture's ICC profile to sRGB changes and costs; and how many pictures of a source carry one.

    python benchmarks/icc.py --out results/icc.json                       # half a minute
    python benchmarks/icc.py --pictures photos/ --out icc.json       # count those of a source of your own

The pixels are cuts of scikit-learn's two photographs, 500 x 375 at quality 90, as of benchmarks/decode.py; the profiles
are made (tests/support/profiles.py). Times are of the processor, one thread. The base: the same files
without a profile.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from decode import photographs
from PIL import Image
from record import record

from instdisc.data.decoding.decode import UnreadableError, decode
from instdisc.data.sources.open import open_source

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from profiles import ADOBE_RGB, DISPLAY_P3, SRGB, made

PROFILES = {
    "Display P3": made(DISPLAY_P3, 2.2),
    "Adobe RGB": made(ADOBE_RGB, 2.19921875),
    "sRGB by gamma 2.2": made(SRGB, 2.2),
}


def with_profile(content: bytes, profile: bytes) -> bytes:
    """The same JPEG, its compressed pixels untouched, with a profile behind its first marker."""
    body = b"ICC_PROFILE\0\1\1" + profile
    return content[:2] + b"\xff\xe2" + (len(body) + 2).to_bytes(2) + body + content[2:]


def decoded(contents: list[bytes]) -> tuple[list[np.ndarray], float]:
    """Pixels, and milliseconds of the processor a picture; the first, which makes the transform, is not timed."""
    decode(contents[0])
    started = time.process_time()
    pixels = [decode(content) for content in contents]
    return pixels, 1000 * (time.process_time() - started) / len(contents)


def carried(name: str, limit: int) -> Counter[str]:
    """How many pictures of a source carry which profile, by the name within it."""
    from PIL import ImageCms

    found: Counter[str] = Counter()
    for _, content in open_source(name, limit=limit).iterate():
        if isinstance(content, UnreadableError) or not isinstance(content, bytes):
            continue
        profile = Image.open(io.BytesIO(content)).info.get("icc_profile")
        found[ImageCms.getProfileDescription(io.BytesIO(profile)).strip() if profile else "none"] += 1
    return found


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", help="a source whose profiles are counted")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    contents = photographs(settings.count)
    plain, base = decoded(contents)
    rows = {}
    for name, profile in PROFILES.items():
        turned, cost = decoded([with_profile(content, profile) for content in contents])
        change = np.abs(np.stack([one.astype(int) - other for one, other in zip(turned, plain, strict=True)]))
        rows[name] = {"mean": round(float(change.mean()), 2), "p99": float(np.percentile(change, 99))}
        rows[name] |= {"most": int(change.max()), "milliseconds": round(cost, 2)}
    counted = carried(settings.pictures, settings.limit) if settings.pictures else {}
    record(
        settings.out,
        name="icc",
        command=f"python benchmarks/icc.py --count {settings.count}",
        unit="levels of 255 that a Display P3 picture is off where its profile is not looked at; `rows` has all",
        values=[rows["Display P3"]["mean"]],
        seeds=[0],
        milliseconds_without=round(base, 2),
        rows=rows,
        carried=dict(counted),
    )


if __name__ == "__main__":
    main()
