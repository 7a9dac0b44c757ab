"""Time and memory of `lpvit.prune`, and which stages take the time.

    python benchmarks/compression_time.py --timm vit_small_patch14_dinov2 --image-size 112 --output rows.csv

Random weights and images: neither changes the time. Prints and appends a line per method and number of images.
``seconds`` are those of the clock and ``core_seconds`` of all threads; ``gib`` is the peak memory in addition to the
model and the images; the columns after it are seconds of stages: aligned bases, second moments, products of blocks,
curves of ranks, refits of single layers, and the refit in order.
"""

import argparse
import cProfile
import time
from pathlib import Path
from types import CodeType

import pandas as pd
import torch
from factors import METHODS
from memory import measured_peak
from rows import append

import lpvit
from lpvit.models.sources.timm import create_model

BATCH_SIZE = 32
STAGES = {  # file and function -> the column of its time
    ("bases/align.py", "align"): "bases",
    ("moments/moments.py", "collect_moments"): "moments",
    ("blocks/products.py", "block_products"): "products",
    ("moments/parts.py", "part_moments"): "curves",
    ("mixed/refitted_curves.py", "refitted_distortions"): "refits_alone",
    ("refitting/reconstruction.py", "fit_in_order"): "refit",
    ("refitting/layer_fits.py", "fit_layers"): "refit",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", required=True, help="name of the model")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["factors"])
    parser.add_argument("--rounds", type=int, default=1, help="pruning rounds, of blocks")
    parser.add_argument("--images", type=int, nargs="+", default=[256], help="calibration images")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs to keep")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="CSV of the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for method in arguments.methods:
        for images in arguments.images:
            append(pd.DataFrame([measure(arguments, method, images)]), arguments.output)


def measure(arguments: argparse.Namespace, method: str, images: int) -> dict[str, str | float]:
    """A row of one method and number of images."""
    torch.manual_seed(0)
    model = create_model(arguments.timm, arguments.classes, {"img_size": arguments.image_size})
    loader = torch.split(torch.randn(images, 3, arguments.image_size, arguments.image_size), BATCH_SIZE)
    budget = lpvit.Budget(macs=arguments.budget, reconstruction="least_squares", steps=arguments.rounds)
    started, by_cores, profile = time.perf_counter(), time.process_time(), cProfile.Profile()
    with measured_peak() as peak, profile:
        lpvit.prune(model, loader, budget=budget, pruning=METHODS[method][0])
    numbers = {
        "seconds": time.perf_counter() - started,
        "core_seconds": time.process_time() - by_cores,
        "gib": peak.gib,
        **dict.fromkeys(STAGES.values(), 0.0),
    }
    for entry in profile.getstats():
        for (file, function), stage in STAGES.items():
            code = entry.code
            if isinstance(code, CodeType) and code.co_name == function and code.co_filename.endswith(file):
                numbers[stage] = entry.totaltime
    row = {"model": arguments.timm, "method": method, "macs": arguments.budget, "images": images}
    row |= {"rounds": arguments.rounds, "threads": arguments.threads}
    return row | {name: float(f"{number:.4g}") for name, number in numbers.items()}


if __name__ == "__main__":
    main()
