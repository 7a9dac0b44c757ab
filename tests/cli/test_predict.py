"""What files say of a model besides its weights, and what a person does with them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny import VIT, dense_model, photographs

import lpvit
from lpvit.api.classes import classes_by
from lpvit.cli.main import main
from lpvit.cli.opened import open_model
from lpvit.export.description import KEY
from lpvit.models.architecture import Architecture, save_model

CLASSES = ("cat", "dog", "eel", "fox", "gnu")


@pytest.fixture(scope="module")
def pruned() -> lpvit.Pruned:
    model = dense_model("vit").eval()
    model.pretrained_cfg |= {"mean": [0.4], "std": [0.3]}
    classes = [*CLASSES, *map(str, range(model.num_classes - len(CLASSES)))]
    batches = photographs("vit").split(8)
    pruned = lpvit.prune(model, batches, budget=0.5, block_shape=(8, 4))
    lpvit.name_classes(pruned, classes)
    return pruned


@pytest.fixture
def photo(tmp_path: Path, pruned: lpvit.Pruned) -> Path:
    channels, *_ = pruned.model.pretrained_cfg["input_size"]
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).convert("RGB" if channels == 3 else "L").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def as_safetensors(pruned: lpvit.Pruned, folder: Path) -> Path:
    lpvit.save(pruned, folder / "model.safetensors", options=VIT)
    return folder / "model.safetensors"


def as_artifact(pruned: lpvit.Pruned, folder: Path) -> Path:
    architecture = Architecture.of(pruned.model, VIT)
    save_model(architecture, pruned.model.state_dict(), folder / "finetuned.pt", "finetuned")
    return folder / "finetuned.pt"


def as_onnx(pruned: lpvit.Pruned, folder: Path) -> Path:
    pytest.importorskip("onnxruntime")
    lpvit.export_onnx(pruned, folder / "model.onnx")
    return folder / "model.onnx"


def as_openvino(pruned: lpvit.Pruned, folder: Path) -> Path:
    pytest.importorskip("openvino")
    lpvit.export_openvino(pruned, folder / "model.xml")
    return folder / "model.xml"


@pytest.mark.parametrize("write", [as_safetensors, as_artifact, as_onnx, as_openvino])
def test_a_photo_is_classified_with_names_by_every_kind_of_file(
    write: Callable[[lpvit.Pruned, Path], Path],
    pruned: lpvit.Pruned,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write(pruned, photo.parent)
    image = Image.open(photo)
    with torch.inference_mode():
        logits = pruned.model(lpvit.transform(pruned)(image)[None])
    shares = logits[0].softmax(0)
    assert main(["predict", str(file), str(photo), "--top", "2"]) == 0
    first, second = shares.topk(2).indices.tolist()
    names = Architecture.of(pruned.model, VIT).classes
    expected = f"{photo}: {names[first]} {shares[first]:.1%}, {names[second]} {shares[second]:.1%}\n"
    assert capsys.readouterr().out == expected
    description = open_model(file).description
    assert description is not None
    assert description.classes == names


def test_other_programs_read_classes_and_preprocessing_from_the_header(pruned: lpvit.Pruned, tmp_path: Path) -> None:
    with safe_open(as_safetensors(pruned, tmp_path), framework="pt") as file:
        found = json.loads(file.metadata()[KEY])
    assert found["classes"][:2] == ["cat", "dog"]
    config = pruned.model.pretrained_cfg
    assert found["preprocessing"]["mean"] == pytest.approx(config["mean"])
    assert tuple(found["preprocessing"]["input_size"]) == tuple(config["input_size"])


def test_names_survive_saving_loading_and_quantising(pruned: lpvit.Pruned, tmp_path: Path) -> None:
    loaded = lpvit.load(as_safetensors(pruned, tmp_path))
    rounded = lpvit.quantise(loaded, quantisation=lpvit.Quantisation(rounding="nearest"))
    assert rounded.architecture.classes[:5] == CLASSES


def test_names_come_from_the_dataset_of_the_loader_if_their_number_fits() -> None:
    model = SimpleNamespace(num_classes=2)
    torchvisions = SimpleNamespace(dataset=SimpleNamespace(dataset=SimpleNamespace(classes=["a", "b"])))
    timms = SimpleNamespace(dataset=SimpleNamespace(reader=SimpleNamespace(class_to_idx={"b": 1, "a": 0})))
    assert classes_by(torchvisions, model) == classes_by(timms, model) == ("a", "b")  # type: ignore[arg-type]
    assert classes_by(torchvisions, SimpleNamespace(num_classes=3)) == ()  # type: ignore[arg-type]
    assert classes_by([1, 2], model) == ()  # type: ignore[arg-type]
    with pytest.raises(lpvit.LpvitError, match="classes: found 1 names, the model has"):
        lpvit.name_classes(dense_model("vit"), ["a"])


def test_what_cannot_be_predicted_is_told_in_a_line(
    pruned: lpvit.Pruned, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = as_safetensors(pruned, photo.parent)
    (photo.parent / "bad.png").write_bytes(b"?")
    (photo.parent / "bad.onnx").write_bytes(b"?")
    for arguments, message in (
        ([str(file), "absent.png"], "absent.png: file not found"),
        ([str(file), str(photo.parent / "bad.png")], f"{photo.parent}/bad.png: cannot be decoded"),
        ([str(photo), str(photo)], f"{photo}: found suffix '.png', expected a model: .safetensors"),
        (["absent.pt", str(photo)], "absent.pt: file not found"),
        ([str(photo.parent / "bad.onnx"), str(photo)], f"{photo.parent}/bad.onnx: cannot be read as ONNX"),
    ):
        assert main(["predict", *arguments]) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"lpvit predict: {message}")
        assert told.count("\n") == 1
