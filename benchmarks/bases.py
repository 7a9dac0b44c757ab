"""Effect of aligned bases: blocks of one dense model in its given basis, in aligned bases, and with single freedoms.

    snakemake --cores all results/cifar10/given/dense.pt --configfile benchmarks/configs/cifar10.yaml
    python benchmarks/bases.py --config benchmarks/configs/cifar10.yaml --dataset cifar10 --model given

Blocks are selected in one round by Gauss-Newton products and one Lagrange multiplier, and the remaining weights are
refitted by least squares. Appends a line for every configuration, block shape and budget to
``results/benchmarks/<dataset>/<model>/bases.csv`` as soon as it is measured; an interrupted run resumes after the last
line.
"""

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from rows import append
from subject import Batches, Subject, add_arguments, logits_of, read_subject, squared_change, top1
from torch import Tensor, nn

from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.bases.align import FREEDOMS, align
from lpvit.costs.cost import measure_costs
from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.structures.blocks.calibration import StatisticInputs, block_statistics
from lpvit.structures.blocks.centring import centred_products, input_means
from lpvit.structures.blocks.distortions.gauss_newton import GaussNewtonDistortion
from lpvit.structures.blocks.masks import build_keep_masks, expand_keep_masks
from lpvit.structures.blocks.products import block_products
from lpvit.structures.blocks.rate_distortion import rate_distortion_curves
from lpvit.structures.blocks.saliencies.gauss_newton import GaussNewtonSaliency
from lpvit.structures.blocks.scores import block_table
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.statistics.weight_sums import WeightSums
from lpvit.structures.blocks.weights import pruned_weights

ROLES = ("qkv", "proj", "fc1", "fc2")
PROBES = 2
ARMS: Mapping[str, Sequence[str] | None] = {  # the freedoms of each; None leaves the model as it is given
    "as given": None,
    "as given, bias moved": None,
    "norms folded": (),
    "aligned": tuple(FREEDOMS),
    "aligned, bias not moved": tuple(FREEDOMS),
    "residual alone": ("residual",),
    "values and queries alone": ("values", "queries"),
    "hidden alone": ("hidden",),
    "heads and hidden alone": ("values", "queries", "hidden"),
    "all but hidden": ("residual", "values", "queries", "centre"),
}


@dataclass(frozen=True)
class Key:
    """A run. Block shape as ``16x16``."""

    method: str
    reconstruction: str
    block_shape: str
    macs: float
    seed: int


def main() -> None:
    arguments = parse_arguments()
    subject = read_subject(arguments)
    file = subject.config.results / "benchmarks" / subject.dataset / subject.name / "bases.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if file.exists():
        done = {Key(*row) for row in pd.read_csv(file)[list(Key.__annotations__)].itertuples(index=False, name=None)}
    validation = subject.validation(arguments.validation)
    for seed in range(arguments.seeds):
        calibration = subject.calibration(arguments.images, seed)
        for name in arguments.methods:
            for shape in arguments.block_shapes:
                keys = [Key(name, arguments.reconstruction, shape, macs, seed) for macs in arguments.macs]
                if keys := [key for key in keys if key not in done]:
                    run(Method(subject, name, shape, calibration), keys, validation, file)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--validation", type=int, default=2000, help="test images")
    parser.add_argument("--methods", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--block-shapes", nargs="+", default=["16x16"])
    parser.add_argument("--macs", nargs="+", type=float, default=[0.5, 0.35, 0.25, 0.15])
    parser.add_argument("--reconstruction", choices=["none", "least_squares"], default="least_squares")
    parser.add_argument("--seeds", type=int, default=1)
    return parser.parse_args()


def run(method: "Method", keys: Sequence[Key], validation: Batches, file: Path) -> None:
    """Prunes to every budget and appends a line for each."""
    dense = logits_of(method.subject.model, validation)
    for key in keys:
        pruned, achieved, seconds = method.pruned(key)
        logits = logits_of(pruned, validation)
        measured = {
            "achieved": achieved,
            "dense_top1": top1(dense, validation),
            "top1": top1(logits, validation),
            "distortion": squared_change(logits, dense),
            "seconds": seconds,
            "images": sum(len(images) for images, _ in method.calibration),
            "test_images": len(dense),
        }
        row = pd.DataFrame([asdict(key) | measured])
        append(row, file)


@dataclass
class Method:
    """A model in the bases of a configuration, and curves of its blocks."""

    subject: Subject
    name: str
    block_shape: str
    calibration: Batches

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = map(int, self.block_shape.split("x"))
        return rows, columns

    @property
    def device(self) -> str:
        return str(self.subject.compute.device)

    @cached_property
    def model(self) -> nn.Module:
        freedoms = ARMS[self.name]
        if freedoms is None:
            return self.subject.model
        aligned, report = align(self.subject.model, self.calibration, freedoms, self.device)
        print(report.to_string(index=False), flush=True)
        return aligned

    @cached_property
    def means(self) -> dict[str, Tensor] | None:
        if self.name in ("as given", "aligned, bias not moved"):  # products of inputs that are not centred
            return None
        return input_means(self.model, self.calibration, self.layers, self.device)

    @cached_property
    def layers(self) -> list:
        return prunable_layers(matrix_layers(self.model), ROLES)

    @cached_property
    def tables(self) -> LayerTables:
        given = (self.model, self.calibration)
        if self.means is None:
            products = block_products(*given, self.layers, self.shape, PROBES, self.device)
        else:
            products = centred_products(*given, self.means, self.shape, PROBES, self.device)
        counted = block_statistics(StatisticInputs(*given, self.layers, self.shape, self.device), [WeightSums()])
        statistics = {layer: tables | {"block_products": products[layer]} for layer, tables in counted.items()}
        pruning = Blocks(block_shape=self.shape, saliency=GaussNewtonSaliency(), distortion=GaussNewtonDistortion())
        blocks = block_table(statistics, pruning.saliency)
        return LayerTables(rate_distortion_curves(statistics, blocks, pruning), blocks, measure_costs(self.model))

    def pruned(self, key: Key) -> tuple[nn.Module, float, float]:
        """The model within a budget, its kept share of MACs, and the seconds after the curves."""
        tables = self.tables
        started = time.perf_counter()
        allocation = allocate(tables, Budget(macs=key.macs, reconstruction=key.reconstruction))
        masks = build_keep_masks(tables.blocks, allocation)
        pruned = copy.deepcopy(self.model)
        images = None if key.reconstruction == "none" else self.calibration
        pruned.load_state_dict(pruned_weights(pruned, masks, self.shape, images, self.device, self.means))
        expanded = expand_keep_masks(pruned, masks, self.shape)
        kept = {name.removesuffix(".weight"): float(mask.float().mean()) for name, mask in expanded.items()}
        macs = tables.costs.set_index("layer")["macs"]
        achieved = sum(kept.get(str(layer), 1.0) * count for layer, count in macs.items()) / macs.sum()
        return pruned, float(achieved), time.perf_counter() - started


if __name__ == "__main__":
    main()
