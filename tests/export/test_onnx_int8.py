"""Layers in int8 as ONNX: equal to torch's, on processors that add products of bytes in 16 bits too."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import emulator
from tiny import dense_model, photographs
from torch import Tensor, nn

import lpvit
from lpvit.export.onnx import write_onnx
from lpvit.quantisation.layers import QuantisedLinear

onnx = pytest.importorskip("onnx")
RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"images": numpy.load(sys.argv[2])})[0])
"""


class Extremes(nn.Module):
    """A layer whose inputs are 255 or 0 and whose weights are 127 or -127, equal in pairs or not."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (1, 4, 16)}
        self.layer = QuantisedLinear(64, 4)
        weights = torch.full((4, 64), 127, dtype=torch.int8)
        weights[1], weights[2, 32:], weights[3, ::2] = -127, -127, -127
        self.layer.store(weights, torch.ones(4), None)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 4, 16) -> (N, 4)."""
        return self.layer(images.flatten(1))


def extremes() -> tuple[nn.Module, Tensor]:
    images = torch.zeros(2, 64)
    images[0], images[1, :40] = 255, 255
    return Extremes().eval(), images.reshape(2, 1, 4, 16)


def quantised_vit() -> tuple[nn.Module, Tensor]:
    images = photographs("vit")
    pruned = lpvit.prune(dense_model("vit"), images.split(8), budget=0.5, block_shape=(8, 4))
    return lpvit.quantise(pruned, images.split(8)).model, images[:5]


def saturated_product(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Of unsigned by signed bytes, as ``vpmaddubsw`` adds them up; (T, I), (I, O) -> (T, O)."""
    products = values.astype(np.int32)[..., None] * weight.astype(np.int32)
    return (products[:, ::2] + products[:, 1::2]).clip(-(2**15), 2**15 - 1).sum(1)


def run_as_written(path: Path, images: np.ndarray) -> np.ndarray:
    """By ONNX's own reference, on a processor whose sums of unsigned by signed bytes saturate."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class MatMulInteger(OpRun):
        def _run(self, values, weight, values_zero_point=None, weight_zero_point=None):  # type: ignore[no-untyped-def]
            assert values.dtype == np.uint8
            assert values_zero_point is None
            tokens = values.reshape(-1, values.shape[-1])
            if weight.dtype == np.int8:
                assert weight_zero_point is None
                sums = saturated_product(tokens, weight)
            else:
                sums = tokens.astype(np.int32) @ (weight.astype(np.int32) - weight_zero_point)
            return (sums.reshape(*values.shape[:-1], -1).astype(np.int32),)

    return ReferenceEvaluator(str(path), new_ops=[MatMulInteger]).run(None, {"images": images})[0]


def run_by_onnxruntime(path: Path, images: np.ndarray, *before: str) -> np.ndarray:
    np.save(path.with_name("images.npy"), images)
    files = [str(path.with_name(name)) for name in (path.name, "images.npy", "logits.npy")]
    done = subprocess.run([*before, sys.executable, "-c", RUN, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(files[2])


def run_by_older_processor(path: Path, images: np.ndarray) -> np.ndarray:
    return run_by_onnxruntime(path, images, *emulator("Haswell"))


@dataclass(frozen=True)
class Exported:
    """A model as a file, images, and the logits that torch gives."""

    path: Path
    images: np.ndarray
    logits: np.ndarray


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    def written(case: Callable[[], tuple[nn.Module, Tensor]]) -> Exported:
        model, images = case()
        path = tmp_path_factory.mktemp(case.__name__) / "model.onnx"
        write_onnx(model, path)
        with torch.no_grad():
            return Exported(path, images.numpy(), model(images).numpy())

    return {case.__name__: written(case) for case in (extremes, quantised_vit)}


@pytest.mark.parametrize(
    "run",
    [run_by_onnxruntime, run_as_written, pytest.param(run_by_older_processor, marks=pytest.mark.thorough)],
)
@pytest.mark.parametrize(("case", "tolerance"), [("extremes", 0.0), ("quantised_vit", 2e-2)])
def test_the_exported_model_gives_torchs_logits_on_any_processor(
    exported: dict[str, Exported], case: str, tolerance: float, run: Callable[[Path, np.ndarray], np.ndarray]
) -> None:
    """But where a number lies half way between two integers: there the rounding of float32 decides."""
    pytest.importorskip("onnxruntime")
    expected = exported[case].logits
    found = run(exported[case].path, exported[case].images)
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_without_the_second_form_sums_of_the_extremes_saturate() -> None:
    model, images = extremes()
    weight = model.get_submodule("layer").weight.numpy().T
    values = images.flatten(1).numpy()
    exact = values.astype(np.int64) @ weight
    assert np.abs(saturated_product(values, weight) - exact).max() > 0.4 * np.abs(exact).max()


def test_every_product_has_two_forms_of_the_same_stored_bytes(exported: dict[str, Exported]) -> None:
    graph = onnx.load(exported["quantised_vit"].path).graph
    choices = [node for node in graph.node if node.op_type == "If"]
    assert len(choices) == sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in graph.initializer) == 8
    for choice in choices:
        for branch in choice.attribute:
            assert [node.op_type for node in branch.g.node][-1] == "MatMulInteger"
            assert not branch.g.initializer


def test_onnxruntime_keeps_one_form_of_every_product(exported: dict[str, Exported], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(exported["quantised_vit"].path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("MatMulInteger") == 8
    assert "If" not in kinds
