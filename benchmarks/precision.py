"""Tests whether an allocation should also choose a precision per layer: float32, bfloat16 or int8.

    python benchmarks/precision.py --config benchmarks/configs/vit_small.yaml --dataset cifar10 --model vit_small \\
        --output rows.csv

A point of a layer is a number of blocks in a precision. It costs the milliseconds that the layer takes here, and the
distortion of the pruned blocks (Gauss-Newton curves) plus that of the layer alone in that precision. Budgets are
shares of the dense layers' milliseconds in float32. For each, the knapsack of `exact` chooses among the points of one
precision, and among those of all (`mixed`); then the remaining weights are refitted by least squares and rounded to the
nearest, and logits and top-1 are measured. Measurements of layers are saved in `results/benchmarks`.
"""

import argparse
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import subject
import torch
from rounded import (
    PRECISIONS,
    TIMED_BATCH,
    RoundedLinear,
    deployed,
    measure_latency,
    measure_rounding,
    unrounded,
)
from rows import append
from subject import Batches, Subject, logits_of, squared_change, top1
from torch import Tensor

import lpvit
from lpvit.allocation.hull import lower_hull
from lpvit.allocation.knapsack import Curve, least_distortion
from lpvit.allocation.latency import milliseconds
from lpvit.allocation.priority import blocks_always_kept
from lpvit.allocation.tables import FEMTOSECONDS
from lpvit.costs.cost import measure_costs
from lpvit.measure.timing import calm_clock, time_in_turns
from lpvit.pruning.rounds import measure
from lpvit.refitting.reconstruction import Fit, fit_in_order, matrix_layer, weight_with_bias
from lpvit.structures.blocks.masks import build_keep_masks, expand_keep_masks, zero_pruned
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.structure import BlockStructure

ARMS = {**{precision: (precision,) for precision in PRECISIONS}, "mixed": PRECISIONS}
BATCH = 32  # images per pass, limited by memory
FEW = 1  # batches to measure single layers
COLUMNS = [
    *("model", "budget", "curve_factor", "configuration", *PRECISIONS, "kept", "milliseconds", "predicted"),
    *("distortion", "unrounded", "top1", "dense_top1", "speed_up"),
]


def main() -> None:
    arguments = parse_arguments()
    given = subject.read_subject(arguments)
    block_shape = (arguments.block_shape[0], arguments.block_shape[1])
    images = in_small_batches(given.calibration(arguments.calibration, seed=0))
    layers = describe(given, images, block_shape)
    layers.curves["distortion"] *= arguments.curve_factor
    fronts = {setup: points_of(layers, precisions, arguments.min_keep) for setup, precisions in ARMS.items()}
    dense = sum(front["milliseconds"].iloc[0] for front in fronts["float32"].values())
    judge = Judge(given, layers, block_shape, images, in_small_batches(given.validation(arguments.images)))
    for budget in arguments.budgets:
        choices = choose({setup: fronts[setup] for setup in arguments.configurations}, budget * dense)
        rows = pd.DataFrame({"configuration": setup} | summary(choice, dense) for setup, choice in choices.items())
        rows = rows.assign(model=given.name, budget=budget, curve_factor=arguments.curve_factor)
        if not arguments.predict:
            rows = rows.join(pd.DataFrame(map(judge.measure, choices.values())))
            rows["speed_up"] = (
                rows["configuration"].map(judge.speed_ups(choices)) if budget in arguments.timed else None
            )
        rows = rows.reindex(columns=COLUMNS)
        append(rows, arguments.output)


def summary(choice: pd.DataFrame, dense: float) -> dict[str, Any]:
    """Layers in each precision, kept shares of blocks and of the dense milliseconds, predicted distortion."""
    counts = choice["precision"].value_counts()
    layers = {precision: int(counts.get(precision, 0)) for precision in PRECISIONS}
    kept = 1 - choice["blocks_pruned"].sum() / choice["blocks"].sum()
    time = choice["milliseconds"].sum() / dense
    return layers | {"kept": kept, "milliseconds": time, "predicted": choice["distortion"].sum()}


# --- measurements of the layers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layers:
    """Inputs of an allocation.

    Attributes:
        costs: Of the prunable layers, schema ``COSTS``.
        blocks: Scores, schema ``BLOCKS``.
        curves: Of pruning in float32, schema ``CURVES``.
        rounding: From `rounded.measure_rounding`.
        latency: From `rounded.measure_latency`.
    """

    costs: pd.DataFrame
    blocks: pd.DataFrame
    curves: pd.DataFrame
    rounding: pd.DataFrame
    latency: pd.DataFrame


