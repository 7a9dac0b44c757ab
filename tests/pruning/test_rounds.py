"""Pruning in rounds."""

from typing import Any, get_args

import pandas as pd
import pytest
import torch
from tiny import dense_model, photographs
from torch import nn

import lpvit
from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.costs.cost import measure_costs
from lpvit.models.analysis.passes import Batches
from lpvit.pruning.rounds import before_last_round, measure
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.structure import BlockStructure

PRUNING = Blocks(block_shape=(4, 4), saliency="gauss_newton", distortion="gauss_newton")
BLOCKS = BlockStructure(PRUNING)
ALLOCATORS = get_args(Budget.model_fields["allocator"].annotation)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    model = dense_model("vit").eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 16, 16)}  # type: ignore
    return model


@pytest.fixture(scope="module")
def images() -> Batches:
    return [(batch, torch.empty(0)) for batch in photographs("vit", 64).split(16)]


@pytest.fixture(scope="module")
def described(model: nn.Module, images: Batches) -> dict[str, pd.DataFrame]:
    options, _ = measure(model, images, BLOCKS, "cpu")
    return {"blocks": options.blocks, "curves": options.curves, "costs": measure_costs(model)}


def before_last(model: nn.Module, images: Batches, described: dict[str, Any], budget: Budget) -> Any:
    tables = before_last_round(model, images, BLOCKS, LayerTables(**described), budget, "cpu")
    return tables.blocks, tables.curves


def test_every_round_keeps_the_same_share_of_what_the_one_before_kept() -> None:
    budget = Budget(macs=0.25, energy=0.81, steps=2)
    assert [step.targets for step in budget.on_the_way] == [{"macs": 0.5, "energy": pytest.approx(0.9)}]
    thirds = Budget(sparsity=0.488, steps=3).on_the_way
    assert [step.sparsity for step in thirds] == pytest.approx([0.2, 0.36])
    assert Budget(macs=0.5).on_the_way == []


def test_one_round_goes_by_the_dense_model(model: nn.Module, images: Batches, described: dict[str, Any]) -> None:
    blocks, curves = before_last(model, images, described, Budget(macs=0.5))
    assert blocks is described["blocks"]
    assert curves is described["curves"]


@pytest.mark.parametrize("reconstruction", ["none", "least_squares"])
def test_blocks_that_went_in_the_first_round_score_and_cost_nothing_in_the_second(
    model: nn.Module, images: Batches, described: dict[str, Any], reconstruction: Any
) -> None:
    budget = Budget(macs=0.5, reconstruction=reconstruction, steps=2)
    first = allocate(LayerTables(**described), budget.on_the_way[0])
    blocks, curves = before_last(model, images, described, budget)
    for layer in first.itertuples():
        gone = layer.blocks - layer.blocks_kept
        saliency = blocks.loc[blocks["layer"] == layer.layer, "saliency"]
        assert (saliency == 0).sum() == gone
        curve = curves[curves["layer"] == layer.layer]
        assert (curve.loc[curve["blocks_pruned"] <= gone, "distortion"] < 1e-9).all()
        assert curve["distortion"].iloc[-1] > 0


def test_several_rounds_lose_less_than_one(model: nn.Module, images: Batches) -> None:
    every = torch.cat([batch for batch, _ in images])

    def distortion(steps: int) -> float:
        budget = Budget(macs=0.4, reconstruction="least_squares", steps=steps)
        pruned = lpvit.prune(model, images, budget=budget, pruning=PRUNING)
        with torch.no_grad():
            return float((pruned.model(every) - model(every)).square().sum(dim=1).mean())

    assert distortion(steps=4) < 0.8 * distortion(steps=1)


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_every_allocator_meets_its_budget_in_rounds(model: nn.Module, images: Batches, allocator: Any) -> None:
    pruned = lpvit.prune(model, images, budget=Budget(macs=0.6, allocator=allocator, steps=3), pruning=PRUNING)
    assert 0.59 < pruned.report.loc["(model)", "keep_ratio"] <= 0.6
