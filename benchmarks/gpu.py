"""What only a GPU shows, in a quarter of an hour, the most important first.

    python benchmarks/gpu.py --photos path/to/imagenet-sample --output gpu.csv

- `models`: dense models with random weights against their factors and block-sparse versions, ranks and masks from the
  pipeline, all in bfloat16, compiled and run as CUDA graphs; joules per image where the card has a counter.
- `fp8`: single layers and their factors in float8 against the dense layer in bfloat16.
- `attention`: FlexAttention of the patterns of `sparse_attention` against torch's dense attention.
- `tensorrt`: the same models through ONNX, float16 allowed, where TensorRT is installed.
- `loading`: `loading.py` with DALI on the GPU, if photographs are given.
- `processes`: the tests that need a GPU, with NCCL where there are two.

A part that fails, or takes more than its share of the time, ends alone. A row per configuration: median milliseconds,
and the speed-up over the dense one in the same rounds with its 95 % interval. Compressed models are compared with
themselves in float32 before timing. Without a GPU all parts but the last two run on the CPU, which checks the script
and nothing else.
"""

import argparse
import copy
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from deployment_models import GAUSS_NEWTON
from rows import append
from sparse_gpu import ROLES, block_shape, graphed, require_equal, two_of_four_model
from torch import Tensor, nn
from torch.nn import functional

import lpvit
from lpvit.inference.sparsify import sparsify_layers
from lpvit.measure.power import find_counter, measure_energy
from lpvit.measure.timing import median_interval, time_in_turns
from lpvit.models.analysis.layers import LayerSpec, matrix_layers, prunable_layers
from lpvit.models.sources.timm import create_model, input_size
from lpvit.schemes.kinds.sparse_attention.pattern import PatternAttention
from lpvit.structures.settings import StructureSettings

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16
FLOAT8 = torch.float8_e4m3fn
Forward = Callable[[Tensor], Tensor]
Rows = Iterator[pd.DataFrame]


def main() -> None:
    arguments = parse_arguments()
    if len(arguments.parts) > 1:
        shares = sum(SHARES[part] for part in arguments.parts)
        failed = [run_alone(part, arguments.minutes * SHARES[part] / shares) != 0 for part in arguments.parts]
        sys.exit(any(failed))
    torch.set_grad_enabled(False)
    (part,) = arguments.parts
    for rows in PARTS[part](arguments):
        card = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
        append(rows.assign(part=part, device=card), arguments.output)