def describe(given: Subject, images: Batches, block_shape: tuple[int, int]) -> Layers:
    """Measures the layers, except for results in the files of an earlier run."""
    folder = given.config.results / "benchmarks" / given.dataset / given.name
    folder /= f"precision_{block_shape[0]}x{block_shape[1]}_{sum(len(labels) for _, labels in images)}"
    folder.mkdir(parents=True, exist_ok=True)
    file = {name: folder / f"{name}.parquet" for name in ("blocks", "curves", "rounding", "latency")}
    costs, names = measure_costs(given.model), [layer.name for layer in given.layers]
    costs = costs[costs["layer"].isin(names)]
    if not file["curves"].exists():
        pruning = Blocks(block_shape=block_shape, saliency="gauss_newton", distortion="gauss_newton")
        options, _ = measure(given.model, images, BlockStructure(pruning), "cpu")
        options.blocks.to_parquet(file["blocks"])
        options.curves.to_parquet(file["curves"])
    if not file["rounding"].exists():
        measure_rounding(given.model, names, images, images[:FEW]).to_parquet(file["rounding"])
    if not file["latency"].exists():
        measure_latency(costs, block_shape).to_parquet(file["latency"])
    return Layers(costs, **{name: pd.read_parquet(path) for name, path in file.items()})


# --- the allocation --------------------------------------------------------------------------------------------------


def points_of(layers: Layers, precisions: Sequence[str], min_keep: float) -> dict[str, pd.DataFrame]:
    """Layer -> its Pareto-optimal points in time and distortion, the slowest first."""
    fronts = {}
    for cost in layers.costs.to_dict("records"):
        name, shape = cost["layer"], (cost["out_features"], cost["in_features"], cost["tokens"])
        curve = layers.curves[layers.curves["layer"] == name]
        blocks = int(curve["blocks_pruned"].max())
        curve = curve[curve["blocks_pruned"] <= blocks - blocks_always_kept(blocks, min_keep)]
        sparsity = curve["weights_pruned"] / (shape[0] * shape[1])
        alone = layers.rounding[layers.rounding["layer"] == name].set_index("precision")["alone"]
        points = pd.concat(
            curve.assign(
                precision=precision,
                blocks=blocks,
                distortion=curve["distortion"] + alone[precision],
                milliseconds=milliseconds(layers.latency[layers.latency["precision"] == precision], *shape, sparsity),
            )
            for precision in precisions
        ).sort_values(["milliseconds", "distortion"], ignore_index=True)
        better = points["distortion"] < points["distortion"].cummin().shift(fill_value=np.inf)
        fronts[name] = points[better].iloc[::-1].reset_index(drop=True)
    return fronts


def choose(fronts: Mapping[str, Mapping[str, pd.DataFrame]], budget: float) -> dict[str, pd.DataFrame]:
    """Configuration -> a point for every layer, for the configurations that can meet a budget of milliseconds.

    A solution in one precision is also a mixed solution and is considered as such, because the knapsack's cells are
    coarser for all three.
    """
    found = {setup: allocate(points, budget) for setup, points in fronts.items()}
    choices = {setup: choice for setup, choice in found.items() if choice is not None}
    if "mixed" in choices:
        choices["mixed"] = min(choices.values(), key=lambda choice: choice["distortion"].sum())
    return choices


def allocate(points: Mapping[str, pd.DataFrame], budget: float) -> pd.DataFrame | None:
    """The points of least total distortion within a budget of milliseconds, a row per layer; None if there are none."""
    curves, slowest = [], 0
    for front in points.values():
        times = np.rint(FEMTOSECONDS * front["milliseconds"].to_numpy()).astype(np.int64)
        curves.append(Curve(times[0] - times, front["distortion"].to_numpy(), np.arange(len(front))))
        slowest += int(times[0])
    required = int(np.ceil(slowest - FEMTOSECONDS * budget))
    if required > sum(int(curve.removed[-1]) for curve in curves):
        return None
    chosen = [0] * len(curves)
    if required > 0:
        chosen = least_distortion(curves, required, on_hulls(curves, required))
    return pd.DataFrame([front.loc[number] for front, number in zip(points.values(), chosen, strict=True)])


