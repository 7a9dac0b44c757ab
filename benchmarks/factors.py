"""How much of a model low-rank factors keep, beside baselines of the same cost: no labels, no training.

    snakemake --cores all results/cifar10/given/dense.pt --configfile config/cifar10.yaml
    python benchmarks/factors.py --config config/cifar10.yaml --dataset cifar10 --model given --output rows.csv

Writes a line per method and budget as it is measured; what was stopped goes on after the last line. ``macs`` and
``achieved`` are shares of the dense MACs in matrix layers, ``distortion`` is the mean squared change of the logits of a
test image and ``predicted`` the sum of the layers' curves, before a refit; ``seconds`` are those of measuring and of
making the model.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from subject import add_arguments, logits_of, read_subject, squared_change, top1

from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.costs.cost import measure_costs
from lpvit.pruning.rounds import measure
from lpvit.structures.calibration import Statistics
from lpvit.structures.factors.settings import Factors
from lpvit.structures.factors.structure import FactorStructure
from lpvit.structures.structure import Options

METHODS = {  # settings, and whether factors are refitted
    "factors": (Factors(), True),
    "pivoted": (Factors(form="pivoted"), True),
    "factors, not refitted": (Factors(), False),
    "activation-aware SVD (AAFM)": (Factors(metric="activations"), False),
    "Fisher-weighted SVD (FWSVD)": (Factors(metric="fisher"), False),
    "SVD of the weights": (Factors(metric="weights"), False),
}
Measured = tuple[Options, Statistics | None]
COLUMNS = ["model", "images", "method", "macs", "achieved", "dense_top1", "top1", "distortion", "predicted", "seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="CSV of the rows")
    parser.add_argument("--calibration", type=int, default=512, help="calibration images")
    parser.add_argument("--validation", type=int, default=2000, help="test images")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--macs", nargs="+", type=float, default=[0.7, 0.5, 0.35, 0.25, 0.15])
    arguments = parser.parse_args()
    if not arguments.output.exists():
        arguments.output.write_text(",".join(COLUMNS) + "\n")
    done = set(pd.read_csv(arguments.output)[COLUMNS[:4]].itertuples(index=False, name=None))
    judge = Judge(arguments)
    for method in arguments.methods:
        for macs in arguments.macs:
            key = (arguments.model, arguments.calibration, method, macs)
            if key not in done:
                row = dict(zip(COLUMNS, key, strict=False)) | judge.measure(method, macs)
                with arguments.output.open("a", newline="") as file:
                    csv.DictWriter(file, COLUMNS).writerow(row)
                print(pd.Series(row).to_frame().T.to_string(index=False), flush=True)


@dataclass
class Judge:
    """Makes models of a method and budget, and compares them with the dense one on test images."""

    arguments: argparse.Namespace
    measured: dict[str, tuple[Measured, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.subject = read_subject(self.arguments)
        self.images = self.subject.calibration(self.arguments.calibration, seed=0)
        self.tests = self.subject.validation(self.arguments.validation)
        self.dense = logits_of(self.subject.model, self.tests)
        self.macs = measure_costs(self.subject.model)["macs"].sum()

    def measure(self, method: str, macs: float) -> dict[str, Any]:
        (settings, refits), device = METHODS[method], self.subject.compute.device
        measured, seconds = self._measured(settings)
        started = time.perf_counter()
        options, statistics = measured
        tables = LayerTables(options.curves, options.blocks, measure_costs(self.subject.model))
        allocation = allocate(tables, Budget(macs=macs, min_keep_ratio=0))
        structure = FactorStructure(settings)
        ranks, images = structure.choose(options.blocks, allocation), self.images if refits else None
        model = structure.compress(self.subject.model, ranks, statistics, images, device).model
        seconds += time.perf_counter() - started
        logits = logits_of(model, self.tests)
        numbers = {
            "achieved": measure_costs(model)["macs"].sum() / self.macs,
            "dense_top1": top1(self.dense, self.tests),
            "top1": top1(logits, self.tests),
            "distortion": squared_change(logits, self.dense),
            "predicted": sum(predictions(options.curves, allocation)),
            "seconds": seconds,
        }
        return {name: float(f"{number:.6g}") for name, number in numbers.items()}

    def _measured(self, settings: Factors) -> tuple[Measured, float]:
        """Shared by the methods that differ in their refit alone, with the seconds that it took."""
        key = f"{settings.metric} {settings.form}"
        if key not in self.measured:
            started = time.perf_counter()
            measured = measure(self.subject.model, self.images, FactorStructure(settings), self.subject.compute.device)
            self.measured[key] = measured, time.perf_counter() - started
        return self.measured[key]


def predictions(curves: pd.DataFrame, allocation: pd.DataFrame) -> Iterator[float]:
    """Distortion that its curve gives every layer at its allocated rank."""
    for layer, units, kept in allocation[["layer", "blocks", "blocks_kept"]].itertuples(index=False, name=None):
        curve = curves[curves["layer"] == layer]
        yield float(curve["distortion"].iloc[units - kept])


if __name__ == "__main__":
    main()
