"""Block-sparse layers and models on a GPU against dense ones, in bfloat16: speed-up, and energy per image.

    python benchmarks/sparse_gpu.py
    python benchmarks/sparse_gpu.py --models deit_base_patch16_224 --batches 64 --blocks 64x64 --masks path/to/masks.pt

First come the card's ceilings, so that gaps can be named. Competitors: dense, and 2:4 sparse where the card has it,
both compiled, attention by SDPA; all run as CUDA graphs, so that no launch from Python is timed. They take turns call
by call, with the L2 cache overwritten before each; a speed-up is the median over the rounds of the quotient of
neighbouring calls. Outputs are compared with masked dense ones first.
"""

import argparse
import copy
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import timm
import torch
from gpu_tilings import DTYPE, choose_tilings, compile_tilings
from sparse_linear import random_mask
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from tqdm import tqdm

from lpvit.inference.sparsify import sparsify_layers
from lpvit.models.analysis.layers import LayerSpec, matrix_layers, prunable_layers
from lpvit.models.sources.timm import input_size
from lpvit.sparse import BlockSparseLinear
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masks import expand_keep_masks, load_masks, zero_pruned

Replay = Callable[[], None]
ROLES = ("qkv", "proj", "fc1", "fc2")
PARTS = ("tilings", "layers", "models")
# Norm of the error over norm of the output; a model rounds 50 times.
TOLERANCE = {"layer": 0.01, "layer int8": 0.03, "model": 0.05, "model int8": 0.2}


def main() -> None:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("no GPU here: torch finds no CUDA device, so there is nothing to time")
    torch.set_grad_enabled(False)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, timm {timm.__version__}, {DTYPE}")
    watch = Watch(arguments.rounds)
    print(ceilings(watch), flush=True)
    for name in arguments.models:
        model = timm.create_model(name, num_classes=1000).eval().cuda()
        layers = prunable_layers(matrix_layers(model), ROLES)
        model.to(DTYPE)
        distinct = list({layer.role: layer for layer in layers}.values())
        if "tilings" in arguments.parts:
            compile_tilings(arguments.blocks, precisions(arguments))
            choose_tilings(distinct, arguments.batches, arguments.blocks, precisions(arguments))
        if "layers" in arguments.parts:
            print_table(f"{name}: layers", time_layers(watch, distinct, arguments))
        if "models" in arguments.parts:
            print_table(f"{name}: whole model", time_models(watch, model, layers, arguments))


# What is timed


def block_sparse_model(
    model: nn.Module, keep_masks: Mapping[str, Tensor], block_shape: tuple[int, int], precision: str | None = None
) -> nn.Module:
    """A copy with every masked layer replaced, faster or not; the GELU after each fc1 moves into it."""
    sparse = copy.deepcopy(model)
    sparsify_layers(sparse, keep_masks, block_shape, only_faster=False, precision=precision)
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


def ceilings(watch: Watch) -> str:
    """What the card reaches at most: in a large dense product, and in a copy, bytes read and written."""
    matrix, numbers = torch.randn(8192, 8192, device="cuda", dtype=DTYPE), torch.empty(2**30, device="cuda").to(DTYPE)
    calls = {"product": lambda: matrix @ matrix, "copy": numbers.clone}
    milliseconds = {name: statistics.median(times) for name, times in watch.times(calls).items()}
    rate = 2 * 8192**3 / milliseconds["product"] / 1e9
    return f"8192x8192x8192: {rate:.0f} TFLOP/s; copy: {2 * numbers.nbytes / milliseconds['copy'] / 1e6:.0f} GB/s\n"


def speed_ups(times: Mapping[str, list[float]], reference: str = "dense") -> dict[str, float]:
    return {
        name: statistics.median(base / own for base, own in zip(times[reference], of_one, strict=True))
        for name, of_one in times.items()
    }


def require_equal(outputs: Tensor, expected: Tensor, kind: str) -> None:
    error = float((outputs.double() - expected.double()).norm() / expected.double().norm())
    if not error < TOLERANCE[kind]:  # not: NaN fails too
        raise AssertionError(f"the outputs of a {kind} are off those expected by {error:.2g}")


def time_layers(watch: Watch, layers: Iterable[LayerSpec], arguments: argparse.Namespace) -> Iterator[dict[str, str]]:
    """One row per layer, batch and block shape: speed-up at every sparsity, and what dense products reach."""
    for layer, batch in itertools.product(layers, arguments.batches):
        inputs = torch.randn(batch * layer.tokens, layer.in_features, device="cuda", dtype=DTYPE)
        dense = nn.Linear(layer.in_features, layer.out_features, device="cuda", dtype=DTYPE)
        fused = layer.role == "fc1"
        rivals = {"dense": graphed(compiled_linear(dense.weight, dense.bias, fused), inputs)}
        rivals |= two_of_four_rival(
            lambda w=dense.weight, b=dense.bias, f=fused: compiled_linear(two_of_four(w), b, f), inputs
        )
        for block_shape in arguments.blocks:
            replays = rivals | sparse_replays(dense, layer, block_shape, inputs, arguments)
            times = watch.times(replays)
            medians = {name: statistics.median(of_one) for name, of_one in times.items()}
            gigaflop = 2e-9 * len(inputs) * layer.in_features * layer.out_features
            row = {"layer": layer.role, "batch": str(batch), "block": "{}x{}".format(*block_shape)}
            row |= {"dense, us": f"{1000 * medians['dense']:.0f}", "TFLOP/s": f"{gigaflop / medians['dense']:.0f}"}
            if "0%" in medians:
                row["ours at 0%, TFLOP/s"] = f"{gigaflop / medians['0%']:.0f}"
            yield row | cells(times)


