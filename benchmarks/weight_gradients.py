"""An encoder's pass in bfloat16 with weight gradients by the library and by matrix products, in turns.

    python benchmarks/weight_gradients.py --repeats 10

Needs a CPU with AMX to mean something: elsewhere training does not use the products. The result goes to
results/weight_gradients.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
from record import record

from instdisc.allocator import keep_freed_memory
from instdisc.encoder import Encoder, EncoderConfig, build_encoder
from instdisc.training.weight_gradients import by_products

CASES = [("conv7", 64, side, 512) for side in (16, 24, 32)] + [("resnet18", 32, side, 128) for side in (48, 72, 96)]


def milliseconds(encoder: Encoder, images: torch.Tensor) -> float:
    """Of the processor, for one forward and backward pass."""
    encoder.zero_grad(set_to_none=True)
    started = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = encoder(images)
    (embedding.float() * torch.arange(embedding.shape[1])).sum().backward()
    return 1000 * (time.process_time() - started)


def main() -> None:
    """Measure all cases and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--results", type=Path, default=Path("results"))
    settings = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for backbone, width, side, views in CASES:
        config = EncoderConfig(backbone=backbone, width=width, image_size=max(32, side), head="mlp", hidden=512)
        library = build_encoder(config, seed=0).train().to(memory_format=torch.channels_last)
        products = copy.deepcopy(library)
        by_products(products)
        images = torch.randn(views, 3, side, side).contiguous(memory_format=torch.channels_last)
        pairs = [[milliseconds(way, images) for way in (library, products)] for _ in range(settings.repeats + 1)][1:]
        ratios = [first / second for first, second in pairs]
        medians = {
            name: round(statistics.median(found), 1)
            for name, found in zip(("library", "products"), zip(*pairs, strict=True), strict=True)
        }
        ratio = {"median": round(statistics.median(ratios), 3), "values": [round(one, 3) for one in sorted(ratios)]}
        rows.append({"backbone": backbone, "width": width, "side": side, "views": views, **medians, "ratio": ratio})
    record(
        settings.results / "weight_gradients.json",
        name="weight_gradients",
        command=f"python benchmarks/weight_gradients.py --repeats {settings.repeats}",
        unit="median of library / products, forward and backward in bfloat16, one thread; `rows`: processor time in ms",
        values=[row["ratio"]["median"] for row in rows],
        seeds=[0] * len(rows),
        rows=rows,
    )


if __name__ == "__main__":
    main()
