"""An encoder's pass in bfloat16 with weight gradients by the library and by matrix products, in turns.

    python benchmarks/weight_gradients.py --repeats 10

Views of an encoder for 32 px and of one for 96 px, as they grow in training. On a quiet machine, then with one core
kept busy by another process. Needs a CPU with AMX to mean something: elsewhere training does not use the products. The
result goes to results/weight_gradients.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import record

from instdisc.allocator import keep_freed_memory
from instdisc.encoder import Encoder, EncoderConfig, build_encoder
from instdisc.training.weight_gradients import by_products

CASES = [("conv7", 64, 32, side, 512) for side in (16, 24, 32)]
CASES += [("resnet18", 32, 96, side, 128) for side in (48, 72, 96)]


def milliseconds(encoder: Encoder, images: torch.Tensor) -> float:
    """Of one forward and backward pass."""
    encoder.zero_grad(set_to_none=True)
    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = encoder(images)
    (embedding.float() * torch.arange(embedding.shape[1])).sum().backward()
    return 1000 * (time.perf_counter() - started)


def measured(repeats: int) -> list[dict[str, Any]]:
    """A row a case."""
    rows = []
    for backbone, width, whole, side, views in CASES:
        config = EncoderConfig(backbone=backbone, width=width, image_size=whole, head="mlp", hidden=512)
        library = build_encoder(config, seed=0).train().to(memory_format=torch.channels_last)
        products = copy.deepcopy(library)
        by_products(products)
        images = torch.randn(views, 3, side, side).contiguous(memory_format=torch.channels_last)
        pairs = [[milliseconds(way, images) for way in (library, products)] for _ in range(repeats + 1)][1:]
        ratios = sorted(round(first / second, 3) for first, second in pairs)
        first, second = (round(statistics.median(found), 1) for found in zip(*pairs, strict=True))
        case = {"backbone": backbone, "width": width, "whole": whole, "side": side, "views": views}
        ratio = round(statistics.median(ratios), 3)
        rows.append(case | {"library": first, "products": second, "ratio": ratio, "ratios": ratios})
    return rows


def main() -> None:
    """Measure all cases and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    keep_freed_memory()
    quiet = measured(settings.repeats)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        busy = measured(settings.repeats)
        other.kill()
    record(
        settings.results / "weight_gradients.json",
        name="weight_gradients",
        command=f"python benchmarks/weight_gradients.py --repeats {settings.repeats}",
        unit="median of library / products, forward and backward in bfloat16, on a quiet machine; in the rows ms",
        values=[row["ratio"] for row in quiet],
        seeds=[0] * len(quiet),
        quiet=quiet,
        busy=busy,
    )


if __name__ == "__main__":
    main()
