"""Other inference engines: OpenVINO and onnxruntime, in their own precisions, with threads pinned in the same way.

N = images of a pass; K = classes.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.export.onnx import write_onnx
from lpvit.export.onnx_int8 import saturation_test
from lpvit.precisions import PRECISIONS
from lpvit.structures.factors.scaling import even_out_features
from lpvit.training.evaluation import Accuracy, evaluate

PACKAGES = {"openvino": ("openvino", "nncf"), "onnxruntime": ("onnxruntime",)}

Run = Callable[[Tensor], Tensor]  # images (N, channels, height, width), float32 -> logits (N, K)


def require_engines(engines: Iterable[str]) -> None:
    """Checks that engines can run here.

    Raises:
        LpvitError: A package is not installed.
    """
    for engine in engines:
        for package in ("onnx", "onnxscript", *PACKAGES[engine.partition("_")[0]]):
            if find_spec(package) is None:
                raise LpvitError(
                    f"benchmark.engines: '{engine}' needs the package '{package}'; pip install 'lpvit[engines]'"
                )


def openvino_options(threads: int, precision: str) -> dict[str, Any]:
    """OpenVINO's compile options, for one pass at a time.

    Args:
        threads: CPU threads of a pass.
        precision: Of the products; those of int8 are in the model, and its other operations in float32.
    """
    return {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision].openvino,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }


@dataclass(frozen=True)
class Exported:
    """A model in the format of the engines.

    Attributes:
        model: In float32 on the CPU, dense or with zeros; not modified.
        calibration: Batches of images (N, channels, height, width) for static scales of int8.
        folder: Where the engines' files are kept, and used again if they exist; a temporary one by default.
    """

    model: nn.Module
    calibration: Sequence[Tensor]
    folder: Path | None = None
    _temporary: TemporaryDirectory[str] = field(default_factory=TemporaryDirectory)

    def run_by(self, engine: str, batch_size: int, threads: int) -> Run:
        """Compiles the model with an engine.

        Args:
            engine: Of `lpvit.benchmark.settings.ENGINES`.
            batch_size: N of most passes; smaller batches are padded.
            threads: CPU threads of a pass.

        Raises:
            LpvitError: A package is not installed.
        """
        require_engines([engine])
        compiled = self._by_openvino if engine.startswith("openvino") else self._by_onnxruntime
        run = compiled(engine, batch_size, threads)

        def padded(images: Tensor) -> Tensor:
            images = images.float()
            filled = torch.cat([images, images[:1].expand(batch_size - len(images), *images.shape[1:])])
            return torch.from_numpy(run(filled.numpy()))[: len(images)]

        return padded

    def file(self, engine: str) -> Path:
        """The file that an engine runs, made if it does not exist: ONNX, or of OpenVINO in int8.

        Args:
            engine: Of `lpvit.benchmark.settings.ENGINES`.
        """
        if "int8" not in engine:
            return self._made("model.onnx", partial(write_onnx, self.model))
        if engine.startswith("openvino"):
            return self._made("openvino.xml", self._quantise_for_openvino)
        if engine.endswith("static"):
            return self._made("static.onnx", self._quantise_by_scales)
        return self._made("dynamic.onnx", self._quantise_dynamically)

    @property
    def evened(self) -> Path:
        """ONNX in float32 with features between factors that one static scale suits."""

        def write(file: Path) -> None:
            model = deepcopy(self.model)
            even_out_features(model, self.calibration)
            write_onnx(model, file)

        return self._made("evened.onnx", write)

    def _made(self, name: str, write: Callable[[Path], None]) -> Path:
        file = Path(self.folder or self._temporary.name, name)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file)
        return file

    def _quantise_for_openvino(self, file: Path) -> None:
        import openvino

        model = openvino.Core().read_model(self.evened)
        openvino.save_model(quantised_by_nncf(model, self.calibration), file, compress_to_fp16=False)

    def _quantise_dynamically(self, file: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        seven_bits = saturates_in_onnxruntime()  # as its documentation advises there
        source = self.file("onnxruntime_float32")
        quantize_dynamic(source, file, weight_type=QuantType.QInt8, per_channel=True, reduce_range=seven_bits)

    def _quantise_by_scales(self, file: Path) -> None:
        """Inputs and weights of layers in int8, their outputs and the products of attention in float32."""
        import onnx
        from onnxruntime.quantization import QuantType, quantize_static

        source, layers = self.evened, ["MatMul", "Gemm", "Conv"]
        graph = onnx.load(source).graph
        weights = {tensor.name for tensor in graph.initializer}
        attention = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
        quantize_static(
            source,
            file,
            _Reader(self.calibration),
            op_types_to_quantize=layers,
            nodes_to_exclude=attention,
            per_channel=True,
            reduce_range=saturates_in_onnxruntime(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": layers},
        )

    def _by_openvino(self, engine: str, batch_size: int, threads: int) -> Callable[[Any], Any]:
        import openvino

        core = openvino.Core()
        model = core.read_model(self.file(engine))
        model.reshape({"images": [batch_size, *self.calibration[0].shape[1:]]})  # a fixed shape is fastest
        options = openvino_options(threads, engine.rpartition("_")[2])
        request = core.compile_model(model, "CPU", options).create_infer_request()
        return lambda images: request.infer({0: images})[0].copy()

    def _by_onnxruntime(self, engine: str, batch_size: int, threads: int) -> Callable[[Any], Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_free_dimension_override_by_name("batch", batch_size)
        session = onnxruntime.InferenceSession(
            self.file(engine),
            options,
            providers=["CPUExecutionProvider"],
            # It would make products and biases Gemm, which is not fused with DequantizeLinear: slower than float32.
            disabled_optimizers=["MatMulAddFusion"] if engine.endswith("static") else None,
        )
        return lambda images: session.run(None, {"images": images})[0]


class _Reader:
    """Calibration images one by one, as onnxruntime reads them."""

    def __init__(self, calibration: Sequence[Tensor]) -> None:
        self._images = iter([image[None].float().numpy() for batch in calibration for image in batch])

    def get_next(self) -> dict[str, Any] | None:
        images = next(self._images, None)
        return None if images is None else {"images": images}


def quantised_by_nncf(model: Any, calibration: Sequence[Tensor], wide: Sequence[str] = ()) -> Any:
    """NNCF's post-training quantisation, with the preset for transformers; weights of 7 bits where 8 saturate.

    Scales cover all values of the calibration. NNCF's defaults, the mean of the images' ranges and SmoothQuant, change
    the logits of a ViT 3 to 20 times as much.

    Args:
        model: ``openvino.Model``, changed.
        calibration: Batches of inputs, (N, ...) each.
        wide: Names of operations that are not quantised.
    """
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own function also changes handlers of others
    images = [image[None].float().numpy() for batch in calibration for image in batch]
    return nncf.quantize(
        model,
        nncf.Dataset(images),
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=list(wide)) if wide else None,
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if saturates_in_openvino() else None,
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1),  # off
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        ),
    )


@functools.cache
def saturates_in_openvino() -> bool:
    """Whether OpenVINO adds products of unsigned by signed bytes in 16 bits here, as it does on x86 without VNNI."""
    import openvino
    from openvino import opset13 as op

    inputs = op.parameter([16, 16], np.float32)
    unsigned = op.fake_quantize(inputs, np.float32(0), np.float32(255), np.float32(0), np.float32(255), 256)
    signed = op.convert(op.constant(np.full((16, 16), 127, np.int8)), np.float32)
    weight = op.multiply(signed, op.constant(np.ones((16, 1), np.float32)))  # as NNCF stores it
    model = openvino.Model([op.matmul(unsigned, weight, False, True)], [inputs])
    compiled = openvino.Core().compile_model(model, "CPU", openvino_options(1, "float32"))
    sums = compiled(np.full((16, 16), 255, np.float32))[0]
    return bool((sums != 16 * 255 * 127).any())


@functools.cache
def saturates_in_onnxruntime() -> bool:
    """Whether onnxruntime adds products of unsigned by signed bytes in 16 bits here, as it does on x86 without VNNI."""
    import onnx_ir
    import onnxruntime

    nodes = saturation_test()
    exact = nodes[-1].outputs[0]
    exact.dtype, exact.shape = onnx_ir.DataType.BOOL, onnx_ir.Shape([])
    graph = onnx_ir.Graph([], [exact], nodes=nodes, opset_imports={"": 18}, name="saturation")
    content = onnx_ir.to_proto(onnx_ir.Model(graph, ir_version=10)).SerializeToString()
    return not onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {})[0]


@dataclass(frozen=True)
class Rivals:
    """The engines of a benchmark, and the images that they need.

    Attributes:
        engines: Of `lpvit.benchmark.settings.ENGINES`.
        calibration: As for `Exported`.
        validation: Labelled images for the accuracy of engines in int8, as for `evaluate`; none without classes.
    """

    engines: Sequence[str]
    calibration: Sequence[Tensor]
    validation: Sequence[tuple[Tensor, Tensor]]

    def export(self, models: Mapping[str, nn.Module]) -> dict[str, Exported]:
        """The models in the format of the engines; copied before they are cast or moved, if there is an engine."""
        if not self.engines:
            return {}
        return {
            name: Exported(deepcopy(model).cpu().float().eval(), self.calibration) for name, model in models.items()
        }

    def runs(self, exported: Mapping[str, Exported], batch_size: int, threads: int) -> dict[str, Run]:
        """Configuration (model and engine) -> function that runs it."""
        return {
            f"{name}_{engine}": model.run_by(engine, batch_size, threads)
            for name, model in exported.items()
            for engine in self.engines
        }

    def accuracy(self, run: Run) -> Accuracy:
        """Accuracy of a configuration on the validation images."""
        return evaluate(_Called(run), self.validation, torch.device("cpu"))


NO_RIVALS = Rivals((), (), ())


class _Called(nn.Module):
    """Wraps a function as a model to evaluate."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)
