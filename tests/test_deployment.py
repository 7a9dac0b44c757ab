"""The benchmark of deployment on a tiny model: it makes each model once, times and classifies, and resumes."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import deployment
import deployment_models
import pandas as pd
import pytest
from factor_layers import products_of_factors
from tiny import VIT, photographs, sized_model

from lpvit.models.architecture import Architecture

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        any(find_spec(package) is None for package in ("openvino", "nncf", "onnxruntime", "onnxscript")),
        reason="needs OpenVINO, NNCF and onnxruntime (pip install 'lpvit[engines]')",
    ),
]

ENGINES = ["torch_float32", "onnxruntime_float32", "onnxruntime_int8"]
CHOICE = ["--methods", "factors", "blocks", "--macs", "0.6", "--engines", *ENGINES]
MODELS = [("dense", 1.0), ("factors", 0.6), ("blocks", 0.6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployment")


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    tiny = sized_model("vit")
    dense = Architecture.of(tiny, VIT).build(tiny.state_dict()).eval()
    images = photographs("vit")
    labels = dense(images).argmax(dim=1)
    given = deployment_models.Images([images[:8], images[8:16]], [(images, labels)])
    monkeypatch.setattr(deployment_models, "of_shape", lambda name: (dense, given))

    def call(what: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["deployment.py", what, "--folder", str(folder / "tiny"), *arguments, *CHOICE])
        deployment.main()

    call("shape", "--shape", "deit_small")
    return call


def test_models_and_files_of_engines_are_made_once(folder: Path, run: Callable[..., None]) -> None:
    files = {file: file.stat().st_mtime_ns for file in (folder / "tiny").rglob("*") if file.is_file()}
    assert {file.name for file in files} >= {"factors_60.safetensors", "blocks_60.int8.safetensors", "dynamic.onnx"}
    run("shape", "--shape", "deit_small")
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_every_model_is_timed_once_in_every_engine_and_a_stopped_run_resumes(
    folder: Path, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "speed.csv"
    choice = ["--output", str(output), "--threads", "1", "--batch-sizes", "2"]
    run("speed", *choice)
    rows = pd.read_csv(output)
    keys = list(rows[["method", "kept", "engine"]].itertuples(index=False, name=None))
    assert sorted(keys) == sorted((*model, engine) for model in MODELS for engine in ENGINES)
    dense = rows[rows["method"] == "dense"]
    assert (dense["of_engine"] == 1).all()
    assert (dense["bound"] == 1).all()
    assert (rows.loc[rows["method"] != "dense", "bound"] > 1.2).all()

    whole = output.read_text().splitlines(keepends=True)
    output.write_text("".join(whole[:7]))  # those in float32
    run("speed", *choice)
    again = output.read_text().splitlines(keepends=True)
    assert again[:7] == whole[:7]
    assert len(again) == len(whole)
    capsys.readouterr()
    run("table", "--output", str(output))
    printed = capsys.readouterr().out
    assert all(printed.count(f"| {method} ") == 2 for method, _ in MODELS)  # of each precision


def test_accuracy_is_that_of_each_engine(folder: Path, run: Callable[..., None]) -> None:
    output = folder / "accuracy.csv"
    run("accuracy", "--output", str(output))
    rows = pd.read_csv(output).set_index(["method", "engine"]).sort_index()
    assert len(rows) == len(MODELS) * len(ENGINES)
    dense = rows.loc[("dense", "torch_float32")]
    assert (dense["top1"], dense["lost"], dense["distortion"], dense["rounding"]) == (100, 0, 0, 0)
    rounding = rows["rounding"].unstack()  # noqa: PD010
    assert (rounding["onnxruntime_float32"] < 1e-6).all()
    assert (rounding["onnxruntime_int8"] > 1e-6).all()
    factors = rows.loc["factors"]
    assert (factors["lost"] == 100 - factors["top1"]).all()
    run("accuracy", "--output", str(output))
    assert len(pd.read_csv(output)) == len(rows)


def test_products_of_factors_are_pairs(folder: Path, run: Callable[..., None]) -> None:
    import openvino

    model = openvino.Core().read_model(folder / "tiny/engines/factors_60/model.onnx")
    reduce, expand = products_of_factors(model)
    made = deployment.lpvit.load(folder / "tiny/factors_60.safetensors").model
    factorised = [name for name, _ in made.named_modules() if name.endswith(".reduce")]
    assert len(reduce) == len(expand) == len(factorised) > 0
    assert not set(reduce) & set(expand)
