"""Made scenes with copies planted among them, and a run of a second over all."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from tiny_runs import tiny

from instdisc.jobs.train import train


def planted(folder: Path, scenes: int, copies: int) -> tuple[Path, Path, dict[str, str]]:
    """(folder of pictures, run, name of each copy -> name of its original). Two files there are no pictures.

    A copy is the same file, saved again, halved, mirrored or brightened.
    """
    pictures = folder / "pictures"
    for name in ("day", "night", "copies"):
        (pictures / name).mkdir(parents=True)
    random, originals, drawn = np.random.default_rng(0), [], []
    for number in range(scenes):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        originals.append(pictures / ("day", "night")[number % 2] / f"{number:03d}.png")
        drawn.append(coarse.resize((128, 96), Image.Resampling.BICUBIC))
        drawn[-1].save(originals[-1], compress_level=1)
    names = {}
    for number, original in enumerate(originals[:copies]):
        scene, copy = drawn[number], pictures / "copies" / f"{number:03d}.jpg"
        kind = number % 5
        if kind == 0:
            shutil.copy(original, copy := copy.with_suffix(".png"))
        elif kind == 1:
            scene.save(copy, quality=80)
        elif kind == 2:
            scene.resize((64, 48)).save(copy, quality=90)
        elif kind == 3:
            scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(copy, quality=90)
        else:
            ImageEnhance.Brightness(scene).enhance(1.1).save(copy, quality=90)
        names[str(copy)] = str(original)
    (pictures / "day" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (pictures / "night" / "empty.png").write_bytes(b"")
    return pictures, train(pictures, folder / "run", tiny(epochs=1), say=None).path, names
