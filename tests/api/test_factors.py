"""Low-rank factors through the public functions: pruned, reported, saved, loaded, tuned, quantised, exported."""

from pathlib import Path

import pytest
import torch
from tiny import MODELS, dense_model, photographs
from torch import Tensor, nn

import lpvit
from lpvit.costs.cost import measure_costs
from lpvit.quantisation.layers import int8_layers

FACTORS = lpvit.Factors(rank_multiple=2)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    model = dense_model("vit").eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 16, 16)}  # type: ignore
    return model


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return list(photographs("vit", 64).split(16))


@pytest.fixture(scope="module")
def pruned(model: nn.Module, images: list[Tensor]) -> lpvit.Pruned:
    return lpvit.prune(model, images, budget=0.5, pruning=FACTORS)


def logits(pruned: lpvit.Pruned, images: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return pruned.model(images[0])


def test_the_report_has_a_row_for_every_dense_layer(model: nn.Module, pruned: lpvit.Pruned) -> None:
    dense, report = measure_costs(model).set_index("layer"), pruned.report
    assert list(report.index) == [*dense.index, "(others)", "(model)", "(dense model)"]
    assert report.loc["(dense model)", "macs"] == dense["macs"].sum()
    assert report.loc["(model)", "macs"] == measure_costs(pruned.model)["macs"].sum()
    assert 0.4 < report.loc["(model)", "keep_ratio"] <= 0.5
    assert repr(pruned).startswith("Pruned(VisionTransformer, budget: macs 0.5)\n  MACs: ")


def test_a_budget_alone_prunes_to_factors(model: nn.Module, images: list[Tensor]) -> None:
    by_default = lpvit.prune(model, images, budget=0.6)
    named = lpvit.prune(
        model, images, budget=lpvit.Budget(macs=0.6, reconstruction="least_squares"), pruning=lpvit.Factors()
    )
    assert torch.equal(logits(by_default, images), logits(named, images))
    assert by_default.report.loc["(model)", "macs"] < by_default.report.loc["(dense model)", "macs"]


def test_factors_lose_less_than_blocks_of_the_same_cost(
    model: nn.Module, pruned: lpvit.Pruned, images: list[Tensor]
) -> None:
    blocks = lpvit.prune(model, images, budget=0.5, block_shape=(4, 4))
    unseen = photographs("vit", 96)[64:]
    with torch.no_grad():
        errors = [float((each.model(unseen) - model(unseen)).square().sum()) for each in (pruned, blocks)]
    assert errors[0] < errors[1]


def test_a_saved_model_gives_the_same_logits_and_report(
    pruned: lpvit.Pruned, images: list[Tensor], tmp_path: Path
) -> None:
    lpvit.save(pruned, tmp_path / "factors.safetensors", options=MODELS["vit"][1])
    again = lpvit.load(tmp_path / "factors.safetensors")
    assert torch.equal(logits(again, images), logits(pruned, images))
    assert again.report.equals(pruned.report)


def test_it_is_tuned_like_any_model(pruned: lpvit.Pruned, images: list[Tensor]) -> None:
    batches = [(batch, torch.arange(len(batch)) % 5) for batch in images]
    recipe = lpvit.Recipe(epochs=4, batch_size=16, learning_rate=2e-3)
    tuned = lpvit.finetune(pruned, batches, batches, recipe=recipe)
    assert lpvit.evaluate(tuned, batches).loss < lpvit.evaluate(pruned, batches).loss
    assert tuned.report.equals(pruned.report)


def test_both_products_of_a_layer_multiply_in_int8(pruned: lpvit.Pruned, images: list[Tensor]) -> None:
    quantised = lpvit.quantise(pruned, images)
    assert {name.rpartition(".")[2] for name in int8_layers(quantised.model)} >= {"reduce", "expand"}
    change = (logits(quantised, images) - logits(pruned, images)).square().mean()
    assert change < 0.01 * logits(pruned, images).square().mean()


def test_the_exported_model_gives_the_same_logits(pruned: lpvit.Pruned, images: list[Tensor], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    lpvit.export_onnx(pruned, tmp_path / "factors.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "factors.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: images[0].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), logits(pruned, images), rtol=1e-3, atol=1e-3)


def test_a_budget_that_factors_cannot_meet_is_refused_in_one_line(model: nn.Module, images: list[Tensor]) -> None:
    with pytest.raises(lpvit.LpvitError, match=r"^budget: structure 'factors' takes one round, found steps 4"):
        lpvit.prune(model, images, budget=lpvit.Budget(macs=0.5, steps=4), pruning=FACTORS)
    with pytest.raises(lpvit.LpvitError, match=r"^budget: macs 0\.01 is impossible, at least 0\.\d+ must be kept"):
        lpvit.prune(model, images, budget=0.01, pruning=FACTORS)
