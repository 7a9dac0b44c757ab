"""Pruned models compared with common deployment engines: OpenVINO and onnxruntime, in every precision.

    python benchmarks/engines.py speed --width 384 --threads 1 2 --batch-sizes 1 8 --output rows.csv
    python benchmarks/engines.py accuracy --config benchmarks/configs/cifar10.yaml --dataset cifar10 --model given \\
        --output rows.csv

`speed`: models of the shapes of DeiT-S (width 384) and DeiT-B (768) at 224 x 224, random weights, half of the blocks of
32x32 of every layer pruned at random. All configurations are interleaved; results are medians over the rounds of the
ratio of times, of processor time on one thread. Logits of engines in float32 and bfloat16 are compared with torch's
before timing.
`accuracy`: the dense model of a config pruned to half of its MACs, top-1 of every configuration on validation
images, and its speed; the loss of engines in int8 is measured only here.
"""

import argparse
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import subject
import torch
from rows import append
from torch import Tensor, nn

import lpvit
from lpvit.benchmark.engines import Exported, Rivals
from lpvit.benchmark.settings import ENGINES
from lpvit.benchmark.speed import require_equal
from lpvit.measure.timing import calm_clock, time_in_turns
from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.sources.timm import create_model, input_size
from lpvit.precisions import SPARSE
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masks import expand_keep_masks, zero_pruned

BLOCK_SHAPE = (32, 32)
CALIBRATION = 16  # random images, of those with random weights

Configuration = Callable[[Tensor], Tensor]


def main() -> None:
    arguments = parse_arguments()
    rows = speed(arguments) if arguments.what == "speed" else accuracy(arguments)
    append(rows, arguments.output)


