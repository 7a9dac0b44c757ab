"""Compares all pruning methods of `pruning.yaml` on one dense model.

    snakemake --cores all results/cifar10/given/dense.pt --configfile benchmarks/configs/cifar10.yaml
    python benchmarks/pruning.py --config benchmarks/configs/cifar10.yaml --dataset cifar10 --model given

Writes ``runs.csv`` (a line per method, budget, block shape and calibration seed), ``finetuned.csv``, ``table.md``,
``accuracy.png`` and ``speed_up.png`` to ``results/benchmarks/<dataset>/<model>``. An interrupted benchmark
resumes after the last line.
"""

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import rivals
import torch
import yaml
from matplotlib.figure import Figure
from memory import measured_peak
from pydantic import Field
from subject import Batches, Subject, add_arguments, logits_of, read_subject, squared_change, top1
from torch import Tensor, nn
from tqdm import tqdm

from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.api.pruned import Pruned
from lpvit.api.sparsify import sparsify
from lpvit.costs.cost import measure_costs
from lpvit.data.preprocessing import Preprocessing
from lpvit.measure.timing import time_in_turns
from lpvit.pruning.rounds import before_last_round
from lpvit.settings import Section
from lpvit.structures.blocks.calibration import StatisticInputs, block_statistics
from lpvit.structures.blocks.masks import expand_keep_masks
from lpvit.structures.blocks.products import block_products
from lpvit.structures.blocks.saliencies import Saliency
from lpvit.structures.blocks.scores import block_table
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.statistics.averaged_gradients import AveragedGradients
from lpvit.structures.blocks.statistics.weight_sums import WeightSums
from lpvit.structures.blocks.structure import BlockStructure
from lpvit.structures.blocks.weights import reconstruct
from lpvit.structures.calibration import Statistics
from lpvit.structures.width.narrowing import narrow
from lpvit.training.job import Training
from lpvit.training.settings import Recipe
from lpvit.training.splits import SplitLoaders
from lpvit.training.train import train

KEY = ["method", "reconstruction", "macs", "block_shape", "seed"]
MEASURED = ["achieved", "dense_top1", "top1", "distortion", "seconds", "peak_mib"]
FINETUNED = ["finetuned_top1", "speed_up"]


class Method(Section):
    """A pruning method, by options of `lpvit.Blocks` and `lpvit.Budget`."""

    pruning: dict[str, Any] = Field({})
    budget: dict[str, Any] = Field({})
    mask_saliency: Literal["l1"] | None = None  # ranks the final masks instead of the curves' saliency
    chosen_by: Literal["optimal_brain_blocks", "two_of_four"] | None = None  # of `rivals.py`, during reconstruction
    pruned_over: float | None = None  # share of the fine-tuning during which blocks are pruned

    def takes(self, reconstruction: str, macs: float) -> bool:
        """Whether this method has such a run: 2:4 keeps half, and selection during reconstruction needs one."""
        if self.chosen_by == "two_of_four" and macs != 0.5:
            return False
        if self.chosen_by is not None:
            return reconstruction != "none"
        return self.pruned_over is None or reconstruction == "none"

    @property
    def narrows(self) -> bool:
        return self.pruning.get("structure") == "width"


class Finetuning(Section):
    """Which runs of the first calibration seed are fine-tuned, and how; all budgets."""

    recipe: Recipe
    images: int  # of the training split
    methods: tuple[tuple[str, str], ...]  # with their reconstruction
    block_shapes: tuple[tuple[int, int], ...]
    timed_batch: int  # images per pass that they are timed with


class Plan(Section):
    """The file `pruning.yaml`."""

    calibration: int
    validation: int
    seeds: int
    macs: tuple[float, ...]
    block_shapes: tuple[tuple[int, int], ...]
    reconstructions: tuple[Literal["none", "least_squares"], ...]
    methods: dict[str, Method]
    finetuning: Finetuning | None = None


