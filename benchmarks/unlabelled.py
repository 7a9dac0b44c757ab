"""A backbone compressed without labels: agreement with the dense one, and classifiers on its features.

The backbone loses its head, is pruned by its features, then follows the dense features on images whose labels are not
read. Labels are used by the probes alone, of all models on the same images.

    python benchmarks/unlabelled.py --checkpoint data/vit_small_patch14_pretrained.safetensors --images data/cifar10
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

import lpvit

NAME, OPTIONS = "vit_small_patch14_dinov2", {"img_size": 112}
BATCH_SIZE = 64
METHODS = {
    "factors": lpvit.Factors(),
    "blocks": lpvit.Blocks(block_shape=(16, 16), saliency="gauss_newton", distortion="gauss_newton", basis="aligned"),
}

Batches = list[tuple[Tensor, Tensor]]  # images (N, C, H, W) and labels (N,)


def main() -> None:
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    dense = backbone(arguments.checkpoint)
    transform = lpvit.transform(dense)
    training = images_of(arguments.images / "train", transform, arguments.follow + arguments.probe)
    follow, known = parted(training, arguments.follow)
    asked = images_of(arguments.images / "val", transform, arguments.probe)
    rows = []
    for name, model in models(dense, [images for images, _ in follow], arguments):
        agreement = lpvit.evaluate(model, asked, reference=dense)
        probe = lpvit.probe(model, known, asked)
        rows.append({"model": name, "cosine": agreement.cosine, "relative_error": agreement.relative_error})
        rows[-1] |= {"knn": probe.knn, "linear": probe.linear, "probe_images": probe.images}
        print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
    if arguments.output is not None:
        pd.DataFrame(rows).to_csv(arguments.output, index=False)


def models(dense: nn.Module, images: list[Tensor], arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """The dense model, the pruned one, and the one that has followed the dense features; of each method."""
    yield "dense", dense
    recipe = lpvit.Recipe(
        epochs=arguments.epochs,
        batch_size=BATCH_SIZE,
        learning_rate=arguments.learning_rate,
        weight_decay=0.0,
        distillation="features",
        teacher="dense",
    )
    for name in arguments.methods:
        budget = lpvit.Budget(macs=arguments.budget, reconstruction="least_squares")
        pruned = lpvit.prune(dense, images[: arguments.calibration // BATCH_SIZE], budget=budget, pruning=METHODS[name])
        yield f"{name}, pruned", pruned
        if arguments.epochs:
            yield f"{name}, followed", lpvit.finetune(pruned, images, images[:1], recipe=recipe, teacher=dense)


def backbone(checkpoint: Path) -> nn.Module:
    """The model of the checkpoint, without its head."""
    model = timm.create_model(NAME, num_classes=10, **OPTIONS)
    model.pretrained_cfg |= {
        "input_size": (3, 112, 112),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop_pct": 1.0,
    }
    lpvit.load_weights(model, checkpoint).float().reset_classifier(0)
    return model.eval()


def images_of(folder: Path, transform: Any, count: int) -> Batches:
    """As many images of a folder of classes, in whole batches, in an order that is the same every time."""
    dataset = ImageFolder(folder, transform)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count].tolist()
    images, labels = zip(*(dataset[place] for place in order), strict=True)
    batches = zip(torch.stack(images).split(BATCH_SIZE), torch.tensor(labels).split(BATCH_SIZE), strict=True)
    return [(some, of_some) for some, of_some in batches if len(some) == BATCH_SIZE]


def parted(batches: Batches, images: int) -> tuple[Batches, Batches]:
    """The first batches, with this many images, and the rest."""
    return batches[: images // BATCH_SIZE], batches[images // BATCH_SIZE :]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights of a ViT-S/14 with 10 classes")
    parser.add_argument("--images", type=Path, required=True, help="folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs to keep")
    parser.add_argument("--calibration", type=int, default=256, help="images without labels to prune by")
    parser.add_argument("--follow", type=int, default=2048, help="images to follow the dense features on")
    parser.add_argument("--epochs", type=int, default=3, help="of following; 0 for none")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of following")
    parser.add_argument("--probe", type=int, default=1024, help="images to learn from, and as many to classify")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, help="CSV")
    return parser.parse_args()


if __name__ == "__main__":
    main()
