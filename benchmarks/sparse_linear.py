"""Block-sparse layers and models against dense ones, on the CPU, in float32, bfloat16 or int8.

    python benchmarks/sparse_linear.py layers --threads 1 --batch-size 8
    python benchmarks/sparse_linear.py layers --dtype bfloat16
    python benchmarks/sparse_linear.py model --threads 1 --batch-size 8
    python benchmarks/sparse_linear.py model --pruned results/.../pruned.pt --masks results/.../masks.pt

Dense configurations: torch's eager linear layer; the same with weights prepacked by oneDNN, which torch.compile with
freezing runs; in int8, with bfloat16 inputs and outputs, also our own layer with all blocks kept; for models, eager and
compiled with freezing. Outputs are compared with the masked dense ones before timing. Configurations are interleaved in
random order; a speed-up is the median over the rounds of the ratio of times, with its quartiles.
"""

import argparse
import copy
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm

from lpvit.inference.sparsify import sparsify_layers
from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.architecture import load_model
from lpvit.models.sources.timm import create_model, input_size
from lpvit.precisions import PRECISIONS, SPARSE, name_of
from lpvit.sparse import BlockSparseLinear
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masks import expand_keep_masks, load_masks, zero_pruned

WIDTHS = {"DeiT-T": 192, "DeiT-S": 384, "DeiT-B": 768}
TOKENS = 197
SPARSITIES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
BLOCK_SHAPES = ((16, 16), (32, 32), (32, 64), (64, 32), (64, 64))

Method = Callable[[], Tensor]


def main() -> None:
    arguments = parse_arguments()
    if arguments.what == "model" and arguments.dtype == "int8":
        raise SystemExit("model: not in int8; see engines.py")
    torch.set_num_threads(arguments.threads)
    torch.set_default_dtype(torch.float32 if arguments.dtype == "float32" else torch.bfloat16)
    with torch.no_grad():
        if arguments.what == "layers":
            speedups = pd.concat([measure_layer(*layer, arguments) for layer in tqdm(layers(arguments.widths))])
            print(table_of_layers(speedups))
        else:
            speedups = measure_model(arguments)
            print(speedups.to_markdown(index=False, floatfmt=".2f"))
    if arguments.output:
        speedups.to_parquet(arguments.output)