def main() -> None:
    arguments = parse_arguments()
    subject = read_subject(arguments)
    plan = Plan.model_validate(yaml.safe_load(arguments.plan.read_text()))
    folder = subject.config.results / "benchmarks" / subject.dataset / subject.name
    folder.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        judge = Judge(subject, plan)
        run(judge, keys(plan), folder / "runs.csv", judge.measure, MEASURED)
        if plan.finetuning:
            finetuned = keys_finetuned(plan, plan.finetuning)
            run(judge, finetuned, folder / "finetuned.csv", judge.finetune, FINETUNED)
    runs = read(folder)
    table = markdown(runs)
    (folder / "table.md").write_text(table)
    plot(runs).savefig(folder / "accuracy.png", dpi=150)
    if runs["speed_up"].notna().any():
        plot_speed_up(runs).savefig(folder / "speed_up.png", dpi=150)
    print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--plan", type=Path, default=Path(__file__).with_suffix(".yaml"), help="methods and grid")
    parser.add_argument("--table", action="store_true", help="only show the runs done so far")
    return parser.parse_args()


# --- the runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A run. Block shape as ``16x16``; ``-`` for a method without blocks."""

    method: str
    reconstruction: str
    macs: float
    block_shape: str
    seed: int


def run(
    judge: "Judge",
    keys: Iterable[Key],
    file: Path,
    outcome: Callable[["PrunedModel"], dict[str, Any]],
    columns: list[str],
) -> None:
    """Executes the runs that are not in the file yet, and appends a line after each."""
    if not file.exists():
        file.write_text(",".join([*KEY, *columns]) + "\n")
    done = {Key(*row) for row in pd.read_csv(file)[KEY].itertuples(index=False, name=None)}
    calibrated: Calibrated | None = None
    for key in tqdm([key for key in keys if key not in done], desc=file.stem, unit="run"):
        if calibrated is None or (calibrated.seed, calibrated.block_shape) != (key.seed, key.block_shape):
            calibrated = Calibrated(judge.subject, judge.plan, key.seed, key.block_shape)
        row = pd.DataFrame([asdict(key) | outcome(judge.prune(calibrated, key))])
        row[[*KEY, *columns]].to_csv(file, mode="a", header=False, index=False)


def keys(plan: Plan) -> Iterator[Key]:
    """All runs, grouped by block shape and calibration images; first those without blocks."""
    for shape, seed, macs in itertools.product(shape_names(plan.block_shapes), range(plan.seeds), plan.macs):
        for name, method in plan.methods.items():
            if (shape == "-") == method.narrows:
                for reconstruction in plan.reconstructions:
                    if method.takes(reconstruction, macs):
                        yield Key(name, reconstruction, macs, shape, seed)


def shape_names(block_shapes: Iterable[tuple[int, int]]) -> list[str]:
    """As in a `Key`, that without blocks first."""
    return ["-", *("x".join(map(str, shape)) for shape in block_shapes)]


def keys_finetuned(plan: Plan, finetuning: Finetuning) -> Iterator[Key]:
    shapes = shape_names(finetuning.block_shapes)
    for key in keys(plan):
        if key.seed == 0 and key.block_shape in shapes and (key.method, key.reconstruction) in finetuning.methods:
            yield key


def read(folder: Path) -> pd.DataFrame:
    """All runs, with accuracy and speed after fine-tuning where there was one."""
    runs = pd.read_csv(folder / "runs.csv")
    if not (folder / "finetuned.csv").exists():
        return runs.assign(**dict.fromkeys(FINETUNED, float("nan")))
    return runs.merge(pd.read_csv(folder / "finetuned.csv"), how="left", on=KEY)


@dataclass
class Meter:
    """Seconds, and memory above that at the start, summed and maximised over the measured parts."""

    seconds: float = 0.0
    peak_mib: float = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        started = time.perf_counter()
        with measured_peak() as peak:
            yield
        self.seconds += time.perf_counter() - started
        self.peak_mib = max(self.peak_mib, 1024 * peak.gib)

    def __add__(self, other: "Meter") -> "Meter":
        return Meter(self.seconds + other.seconds, max(self.peak_mib, other.peak_mib))


