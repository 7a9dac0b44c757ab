"""ONNX files for images of any size, and of a chosen version of the operators: equal to torch at several sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from libraries import member
from torch import nn

import lpvit
from lpvit.cli.main import main
from lpvit.errors import LpvitError
from lpvit.models.outputs import read

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
SIZES = ((32, 32), (48, 40), (24, 96))
LOADER = [torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
COMPRESSIONS: dict[str, dict[str, Any]] = {"factors": {}, "blocks": {"block_shape": (8, 8)}}


def vit(**others: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=5, **(OPTIONS | others))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def differences(path: Path, model: nn.Module) -> list[float]:
    """Of the outputs of a file from those of the model at every size, relative to the largest."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = []
    for size in SIZES:
        images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = read(model, model(images))
        given = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        assert given.shape == wanted.shape
        found.append(float((given - wanted).abs().max() / wanted.abs().max()))
    return found


def opset_of(path: Path) -> int:
    return next(each.version for each in onnx.load(path).opset_import if each.domain == "")


@pytest.mark.parametrize("compression", ["factors", pytest.param("blocks", marks=pytest.mark.thorough)])
def test_a_file_for_any_size_equals_torch_also_after_save_and_load(compression: str, tmp_path: Path) -> None:
    pruned = lpvit.prune(vit(), LOADER, budget=0.7, **COMPRESSIONS[compression])
    lpvit.save(pruned, tmp_path / "model.safetensors", options=OPTIONS)
    command = ["export", f"{tmp_path}/model.safetensors", f"{tmp_path}/model.onnx", "--image-size", "dynamic"]
    assert main([*command, "--opset", "19"]) == 0
    assert max(differences(tmp_path / "model.onnx", pruned.model)) < 1e-4
    assert opset_of(tmp_path / "model.onnx") == 19
    shapes = [each.shape for each in onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()]
    assert shapes == [["batch", 3, "height", "width"]]


@pytest.mark.thorough
def test_attention_that_torch_cannot_export_is_written_in_plain_products(tmp_path: Path) -> None:
    pruned = lpvit.prune(member("SwinForImageClassification"), LOADER, budget=0.6)
    lpvit.export_onnx(pruned, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = pruned.model(LOADER[0]).logits
    found = torch.from_numpy(session.run(None, {"images": LOADER[0].numpy()})[0])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["Dinov2ForImageClassification", "DINOv3ViTModel"])
def test_models_of_transformers_that_take_any_size_keep_that(name: str, tmp_path: Path) -> None:
    pruned = lpvit.prune(member(name), LOADER, budget=0.6)
    lpvit.export_onnx(pruned, tmp_path / "model.onnx", image_size="dynamic")
    assert max(differences(tmp_path / "model.onnx", pruned.model)) < 1e-4


@pytest.mark.parametrize("name", ["vit_b_16", pytest.param("swin_t", marks=pytest.mark.thorough)])
def test_a_model_without_a_program_for_all_sizes_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    """Swin of torchvision takes any size, but tracing fixes the number of its windows."""
    pruned = lpvit.prune(member(name), LOADER, budget=0.6)
    with pytest.raises(LpvitError, match=r"^image_size: \w+ takes images of 32x32 alone, or .*; leave it") as caught:
        lpvit.export_onnx(pruned, tmp_path / "model.onnx", image_size="dynamic")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class OwnSizeIsSpecial(nn.Module):
    """At its own size it adds one, which a program for all sizes cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.model = vit()
        self.pretrained_cfg = {"input_size": (3, 32, 32)}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images)
        return logits + 1 if images.shape[2] * images.shape[3] == 32 * 32 else logits


@pytest.mark.thorough
def test_a_file_that_would_differ_at_the_models_own_size_is_refused(tmp_path: Path) -> None:
    pruned = lpvit.prune(OwnSizeIsSpecial(), LOADER, budget=0.6)
    with pytest.raises(LpvitError, match=r"image_size: OwnSizeIsSpecial .*not close"):
        lpvit.export_onnx(pruned, tmp_path / "model.onnx", image_size="dynamic")


@pytest.fixture(scope="module")
def fixed() -> lpvit.Pruned:
    return lpvit.prune(vit(dynamic_img_size=False), LOADER, budget=0.6)


def test_an_older_opset_gives_the_same_numbers(fixed: lpvit.Pruned, tmp_path: Path) -> None:
    lpvit.export_onnx(fixed, tmp_path / "model.onnx", opset=17)
    assert opset_of(tmp_path / "model.onnx") == 17
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = fixed.model(LOADER[0])
    found = torch.from_numpy(session.run(None, {"images": LOADER[0].numpy()})[0])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda pruned, path: lpvit.export_onnx(pruned, path, opset=99), r"^opset: 99 cannot be written"),
        (lambda pruned, path: lpvit.export_onnx(pruned, path, opset=0), "opset: "),
        (lambda pruned, path: lpvit.export_onnx(pruned, path, image_size="any"), "image_size: "),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_line(
    fixed: lpvit.Pruned, write: Callable[[lpvit.Pruned, Path], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(LpvitError, match=message) as caught:
        write(fixed, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_both_for_onnx_alone(
    fixed: lpvit.Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lpvit.save(fixed, tmp_path / "m.safetensors", options={**OPTIONS, "dynamic_img_size": False})
    assert main(["export", f"{tmp_path}/m.safetensors", f"{tmp_path}/m.xml", "--opset", "18"]) == 1
    assert "m.xml: --opset is for .onnx files only; leave it out" in capsys.readouterr().err