def layers(names: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """Model, role, out and in features of the linear layers of a transformer block."""
    shapes = {"qkv": (3, 1), "proj": (1, 1), "fc1": (4, 1), "fc2": (1, 4)}
    return [
        (name, role, rows * WIDTHS[name], columns * WIDTHS[name])
        for name in names
        for role, (rows, columns) in shapes.items()
    ]


def measure_layer(
    model: str, role: str, out_features: int, in_features: int, arguments: argparse.Namespace
) -> pd.DataFrame:
    """One row per block shape and sparsity: speed-up over the fastest dense configuration, with quartiles."""
    inputs = torch.randn(arguments.batch_size, TOKENS, in_features)
    linear = nn.Linear(in_features, out_features)
    methods: dict[str, Method] = {}
    for block_shape in BLOCK_SHAPES:
        for sparsity in SPARSITIES:
            keep_mask = random_mask((out_features, in_features), block_shape, sparsity)
            sparse = BlockSparseLinear.from_linear(linear, keep_mask, block_shape, precision=arguments.dtype)
            require_equal(sparse(inputs), F.linear(inputs, sparse.dense_weight().to(inputs.dtype), linear.bias))
            methods[f"{block_shape[0]}x{block_shape[1]} {sparsity}"] = lambda sparse=sparse: sparse(inputs)
    packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight, inputs.numel() // in_features)
    dense: dict[str, Method] = {
        "eager": lambda: linear(inputs),
        "packed": lambda: torch.ops.mkldnn._linear_pointwise(inputs, packed, linear.bias, "none", [], ""),
    }
    if arguments.dtype == "int8":
        dense["int8"] = methods[f"32x32 {SPARSITIES[0]}"]
    times = take_turns(dense | methods, arguments.seconds)
    best = times[list(dense)].median().idxmin()
    rows = []
    for method in methods:
        block_shape, sparsity = method.split()
        rows.append({"model": model, "layer": role, "block": block_shape, "sparsity": float(sparsity)})
        rows[-1] |= speedup(times, best, method) | {
            "of eager": (times["eager"] / times[method]).median(),
            "dense": best,
        }
    return pd.DataFrame(rows)


def measure_model(arguments: argparse.Namespace) -> pd.DataFrame:
    """One row per configuration: median milliseconds, and speed-up over the fastest dense one, with quartiles."""
    dense, keep_masks, block_shape = given_model(arguments) if arguments.pruned else random_model(arguments)
    zero_pruned(dict(dense.named_parameters()), expand_keep_masks(dense, keep_masks, block_shape))
    sparse = copy.deepcopy(dense)
    choices = sparsify_layers(sparse, keep_masks, block_shape, arguments.batch_size)
    print(f"not replaced: {', '.join(choice.module for choice in choices if not choice.by_kernel) or 'none'}")
    images = torch.randn(arguments.batch_size, *input_size(dense))
    models = {"dense": dense, "sparse": sparse}
    if arguments.compile:
        torch._inductor.config.freezing = True
        models |= {f"{name}, compiled": torch.compile(model) for name, model in models.items()}
    for model in models.values():
        require_equal(model(images), dense(images))
    times = take_turns({name: lambda model=model: model(images) for name, model in models.items()}, arguments.seconds)
    best = times[[name for name in models if name.startswith("dense")]].median().idxmin()
    rows = [{"method": method, "ms": 1e3 * times[method].median()} | speedup(times, best, method) for method in models]
    return pd.DataFrame(rows)


def random_model(arguments: argparse.Namespace) -> tuple[nn.Module, dict[str, Tensor], tuple[int, int]]:
    """DeiT with the same share of random blocks pruned from each qkv, proj, fc1 and fc2."""
    model = create_model(arguments.timm, 1000)
    found = prunable_layers(matrix_layers(model), ("qkv", "proj", "fc1", "fc2"))
    block_shape = tuple(arguments.block_shape)
    masks = {layer.name: random_mask(layer.shape, block_shape, arguments.sparsity) for layer in found}
    return model, masks, block_shape


def given_model(arguments: argparse.Namespace) -> tuple[nn.Module, Mapping[str, Tensor], tuple[int, int]]:
    """A model and masks that the workflow made."""
    architecture, state = load_model(arguments.pruned, arguments.pruned.stem)
    return architecture.build(state).to(torch.get_default_dtype()), *load_masks(arguments.masks)


def random_mask(shape: tuple[int, int], block_shape: tuple[int, int], sparsity: float) -> Tensor:
    grid = BlockGrid(shape, block_shape)
    return (torch.randperm(grid.count) >= round(sparsity * grid.count)).view(grid.rows, grid.columns)


def require_equal(outputs: Tensor, expected: Tensor) -> None:
    error = ((outputs - expected).abs().max() / expected.abs().max()).item()
    assert error <= PRECISIONS[name_of(expected.dtype)].tolerance, f"outputs differ by {error:.1e} of the largest"


def take_turns(methods: Mapping[str, Method], seconds: float) -> pd.DataFrame:
    """Seconds of every configuration (columns) in every round (rows), about as long as requested, at least 5 rounds."""
    start = time.perf_counter()
    rounds = []
    while len(rounds) < 6 or time.perf_counter() - start < seconds:
        in_turn = random.sample(list(methods), len(methods))
        rounds.append({name: timed(methods[name]) for name in in_turn})
    return pd.DataFrame(rounds[1:])[list(methods)]


def timed(method: Method) -> float:
    """Seconds of one call: processor time for one thread, which other load affects less, else wall-clock time."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    method()
    return clock() - start


def speedup(times: pd.DataFrame, dense: str, method: str) -> dict[str, float]:
    quotients = times[dense] / times[method]
    return {"speed-up": quotients.median(), "low": quotients.quantile(0.25), "high": quotients.quantile(0.75)}


def table_of_layers(speedups: pd.DataFrame) -> str:
    """Per layer and sparsity, the speed-up of the worst and of the best block shape."""
    lines = ["| model | layer |" + "".join(f" {sparsity:.0%} |" for sparsity in SPARSITIES)]
    lines.append("| --- | --- |" + " ---: |" * len(SPARSITIES))
    for (model, layer), of_layer in speedups.groupby(["model", "layer"], sort=False):
        cells = [of_layer.loc[of_layer["sparsity"] == sparsity, "speed-up"] for sparsity in SPARSITIES]
        shown = " | ".join(f"{cell.min():.2f}-{cell.max():.2f}" for cell in cells)
        lines.append(f"| {model} | {layer} | {shown} |")
    means = speedups.groupby("sparsity")[["speed-up", "of eager"]].agg(
        lambda column: math.exp(column.map(math.log).mean())
    )
    for column, name in (("speed-up", "geometric mean"), ("of eager", "same, against eager")):
        lines.append(
            f"| {name} | | " + " | ".join(f"{means.loc[sparsity, column]:.2f}" for sparsity in SPARSITIES) + " |"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "model"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=SPARSE, help="of weights; int8 for `layers` only")
    parser.add_argument("--seconds", type=float, default=10, help="per layer or model")
    parser.add_argument("--widths", nargs="+", default=list(WIDTHS), choices=list(WIDTHS), help="models of `layers`")
    parser.add_argument("--timm", default="deit_small_patch16_224", help="`model` with random masks")
    parser.add_argument("--sparsity", type=float, default=0.5, help="`model` with random masks")
    parser.add_argument("--block-shape", type=int, nargs=2, default=(32, 32), help="`model` with random masks")
    parser.add_argument("--pruned", type=Path, help="`model` that the workflow made: pruned.pt or finetuned.pt")
    parser.add_argument("--masks", type=Path, help="its masks.pt")
    parser.add_argument("--compile", action="store_true", help="`model`: compiled configurations too")
    parser.add_argument("--output", type=Path, help="parquet file of the speed-ups")
    return parser.parse_args()


if __name__ == "__main__":
    main()
