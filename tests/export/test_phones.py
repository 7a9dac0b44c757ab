"""The code of the documentation that writes models for phones, and the files that it writes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from tiny import dense_model, photographs
from torch import Tensor

import lpvit

SECTION = (REPOSITORY / "docs/inference.md").read_text().partition("## On phones\n")[2].partition("\n## ")[0]
SAMPLE, *CODE = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


def written(package: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Runs the code for a package on a model with factors; an image, and the model's logits."""
    monkeypatch.chdir(folder)
    images = photographs("vit")
    pruned = lpvit.prune(dense_model("vit").eval(), images.split(8), budget=0.7)
    assert any(edit.kind == "factors" for edit in pruned.architecture.edits)
    names: dict[str, Any] = {"torch": torch, "Path": Path, "pruned": pruned, "image": images[:1]}
    exec(SAMPLE, names)
    (code,) = (each for each in CODE if package in each)
    exec(code, names)
    with torch.no_grad():
        return images[:1], pruned.model(images[:1])


@pytest.mark.thorough
def test_executorch_computes_the_logits_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("executorch.runtime", reason="needs executorch")
    image, logits = written("executorch", tmp_path, monkeypatch)
    method = runtime.Runtime.get().load_program("model.pte").load_method("forward")
    torch.testing.assert_close(method.execute([image])[0], logits, atol=1e-5, rtol=1e-5)


@pytest.mark.thorough
def test_litert_computes_the_logits_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("litert_torch", reason="needs litert-torch")
    from ai_edge_litert.interpreter import Interpreter

    image, logits = written("litert_torch", tmp_path, monkeypatch)
    interpreter = Interpreter("model.tflite")
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image.numpy())
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, logits.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.thorough
def test_core_ml_describes_an_image_and_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its predictions need macOS, so the shapes of the file are all that is compared."""
    coremltools = pytest.importorskip("coremltools", reason="needs coremltools")
    image, logits = written("coremltools", tmp_path, monkeypatch)
    description = coremltools.models.MLModel("model.mlpackage", skip_model_load=True).get_spec().description
    assert tuple(description.input[0].type.multiArrayType.shape) == image.shape
    assert tuple(description.output[0].type.multiArrayType.shape) == logits.shape
