"""Budgets in milliseconds, parameters and bytes, for structures other than blocks."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors import safe_open
from tiny import MODELS, photographs, sized_model
from torch import nn

import lpvit
from lpvit.allocation.settings import FACTORS
from lpvit.costs.cost import measure_costs
from lpvit.models.edits import edits_of

BLOCK_SHAPE = (4, 4)
OF_FACTORS = lpvit.Factors(rank_multiple=2)
OF_BOTH = lpvit.Mixed(block_shape=BLOCK_SHAPE, rank_multiple=2, basis="given")
OF_BLOCKS = lpvit.Blocks(block_shape=(8, 8), saliency="gauss_newton", distortion="gauss_newton")  # ragged


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return sized_model("vit")


@pytest.mark.parametrize(
    ("pruning", "expected"), [(OF_FACTORS, [FACTORS]), (OF_BOTH, [BLOCK_SHAPE, FACTORS])], ids=["factors", "mixed"]
)
def test_a_budget_in_milliseconds_counts_each_structure_by_its_own_times(
    model: nn.Module, pruning: Any, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def times(costs: pd.DataFrame, shape: tuple[int, int], **_: Any) -> pd.DataFrame:
        asked.append(shape)
        rows = costs[["out_features", "in_features", "tokens"]].drop_duplicates()
        dense = rows["out_features"] * rows["in_features"] / 1e3
        least = 0.1 if shape == FACTORS else 1.0  # blocks save no time here
        rows = pd.concat([rows.assign(sparsity=s, milliseconds=dense * t) for s, t in ((0.0, 1.0), (0.9, least))])
        return rows.assign(block_rows=shape[0], block_columns=shape[1])

    monkeypatch.setattr("lpvit.api.prune.measure_latency", times)
    budget = lpvit.Budget(latency=0.6, reconstruction="least_squares")
    pruned = lpvit.prune(model, photographs("vit").split(8), budget=budget, pruning=pruning)
    assert asked == expected
    (factors,) = (edit for edit in edits_of(pruned.model) if edit.kind == "factors")
    dense = measure_costs(model).set_index("layer").filter(like="blocks", axis=0)
    weights = dense["out_features"] * dense["in_features"]
    ranks = pd.Series(factors.ranks, dtype=float).reindex(dense.index)  # type: ignore[attr-defined]
    kept = (ranks * (dense["out_features"] + dense["in_features"])).fillna(weights)
    assert 0.5 < kept.sum() / weights.sum() <= 0.6


def test_only_what_is_timed_may_have_a_budget_in_milliseconds(model: nn.Module) -> None:
    with pytest.raises(lpvit.LpvitError, match=r"^budget: latency: only plain factors are timed"):
        lpvit.prune(model, [], budget=lpvit.Budget(latency=0.5), pruning=lpvit.Mixed(form="pivoted"))


@pytest.mark.parametrize("pruning", [OF_BLOCKS, OF_FACTORS, OF_BOTH], ids=["blocks", "factors", "mixed"])
def test_budgets_in_parameters_and_bytes_are_those_of_the_saved_file(
    model: nn.Module, pruning: Any, tmp_path: Path
) -> None:
    dense = measure_costs(model)["parameters"].sum()
    others = sum(parameter.numel() for parameter in model.parameters()) - dense
    for quantity in ("parameters", "bytes"):
        budget = lpvit.Budget(**{quantity: 0.6}, reconstruction="least_squares")
        pruned = lpvit.prune(model, photographs("vit").split(8), budget=budget, pruning=pruning)
        lpvit.save(pruned, tmp_path / "pruned.safetensors", options=MODELS["vit"][1])
        with safe_open(tmp_path / "pruned.safetensors", framework="pt") as file:
            stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - not a mapping
        counted = pruned.report.loc["(model)", "parameters"]
        kept = ((counted if quantity == "parameters" else stored) - others) / dense
        assert 0.55 < kept <= 0.6, quantity
