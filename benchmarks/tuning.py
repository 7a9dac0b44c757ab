"""Fine-tuning of factors and of other structures: same dense model, budget, images and epochs.

    python benchmarks/tuning.py --config benchmarks/configs/vit_small.yaml --dataset cifar10 \\
        --model vit_small_cifar10 --macs 0.25 --output rows.csv

Every model is compressed in one round and refitted, then distilled from the dense model on training images, half of
them mirrored. A line per method: ``share`` is that of the distillation in the loss (the rest learns the classes),
``blocks`` the weight of the outputs of transformer blocks; ``before`` and ``after`` are points of top-1 below the dense
model, with their 95 % intervals, paired by image, and ``distortion`` is that after the training, in squared logits.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from factors import METHODS as BEFORE_TUNING
from rows import append
from subject import Batches, Subject, add_arguments, logits_of, points_lost, read_subject, squared_change
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import lpvit
from lpvit.structures.settings import StructureSettings

METHODS: dict[str, StructureSettings] = {
    **{name: settings for name, (settings, refits) in BEFORE_TUNING.items() if refits},
    "narrower": lpvit.Width(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="CSV of the rows")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["factors", "blocks"])
    parser.add_argument("--macs", type=float, nargs="+", default=[0.25])
    parser.add_argument("--calibration", type=int, default=256, help="calibration images")
    parser.add_argument("--training", type=int, default=5000, help="training images")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-5, help="peak learning rate")
    parser.add_argument("--share", type=float, default=1.0, help="of the distillation in the loss")
    parser.add_argument("--blocks", type=float, default=0.0, help="weight of the outputs of transformer blocks")
    parser.add_argument("--validation", type=int, default=2000, help="test images")
    arguments = parser.parse_args()
    subject = read_subject(arguments)
    for macs in arguments.macs:
        for method in arguments.methods:
            append(pd.DataFrame([measure(subject, method, macs, arguments)]), arguments.output)


def measure(subject: Subject, method: str, macs: float, arguments: argparse.Namespace) -> dict[str, str | float]:
    """A row of one method and budget."""
    tests = subject.validation(arguments.validation)
    budget = lpvit.Budget(macs=macs, reconstruction="least_squares")
    calibration = subject.calibration(arguments.calibration, 0)
    pruned = lpvit.prune(subject.model, calibration, budget=budget, pruning=METHODS[method])
    dense = logits_of(subject.model, tests)
    before = points_lost(logits_of(pruned.model, tests), dense, tests)
    recipe = lpvit.Recipe(
        epochs=arguments.epochs,
        batch_size=64,
        learning_rate=arguments.rate,
        warmup_epochs=0.1,
        weight_decay=0.0,
        clip_grad_norm=1.0,
        distillation="soft",
        distillation_alpha=arguments.share,
        distillation_blocks=arguments.blocks,
        teacher="dense",
    )
    training = Mirrored(subject.training(arguments.training))
    started = time.process_time()
    torch.manual_seed(0)
    loader = DataLoader(training, batch_size=recipe.batch_size, shuffle=True)
    tuned = lpvit.finetune(pruned, loader, tests[:1], recipe=recipe, teacher=subject.model)
    seconds = time.process_time() - started
    logits = logits_of(tuned.model, tests)
    after = points_lost(logits, dense, tests)
    row: dict[str, str | float] = {"model": subject.name, "method": method, "macs": macs}
    row |= {"images": arguments.training, "epochs": arguments.epochs, "rate": arguments.rate}
    row |= {"share": arguments.share, "blocks": arguments.blocks}
    row |= {"before": before[0], "before_interval": before[1], "after": after[0], "after_interval": after[1]}
    return row | {"distortion": squared_change(logits, dense), "core_seconds": float(f"{seconds:.3g}")}


class Mirrored(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels, each image mirrored with a probability of one half."""

    def __init__(self, batches: Batches) -> None:
        """Of equal batches, but for the last."""
        self.batches, self.size = batches, len(batches[0][1])

    def __len__(self) -> int:
        return sum(len(labels) for _, labels in self.batches)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        images, labels = self.batches[place // self.size]
        image, label = images[place % self.size], labels[place % self.size]
        return image.flip(-1) if torch.rand(()) < 0.5 else image, label


if __name__ == "__main__":
    main()
