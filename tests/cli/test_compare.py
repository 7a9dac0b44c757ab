"""Two models on the same images, and times of files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import VIT, dense_model, photographs

import lpvit
from lpvit.cli.compare import spoils
from lpvit.cli.main import main
from lpvit.models.architecture import Architecture, record_classes, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dense.pt, small.safetensors and photos in class folders."""
    folder = tmp_path_factory.mktemp("models")
    model = dense_model("vit").eval()
    model.pretrained_cfg |= {"mean": [0.4], "std": [0.3]}
    record_classes(model, [f"class {number}" for number in range(model.num_classes)])
    save_model(Architecture.of(model, VIT), model.state_dict(), folder / "dense.pt", "dense")
    pruned = lpvit.prune(model, photographs("vit").split(8), budget=0.5, block_shape=(8, 4))
    lpvit.save(pruned, folder / "small.safetensors", options=VIT)
    for name in ("class 0", "class 1"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(5):
            noise = np.random.default_rng(number).integers(0, 256, (20, 20), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "photos" / name / f"{number}.png")
    return folder


def test_two_models_are_compared_on_a_page(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    models = [str(folder / name) for name in ("dense.pt", "small.safetensors")]
    assert main(["compare", *models, str(folder / "photos"), "--limit", "6"]) == 0
    told = capsys.readouterr().out
    assert "of the images the same class" in told
    assert "wrote compare.html" in told
    page = Path("compare.html").read_text()
    assert "6 images of" in page
    assert all(how in page for how in spoils())


def test_what_cannot_be_compared_is_told_in_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [str(folder / name) for name in ("dense.pt", "small.safetensors")]
    (folder / "empty").mkdir(exist_ok=True)
    for images, message in (
        (folder, f"{folder}: 'photos' is no class of the model"),
        (folder / "empty", f"{folder}/empty: holds no images"),
        (folder / "absent", f"{folder}/absent: folder not found"),
    ):
        assert main(["compare", *models, str(images)]) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"lpvit compare: {message}")
        assert told.count("\n") == 1


def test_spoilt_images_keep_shape_and_range_and_worse_is_worse() -> None:
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    changes = {}
    for how, spoil in spoils().items():
        worse = spoil(images)
        assert worse.shape == images.shape
        assert worse.min() >= 0
        assert worse.max() <= 1
        changes[how] = float((worse - images).square().mean())
    of_kind = list(changes.values())
    assert of_kind[0] == 0
    for start in (1, 4, 7):
        assert 0 < of_kind[start] < of_kind[start + 1] < of_kind[start + 2]


def test_any_files_are_timed_in_turns_with_numbers_for_other_programs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(folder / name) for name in ("dense.pt", "small.safetensors")]
    saved = ["--json", str(tmp_path / "b.json"), "--csv", str(tmp_path / "b.csv")]
    assert main(["bench", *models, "--batch-size", "2", "--seconds", "0.02", *saved]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in (*models, "median", "min", "max", "95 % interval"))
    numbers = pd.read_csv(tmp_path / "b.csv")
    assert json.loads((tmp_path / "b.json").read_text())[0]["configuration"] == models[0]
    assert (numbers["milliseconds_min"] <= numbers["milliseconds"]).all()
    assert (numbers["milliseconds"] <= numbers["milliseconds_max"]).all()


def test_a_model_with_factors_is_timed_beside_the_dense_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = lpvit.prune(dense_model("vit"), photographs("vit").split(8), budget=0.8, pruning=lpvit.Factors())
    lpvit.save(pruned, tmp_path / "factors.safetensors", options=VIT)
    assert main(["bench", str(tmp_path / "factors.safetensors"), "--batch-size", "2", "--seconds", "0.02"]) == 0
    told = capsys.readouterr().out
    assert "| dense " in told
    assert "| compressed " in told
    assert "masked" not in told
    assert main(["bench", str(tmp_path / "factors.safetensors"), "--engines", "openvino"]) == 1
    assert "--engines: found 'openvino'; did you mean 'openvino_int8'" in capsys.readouterr().err