@dataclass
class Calibrated:
    """Data shared by the methods of one calibration seed and block shape, computed at first use, with its cost."""

    subject: Subject
    plan: Plan
    seed: int
    block_shape: str
    meters: dict[str, Meter] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = map(int, self.block_shape.split("x"))
        return rows, columns

    @cached_property
    def images(self) -> Batches:
        return self.subject.calibration(self.plan.calibration, self.seed)

    @cached_property
    def averaged(self) -> Statistics:
        subject = self.subject
        with self._meter("averaged"):
            inputs = StatisticInputs(subject.model, self.images, subject.layers, self.shape, subject.compute.device)
            return block_statistics(inputs, [WeightSums(), AveragedGradients()])

    @cached_property
    def products(self) -> dict[str, Tensor]:
        subject = self.subject
        with self._meter("products"):
            return block_products(
                subject.model, self.images, subject.layers, self.shape, probes=2, device=subject.compute.device
            )

    def statistics(self, pruning: Blocks) -> tuple[Statistics, Meter]:
        if not pruning.probes_used:
            return self.averaged, self.meters["averaged"]
        statistics = {
            layer: tables | {"block_products": self.products[layer]} for layer, tables in self.averaged.items()
        }
        return statistics, self.meters["products"]

    @contextmanager
    def _meter(self, name: str) -> Iterator[None]:
        _ = self.images
        with self.meters.setdefault(name, Meter()).measured():
            yield


@dataclass(frozen=True)
class PrunedModel:
    """A model without blocks, or narrower, with the cost of creating it."""

    model: nn.Module
    keep_masks: dict[str, Tensor] | None
    block_shape: tuple[int, int]
    achieved: float
    meter: Meter
    pruned_over: float | None = None


