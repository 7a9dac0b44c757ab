"""Models run by OpenVINO and onnxruntime, against torch."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import emulator
from tiny import dense_model, photographs
from torch import nn

from lpvit.benchmark import engines
from lpvit.benchmark.engines import Exported, Rivals
from lpvit.benchmark.settings import ENGINES
from lpvit.benchmark.speed import engine_configurations, speed_table, with_accuracy
from lpvit.errors import LpvitError
from lpvit.training.evaluation import Accuracy

needs_engines = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("openvino", "nncf", "onnxruntime", "onnxscript")),
    reason="needs OpenVINO, NNCF and onnxruntime (pip install 'lpvit[engines]')",
)


@pytest.fixture(scope="module")
def exported() -> Exported:
    model = dense_model("vit").eval()
    embedding = model.patch_embed
    model.pretrained_cfg["input_size"] = (embedding.proj.in_channels, *embedding.img_size)
    return Exported(model, photographs("vit").split(8))


@needs_engines
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gives_torchs_logits_up_to_its_precision_for_any_number_of_images(
    exported: Exported, engine: str
) -> None:
    images = photographs("vit")
    with torch.no_grad():
        expected = exported.model(images)
    tolerance = 0.25 if "int8" in engine else 0.03 if "bfloat16" in engine else 1e-5
    run = exported.run_by(engine, batch_size=5, threads=1)
    for count in (1, 5):
        error = (run(images[:count]) - expected[:count]).abs().max() / expected.abs().max()
        assert error < tolerance


@needs_engines
def test_files_of_engines_are_made_once_in_a_given_folder(exported: Exported, tmp_path: Path) -> None:
    first = Exported(exported.model, exported.calibration, tmp_path / "kept")
    files = {engine: first.file(engine) for engine in ("onnxruntime_float32", "onnxruntime_int8_static")}
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    assert set(files.values()) < set(written)
    again = Exported(nn.Identity(), (), tmp_path / "kept")
    assert {again.file(engine) for engine in files} == set(files.values())
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()} == written


@needs_engines
def test_onnxruntime_multiplies_by_static_scales_in_int8_where_weights_are_constant(exported: Exported) -> None:
    import onnx

    graph = onnx.load(exported.file("onnxruntime_int8_static")).graph
    sources = {output: node.op_type for node in graph.node for output in node.output}
    inputs = [[sources.get(name) for name in node.input] for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    in_int8 = [kinds for kinds in inputs if kinds[:2] == ["DequantizeLinear"] * 2]
    depth = len(exported.model.blocks)
    assert len(in_int8) == 4 * depth + 1  # qkv, proj, fc1, fc2, and the head; attention stays in float32
    assert len(inputs) == len(in_int8) + 2 * depth


@needs_engines
def test_the_benchmark_refuses_an_engine_with_other_logits_and_takes_one_in_int8(exported: Exported) -> None:
    images = photographs("vit", 2)
    wrong = {"dense_onnxruntime_float32": lambda images: exported.model(images) + 1}
    with pytest.raises(LpvitError, match="'dense_onnxruntime_float32' is off by"):
        engine_configurations(wrong, {"dense": exported.model}, images)
    rounded = {name.replace("float32", "int8"): run for name, run in wrong.items()}
    assert engine_configurations(rounded, {"dense": exported.model}, images).keys() == {"dense_onnxruntime_int8"}


@needs_engines
def test_where_sums_of_bytes_saturate_weights_have_seven_bits(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 * 255 * 64 < 2 ** 15 <= 2 * 255 * 65."""
    import onnx
    import openvino

    for processor in ("older", "newer"):
        older = processor == "older"
        for engine in ("openvino", "onnxruntime"):
            monkeypatch.setattr(engines, f"saturates_in_{engine}", lambda older=older: older)
        by = Exported(exported.model, exported.calibration)
        model = openvino.Core().read_model(by.file("openvino_int8"))
        stored = [op.data for op in model.get_ops() if op.get_element_type() == openvino.Type.i8]
        for engine in ("onnxruntime_int8", "onnxruntime_int8_static"):
            tensors = onnx.load(by.file(engine)).graph.initializer
            stored += [onnx.numpy_helper.to_array(one) for one in tensors if one.data_type == onnx.TensorProto.INT8]
        largest = [int(np.abs(values.astype(int)).max()) for values in stored if values.ndim > 1]
        assert len(largest) == 30
        assert max(largest) == (64 if older else 127)


@needs_engines
@pytest.mark.thorough
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_sums_of_bytes_saturate_on_a_processor_without_vnni(engine: str) -> None:
    code = f"from lpvit.benchmark import engines; print(engines.saturates_in_{engine}())"
    command = [*emulator("Haswell"), sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "True"


def test_the_fastest_dense_configuration_is_the_reference_whichever_engine_it_is() -> None:
    times = {"dense": 4.0, "dense_openvino_int8": 2.0, "masked_openvino_int8": 1.9, "sparse": 1.0}
    table = speed_table({setup: np.full(9, seconds) for setup, seconds in times.items()}, 8).set_index("configuration")
    assert set(table["reference"]) == {"dense_openvino_int8"}
    assert table.loc["sparse", "speed_up"] == 2
    accuracies = {"dense_openvino_int8": Accuracy(images=200, top1=70.5, top5=90.0, loss=1.0)}
    told = with_accuracy(table.reset_index(), accuracies).set_index("configuration")[["top1", "images"]]
    assert told.loc["dense_openvino_int8"].tolist() == [70.5, 200]
    assert told.loc[["dense", "sparse"]].isna().all(axis=None)


def test_accuracy_is_counted_on_the_validation_images() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    rivals = Rivals((), (), [(torch.eye(2)[[0, 1, 0, 0]], labels)])
    accuracy = rivals.accuracy(lambda images: images)
    assert (accuracy.top1, accuracy.images) == (75, 4)


def test_an_engine_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda package: None if package == "nncf" else package)
    engines.require_engines(["onnxruntime_int8"])
    with pytest.raises(LpvitError, match=r"'openvino_int8' needs the package 'nncf'; pip install 'lpvit\[engines\]'"):
        engines.require_engines(["openvino_int8"])
