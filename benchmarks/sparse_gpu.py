"""Block-sparse layers and models on a GPU against dense ones, in bfloat16: speed-up, and energy per image.

    python benchmarks/sparse_gpu.py
    python benchmarks/sparse_gpu.py --models deit_base_patch16_224 --batches 64 --blocks 64x64 --masks path/to/masks.pt

Competitors: dense, and 2:4 sparse where the card has it, both compiled, attention by SDPA; all run as CUDA graphs, so
that no launch from Python is timed. They take turns call by call, with the L2 cache overwritten before each; a speed-up
is the median over the rounds of the quotient of neighbouring calls. Outputs are compared with masked dense ones first.
"""

import argparse
import copy
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from tqdm import tqdm

from lpvit.measure.sparsify import sparsify_layers
from lpvit.models.architecture import input_size
from lpvit.models.blocks import BlockGrid
from lpvit.models.layers import LayerSpec, matrix_layers, prunable_layers
from lpvit.sparse import BlockSparseLinear, compress
from lpvit.weights.masks import expand_keep_masks, load_masks, zero_pruned

Replay = Callable[[], None]
DTYPE = torch.bfloat16
ROLES = ("qkv", "proj", "fc1", "fc2")
TOLERANCE = {"layer": 0.01, "model": 0.05}  # norm of the error over norm of the output; a model rounds 50 times


def main() -> None:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("no GPU here: torch finds no CUDA device, so there is nothing to time")
    torch.set_grad_enabled(False)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, timm {timm.__version__}, {DTYPE}\n")
    watch = Watch(arguments.rounds)
    for name in arguments.models:
        model = timm.create_model(name, num_classes=1000).eval().cuda()
        layers = prunable_layers(matrix_layers(model), ROLES)
        model.to(DTYPE)
        distinct = {layer.role: layer for layer in layers}.values()
        print_table(f"{name}: layers", LAYER_COLUMNS, time_layers(watch, distinct, arguments))
        print_table(f"{name}: whole model", MODEL_COLUMNS, time_models(watch, model, layers, arguments))


# What is timed


def random_keep_mask(layer: LayerSpec, block_shape: tuple[int, int], sparsity: float) -> Tensor:
    """Keeps that share of the blocks, to one block. Shape (R, C), bool."""
    grid = BlockGrid(layer.shape, block_shape)
    keep_mask = torch.arange(grid.count) < round((1 - sparsity) * grid.count)
    return keep_mask[torch.randperm(grid.count)].view(grid.rows, grid.columns)


def block_sparse_model(model: nn.Module, keep_masks: Mapping[str, Tensor], block_shape: tuple[int, int]) -> nn.Module:
    """A copy with every masked layer replaced, faster or not; the GELU after each fc1 moves into it."""
    sparse = copy.deepcopy(model)
    sparsify_layers(sparse, keep_masks, block_shape, only_faster=False)
    return sparse


def masked_model(model: nn.Module, keep_masks: Mapping[str, Tensor], block_shape: tuple[int, int]) -> nn.Module:
    """A copy with zeros in the pruned blocks."""
    masked = copy.deepcopy(model)
    zero_pruned(dict(masked.named_parameters()), expand_keep_masks(masked, keep_masks, block_shape))
    return masked


def two_of_four(weight: Tensor) -> Tensor:
    """The two largest of every four weights of a row, compressed for the card's sparse tensor cores."""
    groups = weight.unflatten(1, (-1, 4))
    largest = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, groups.abs().topk(2, dim=2).indices, True)
    return torch.sparse.to_sparse_semi_structured((groups * largest).flatten(1))


def two_of_four_model(model: nn.Module, layers: Iterable[LayerSpec]) -> nn.Module:
    sparse = copy.deepcopy(model)
    for layer in layers:
        module = sparse.get_submodule(layer.name)
        module.weight = nn.Parameter(two_of_four(module.weight.detach()), requires_grad=False)
    return sparse


# Timing