def two_of_four_rival(make: Callable[[], Callable[[Tensor], Tensor]], inputs: Tensor) -> dict[str, Replay]:
    """Where the card and torch can; what they say where they cannot."""
    if not torch.backends.cusparselt.is_available():
        return {}
    try:
        return {"2:4": graphed(make(), inputs)}
    except RuntimeError as error:
        print(f"2:4 is left out: {str(error)[:300]}", flush=True)
        return {}


def sparse_replays(
    dense: nn.Linear, layer: LayerSpec, block_shape: tuple[int, int], inputs: Tensor, arguments: argparse.Namespace
) -> dict[str, Replay]:
    """The layer at every sparsity, compared with the masked one first."""
    replays = {}
    for sparsity, precision in setups(arguments):
        keep_mask = random_mask(layer.shape, block_shape, sparsity).cuda()
        fused = layer.role == "fc1"
        sparse = BlockSparseLinear.from_linear(dense, keep_mask, block_shape, fused, precision)
        masked = dense.weight * BlockGrid(layer.shape, block_shape).expand(keep_mask)
        expected = linear(inputs, masked, dense.bias)
        require_equal(sparse(inputs), gelu(expected) if fused else expected, "layer" + suffix(precision))
        replays[f"{sparsity:.0%}{suffix(precision)}"] = graphed(sparse, inputs)
    return replays


def setups(arguments: argparse.Namespace) -> list[tuple[float, str | None]]:
    """Sparsities and precisions, None that of the model."""
    return [(share, None) for share in arguments.sparsities] + [(share, "int8") for share in arguments.int8_sparsities]


def precisions(arguments: argparse.Namespace) -> list[str | None]:
    return list(dict.fromkeys(precision for _, precision in setups(arguments)))


def suffix(precision: str | None) -> str:
    return f" {precision}" if precision else ""


def compiled_linear(weight: Tensor, bias: Tensor, fused: bool) -> Callable[[Tensor], Tensor]:
    def layer(inputs: Tensor) -> Tensor:
        outputs = linear(inputs, weight, bias)
        return gelu(outputs) if fused else outputs

    torch.compiler.reset()  # one compiled layer at a time, so that none is compiled for any shape
    return torch.compile(layer, dynamic=False)


def time_models(
    watch: Watch, model: nn.Module, layers: list[LayerSpec], arguments: argparse.Namespace
) -> Iterator[dict[str, str]]:
    """One row per batch and block shape: speed-up at every sparsity, and energy per image at the largest batch."""
    for batch in arguments.batches:
        images = torch.randn(batch, *input_size(model), device="cuda", dtype=DTYPE)
        rivals = {"dense": graphed(compiled(model), images)}
        rivals |= two_of_four_rival(lambda: compiled(two_of_four_model(model, layers)), images)
        for block_shape, masks in masks_to_time(layers, arguments):
            replays = dict(rivals)
            for (name, precision), keep_masks in masks.items():
                sparse = block_sparse_model(model, keep_masks, block_shape, precision)
                expected = masked_model(model, keep_masks, block_shape)(images)
                require_equal(sparse(images), expected, "model" + suffix(precision))
                replays[name + suffix(precision)] = graphed(compiled(sparse), images)
            times = watch.times(replays)
            row = {"batch": str(batch), "block": "{}x{}".format(*block_shape)}
            yield row | {"dense, ms": f"{statistics.median(times['dense']):.2f}"} | cells(times)
            if batch == max(arguments.batches) and arguments.energy_seconds:
                yield row | energy_cells(replays, batch, arguments.energy_seconds)


def compiled(model: nn.Module) -> nn.Module:
    torch.compiler.reset()  # one compiled model at a time, so that none is compiled for any shape
    return torch.compile(model, dynamic=False)


def masks_to_time(
    layers: list[LayerSpec], arguments: argparse.Namespace
) -> Iterator[tuple[tuple[int, int], dict[tuple[str, str | None], dict[str, Tensor]]]]:
    """Block shapes with keep masks by name and precision: random ones, or those that the pipeline made."""
    if arguments.masks is not None:
        keep_masks, block_shape = load_masks(arguments.masks)
        yield block_shape, {("masks", precision): keep_masks for precision in precisions(arguments)}
        return
    for block_shape in arguments.blocks:
        yield (
            block_shape,
            {
                (f"{sparsity:.0%}", precision): {
                    layer.name: random_mask(layer.shape, block_shape, sparsity) for layer in layers
                }
                for sparsity, precision in setups(arguments)
            },
        )


# Energy


def energy_cells(replays: Mapping[str, Replay], images: int, seconds: float) -> dict[str, str]:
    """Millijoules per image of every competitor, gross and with the idle card's subtracted."""
    try:
        from zeus.device.gpu import ZeusGPUInitError, get_gpus
        from zeus.monitor import ZeusMonitor
    except ImportError as error:
        return {"energy": f"not available ({error})"}
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


def print_table(title: str, rows: Iterable[dict[str, str]]) -> None:
    """Markdown, a row as soon as it is there; a row of other columns begins another table."""
    print(f"### {title}", flush=True)
    columns: list[str] = []
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            print("\n| " + " | ".join(columns) + " |\n| " + " | ".join("---" for _ in columns) + " |")
        print("| " + " | ".join(row.values()) + " |", flush=True)
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
    parser.add_argument("--int8-sparsities", nargs="*", type=float, default=[0.5], help="those to time in int8 too")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="tilings are chosen beforehand")
    parser.add_argument("--masks", type=Path, help="masks.pt of the pipeline for the whole model, not random ones")
    parser.add_argument("--rounds", type=int, default=50, help="timed calls of each competitor")
    parser.add_argument("--energy-seconds", type=float, default=10.0, help="per window; 0 leaves energy out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