class Judge:
    """Makes pruned models and measures them against the dense one on validation images."""

    def __init__(self, subject: Subject, plan: Plan) -> None:
        self.subject = subject
        self.plan = plan
        self.costs = measure_costs(subject.model)
        self.images = subject.validation(plan.validation)
        self.dense_logits = logits_of(subject.model, self.images)

    def prune(self, calibrated: Calibrated, key: Key) -> PrunedModel:
        method = self.plan.methods[key.method]
        if method.narrows:
            return self._narrow(calibrated, key)
        pruning = Blocks.model_validate({"block_shape": calibrated.shape} | method.pruning)
        budget = Budget.model_validate({"macs": key.macs, "reconstruction": key.reconstruction} | method.budget)
        statistics, shared = calibrated.statistics(pruning)
        meter = Meter()
        model, device = copy.deepcopy(self.subject.model), self.subject.compute.device
        with meter.measured():
            structure = BlockStructure(pruning)
            options = structure.options(statistics, model, calibrated.images, device)
            tables = LayerTables(options.curves, options.blocks, self.costs)
            tables = before_last_round(model, calibrated.images, structure, tables, budget, device)
            allocation = allocate(tables, budget)
            ranked = tables.blocks
            if method.mask_saliency is not None:
                ranked = block_table(statistics, Saliency.registry[method.mask_saliency]())
            keep_masks, block_shape = structure.choose(ranked, allocation), calibrated.shape
            if method.chosen_by is None:
                images = calibrated.images if budget.refits else None
                state = structure.compress(model, keep_masks, None, images, device).model.state_dict()
            else:
                choose, block_shape = rivals.chooser(method.chosen_by, block_shape)
                state = reconstruct(
                    model, keep_masks, calibrated.shape, calibrated.images, device=device, choose=choose
                )
                keep_masks = rivals.keep_masks_of(state, keep_masks, block_shape)
            model.load_state_dict(state)
        achieved = self._achieved(keep_masks, block_shape)
        return PrunedModel(model, keep_masks, block_shape, achieved, shared + meter, method.pruned_over)

    def _achieved(self, keep_masks: dict[str, Tensor], block_shape: tuple[int, int]) -> float:
        """Share of the dense MACs in matrix layers."""
        expanded = expand_keep_masks(self.subject.model, keep_masks, block_shape)
        kept = {name.removesuffix(".weight"): mask.float().mean().item() for name, mask in expanded.items()}
        macs = self.costs.set_index("layer")["macs"]
        return float(sum(kept.get(str(layer), 1.0) * count for layer, count in macs.items()) / macs.sum())

    def _narrow(self, calibrated: Calibrated, key: Key) -> PrunedModel:
        meter = Meter()
        images = calibrated.images
        with meter.measured():
            model = narrow(self.subject.model, images, key.macs, key.reconstruction != "none")
        achieved = float(measure_costs(model)["macs"].sum() / self.costs["macs"].sum())
        return PrunedModel(model, None, (1, 1), achieved, meter)

    def measure(self, pruned: PrunedModel) -> dict[str, Any]:
        logits = logits_of(pruned.model, self.images)
        return {
            "achieved": pruned.achieved,
            "dense_top1": top1(self.dense_logits, self.images),
            "top1": top1(logits, self.images),
            "distortion": squared_change(logits, self.dense_logits),
            "seconds": pruned.meter.seconds,
            "peak_mib": pruned.meter.peak_mib,
        }

    def finetune(self, pruned: PrunedModel) -> dict[str, Any]:
        assert self.plan.finetuning is not None
        subject, recipe = self.subject, self.plan.finetuning.recipe
        start = pruned.model
        if pruned.pruned_over:
            recipe, start = recipe.model_copy(update={"pruned_over": pruned.pruned_over}), subject.model
        images = subject.few_images(self.plan.finetuning.images, self.plan.validation)
        dataset = subject.config.datasets[subject.dataset].model_dump()
        preprocessing = Preprocessing.from_model(subject.model)
        with tempfile.TemporaryDirectory() as folder:
            training = Training(
                start,
                recipe,
                SplitLoaders(images, dataset, preprocessing, recipe, subject.compute),
                resume_file=Path(folder, "training.pt"),
                fingerprint="",
                device=torch.device(subject.compute.device),
                threads=subject.compute.threads,
                keep_masks=pruned.keep_masks or {},
                block_shape=pruned.block_shape,
                teacher=None if recipe.teacher is None else subject.model,
            )
            trained = train(training)
        pruned.model.load_state_dict(trained.state)
        pruned = replace(pruned, keep_masks=trained.keep_masks if pruned.keep_masks else None)
        return {"finetuned_top1": float(trained.history["top1"].iloc[-1]), "speed_up": self._speed_up(pruned)}

    @torch.no_grad()
    def _speed_up(self, pruned: PrunedModel) -> float:
        """Time of the dense model over that of this one, with block-sparse kernels where it has blocks; both eager."""
        assert self.plan.finetuning is not None
        dense, fast, device = self.subject.model, pruned.model.eval(), self.subject.compute.device
        images = self.images[0][0][: self.plan.finetuning.timed_batch]
        if pruned.keep_masks is not None:
            fast = sparsify(Pruned(fast, pruned.keep_masks, pruned.block_shape), len(images))
        times = time_in_turns({"dense": lambda: dense(images), "fast": lambda: fast(images)}, device=device, seconds=2)
        return float(np.median(times["dense"] / times["fast"]))


# --- tables, figures -------------------------------------------------------------------------------------------------


def markdown(runs: pd.DataFrame) -> str:
    """A table per block shape: mean and standard deviation over the calibration seeds, methods as rows."""
    dense = f"Dense: {runs['dense_top1'].iloc[0]:.2f} % top-1."
    parts = [dense]
    for block_shape, of_shape in runs.groupby("block_shape", sort=False):
        title = "Narrower dense model" if block_shape == "-" else f"Blocks {block_shape}"
        parts.append(f"**{title}**, mean ± standard deviation over calibration seeds\n\n{_table(of_shape)}")
    return "\n\n".join(parts) + "\n"