class Watch:
    """Times calls that take turns, each with a cold L2 cache."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        cache = torch.cuda.get_device_properties().L2_cache_size
        self.sweep = torch.empty(4 * cache, dtype=torch.int8, device="cuda")

    def times(self, replays: Mapping[str, Replay]) -> dict[str, list[float]]:
        """Milliseconds of every competitor in every round."""
        times: dict[str, list[float]] = {name: [] for name in replays}
        for number in range(self.rounds + 3):
            for name, replay in replays.items():
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self.sweep.zero_()
                start.record()
                replay()
                end.record()
                end.synchronize()
                if number >= 3:  # before that, clocks rise
                    times[name].append(start.elapsed_time(end))
        return times


def graphed(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Replay:
    """The call as a CUDA graph, after enough calls to compile and tune it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function(inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(inputs)
    return lambda kept_alive=(function, inputs): graph.replay()  # the graph itself holds addresses only


def speed_ups(times: Mapping[str, list[float]], reference: str = "dense") -> dict[str, float]:
    return {
        name: statistics.median(base / own for base, own in zip(times[reference], of_one, strict=True))
        for name, of_one in times.items()
    }


def require_equal(outputs: Tensor, expected: Tensor, kind: str) -> None:
    error = float((outputs.double() - expected.double()).norm() / expected.double().norm())
    if not error < TOLERANCE[kind]:  # not: NaN fails too
        raise AssertionError(f"block-sparse {kind} is off its masked dense one by {error:.2g}")


LAYER_COLUMNS = ("layer", "batch", "dense, us", "2:4", "block")
MODEL_COLUMNS = ("batch", "dense, ms", "2:4", "block")


def time_layers(watch: Watch, layers: Iterable[LayerSpec], arguments: argparse.Namespace) -> list[dict[str, str]]:
    """One row per layer, batch and block shape: speed-up at every sparsity."""
    rows = []
    for layer, batch in tqdm(list(itertools.product(layers, arguments.batches)), desc="layers"):
        inputs = torch.randn(batch * layer.tokens, layer.in_features, device="cuda", dtype=DTYPE)
        weight = torch.randn(layer.shape, device="cuda", dtype=DTYPE) / layer.in_features**0.5
        bias = torch.randn(layer.out_features, device="cuda", dtype=DTYPE)
        fused = layer.role == "fc1"
        rivals = {"dense": graphed(compiled_linear(weight, bias, fused), inputs)}
        if torch.backends.cusparselt.is_available():
            rivals["2:4"] = graphed(compiled_linear(two_of_four(weight), bias, fused), inputs)
        for block_shape in arguments.blocks:
            replays = dict(rivals)
            for sparsity in arguments.sparsities:
                keep_mask = random_keep_mask(layer, block_shape, sparsity).cuda()
                storage = compress(weight, keep_mask, block_shape)
                sparse = BlockSparseLinear(layer.shape, *storage, bias, fused)
                masked = weight * BlockGrid(layer.shape, block_shape).expand(keep_mask)
                expected = linear(inputs, masked, bias)
                require_equal(sparse(inputs), gelu(expected) if fused else expected, "layer")
                replays[f"{sparsity:.0%}"] = graphed(sparse, inputs)
            times = watch.times(replays)
            heads = {"layer": layer.role, "batch": str(batch), "block": "{}x{}".format(*block_shape)}
            rows.append(heads | {"dense, us": f"{1000 * statistics.median(times['dense']):.0f}"} | cells(times))
    return rows


def compiled_linear(weight: Tensor, bias: Tensor, fused: bool) -> Callable[[Tensor], Tensor]:
    def layer(inputs: Tensor) -> Tensor:
        outputs = linear(inputs, weight, bias)
        return gelu(outputs) if fused else outputs

    torch.compiler.reset()  # one compiled layer at a time, so that none is compiled for any shape
    return torch.compile(layer, dynamic=False)


def time_models(
    watch: Watch, model: nn.Module, layers: list[LayerSpec], arguments: argparse.Namespace
) -> list[dict[str, str]]:
    """One row per batch and block shape: speed-up at every sparsity, and energy per image at the largest batch."""
    rows = []
    for batch in tqdm(arguments.batches, desc="models"):
        images = torch.randn(batch, *input_size(model), device="cuda", dtype=DTYPE)
        torch.compiler.reset()
        rivals = {"dense": graphed(torch.compile(model, dynamic=False), images)}
        if torch.backends.cusparselt.is_available():
            rivals["2:4"] = graphed(torch.compile(two_of_four_model(model, layers), dynamic=False), images)
        for block_shape, masks in masks_to_time(layers, arguments):
            replays = dict(rivals)
            for name, keep_masks in masks.items():
                sparse = block_sparse_model(model, keep_masks, block_shape)
                require_equal(sparse(images), masked_model(model, keep_masks, block_shape)(images), "model")
                torch.compiler.reset()
                replays[name] = graphed(torch.compile(sparse, dynamic=False), images)
            times = watch.times(replays)
            row = {"batch": str(batch), "block": "{}x{}".format(*block_shape)}
            row |= {"dense, ms": f"{statistics.median(times['dense']):.2f}"} | cells(times)
            if batch == max(arguments.batches) and arguments.energy_seconds:
                row |= energy_cells(replays, batch, arguments.energy_seconds)
            rows.append(row)
    return rows


def masks_to_time(
    layers: list[LayerSpec], arguments: argparse.Namespace
) -> Iterable[tuple[tuple[int, int], dict[str, dict[str, Tensor]]]]:
    """Block shapes with keep masks by name: random ones, or those that the pipeline made."""
    if arguments.masks is not None:
        keep_masks, block_shape = load_masks(arguments.masks)
        yield block_shape, {"masks": keep_masks}
        return
    for block_shape in arguments.blocks:
        yield (
            block_shape,
            {
                f"{sparsity:.0%}": {layer.name: random_keep_mask(layer, block_shape, sparsity) for layer in layers}
                for sparsity in arguments.sparsities
            },
        )


# Energy


def energy_cells(replays: Mapping[str, Replay], images: int, seconds: float) -> dict[str, str]:
    """Millijoules per image of every competitor, gross and with the idle card's subtracted."""
    from zeus.device.gpu import ZeusGPUInitError, get_gpus
    from zeus.monitor import ZeusMonitor

    try:
        get_gpus()
    except ZeusGPUInitError as error:
        return {"energy": f"not available on this machine ({error})"}
    monitor = ZeusMonitor(gpu_indices=[torch.cuda.current_device()], cpu_indices=[])
    idle_joules, idle_seconds, _ = window(monitor, lambda: time.sleep(0.1), seconds)
    energies = {}
    for name, replay in tqdm(replays.items(), desc="energy", leave=False):
        joules, elapsed, calls = window(monitor, replay, seconds)
        net = joules - idle_joules / idle_seconds * elapsed
        energies[f"{name}, mJ gross"] = f"{1000 * joules / (calls * images):.1f}"
        energies[f"{name}, mJ net"] = f"{1000 * net / (calls * images):.1f}"
    return energies


def window(monitor: "ZeusMonitor", call: Replay, seconds: float) -> tuple[float, float, int]:  # noqa: F821
    """Joules, seconds and number of the calls made in at least that many seconds."""
    calls, start = 0, time.monotonic()
    monitor.begin_window("window")
    while time.monotonic() - start < seconds:
        for _ in range(10):
            call()
        torch.cuda.synchronize()  # so that the queue does not run ahead of the clock
        calls += 10
    measurement = monitor.end_window("window")
    return measurement.total_energy, measurement.time, calls


# Tables


def cells(times: Mapping[str, list[float]]) -> dict[str, str]:
    return {name: f"{speed_up:.2f}" for name, speed_up in speed_ups(times).items() if name != "dense"}


def print_table(title: str, first: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    """Markdown; columns that not all rows have come last, a missing cell is empty."""
    columns = list(dict.fromkeys([*first, *itertools.chain.from_iterable(rows)]))
    print(f"### {title}\n")
    print("| " + " | ".join(columns) + " |")
    print("| " + " | ".join("---" for _ in columns) + " |")
    for row in rows:
        print("| " + " | ".join(row.get(column, "") for column in columns) + " |")
    print()


def block_shape(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")]
    parser.add_argument("--models", nargs="+", default=sizes, help="timm names")
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 128, 256], help="images")
    shapes = [(32, 32), (64, 64), (128, 64), (64, 128), (128, 128)]
    parser.add_argument("--blocks", nargs="+", type=block_shape, default=shapes, help="for example 64x64")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--masks", type=Path, help="masks.pt of the pipeline for the whole model, not random ones")
    parser.add_argument("--rounds", type=int, default=50, help="timed calls of each competitor")
    parser.add_argument("--energy-seconds", type=float, default=10.0, help="per window; 0 leaves energy out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
