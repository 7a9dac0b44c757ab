"""Arguments of the public functions that are something else than what they take."""

from pathlib import Path

import pytest
from tiny import dense_model, photographs

import lpvit

RECIPE = lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3)


@pytest.mark.parametrize("given", [dense_model("vit"), None, "model.safetensors"], ids=["module", "None", "path"])
def test_what_is_no_pruned_model_is_refused_by_every_function_that_takes_one(given: object, tmp_path: Path) -> None:
    batches = photographs("vit").split(8)
    calls = [
        lambda pruned: lpvit.save(pruned, tmp_path / "model.safetensors"),
        lambda pruned: lpvit.finetune(pruned, batches, batches, recipe=RECIPE),
        lambda pruned: lpvit.quantise(pruned, batches),
        lpvit.sparsify,
        lambda pruned: lpvit.export_onnx(pruned, tmp_path / "model.onnx"),
        lambda pruned: lpvit.export_openvino(pruned, tmp_path / "model.xml"),
    ]
    for call in calls:
        with pytest.raises(lpvit.LpvitError, match=r"^pruned: found .*, expected the result of lpvit.prune or lpvit"):
            call(given)
