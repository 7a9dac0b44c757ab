"""Mixed structures through the public functions: pruned, reported, saved, loaded, tuned, quantised, exported."""

from pathlib import Path

import pytest
import torch
from tiny import MODELS, photographs, sized_model
from torch import Tensor, nn

import lpvit
from lpvit.costs.cost import measure_costs
from lpvit.models.edits import edits_of

MIXED = lpvit.Mixed(block_shape=(4, 4), rank_multiple=2)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return sized_model("vit")


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return list(photographs("vit", 96).split(16))


@pytest.fixture(scope="module")
def pruned(model: nn.Module, images: list[Tensor]) -> lpvit.Pruned:
    found = lpvit.prune(model, images, budget=0.5, pruning=MIXED)
    kinds = [edit.kind for edit in edits_of(found.model)]
    assert {"blocks", "factors"} <= set(kinds), kinds  # or the tests below show little
    return found


def logits(pruned: lpvit.Pruned, images: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return pruned.model(images[0])


def test_the_report_counts_blocks_and_factors(model: nn.Module, pruned: lpvit.Pruned) -> None:
    dense, report = measure_costs(model).set_index("layer"), pruned.report
    assert list(report.index) == [*dense.index, "(others)", "(model)", "(dense model)"]
    assert 0.4 < report.loc["(model)", "keep_ratio"] <= 0.5


def test_a_saved_model_gives_the_same_logits_and_report(
    pruned: lpvit.Pruned, images: list[Tensor], tmp_path: Path
) -> None:
    lpvit.save(pruned, tmp_path / "mixed.safetensors", options=MODELS["vit"][1])
    again = lpvit.load(tmp_path / "mixed.safetensors")
    assert torch.equal(logits(again, images), logits(pruned, images))
    assert again.report.equals(pruned.report)


def test_it_is_tuned_with_its_masks_fixed(pruned: lpvit.Pruned, images: list[Tensor]) -> None:
    batches = [(batch, torch.arange(len(batch)) % 5) for batch in images]
    recipe = lpvit.Recipe(epochs=4, batch_size=16, learning_rate=2e-3)
    tuned = lpvit.finetune(pruned, batches, batches, recipe=recipe)
    assert lpvit.evaluate(tuned, batches).loss < lpvit.evaluate(pruned, batches).loss
    assert tuned.report.equals(pruned.report)


def test_it_multiplies_in_int8(pruned: lpvit.Pruned, images: list[Tensor]) -> None:
    quantised = lpvit.quantise(pruned, images)
    change = (logits(quantised, images) - logits(pruned, images)).square().mean()
    assert change < 0.01 * logits(pruned, images).square().mean()


def test_its_blocks_are_skipped(pruned: lpvit.Pruned, images: list[Tensor]) -> None:
    with torch.no_grad():
        found = lpvit.sparsify(pruned)(images[0])
    torch.testing.assert_close(found, logits(pruned, images), rtol=1e-3, atol=1e-3)


def test_the_exported_model_gives_the_same_logits(pruned: lpvit.Pruned, images: list[Tensor], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    lpvit.export_onnx(pruned, tmp_path / "mixed.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "mixed.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: images[0].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), logits(pruned, images), rtol=1e-3, atol=1e-3)


def test_more_than_one_round_is_refused_in_one_line(model: nn.Module, images: list[Tensor]) -> None:
    with pytest.raises(lpvit.LpvitError, match=r"^budget: structure 'mixed' takes one round, found steps 4"):
        lpvit.prune(model, images, budget=lpvit.Budget(macs=0.5, steps=4), pruning=MIXED)