def on_hulls(curves: Sequence[Curve], required: int) -> list[int]:
    """Points of the lower convex hulls at the first slope that meets the requirement."""
    hulls = [lower_hull(curve.removed, curve.distortion) for curve in curves]
    for slope in sorted({slope for _, slopes in hulls for slope in slopes}):
        chosen = [vertices[int(np.searchsorted(slopes, slope, side="right"))] for vertices, slopes in hulls]
        if sum(int(curve.removed[number]) for curve, number in zip(curves, chosen, strict=True)) >= required:
            break
    return chosen


# --- the models ------------------------------------------------------------------------------------------------------


@dataclass
class Judge:
    """Builds models and measures them against the dense one on validation images; equal choices are built once."""

    given: Subject
    layers: Layers
    block_shape: tuple[int, int]
    calibration: Batches
    validation: Batches
    built: dict[tuple[Any, ...], lpvit.Pruned] = field(default_factory=dict)

    def measure(self, choice: pd.DataFrame) -> dict[str, float]:
        """Distortion, in squared logits per image, and top-1 in %.

        ``unrounded`` is the distortion of the same blocks and weights in float32: the lower bound
        for any choice of precisions.
        """
        model = self.build(choice).model
        logits = logits_of(model, self.validation)
        with unrounded(model):
            in_float32 = logits_of(model, self.validation)
        return {
            "distortion": squared_change(logits, self.dense_logits),
            "unrounded": squared_change(in_float32, self.dense_logits),
            "top1": top1(logits, self.validation),
            "dense_top1": top1(self.dense_logits, self.validation),
        }

    def build(self, choice: pd.DataFrame) -> lpvit.Pruned:
        """With the chosen blocks and precisions; the weights of pruned layers are refitted to the dense model."""
        key = tuple(choice[["precision", "blocks_pruned"]].itertuples(index=False, name=None))
        if key in self.built:
            return self.built[key]
        dense, model = self.given.model, deepcopy(self.given.model)
        allocation = choice.assign(blocks_kept=choice["blocks"] - choice["blocks_pruned"])
        keep_masks = build_keep_masks(self.layers.blocks, allocation)
        for name, precision in zip(choice["layer"], choice["precision"], strict=True):
            model.set_submodule(name, RoundedLinear.like(matrix_layer(model, name), precision))
        expanded = expand_keep_masks(model, keep_masks, self.block_shape)
        zero_pruned(model.state_dict(), expanded)
        fits = [
            Fit(name, slice(None), weight_with_bias(matrix_layer(dense, name)).detach(), expanded[f"{name}.weight"])
            for name in choice.loc[choice["blocks_pruned"] > 0, "layer"]
        ]
        if fits:
            fit_in_order(dense, model, fits, self.calibration, device="cpu")
        self.built[key] = lpvit.Pruned(model.eval(), keep_masks, self.block_shape)
        return self.built[key]

    def speed_ups(self, choices: Mapping[str, pd.DataFrame]) -> dict[str, float]:
        """Time of the dense model in float32 over that of the block-sparse ones, interleaved."""
        images = self.validation[0][0][:TIMED_BATCH]
        setups = {setup: partial(deployed(self.build(choice)), images) for setup, choice in choices.items()}
        setups = {"dense": partial(self.given.model, images)} | setups
        with torch.no_grad():
            times = time_in_turns(setups, device="cpu", seconds=2, clock=calm_clock("cpu"))
        return {setup: float(np.median(times["dense"] / seconds)) for setup, seconds in times.items()}

    @cached_property
    def dense_logits(self) -> Tensor:
        return logits_of(self.given.model, self.validation)


def in_small_batches(batches: Batches) -> Batches:
    return [pair for images, labels in batches for pair in zip(images.split(BATCH), labels.split(BATCH), strict=True)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject.add_arguments(parser)
    parser.add_argument("--calibration", type=int, default=128, help="images")
    parser.add_argument("--images", type=int, default=500, help="of the validation split")
    parser.add_argument("--block-shape", nargs=2, type=int, default=[16, 16])
    parser.add_argument("--min-keep", type=float, default=0.2, help="share of the blocks that every layer keeps")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.9, 0.7, 0.5, 0.35, 0.25, 0.2, 0.15])
    parser.add_argument("--configurations", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--curve-factor", type=float, default=1, help="of pruning's distortion; below 1 favours mixing")
    parser.add_argument("--timed", nargs="*", type=float, default=[], help="budgets whose models are timed as a whole")
    parser.add_argument("--predict", action="store_true", help="build no models")
    parser.add_argument("--output", type=Path, help="CSV to append to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