def _table(runs: pd.DataFrame) -> str:
    groups = runs.groupby(["method", "reconstruction"], sort=False)
    budgets = sorted(runs["macs"].unique(), reverse=True)
    header = ["method", "reconstruction", "seeds"]
    header += [f"top-1 at {macs:.0%}" for macs in budgets] + [f"distortion at {macs:.0%}" for macs in budgets]
    header += [f"fine-tuned at {macs:.0%}" for macs in budgets] + ["seconds", "peak MiB"]
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2)]
    for (method, reconstruction), of_method in groups:
        cells = [str(method), str(reconstruction), str(of_method["seed"].nunique())]
        for column, digits in (("top1", 1), ("distortion", 2), ("finetuned_top1", 1)):
            cells += [_mean(of_method.loc[of_method["macs"] == macs, column].dropna(), digits) for macs in budgets]
        peaks = of_method["peak_mib"].dropna()
        cells += [_mean(of_method["seconds"], 1), "-" if peaks.empty else f"{peaks.max():.0f}"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _mean(values: pd.Series, digits: int) -> str:
    if values.empty:
        return "-"
    deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"


def plot(runs: pd.DataFrame) -> Figure:
    """Top-1 against MACs, a panel per block shape and reconstruction."""
    shapes = [shape for shape in runs["block_shape"].unique() if shape != "-"] or ["-"]
    reconstructions = list(runs["reconstruction"].unique())
    figure = Figure(figsize=(4.2 * len(shapes) + 2, 3.2 * len(reconstructions)), layout="constrained")
    axes = figure.subplots(len(reconstructions), len(shapes), sharex=True, sharey=True, squeeze=False)
    colors = {method: f"C{i % 10}" for i, method in enumerate(runs["method"].unique())}
    for (row, reconstruction), (column, shape) in itertools.product(enumerate(reconstructions), enumerate(shapes)):
        panel = axes[row, column]
        shown = runs[(runs["block_shape"].isin([shape, "-"])) & (runs["reconstruction"] == reconstruction)]
        for number, (method, of_method) in enumerate(shown.groupby("method", sort=False)):
            of_budget = of_method.groupby("macs")["top1"]
            panel.errorbar(
                100 * of_budget.mean().index,
                of_budget.mean(),
                of_budget.std().fillna(0),
                label=method,
                color=colors[method],
                linestyle=("-", "--", ":")[number // 10],
                marker="o",
                markersize=3,
            )
        panel.axhline(runs["dense_top1"].iloc[0], color="0.5", linewidth=0.8)
        panel.set_title(f"blocks {shape}, reconstruction {reconstruction}")
        panel.set_xlabel("MACs kept, %")
        panel.set_ylabel("top-1, %")
    handles = {text: line for panel in axes.flat for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right center", frameon=False, fontsize=8)
    return figure


def plot_speed_up(runs: pd.DataFrame) -> Figure:
    """Top-1 after fine-tuning against the measured speed-up: a line per method, a mark per budget."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    finetuned = runs.dropna(subset="speed_up").sort_values("macs")
    groups = finetuned.groupby(["method", "reconstruction", "block_shape"], sort=False)
    for (method, reconstruction, block_shape), of_method in groups:
        label = method if block_shape == "-" else f"{method}, {block_shape}, {reconstruction}"
        style = {"color": "black", "linestyle": "--"} if block_shape == "-" else {}
        axes.plot(of_method["speed_up"], of_method["finetuned_top1"], "o-", markersize=4, label=label, **style)
    axes.plot(1, runs["dense_top1"].iloc[0], "k*", markersize=10, label="dense")
    axes.set(xlabel="measured speed-up over the dense model", ylabel="top-1 after fine-tuning, %")
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
