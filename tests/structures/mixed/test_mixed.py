"""Mixed structures: chains of options, curves scaled by refits, and models made of blocks and factors."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import photographs, sized_model
from torch import Tensor, nn

import lpvit
from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.costs.cost import measure_costs
from lpvit.pruning.rounds import measure
from lpvit.store.schemas import BLOCKS, CURVES
from lpvit.store.tables import read_parquet, write_parquet
from lpvit.structures.calibration import Statistics
from lpvit.structures.mixed.calibration import statistics_of
from lpvit.structures.mixed.refitted_curves import SHARES, Curve, curves_of, refitted_distortions
from lpvit.structures.mixed.structure import MixedStructure
from lpvit.structures.mixed.union import chosen_of, union_of
from lpvit.structures.structure import Options

Batches = list[tuple[Tensor, Tensor]]
SETTINGS = lpvit.Mixed(block_shape=(4, 4), rank_multiple=2, basis="given")
LAYERS = {"first": (8, 12), "second": (16, 6)}


@st.composite
def curves(draw: st.DrawFn) -> dict[str, dict[str, Curve]]:
    """Two structures of the same layers, each with options of rising cost and any distortion."""
    offered: dict[str, dict[str, Curve]] = {"blocks": {}, "factors": {}}
    for layer, (rows, columns) in LAYERS.items():
        for of_structure in offered.values():
            inner = draw(st.sets(st.integers(1, rows * columns - 1), min_size=1, max_size=8))
            removed = np.array([0, *sorted(inner), rows * columns], dtype=np.int64)
            steps = draw(st.lists(st.floats(0, 10), min_size=len(removed) - 1, max_size=len(removed) - 1))
            distortion = np.append(0.0, np.cumsum(steps))
            of_structure[layer] = Curve(removed, 4 * removed, removed.astype(float), distortion)
    return offered


def tables_of(options: Options) -> LayerTables:
    rows = [
        {"layer": layer, "role": layer, "out_features": rows, "in_features": columns, "tokens": 3}
        | {"macs": 3 * rows * columns, "parameters": rows * columns}
        for layer, (rows, columns) in LAYERS.items()
    ]
    return LayerTables(options.curves, options.blocks, pd.DataFrame(rows))


def predicted(offered: dict[str, dict[str, Curve]], chosen: dict[str, dict[str, int]]) -> float:
    return sum(
        float(offered[part][layer].distortion[pieces])
        for part, layers in chosen.items()
        for layer, pieces in layers.items()
    )


@settings(max_examples=25, deadline=None)
@given(curves())
def test_a_chain_has_every_option_that_no_other_beats_and_no_others(offered: dict[str, dict[str, Curve]]) -> None:
    options = union_of(offered)
    for layer in LAYERS:
        chain = options.curves[options.curves["layer"] == layer]
        assert (np.diff(chain["weights_pruned"]) > 0).all()
        assert (np.diff(chain["distortion"].iloc[1:-1]) > 0).all()
        for curve in (of_structure[layer] for of_structure in offered.values()):
            for removed, distortion in zip(curve.removed[1:-1], curve.distortion[1:-1], strict=True):
                as_good = chain[(chain["weights_pruned"] >= removed) & (chain["distortion"] <= distortion)]
                assert len(as_good)


@settings(max_examples=25, deadline=None)
@given(curves(), st.floats(0.2, 0.95))
def test_the_best_of_two_structures_is_never_predicted_worse_than_either(
    offered: dict[str, dict[str, Curve]], macs: float
) -> None:
    budget = Budget(macs=macs, allocator="exact", min_keep_ratio=0)
    found = {}
    for name in ("mixed", *offered):
        options = union_of(offered if name == "mixed" else {name: offered[name]})
        try:
            allocation = allocate(tables_of(options), budget)
        except lpvit.LpvitError:  # no option of this one removes as much
            continue
        found[name] = predicted(offered, chosen_of(options.blocks, allocation))
    assert all(found["mixed"] <= alone * (1 + 1e-9) + 1e-12 for alone in found.values())


def test_a_scaled_curve_meets_what_was_measured_and_never_falls() -> None:
    removed = np.array([0, 10, 20, 30, 40])
    curve = Curve(removed, 4 * removed, np.zeros(5), np.array([0.0, 1.0, 2.0, 3.0, 8.0]))
    scaled = curve.scaled({1: 0.5, 3: 6.0})
    np.testing.assert_allclose(scaled.distortion, [0.0, 0.5, 2.0, 6.0, 16.0])  # a factor of 1/2, 1 (geometric), 2
    np.testing.assert_allclose(curve.scaled({1: 5.0, 3: 0.3}).distortion, [0, 5, 5, 5, 5])
    assert curve.scaled({}) is curve


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return sized_model("vit").double()


@pytest.fixture(scope="module")
def images() -> Batches:
    batches = photographs("vit", 96).double().split(16)
    return [(batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in batches]


@pytest.fixture(scope="module")
def measured(model: nn.Module, images: Batches) -> tuple[Options, Statistics]:
    options, statistics = measure(model, images, MixedStructure(SETTINGS), "cpu")
    assert statistics is not None
    return options, statistics


def test_options_are_tables_of_the_pipeline(
    model: nn.Module, measured: tuple[Options, Statistics], tmp_path: Path
) -> None:
    options, _ = measured
    write_parquet(options.blocks, tmp_path / "blocks.parquet", BLOCKS)
    write_parquet(options.curves, tmp_path / "curves.parquet", CURVES)
    pd.testing.assert_frame_equal(read_parquet(tmp_path / "blocks.parquet", BLOCKS), options.blocks)
    weights = options.blocks.groupby("layer")["weights"].sum()
    costs = measure_costs(model).set_index("layer")
    assert (weights == costs["out_features"].mul(costs["in_features"]).reindex(weights.index)).all()


def test_measured_distortions_are_those_of_a_model_with_that_layer_changed(
    model: nn.Module, images: Batches, measured: tuple[Options, Statistics]
) -> None:
    structure, (_, statistics) = MixedStructure(SETTINGS), measured
    layer = "blocks.1.attn.proj"
    fit = structure._fit(model, layer, "factors", 3, statistics, "cpu")
    (found,) = refitted_distortions(model, images, {layer: [lambda: fit]}, "cpu")[layer]
    choice = {"factors": {layer: 3}}
    changed = structure.compress(model, choice, statistics, images, "cpu").model
    unseen = torch.cat([batch for batch, _ in images])[::5]
    with torch.no_grad():
        expected = float((changed(unseen) - model(unseen)).square().sum(dim=1).mean())
    assert found == pytest.approx(expected, rel=0.5)  # fitted to four fifths of the images, with fewer ridges


def test_a_model_may_have_dense_layers_blocks_and_factors(
    model: nn.Module, images: Batches, measured: tuple[Options, Statistics]
) -> None:
    structure, (_, statistics) = MixedStructure(SETTINGS), measured
    choice = {"blocks": {"blocks.0.mlp.fc1": 30}, "factors": {"blocks.0.attn.qkv": 2, "blocks.1.mlp.fc2": 4}}
    refitted = structure.compress(model, choice, statistics, images, "cpu")
    as_cut = structure.compress(model, choice, statistics, None, "cpu")
    assert refitted.keep_masks.keys() == {"blocks.0.mlp.fc1"}
    assert int((~refitted.keep_masks["blocks.0.mlp.fc1"]).sum()) == 30
    unseen = photographs("vit", 128)[96:].double()
    with torch.no_grad():
        cut, fitted = (float((each.model(unseen) - model(unseen)).square().mean()) for each in (as_cut, refitted))
    assert fitted < cut


def test_curves_are_offered_at_every_number_of_pieces(
    model: nn.Module, images: Batches, measured: tuple[Options, Statistics]
) -> None:
    for name, part in MixedStructure(SETTINGS).parts.items():
        options = part.options(statistics_of(name, measured[1]), model, images, "cpu")
        for layer, curve in curves_of(options).items():
            assert len(curve.removed) == 1 + (part.pieces(model)[0]["layer"] == layer).sum(), name
            assert len(curve.near(SHARES)) <= len(SHARES)
