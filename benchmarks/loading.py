"""Images per second of the loaders `dali` and `timm`, with as many threads as worker processes.

    python benchmarks/loading.py path/to/imagenet-sample --threads 2

The loaders alternate epoch by epoch, so that load on the machine affects both; a ratio is the median over the rounds of
the ratio of neighbouring epochs. Random erasing acts on the batch, with the same code for both.
"""

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from tqdm import tqdm

from lpvit.data.epochs import EpochPlan
from lpvit.data.loading import ImageFiles, Loader, make_loader
from lpvit.data.preprocessing import Augmentation, Preprocessing

CASES: dict[str, Augmentation | None] = {
    "evaluation": None,
    "crop, flip, erasing": Augmentation(),
    "crop, flip, erasing, colour jitter": Augmentation(color_jitter=0.4),
    "crop, flip, erasing, RandAugment": Augmentation(rand_augment="rand-m9-mstd0.5-inc1"),
}
LOADERS = ("dali", "timm")
PREPROCESSING = Preprocessing((3, 224, 224), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "bicubic", 0.9)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # for the erasing; the loaders have their own threads
    files = sorted(path.relative_to(arguments.root).as_posix() for path in arguments.root.rglob("*.[jJ][pP]*[gG]"))
    images = pd.DataFrame({"path": files, "label": range(len(files))})
    images = pd.concat([images] * -(-arguments.images // len(images)), ignore_index=True).head(arguments.images)
    speeds = pd.concat([measure(case, images, arguments) for case in tqdm(CASES, desc="cases")], ignore_index=True)
    print(markdown(speeds))
    if arguments.output:
        speeds.to_parquet(arguments.output)


def measure(case: str, images: pd.DataFrame, arguments: argparse.Namespace) -> pd.DataFrame:
    """One row per loader and round: ``case``, ``round``, ``loader``, ``images_per_second``."""
    loaders = {
        name: make_loader(
            ImageFiles(images, arguments.root, name),
            PREPROCESSING,
            EpochPlan(len(images), arguments.batch_size, training=CASES[case] is not None),
            arguments.threads,
            arguments.device,
            CASES[case],
        )
        for name in LOADERS
    }
    erase = RandomErasing(0.25, mode="pixel", device=arguments.device) if CASES[case] else None
    rows = []
    for number in range(arguments.rounds + 1):
        for name in LOADERS if number % 2 else reversed(LOADERS):
            speed = run_epoch(loaders[name], number, erase)
            rows.append({"case": case, "round": number, "loader": name, "images_per_second": speed})
    speeds = pd.DataFrame(rows)
    return speeds[speeds["round"] > 0]  # the first round warms the file cache and starts the workers


def run_epoch(loader: Loader, epoch: int, erase: RandomErasing | None) -> float:
    """Images per second of one pass."""
    loader.set_epoch(epoch)
    count = 0
    start = time.perf_counter()
    for images, _ in loader:
        count += len(images)
        if erase is not None:
            erase(images)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def markdown(speeds: pd.DataFrame) -> str:
    lines = ["| case | dali, images/s | timm, images/s | ratio |", "| --- | ---: | ---: | ---: |"]
    for case, of_case in speeds.groupby("case", sort=False):
        rounds = of_case.set_index(["round", "loader"])["images_per_second"].unstack()  # noqa: PD010 - nothing to aggregate
        ratio = statistics.median(rounds["dali"] / rounds["timm"])
        lines.append(f"| {case} | {rounds['dali'].median():.0f} | {rounds['timm'].median():.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of JPEG photographs, searched to any depth")
    parser.add_argument("--threads", type=int, default=2, help="threads (dali) and worker processes (timm)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=768, help="images per epoch; the files repeat if they are fewer")
    parser.add_argument("--rounds", type=int, default=5, help="epochs per loader and case, after one to warm up")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, help="parquet file of every measurement")
    return parser.parse_args()


if __name__ == "__main__":
    main()
