"""Speed of a block-sparse layer as a custom operator inside onnxruntime.

    python benchmarks/inside_onnxruntime.py /usr/include/onnxruntime --output rows.csv

The folder contains onnxruntime_cxx_api.h, which is in no wheel (but in Debian's libonnxruntime-dev); its version may be
older than that of the package. Layers of the shapes of DeiT-S in float32, half of the blocks of 32x32 pruned at random,
one thread, processor time. Interleaved: the dense layer in onnxruntime, ours as torch operator, and ours in
onnxruntime. `kept` is (dense - inside) / (dense - outside), the median over the rounds.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from sparse_linear import random_mask
from torch import Tensor, nn

from lpvit.benchmark.speed import require_equal
from lpvit.measure.timing import calm_clock, time_in_turns
from lpvit.sparse import BlockSparseLinear, build

SHAPES = ((1152, 384), (384, 384), (1536, 384), (384, 1536))  # of qkv, proj, fc1 and fc2: outputs, inputs
BLOCK_SHAPE = (32, 32)
TOKENS = (1576, 197)  # of eight images and of one


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    source = Path(__file__).with_suffix(".cpp").resolve()
    headers = ("-isystem", str(arguments.headers), "-I", str(build.SOURCES))
    _, library = build._loaded_library(build.Caller(str(source), onnxruntime.__version__, headers, ()))
    rows = pd.DataFrame(measured(shape, tokens, library, arguments) for shape in SHAPES for tokens in TOKENS)
    print(rows.to_markdown(index=False, floatfmt=".3f"))
    if arguments.output:
        rows.to_csv(arguments.output, index=False)


def measured(
    shape: tuple[int, int], tokens: int, library: Path, arguments: argparse.Namespace
) -> dict[str, float | int | str]:
    """Milliseconds of a layer, medians over the rounds, and the share of the gain that is kept."""
    torch.manual_seed(0)
    dense, keep_mask = nn.Linear(shape[1], shape[0]), random_mask(shape, BLOCK_SHAPE, 1 - arguments.kept)
    sparse = BlockSparseLinear.from_linear(dense, keep_mask, BLOCK_SHAPE)
    dense.weight.copy_(sparse.dense_weight())
    inputs = torch.randn(tokens, shape[1])
    methods = {
        "dense": run_by_onnxruntime(of_dense(dense), inputs),
        "outside": partial(sparse, inputs),
        "inside": run_by_onnxruntime(of_sparse(sparse), inputs, library),
    }
    for name, run in methods.items():
        require_equal(name, run(), dense(inputs), "float32")
    times = time_in_turns(methods, device="cpu", seconds=arguments.seconds, clock=calm_clock("cpu"))
    milliseconds = {name: 1e3 * float(np.median(seconds)) for name, seconds in times.items()}
    kept = float(np.median((times["dense"] - times["inside"]) / (times["dense"] - times["outside"])))
    place = {"layer": f"{shape[0]}x{shape[1]}", "tokens": tokens}
    return place | milliseconds | {"kept": kept, "rounds": len(times["dense"])}


def run_by_onnxruntime(model: ModelProto, inputs: Tensor, library: Path | None = None) -> Callable[[], Tensor]:
    """Runs a model on one thread, with fixed input and output memory."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if library:
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shape = (len(inputs), session.get_outputs()[0].shape[1])
    outputs = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
    binding = session.io_binding()
    binding.bind_cpu_input("inputs", inputs.numpy())
    binding.bind_ortvalue_output("outputs", outputs)

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return torch.from_numpy(outputs.numpy())

    return run


def of_dense(layer: nn.Linear) -> ModelProto:
    return of_one_node("Gemm", "", {"weight": layer.weight, "bias": layer.bias}, layer.in_features, {"transB": 1})


def of_sparse(layer: BlockSparseLinear) -> ModelProto:
    tensors = {name: getattr(layer, name) for name in ("values", "crow_indices", "col_indices", "bias")}
    tensors["values"] = tensors["values"].transpose(1, 2).contiguous()
    attributes = dict(zip(("block_rows", "block_columns"), layer.block_shape, strict=True))
    attributes["out_features"] = layer.out_features
    return of_one_node("BlockSparseLinear", "lpvit", tensors, layer.in_features, attributes)


def of_one_node(
    name: str, domain: str, tensors: dict[str, Tensor], in_features: int, attributes: dict[str, int]
) -> ModelProto:
    """A model with one operator; the last constant is the bias."""
    node = helper.make_node(name, ["inputs", *tensors], ["outputs"], domain=domain, **attributes)
    places = {"inputs": in_features, "outputs": len(tensors["bias"])}
    inputs, outputs = (helper.make_tensor_value_info(key, TensorProto.FLOAT, ["M", n]) for key, n in places.items())
    constants = [numpy_helper.from_array(tensor.detach().numpy(), key) for key, tensor in tensors.items()]
    graph = helper.make_graph([node], name, [inputs], [outputs], constants)
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("lpvit", 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=9)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("headers", type=Path, help="folder of onnxruntime_cxx_api.h")
    parser.add_argument("--kept", type=float, default=0.5, help="share of the blocks")
    parser.add_argument("--seconds", type=float, default=1, help="per configuration")
    parser.add_argument("--output", type=Path, help="CSV to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
