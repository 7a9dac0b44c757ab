"""Compressed models of the pipeline in the engines that people deploy: speed and accuracy, each measured in its engine.

    python benchmarks/deployment.py make --folder models/vit_small --config benchmarks/configs/vit_small.yaml \\
        --dataset cifar10 --model vit_small_cifar10
    python benchmarks/deployment.py shape --folder models/deit_small --shape deit_small
    python benchmarks/deployment.py accuracy --folder models/vit_small --output accuracy.csv
    python benchmarks/deployment.py speed --folder models/vit_small --output speed.csv
    python benchmarks/deployment.py table --folder models/vit_small --output speed.csv --accuracy accuracy.csv

`make`: a dense model of a config, compressed by every method, with its calibration and test images and the files of
the engines. `shape`: the same for DeiT-S or DeiT-B with random weights; ranks and masks are those that the pipeline
gives them on a few random images, without a refit. What a folder has is not made again.
`speed`: all methods in all engines of one precision, interleaved, for every number of threads and images a pass.
`of_engine` is the speed-up over the dense model in the same engine, with its 95 % interval, and `of_best` over the
fastest dense model without our kernels in the same precision: medians over the rounds, of processor time on one thread,
else of wall-clock time. Logits of float32 and bfloat16 are compared with torch's before timing.
`accuracy`: top-1 of every method in every engine; points lost against the dense model in torch's float32, with their
95 % interval, paired by image; the mean squared change of the logits against that model (`distortion`) and against the
same model in torch's float32 (`rounding`).
Rows are appended as they are measured; what was stopped goes on after the last row.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import subject
import torch
from deployment_models import DENSE, METHODS, SHAPES, configurations, make, read_images
from rows import append
from torch import Tensor, nn

import lpvit
from lpvit.benchmark.engines import Exported, Run
from lpvit.benchmark.settings import ENGINES
from lpvit.benchmark.speed import require_equal
from lpvit.costs.cost import count_macs, measure_costs
from lpvit.measure.intervals import paired
from lpvit.measure.timing import calm_clock, median_interval, time_in_turns
from lpvit.precisions import SPARSE
from lpvit.structures.blocks.masks import kept_blocks

SCALES = 64  # calibration images for static scales of int8
TORCH = ("torch_float32", "torch_float32_compiled")
OURS = tuple(f"ours_{precision}" for precision in SPARSE)
RUNNERS = (*ENGINES, *TORCH, *OURS)
SPEED_KEY = ["model", "method", "kept", "engine", "threads", "batch_size"]
ACCURACY_KEY = ["model", "method", "kept", "engine", "images"]


def main() -> None:
    arguments = parse_arguments()
    if arguments.what in ("make", "shape"):
        make(arguments)
        for candidate in candidates(arguments):
            for engine in set(arguments.engines) & set(ENGINES):
                candidate.exported.file(engine)
    elif arguments.what == "table":
        print(table(arguments))
    else:
        {"speed": speed, "accuracy": accuracy}[arguments.what](arguments)


@dataclass(frozen=True)
class Candidate:
    """A model of a folder.

    Attributes:
        folder: From `deployment_models.make`.
        name: Of its file.
        method: How it was compressed.
        kept: Share of the MACs that it was compressed to.
    """

    folder: Path
    name: str
    method: str
    kept: float

    @cached_property
    def pruned(self) -> lpvit.Pruned:
        return lpvit.load(self.folder / f"{self.name}.safetensors")

    @cached_property
    def exported(self) -> Exported:
        images = torch.cat(read_images(self.folder).calibration)
        spread = images[:: max(1, len(images) // SCALES)][:SCALES]  # they come class by class
        return Exported(self.pruned.model, [spread], self.folder / "engines" / self.name)

    @cached_property
    def macs(self) -> float:
        """Multiply-adds of an image, in G, without those of pruned blocks."""
        costs = measure_costs(self.pruned.model)
        kept = kept_blocks(costs, self.pruned.keep_masks, self.pruned.block_shape)
        tokens = costs.set_index("layer")["tokens"]
        skipped = sum(int(tokens[layer]) * of.weights_pruned for layer, of in kept.items())
        return (count_macs(self.pruned.model) - skipped) / 1e9

    def run_by(self, engine: str, batch_size: int, threads: int) -> Run:
        """The model in an engine, for a number of images and threads."""
        if engine in ENGINES:
            return self.exported.run_by(engine, batch_size, threads)
        if engine == "torch_float32":
            return self.pruned.model
        if engine == "torch_float32_compiled":
            run: Run = torch.compile(self.pruned.model, dynamic=False, options={"freezing": True})
            return run
        return lpvit.sparsify(self._for_ours(engine), batch_size, precision_of(engine))

    def _for_ours(self, engine: str) -> lpvit.Pruned:
        quantised = precision_of(engine) == "int8"
        return lpvit.load(self.folder / f"{self.name}.int8.safetensors") if quantised else self.pruned


def precision_of(engine: str) -> str:
    """Of the products; the rest of int8 may be in another."""
    return next(precision for precision in ("int8", "bfloat16", "float32") if precision in engine)


def candidates(arguments: argparse.Namespace) -> list[Candidate]:
    """The dense model and the compressed ones that a folder has, of the given methods and budgets."""
    wanted = {DENSE: (DENSE, 1.0), **configurations(arguments.methods, arguments.macs)}
    found = [Candidate(arguments.folder, name, *of) for name, of in wanted.items()]
    return [candidate for candidate in found if (candidate.folder / f"{candidate.name}.safetensors").exists()]


@torch.no_grad()
def speed(arguments: argparse.Namespace) -> None:
    """Times every precision, number of threads and batch size that the file lacks."""
    models, name = candidates(arguments), arguments.folder.name
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for batch_size in arguments.batch_sizes:
            for precision in arguments.precisions:
                engines = [engine for engine in arguments.engines if precision_of(engine) == precision]
                keys = {
                    (name, one.method, one.kept, engine, threads, batch_size) for one in models for engine in engines
                }
                if keys - rows_of(arguments.output, SPEED_KEY):
                    rows = timed(models, engines, batch_size, arguments)
                    append(rows.assign(model=name, threads=threads, batch_size=batch_size), arguments.output)


def timed(models: list[Candidate], engines: list[str], batch_size: int, arguments: argparse.Namespace) -> pd.DataFrame:
    """One row per model and engine, all interleaved."""
    torch.compiler.reset()  # discards code compiled for another batch size
    images = torch.cat(read_images(arguments.folder).calibration)[:batch_size]
    threads = torch.get_num_threads()
    runs = {(one.name, engine): one.run_by(engine, batch_size, threads) for one in models for engine in engines}
    references = {one.name: one.pruned.model(images) for one in models}
    for (model, engine), run in runs.items():
        if precision_of(engine) != "int8":
            require_equal(f"{model}_{engine}", run(images).float(), references[model], precision_of(engine))
    functions: dict[Any, Callable[[], Tensor]] = {key: partial(run, images) for key, run in runs.items()}
    clock = calm_clock("cpu")
    times: Mapping[Any, np.ndarray] = time_in_turns(functions, device="cpu", seconds=arguments.seconds, clock=clock)
    dense = {engine: times[DENSE, engine] for engine in engines if engine not in OURS}
    best = min(dense, key=lambda engine: float(np.median(dense[engine])), default=None)
    of_dense = models[0].macs
    rows = []
    for one in models:
        for engine in engines:
            seconds = times[one.name, engine]
            of_engine = median_interval(times[DENSE, engine] / seconds)
            rows.append(
                {
                    **{"method": one.method, "kept": one.kept, "engine": engine},
                    "milliseconds": 1e3 * float(np.median(seconds)),
                    **{"of_engine": of_engine.median, "low": of_engine.low, "high": of_engine.high},
                    "of_best": float(np.median(dense[best] / seconds)) if best else None,
                    "best": best,
                    "bound": of_dense / one.macs,
                    "rounds": len(seconds),
                }
            )
    return pd.DataFrame(rows)


@torch.no_grad()
def accuracy(arguments: argparse.Namespace) -> None:
    """Classifies the test images by every model in every engine that the file lacks."""
    torch.set_num_threads(arguments.threads)
    tests = read_images(arguments.folder).tests
    images, labels = (torch.cat(parts)[: arguments.images] for parts in zip(*tests, strict=True))
    dense = right = None
    for one in candidates(arguments):
        key = (arguments.folder.name, one.method, one.kept)
        done = rows_of(arguments.output, ACCURACY_KEY)
        missing = [engine for engine in arguments.engines if (*key, engine, len(images)) not in done]
        if not missing:
            continue
        if dense is None:
            dense = logits_of(candidates(arguments)[0].pruned.model, images)
            right = (dense.argmax(1) == labels).numpy()
        own = dense if one.method == DENSE else logits_of(one.pruned.model, images)
        for engine in missing:
            found = own
            if engine != "torch_float32":
                found = logits_of(
                    one.run_by(engine, arguments.batch_size, arguments.threads), images, arguments.batch_size
                )
            hits = (found.argmax(1) == labels).numpy()
            gained, low, high = paired(right, hits)
            row = dict(zip(ACCURACY_KEY, (*key, engine, len(images)), strict=True))
            row |= {"top1": 100 * hits.mean(), "lost": -gained, "lost_low": -high, "lost_high": -low}
            row |= {"distortion": subject.squared_change(found, dense), "rounding": subject.squared_change(found, own)}
            append(pd.DataFrame([row]), arguments.output)


def logits_of(run: nn.Module | Run, images: Tensor, batch_size: int = 32) -> Tensor:
    """Logits (N, classes) of images (N, channels, height, width)."""
    return torch.cat([run(batch).float() for batch in images.split(batch_size)])


def table(arguments: argparse.Namespace) -> str:
    """One table per precision, threads and batch size: milliseconds, speed-up in the engine, and top-1 there."""
    rows = pd.read_csv(arguments.output).query("model == @arguments.folder.name")
    rows = rows.drop_duplicates(SPEED_KEY, keep="last")
    if arguments.accuracy:
        of_engines = pd.read_csv(arguments.accuracy).drop_duplicates(ACCURACY_KEY, keep="last")
        rows = rows.merge(of_engines, "left", ["model", "method", "kept", "engine"])
    rows["precision"] = rows["engine"].map(precision_of)
    parts = []
    for (threads, batch_size, precision), group in rows.groupby(["threads", "batch_size", "precision"], sort=False):
        cells = group["milliseconds"].map("{:.1f}".format) + group["of_engine"].map(" / {:.2f}".format)
        if "top1" in group:
            cells += group["top1"].map(lambda top1: "" if np.isnan(top1) else f" / {top1:.2f}")
        cells = group.assign(cell=cells).pivot_table("cell", ["method", "kept", "bound"], "engine", "first")
        cells = cells.sort_index(level=["kept", "method"], ascending=[False, True]).reset_index()
        parts.append(
            f"{precision}, threads {threads}, batch {batch_size}:\n\n{cells.to_markdown(index=False, floatfmt='.2f')}"
        )
    return "\n\n".join(parts)


def rows_of(file: Path, key: list[str]) -> set[tuple[Any, ...]]:
    """What a CSV already has."""
    return set(pd.read_csv(file)[key].itertuples(index=False, name=None)) if file.exists() else set()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("make", "shape", "accuracy", "speed", "table"):
        command = commands.add_parser(name)
        command.add_argument("--folder", type=Path, required=True, help="of the models; its name is theirs")
        command.add_argument(
            "--methods", nargs="*", choices=METHODS, default=["factors", "blocks", "mixed", "narrower"]
        )
        command.add_argument("--macs", nargs="+", type=float, default=[0.5, 0.35], help="share of the dense MACs")
        engines = [runner for runner in RUNNERS if runner != "torch_float32_compiled"]
        command.add_argument("--engines", nargs="*", choices=RUNNERS, default=engines)
    subject.add_arguments(commands.choices["make"])
    commands.choices["make"].add_argument("--calibration", type=int, default=512, help="calibration images")
    commands.choices["make"].set_defaults(shape=None)
    commands.choices["shape"].add_argument("--shape", choices=SHAPES, required=True)
    for name in ("make", "accuracy"):
        commands.choices[name].add_argument("--images", type=int, default=2000, help="test images")
    for name in ("accuracy", "speed", "table"):
        commands.choices[name].add_argument("--output", type=Path, required=True, help="CSV of the rows")
    commands.choices["accuracy"].add_argument("--threads", type=int, default=1, help="CPU threads")
    commands.choices["accuracy"].add_argument("--batch-size", type=int, default=8)
    timing = commands.choices["speed"]
    timing.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="CPU threads")
    timing.add_argument("--batch-sizes", nargs="+", type=int, default=[8, 1])
    timing.add_argument("--precisions", nargs="+", choices=SPARSE, default=list(SPARSE))
    timing.add_argument("--seconds", type=float, default=0, help="per configuration; at least 7 rounds")
    commands.choices["table"].add_argument("--accuracy", type=Path, help="CSV of `accuracy`")
    return parser.parse_args()


if __name__ == "__main__":
    main()
