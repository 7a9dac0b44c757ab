"""What the public functions refuse, in one line, before they compute."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import dense_model, photographs
from torch import nn

import lpvit

IMAGES = photographs("vit")
BATCHES = [(batch, torch.arange(8) % 5) for batch in IMAGES.split(8)]
RECIPE = lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3)

TAKES_PRUNED: dict[str, Callable[[Any, Path], Any]] = {
    "save": lambda pruned, folder: lpvit.save(pruned, folder / "model.safetensors"),
    "quantise": lambda pruned, _: lpvit.quantise(pruned, IMAGES.split(8)),
    "sparsify": lambda pruned, _: lpvit.sparsify(pruned),
    "finetune": lambda pruned, _: lpvit.finetune(pruned, BATCHES, BATCHES, recipe=RECIPE),
    "export_onnx": lambda pruned, folder: lpvit.export_onnx(pruned, folder / "model.onnx"),
    "export_openvino": lambda pruned, folder: lpvit.export_openvino(pruned, folder / "model.xml"),
}


@pytest.fixture(scope="module")
def pruned() -> lpvit.Pruned:
    return lpvit.prune(dense_model("vit"), IMAGES.split(8), budget=0.6, block_shape=(8, 4))


@pytest.fixture
def regrown(pruned: lpvit.Pruned) -> lpvit.Pruned:
    """Trained elsewhere, without its masks."""
    model = dense_model("vit").eval()
    model.load_state_dict(pruned.model.state_dict())
    nn.init.normal_(model.get_parameter("blocks.0.mlp.fc1.weight"))
    return replace(pruned, model=model)


@pytest.mark.parametrize("name", TAKES_PRUNED)
def test_a_pruned_model_whose_masks_were_lost_is_refused(name: str, regrown: lpvit.Pruned, tmp_path: Path) -> None:
    with pytest.raises(
        lpvit.LpvitError, match=r"^model: blocks.0.mlp.fc1.weight: \d+ pruned weights are not zero; .*$"
    ):
        TAKES_PRUNED[name](regrown, tmp_path)


def test_a_pruned_model_whose_masks_were_lost_is_not_evaluated_or_described_as_pruned(regrown: lpvit.Pruned) -> None:
    for call in (lambda: lpvit.evaluate(regrown, BATCHES), lambda: regrown.report):
        with pytest.raises(lpvit.LpvitError, match="pruned weights are not zero"):
            call()
    assert repr(regrown).startswith("Pruned(VisionTransformer), invalid: model: blocks.0.mlp.fc1.weight")


@pytest.mark.parametrize("given", [dense_model("vit"), None, "model.safetensors"], ids=["module", "None", "path"])
@pytest.mark.parametrize("name", TAKES_PRUNED)
def test_what_is_no_pruned_model_is_refused(name: str, given: object, tmp_path: Path) -> None:
    with pytest.raises(lpvit.LpvitError, match=r"^pruned: found .*, expected the result of lpvit.prune or lpvit.load$"):
        TAKES_PRUNED[name](given, tmp_path)


def test_a_quantised_model_is_not_pruned(pruned: lpvit.Pruned) -> None:
    quantised = lpvit.quantise(pruned, IMAGES.split(8))
    with pytest.raises(lpvit.LpvitError, match=r"^model: is quantised.* prune first, then quantise$"):
        lpvit.prune(quantised.model, IMAGES.split(8), budget=0.5, block_shape=(8, 4))
