"""Cost of rate-distortion curves at the size of DeiT-B: by Gauss-Newton, and by masking.

    python benchmarks/curve_cost.py

Random weights and images: neither changes the time. Masking is measured on the layers of the first, the middle and the
last transformer block, and all costs are extrapolated to the whole model and calibration set; the table states the
basis. Seconds are processor time.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import pandas as pd
import torch
from memory import measured_peak
from torch import Tensor, nn

from lpvit.models.analysis.layers import LayerSpec, matrix_layers, prunable_layers
from lpvit.models.sources.timm import create_model
from lpvit.structures.blocks.calibration import StatisticInputs, block_statistics
from lpvit.structures.blocks.curve import pruning_ranks
from lpvit.structures.blocks.masking import MeasuredModel, masked_curves
from lpvit.structures.blocks.products import block_products
from lpvit.structures.blocks.rate_distortion import rate_distortion_curves
from lpvit.structures.blocks.saliencies.gauss_newton import GaussNewtonSaliency
from lpvit.structures.blocks.scores import block_table
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.statistics.block_products import BlockProducts
from lpvit.structures.blocks.statistics.weight_sums import WeightSums

Result = TypeVar("Result")

ROLES = ("qkv", "proj", "fc1", "fc2")
FEW = 2  # images of the measurements that take long
RATIOS = 3  # of a masked curve, unpruned included


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = create_model(arguments.timm, 1000, {}).eval().to(device)
    case = Case(model, arguments.calibration, tuple(arguments.block_shape), arguments.points, arguments.probes, device)

    with measured_peak() as peak:
        gradients, products = case.gradients(arguments.images)
    sums, loop = case.cumulative_sums(products), case.loop_over_ratios(products)
    gauss_newton = gradients + sums
    masking = case.masking()
    print(f"{arguments.timm}, blocks {case.block_shape}, {case.calibration} images, {case.points} ratios\n")
    print("| curves | hours of one core | times Gauss-Newton | measured on |\n| --- | ---: | ---: | --- |")
    for name, seconds, measured_on in (
        (f"gauss_newton, {case.probes} probes", gauss_newton, f"{arguments.images} images, all layers"),
        ("empirical", masking, f"{FEW} images, layers of three transformer blocks, {RATIOS - 1} ratios"),
    ):
        print(f"| {name} | {seconds / 3600:.2f} | {seconds / gauss_newton:.1f} | {measured_on} |")
    print(f"\nFrom products to curves: {sums:.1f} s, by a plain loop over the ratios {loop:.1f} s ({loop / sums:.1f}x)")
    measured = 4 * sum(of_layer.numel() for of_layer in products.values()) / 2**30
    kept, work = measured * case.calibration / arguments.images, peak.gib - measured
    print(f"Memory without the model: {kept:.2f} GiB of products + {work:.2f} GiB at work = {kept + work:.2f} GiB")


@dataclass(frozen=True)
class Case:
    """Parts of curves, measured; each returns seconds extrapolated to all calibration images, ratios and layers."""

    model: nn.Module
    calibration: int
    block_shape: tuple[int, int]
    points: int
    probes: int
    device: str

    @cached_property
    def layers(self) -> list[LayerSpec]:
        return prunable_layers(matrix_layers(self.model), ROLES)

    @cached_property
    def blocks(self) -> pd.DataFrame:
        inputs = StatisticInputs(self.model, self._images(FEW), self.layers, self.block_shape, self.device)
        statistics = block_statistics(inputs, [WeightSums(), BlockProducts(probes=self.probes)])
        return block_table(statistics, GaussNewtonSaliency())

    def gradients(self, images: int) -> tuple[float, dict[str, Tensor]]:
        """Block products of a batch: the first step of every Gauss-Newton curve."""
        arguments = (self.layers, self.block_shape, self.probes, self.device)
        products, seconds = timed(lambda: block_products(self.model, self._images(images), *arguments))
        return seconds * self.calibration / images, products

    def cumulative_sums(self, products: dict[str, Tensor]) -> float:
        """From the products to curves, all ratios at once."""
        blocks, many = self._first_transformer_block(products)
        statistics = {layer: {"block_products": of_layer} for layer, of_layer in many.items()}
        pruning = Blocks(block_shape=self.block_shape, distortion="gauss_newton", points=self.points)
        _, seconds = timed(lambda: rate_distortion_curves(statistics, blocks, pruning))
        return seconds * len(self.layers) / len(many)

    def loop_over_ratios(self, products: dict[str, Tensor]) -> float:
        """The same, but with a sum over the pruned blocks for every ratio."""
        blocks, many = self._first_transformer_block(products)

        def curves() -> None:
            for layer, of_layer in blocks.groupby("layer", sort=False):
                pruned_first = pruning_ranks(of_layer).flatten().argsort()
                for count in torch.linspace(0, len(of_layer), self.points).long()[1:]:
                    many[str(layer)][:, pruned_first[:count]].double().sum(dim=1).square().mean()

        _, seconds = timed(curves)
        return seconds * len(self.layers) / len(many)

    def _first_transformer_block(self, products: dict[str, Tensor]) -> tuple[pd.DataFrame, dict[str, Tensor]]:
        """Scores and products of its layers, repeated to those of all calibration images."""
        samples = self.calibration * self.probes
        many = {
            layer.name: products[layer.name].repeat(samples // len(products[layer.name]), 1)
            for layer in self.layers
            if _transformer_block(layer) == 0
        }
        return self.blocks[self.blocks["layer"].isin(many)], many

    def masking(self) -> float:
        """Empirical curves."""
        last = max(map(_transformer_block, self.layers))
        layers = [layer for layer in self.layers if _transformer_block(layer) in (0, (last + 1) // 2, last)]
        measured = MeasuredModel(self.model, self._images(FEW), layers, self.block_shape, self.device)
        _, seconds = timed(lambda: masked_curves(measured, self.blocks, RATIOS))
        ratios = (self.points - 1) / (RATIOS - 1)
        return seconds * ratios * self.calibration / FEW * len(self.layers) / len(layers)

    def _images(self, count: int) -> list[tuple[Tensor, Tensor]]:
        images = torch.randn(count, *self.model.pretrained_cfg["input_size"])
        return [(images, torch.zeros(count, dtype=torch.int64))]


def _transformer_block(layer: LayerSpec) -> int:
    return int(layer.name.split(".")[1])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", default="deit_base_patch16_224")
    parser.add_argument("--images", type=int, default=8, help="images that are measured, one batch")
    parser.add_argument("--calibration", type=int, default=2000, help="images that the costs are extrapolated to")
    parser.add_argument("--block-shape", type=int, nargs=2, default=(32, 32))
    parser.add_argument("--points", type=int, default=101)
    parser.add_argument("--probes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    started = time.process_time()
    result = function()
    return result, time.process_time() - started


if __name__ == "__main__":
    main()
