"""Models that return more than a tensor, in every engine and command, with one preprocessing everywhere."""

import json
from pathlib import Path

import pytest
import torch
from libraries import images, member
from PIL import Image

import lpvit
from lpvit.cli.main import main
from lpvit.cli.opened import open_model

LOADER = list(images(32).split(16))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> lpvit.Pruned:
    """Of a folder of transformers that says how images are prepared."""
    folder = tmp_path_factory.mktemp("vit")
    member("ViTForImageClassification").save_pretrained(folder)
    preprocessing = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7], "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    transformers = pytest.importorskip("transformers")
    model = transformers.ViTForImageClassification.from_pretrained(folder)
    pruned = lpvit.prune(model, LOADER, budget=0.6, block_shape=(8, 8))
    lpvit.name_classes(pruned, list("abcde"))
    return pruned


def test_every_file_has_the_same_logits_and_the_preprocessing_of_the_folder(
    pruned: lpvit.Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    Image.new("RGB", (40, 36), (200, 9, 99)).save(photo := tmp_path / "photo.png")
    lpvit.save(pruned, tmp_path / "model.safetensors")
    lpvit.export_openvino(pruned, tmp_path / "model.xml")
    with torch.no_grad():
        expected = pruned.model(LOADER[0]).logits
    lines = []
    for file in (tmp_path / "model.safetensors", tmp_path / "model.xml"):
        opened = open_model(file)
        torch.testing.assert_close(opened.run(LOADER[0]), expected, rtol=1e-3, atol=1e-3)
        assert opened.description is not None
        assert opened.description.preprocessing.mean == pytest.approx((0.1, 0.2, 0.3))
        assert main(["predict", str(file), str(photo)]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]


def test_the_command_times_it_beside_its_dense_form(
    pruned: lpvit.Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lpvit.save(pruned, tmp_path / "model.safetensors")
    assert main(["bench", str(tmp_path / "model.safetensors"), "--seconds", "0.01", "--batch-size", "1"]) == 0
    assert "masked" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_it_takes_any_dtype_by_position_and_by_name_and_gives_float32(pruned: lpvit.Pruned, precision: str) -> None:
    model = lpvit.sparsify(pruned, precision=precision)
    found = [model(LOADER[0].double()).logits, model(pixel_values=LOADER[0]).logits]
    assert {each.dtype for each in found} == {torch.float32}
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - pruned.model(LOADER[0]).logits).abs().max() < 0.3


@pytest.mark.parametrize("suffix", ["safetensors", "onnx", "xml"])
def test_features_are_not_predicted_as_classes(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    headless = lpvit.prune(member("Dinov2Model"), LOADER, budget=0.6)
    write = {"safetensors": lpvit.save, "onnx": lpvit.export_onnx, "xml": lpvit.export_openvino}[suffix]
    if suffix != "safetensors":
        pytest.importorskip({"onnx": "onnxruntime", "xml": "openvino"}[suffix])
    write(headless, file := tmp_path / f"model.{suffix}")
    assert main(["predict", str(file), "photo.png"]) == 1
    assert f"{file}: the model gives features, not logits of classes" in capsys.readouterr().err
