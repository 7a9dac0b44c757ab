"""How much of a model factors, blocks and mixed structures keep, beside baselines: no labels, no training.

    snakemake --cores all results/cifar10/given/dense.pt --configfile benchmarks/configs/cifar10.yaml
    python benchmarks/factors.py --config benchmarks/configs/cifar10.yaml --dataset cifar10 --model given \\
        --output rows.csv

Writes a line per method and budget as it is measured; what was stopped goes on after the last line. ``macs`` and
``achieved`` are shares of the dense MACs in matrix layers; ``lost`` are the points of top-1 below the dense model, plus
or minus ``interval`` (95 %, paired by image); ``distortion`` is the mean squared change of the logits of a test image
and ``predicted`` the sum of the layers' curves, before a refit; ``seconds`` are those of measuring and of making the
model.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from subject import add_arguments, logits_of, points_lost, read_subject, squared_change, top1
from torch import nn

from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.bases.align import align
from lpvit.costs.cost import layer_table, measure_costs
from lpvit.pruning.rounds import measure
from lpvit.structures.blocks.masks import kept_blocks
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.calibration import Statistics
from lpvit.structures.factors.settings import Factors
from lpvit.structures.mixed.settings import Mixed
from lpvit.structures.settings import StructureSettings
from lpvit.structures.structure import ModelStructure, Options, Structure, structure_of

GAUSS_NEWTON = {"saliency": "gauss_newton", "distortion": "gauss_newton"}
METHODS: dict[str, tuple[StructureSettings, bool]] = {  # settings, and whether layers are refitted
    "factors": (Factors(), True),
    "factors, one probe": (Factors(probes=1), True),
    "pivoted": (Factors(form="pivoted"), True),
    "mixed": (Mixed(), True),
    "factors, refined": (Factors(refine_steps=150), True),
    "blocks": (Blocks(block_shape=(16, 16), basis="aligned", **GAUSS_NEWTON), True),
    "32x32 blocks": (Blocks(block_shape=(32, 32), basis="aligned", **GAUSS_NEWTON), True),
    "blocks, bases as given": (Blocks(block_shape=(16, 16), **GAUSS_NEWTON), True),
    "factors, not refitted": (Factors(), False),
    "activation-aware SVD (AAFM)": (Factors(metric="activations"), False),
    "Fisher-weighted SVD (FWSVD)": (Factors(metric="fisher"), False),
    "SVD of the weights": (Factors(metric="weights"), False),
}
Measured = tuple[Options, Statistics | None]
KEY = ["model", "images", "seed", "tests", "method", "macs"]
COLUMNS = [*KEY, "achieved", "dense_top1", "top1", "lost", "interval", "distortion", "predicted", "seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="CSV of the rows")
    parser.add_argument("--calibration", type=int, default=512, help="calibration images")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration images")
    parser.add_argument("--validation", type=int, default=2000, help="test images")
    parser.add_argument("--methods", "--structures", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--macs", nargs="+", type=float, default=[0.7, 0.5, 0.35, 0.25, 0.15])
    arguments = parser.parse_args()
    if not arguments.output.exists():
        arguments.output.write_text(",".join(COLUMNS) + "\n")
    done = set(pd.read_csv(arguments.output)[KEY].itertuples(index=False, name=None))
    judge = Judge(arguments)
    for method in arguments.methods:
        for macs in arguments.macs:
            key = (arguments.model, arguments.calibration, arguments.seed, arguments.validation, method, macs)
            if key not in done:
                row = dict(zip(COLUMNS, key, strict=False)) | judge.measure(method, macs)
                with arguments.output.open("a", newline="") as file:
                    csv.DictWriter(file, COLUMNS).writerow(row)
                print(pd.Series(row).to_frame().T.to_string(index=False), flush=True)


@dataclass
class Judge:
    """Makes models of a method and budget, and compares them with the dense one on test images."""

    arguments: argparse.Namespace
    measured: dict[str, tuple[nn.Module, Measured, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.subject = read_subject(self.arguments)
        self.images = self.subject.calibration(self.arguments.calibration, self.arguments.seed)
        self.tests = self.subject.validation(self.arguments.validation)
        self.dense = logits_of(self.subject.model, self.tests)
        self.macs = measure_costs(self.subject.model)["macs"].sum()

    def measure(self, method: str, macs: float) -> dict[str, Any]:
        (settings, refits), device = METHODS[method], self.subject.compute.device
        dense, (options, statistics), seconds = self._measured(settings)
        started = time.perf_counter()
        tables = LayerTables(options.curves, options.blocks, measure_costs(self.subject.model))
        allocation = allocate(tables, Budget(macs=macs, min_keep_ratio=0))
        structure = layerwise(settings)
        choice, images = structure.choose(options.blocks, allocation), self.images if refits else None
        compressed = structure.compress(dense, choice, statistics, images, device)
        seconds += time.perf_counter() - started
        logits, costs = logits_of(compressed.model, self.tests), measure_costs(compressed.model)
        kept = kept_blocks(costs, compressed.keep_masks, compressed.block_shape)
        lost, interval = points_lost(logits, self.dense, self.tests)
        numbers = {
            "achieved": layer_table("pruned", costs, kept)["macs"].sum() / self.macs,
            "dense_top1": top1(self.dense, self.tests),
            "top1": top1(logits, self.tests),
            "lost": lost,
            "interval": interval,
            "distortion": squared_change(logits, self.dense),
            "predicted": sum(predictions(options.curves, allocation)),
            "seconds": seconds,
        }
        return {name: float(f"{number:.6g}") for name, number in numbers.items()}

    def _measured(self, settings: StructureSettings) -> tuple[nn.Module, Measured, float]:
        """The dense model in its bases and what was measured of it, with the seconds that it took.

        Shared by the methods that differ in their refit alone.
        """
        key = str(settings.model_dump() | {"refine_steps": 0})
        if key not in self.measured:
            started, device, model = time.perf_counter(), self.subject.compute.device, self.subject.model
            if settings.freedoms:
                model, _ = align(model, self.images, settings.freedoms, device)
            found = measure(model, self.images, layerwise(settings), device)
            self.measured[key] = model, found, time.perf_counter() - started
        return self.measured[key]


def layerwise(settings: StructureSettings) -> Structure:
    structure = structure_of(settings)
    assert not isinstance(structure, ModelStructure), "a method here has options layer by layer"
    return structure


def predictions(curves: pd.DataFrame, allocation: pd.DataFrame) -> Iterator[float]:
    """Distortion that its curve gives every layer where it was allocated."""
    for layer, units, kept in allocation[["layer", "blocks", "blocks_kept"]].itertuples(index=False, name=None):
        curve = curves[curves["layer"] == layer]
        yield float(np.interp(units - kept, curve["blocks_pruned"], curve["distortion"]))


if __name__ == "__main__":
    main()