def run_alone(part: str, minutes: float) -> int | None:
    """Exit status of one part in a process of its own, with the other arguments as given; None where it was ended."""
    print(f"## {part}", flush=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--parts", part]  # the last `--parts` counts
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        print(f"{part}: ended after {minutes:.1f} minutes", flush=True)
        return None
    print(f"{part}: {'done' if code == 0 else f'failed, exit status {code}'}", flush=True)
    return code


def models(arguments: argparse.Namespace) -> Rows:
    """The dense model against each kind of compressed ones, for every model and batch size."""
    for name in arguments.models:
        torch.manual_seed(0)
        dense = create_model(name, arguments.classes, {"img_size": arguments.image_size}).eval()
        in_half = copy.deepcopy(dense).to(DEVICE, DTYPE)
        for compressed in kinds(dense, arguments):
            for batch in arguments.batches:
                images = torch.randn(batch, *input_size(dense), device=DEVICE, dtype=DTYPE)
                named = {"dense": in_half, **compressed}
                runs = {each: ready(model, images, arguments) for each, model in named.items()}
                rows = timed(runs, batch, arguments.seconds).assign(model=name)
                if not isinstance(find_counter(DEVICE), str):
                    joules = measure_energy(runs, batch, device=DEVICE, seconds=arguments.seconds, repeats=1)
                    per_image = (joules["joules"] / joules["images"]).set_axis(joules["configuration"])
                    rows["joules"] = rows["configuration"].map(per_image)
                yield rows


def kinds(dense: nn.Module, arguments: argparse.Namespace) -> Iterator[dict[str, nn.Module]]:
    """Compressed models by method and share of the MACs: factors, blocks of every shape, 2:4."""
    images = torch.randn(arguments.calibration, *input_size(dense)).split(8)
    methods: dict[str, StructureSettings] = {"factors": lpvit.Factors(rank_multiple=arguments.rank_multiple)}
    for shape in arguments.blocks:
        methods["{}x{}".format(*shape)] = lpvit.Blocks(block_shape=shape, basis="aligned", **GAUSS_NEWTON)
    for method, settings in methods.items():
        compressed = {}
        for macs in arguments.macs:
            with torch.enable_grad():
                budget = lpvit.Budget(macs=macs, reconstruction="none", steps=1)
                pruned = lpvit.prune(dense.to(DEVICE), images, budget=budget, pruning=settings)
            compressed[f"{method} {macs:.0%}"] = in_bfloat16(pruned)
        yield compressed
    if DEVICE.type == "cuda" and torch.backends.cusparselt.is_available():
        try:
            yield {"2:4": two_of_four_model(copy.deepcopy(dense).to(DEVICE, DTYPE), linear_layers(dense))}
        except RuntimeError as error:
            print(f"2:4 is left out: {str(error)[:300]}", flush=True)


def in_bfloat16(pruned: lpvit.Pruned) -> nn.Module:
    """A compressed model, block-sparse where it has masks, whose logits are near those in float32."""
    images = torch.randn(2, *input_size(pruned.model), device=DEVICE)
    expected = copy.deepcopy(pruned.model).to(DEVICE).eval()(images)
    model = copy.deepcopy(pruned.model).to(DEVICE, DTYPE).eval()
    if pruned.keep_masks:
        sparsify_layers(model, pruned.keep_masks, pruned.block_shape, only_faster=False)
    require_equal(model(images.to(DTYPE)), expected, "model")
    return model


def linear_layers(model: nn.Module) -> list[LayerSpec]:
    return prunable_layers(matrix_layers(model), ROLES)


def ready(model: nn.Module, images: Tensor, arguments: argparse.Namespace) -> Callable[[], object]:
    """The pass over these images, compiled, and as a CUDA graph."""
    torch.compiler.reset()  # one model at a time, so that none is compiled for any shape
    run: Forward = model if arguments.eager else torch.compile(model, dynamic=False)
    return graphed(run, images) if DEVICE.type == "cuda" else lambda: run(images)


def fp8(arguments: argparse.Namespace) -> Rows:
    """Products of one image batch with a layer, in bfloat16 and float8, whole and as factors of half the cost."""
    for name in arguments.models:
        model = create_model(name, arguments.classes, {"img_size": arguments.image_size})
        for layer in {layer.role: layer for layer in linear_layers(model)}.values():
            outputs, inputs = layer.shape
            rank = max(16, outputs * inputs // (outputs + inputs) // 2 // 16 * 16)
            tokens = torch.randn(max(arguments.batches) * layer.tokens, inputs, device=DEVICE)
            shapes = ((outputs, inputs), (rank, inputs), (outputs, rank))
            weights = [torch.randn(*shape, device=DEVICE) for shape in shapes]
            runs = {}
            for form, product in (("", in_bfloat16_product), (" float8", in_float8_product)):
                runs[f"dense{form}"] = product(tokens, weights[:1])
                runs[f"factors{form}"] = product(tokens, weights[1:])
            yield timed(runs, max(arguments.batches), arguments.seconds).assign(model=f"{name}, {layer.role}")


def in_bfloat16_product(tokens: Tensor, weights: list[Tensor]) -> Callable[[], object]:
    given, factors = tokens.to(DTYPE), [weight.to(DTYPE) for weight in weights]

    def run() -> Tensor:
        found = given
        for weight in factors:
            found = functional.linear(found, weight)
        return found

    return run


def in_float8_product(tokens: Tensor, weights: list[Tensor]) -> Callable[[], object]:
    """Tokens are in float8 before the first product, as after a fused norm; between factors they are converted."""
    one = torch.ones((), device=DEVICE)
    given, factors = tokens.to(FLOAT8), [weight.to(FLOAT8) for weight in weights]

    def run() -> Tensor:
        found = given
        for weight in factors:
            found = torch._scaled_mm(found.to(FLOAT8), weight.T, scale_a=one, scale_b=one, out_dtype=DTYPE)
        return found

    if len(factors) == 1:
        require_equal(run(), functional.linear(given.float(), factors[0].float()), "layer")
    return run


def attention(arguments: argparse.Namespace) -> Rows:
    """Patterns of sparse attention against all tokens, for the heads of a DeiT-B."""
    for grid in arguments.grids:
        batch, tokens = max(arguments.batches), grid * grid + 1
        queries, keys, values = torch.randn(3, batch, 12, tokens, 64, device=DEVICE, dtype=DTYPE)
        runs: dict[str, Callable[[], object]] = {
            "dense": lambda q=queries, k=keys, v=values: functional.scaled_dot_product_attention(q, k, v)
        }
        for pattern in ("strided", "fixed", "block"):
            module = PatternAttention(pattern, grid, 1)  # type: ignore[arg-type]
            runs[pattern] = lambda m=module, q=queries, k=keys, v=values: m(q, k, v)
        yield timed(runs, batch, arguments.seconds).assign(model=f"{tokens} tokens")


def tensorrt(arguments: argparse.Namespace) -> Rows:
    """Dense and factors through ONNX; the only part that no CPU can run, and not run so far."""
    try:
        import tensorrt as trt
    except ImportError:
        print("tensorrt: not installed; pip install tensorrt")
        return
    for name in arguments.models:
        torch.manual_seed(0)
        dense = create_model(name, arguments.classes, {"img_size": arguments.image_size}).eval()
        images = torch.randn(arguments.calibration, *input_size(dense)).split(8)
        named = {"dense": lpvit.Pruned(dense, {}, (1, 1))}
        for macs in arguments.macs:
            with torch.enable_grad():
                budget = lpvit.Budget(macs=macs, reconstruction="none")
                named[f"factors {macs:.0%}"] = lpvit.prune(dense, images, budget=budget)
        for batch in arguments.batches:
            given = torch.randn(batch, *input_size(dense), device=DEVICE)
            runs = {configuration: by_tensorrt(trt, pruned, given) for configuration, pruned in named.items()}
            yield timed(runs, batch, arguments.seconds).assign(model=name)


def by_tensorrt(trt: "tensorrt", pruned: lpvit.Pruned, images: Tensor) -> Callable[[], object]:
    """The pass of an engine that is built for these images; its logits are compared with torch's."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network, settings = builder.create_network(0), builder.create_builder_config()
    with tempfile.TemporaryDirectory() as folder:
        lpvit.export_onnx(pruned, Path(folder, "model.onnx"))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(Path(folder, "model.onnx"))):
            raise RuntimeError(parser.get_error(0))
    settings.set_flag(trt.BuilderFlag.FP16)
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *[tuple(images.shape)] * 3)
    settings.add_optimization_profile(profile)
    engine = trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, settings))
    context, stream = engine.create_execution_context(), torch.cuda.Stream()
    expected = pruned.model.to(DEVICE)(images)
    logits = torch.empty_like(expected)
    context.set_input_shape("images", tuple(images.shape))
    for name, tensor in (("images", images), ("logits", logits)):
        context.set_tensor_address(name, tensor.data_ptr())

    def run() -> object:
        return context.execute_async_v3(stream.cuda_stream), engine

    run()
    torch.cuda.synchronize()
    require_equal(logits, expected, "model")
    return run


def loading(arguments: argparse.Namespace) -> Rows:
    """Prints the tables of `loading.py`."""
    if arguments.photos is None:
        print("loading: give --photos")
        return iter(())
    script = [str(Path(__file__).with_name("loading.py")), str(arguments.photos), "--device", DEVICE.type]
    subprocess.run([sys.executable, *script, "--threads", "8", "--rounds", "3"], check=True)
    return iter(())


def processes(_: argparse.Namespace) -> Rows:
    """Runs the tests that need a GPU; those of two processes use NCCL where there are two cards."""
    subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "-rs"], cwd=Path(__file__).parent.parent, check=True)
    return iter(())


def timed(runs: Mapping[str, Callable[[], object]], images: int, seconds: float) -> pd.DataFrame:
    """One row per configuration, the first of which is the dense one."""
    times = time_in_turns(runs, device=DEVICE, seconds=seconds)
    dense = times[next(iter(runs))]
    rows = []
    for configuration, of_one in times.items():
        speed_up = median_interval(dense / of_one)
        row = {"configuration": configuration, "batch": images, "milliseconds": 1e3 * float(np.median(of_one))}
        row |= {"speed_up": speed_up.median, "low": speed_up.low, "high": speed_up.high, "joules": np.nan}
        rows.append(row)
    return pd.DataFrame(rows)


PARTS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    **{"models": models, "fp8": fp8, "attention": attention},
    **{"tensorrt": tensorrt, "loading": loading, "processes": processes},
}
# Of the time.
SHARES = {"models": 7.0, "fp8": 1.0, "attention": 1.0, "tensorrt": 3.0, "loading": 1.5, "processes": 1.5}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=15, help="of all parts together, at most")
    parser.add_argument("--models", nargs="+", default=["deit_base_patch16_224", "vit_large_patch16_224"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256], help="images of a pass")
    parser.add_argument("--macs", nargs="+", type=float, default=[0.5, 0.35], help="share of the dense MACs")
    parser.add_argument(
        "--blocks", nargs="*", type=block_shape, default=[(64, 64), (128, 64), (128, 128)], help="like 64x64"
    )
    parser.add_argument("--rank-multiple", type=int, default=64)
    parser.add_argument("--calibration", type=int, default=16, help="random images for ranks and masks")
    parser.add_argument("--grids", nargs="+", type=int, default=[14, 24], help="rows of patches, for attention")
    parser.add_argument("--seconds", type=float, default=1.0, help="of every configuration; at least 7 rounds")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--photos", type=Path, help="folder of JPEG photographs, for loading")
    parser.add_argument("--output", type=Path, help="CSV of the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