@torch.no_grad()
def speed(arguments: argparse.Namespace) -> pd.DataFrame:
    """One row per configuration, number of threads and batch size."""
    options = {"embed_dim": arguments.width, "num_heads": arguments.width // 64}
    dense = create_model("deit_tiny_patch16_224", 1000, options)
    pruned = at_random(dense, arguments.kept)
    images = torch.randn(CALIBRATION, *input_size(dense), generator=torch.Generator().manual_seed(0))
    models = {"dense": Exported(dense, [images]), "masked": Exported(pruned.model, [images])}
    quantised = lpvit.quantise(pruned, quantisation=lpvit.Quantisation(rounding="nearest"))
    parts = []
    for threads in arguments.threads:
        for batch_size in arguments.batch_sizes:
            torch.set_num_threads(threads)
            setups = build_configurations(models, pruned, quantised, images[:batch_size], arguments)
            parts.append(timed(setups, images[:batch_size], arguments))
            print(parts[-1].to_markdown(index=False, floatfmt=".2f"), flush=True)
    return pd.concat(parts).assign(model=f"DeiT, width {arguments.width}", kept=arguments.kept, top1=None)


def accuracy(arguments: argparse.Namespace) -> pd.DataFrame:
    """The same with the top-1 accuracy of every configuration, at one number of threads and batch size."""
    given = subject.read_subject(arguments)
    calibration = [images for images, _ in given.calibration(512, seed=0)]
    pruned = lpvit.prune(given.model, calibration, budget=arguments.kept, block_shape=(16, 16))
    quantised = lpvit.quantise(pruned, calibration)
    scales_from = [calibration[0]]
    models = {"dense": Exported(given.model, scales_from), "masked": Exported(pruned.model, scales_from)}
    batches = given.validation(arguments.images)
    (batch_size,) = arguments.batch_sizes
    images = batches[0][0][:batch_size]
    setups = build_configurations(models, pruned, quantised, images, arguments)
    split = [
        pair
        for batch, labels in batches
        for pair in zip(batch.split(batch_size), labels.split(batch_size), strict=True)
    ]
    top1 = {name: Rivals((), (), split).accuracy(setup).top1 for name, setup in setups.items()}
    rows = timed(setups, images, arguments)
    return rows.assign(model=given.name, kept=arguments.kept, top1=rows["configuration"].map(top1))


def build_configurations(
    models: Mapping[str, Exported],
    pruned: lpvit.Pruned,
    quantised: lpvit.Pruned,
    images: Tensor,
    arguments: argparse.Namespace,
) -> dict[str, Configuration]:
    """The engines dense and with zeros, torch, and ours; all but those in int8 compared with torch in float32."""
    threads = torch.get_num_threads()
    setups: dict[str, Configuration] = {"dense_torch_float32": models["dense"].model}
    for name, engines in (("dense", arguments.engines), ("masked", arguments.masked)):
        setups |= {f"{name}_{engine}": models[name].run_by(engine, len(images), threads) for engine in engines}
    for precision in arguments.ours:
        model = ours(quantised if precision == "int8" else pruned, precision, len(images))
        setups[f"sparse_{precision}"] = model
        if arguments.compiled:
            setups[f"sparse_{precision}_compiled"] = torch.compile(model, dynamic=False)
    for name, setup in setups.items():
        if "int8" not in name:
            expected = models["dense" if name.startswith("dense") else "masked"].model(images)
            require_equal(name, setup(images), expected, "bfloat16" if "bfloat16" in name else "float32")
    return setups


def timed(setups: Mapping[str, Configuration], images: Tensor, arguments: argparse.Namespace) -> pd.DataFrame:
    """One row per configuration: medians over the rounds of milliseconds and of ratios of times."""
    functions = {name: partial(setup, images) for name, setup in setups.items()}
    with torch.no_grad():
        times = time_in_turns(functions, device="cpu", seconds=arguments.seconds, clock=calm_clock("cpu"))
    rows = table(times)
    return rows.assign(threads=torch.get_num_threads(), batch_size=len(images))


def ours(pruned: lpvit.Pruned, precision: str, batch_size: int) -> Configuration:
    """The block-sparse model."""
    model = lpvit.sparsify(pruned, batch_size=batch_size, precision=precision)

    def run(images: Tensor) -> Tensor:
        logits: Tensor = model(images).float()
        return logits

    return run


def at_random(model: nn.Module, kept: float) -> lpvit.Pruned:
    """A copy of a model with a share of the blocks of every layer kept at random."""
    pruned = deepcopy(model)
    masks = {}
    generator = torch.Generator().manual_seed(0)
    for layer in prunable_layers(matrix_layers(model), ("qkv", "proj", "fc1", "fc2")):
        grid = BlockGrid(layer.shape, BLOCK_SHAPE)
        order = torch.rand(grid.count, generator=generator).argsort()
        masks[layer.name] = (order < round(kept * grid.count)).view(grid.rows, grid.columns)
    zero_pruned(pruned.state_dict(), expand_keep_masks(pruned, masks, BLOCK_SHAPE))
    return lpvit.Pruned(pruned, masks, BLOCK_SHAPE)


def table(times: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Milliseconds, and speed-ups over torch and over the fastest dense engine, medians over the rounds."""
    dense = [name for name in times if name.startswith("dense")]
    best = min(dense, key=lambda name: float(np.median(times[name])))
    return pd.DataFrame(
        {
            "configuration": name,
            "milliseconds": 1e3 * float(np.median(seconds)),
            "of_torch": float(np.median(times["dense_torch_float32"] / seconds)),
            "of_best_dense": float(np.median(times[best] / seconds)),
            "best_dense": best,
            "rounds": len(seconds),
        }
        for name, seconds in times.items()
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("speed", "accuracy"):
        command = commands.add_parser(name)
        command.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8] if name == "speed" else [8])
        command.add_argument("--seconds", type=float, default=0, help="per configuration; at least 7 rounds")
        command.add_argument(
            "--kept", type=float, default=0.5, help="share of the blocks of every layer, or of the MACs"
        )
        command.add_argument("--engines", nargs="*", default=list(ENGINES), choices=ENGINES, help="on the dense model")
        command.add_argument("--masked", nargs="*", default=["openvino_int8"], choices=ENGINES, help="with zeros")
        command.add_argument("--ours", nargs="*", default=list(SPARSE), choices=SPARSE)
        command.add_argument("--compiled", action="store_true", help="ours through torch.compile too")
        command.add_argument("--output", type=Path, help="CSV to append to")
    commands.choices["speed"].add_argument("--width", type=int, default=384)
    commands.choices["speed"].add_argument("--threads", nargs="+", type=int, default=[1, 2], help="CPU threads")
    subject.add_arguments(commands.choices["accuracy"])
    commands.choices["accuracy"].add_argument("--images", type=int, default=2000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
