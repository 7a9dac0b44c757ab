import itertools
import logging
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from lpvit.allocation import allocate as allocation_of
from lpvit.allocation import frontier as frontier_of
from lpvit.allocation.allocators import Allocator
from lpvit.allocation.allocators.lpvit import SlopeRule, curve_slopes, smooth
from lpvit.allocation.hull import lower_hull
from lpvit.allocation.latency import milliseconds
from lpvit.allocation.priority import blocks_always_kept
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.costs.energy import HOROWITZ, layer_energy
from lpvit.costs.settings import Energy
from lpvit.errors import LpvitError
from lpvit.store.schemas import ALLOCATION, FRONTIER
from lpvit.store.tables import read_parquet, write_parquet
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masks import build_keep_masks

ALLOCATORS = list(Allocator.registry)
HEAD = {
    "layer": "head",
    "role": "head",
    "out_features": 10,
    "in_features": 8,
    "tokens": 1,
    "macs": 80,
    "parameters": 90,
}


def allocate(
    curves: pd.DataFrame, blocks: pd.DataFrame, costs: pd.DataFrame, budget: Budget, *others: Any, **named: Any
) -> pd.DataFrame:
    return allocation_of.allocate(LayerTables(curves, blocks, costs, *others, **named), budget)


def frontier(
    curves: pd.DataFrame, blocks: pd.DataFrame, costs: pd.DataFrame, budget: Budget, **options: Any
) -> pd.DataFrame:
    return frontier_of.frontier(LayerTables(curves, blocks, costs), budget, **options)


def cost_row(name, shape, tokens):
    weights = shape[0] * shape[1]
    return {
        "layer": name,
        "role": name,
        "out_features": shape[0],
        "in_features": shape[1],
        "tokens": tokens,
        "macs": tokens * weights,
        "parameters": weights + shape[0],
    }


def block_rows(name, shape, block_shape, saliency, squared_norm=None):
    grid = BlockGrid(shape, block_shape)
    rows, columns = np.divmod(np.arange(grid.count), grid.columns)
    return pd.DataFrame(
        {
            "layer": name,
            "structure": "blocks",
            "row": rows.astype(np.int32),
            "column": columns.astype(np.int32),
            "weights": grid.sizes().flatten().numpy().astype(np.int32),
            "bytes": 4 * block_shape[0] * block_shape[1],
            "saliency": np.asarray(saliency, dtype=float),
            "squared_norm": np.asarray(saliency if squared_norm is None else squared_norm, dtype=float),
        }
    )


def curve_rows(name, distortion, blocks, points=None):
    """A curve through ``distortion``, which has one value for each of 0 .. blocks pruned."""
    sparsity = np.linspace(0, 1, points or blocks + 1)
    pruned = np.round(sparsity * blocks).astype(int)
    return pd.DataFrame(
        {
            "layer": name,
            "sparsity": sparsity,
            "blocks_pruned": pruned,
            "weights_pruned": pruned,
            "distortion": np.asarray(distortion, dtype=float)[pruned],
        }
    )


def case(layers, block_shape=(1, 1), head=True, points=None):
    """Frames for ``{name: (shape, tokens, distortion of 0 .. B blocks, saliency or None, squared norm or None)}``."""
    blocks, curves, costs = [], [], []
    for name, (shape, tokens, distortion, *scores) in layers.items():
        saliency, norm = (*scores, None, None)[:2]
        count = BlockGrid(shape, block_shape).count
        blocks.append(block_rows(name, shape, block_shape, np.arange(count) if saliency is None else saliency, norm))
        curves.append(curve_rows(name, distortion, count, points))
        costs.append(cost_row(name, shape, tokens))
    return pd.concat(curves), pd.concat(blocks), pd.DataFrame(costs + [HEAD] * head)


def random_case(seed, block_shape=(3, 4), points=101):
    rng = np.random.default_rng(seed)
    shapes = {"qkv": (19, 8), "proj": (8, 9), "fc1": (25, 13), "fc2": (8, 30)}
    layers = {}
    for name, shape in shapes.items():
        saliency = rng.gamma(1.0, size=BlockGrid(shape, block_shape).count)
        distortion = np.append(0, np.cumsum(np.sort(saliency) * rng.uniform(0.5, 1.5, len(saliency))))
        layers[name] = (shape, int(rng.integers(1, 6)), distortion, saliency, rng.gamma(1.0, size=len(saliency)))
    return case(layers, block_shape, points=points)


def pruned(allocation):
    return (allocation["blocks"] - allocation["blocks_kept"]).tolist()


def cubic(count):
    return (np.arange(count + 1) / count) ** 3


# --- the rules, worked by hand ---------------------------------------------------------------------------------------


def test_uniform_prunes_the_same_share_of_layers_of_any_size():
    frames = case({"a": ((2, 2), 7, cubic(4)), "b": ((4, 4), 1, cubic(16))})
    assert pruned(allocate(*frames, Budget(sparsity=0.5, allocator="uniform"))) == [2, 8]


def test_uniform_plus_leaves_the_first_layer_dense_and_a_fifth_of_the_last():
    frames = case({name: ((2, 5), 1, cubic(10)) for name in "abc"})
    budget = Budget(sparsity=8 / 30, allocator="uniform_plus", min_keep_ratio=0)
    assert pruned(allocate(*frames, budget)) == [0, 4, 4]
    budget = Budget(sparsity=17 / 30, allocator="uniform_plus", min_keep_ratio=0)
    assert pruned(allocate(*frames, budget)) == [0, 9, 8]


def test_global_cuts_all_layers_at_one_saliency():
    frames = case({"a": ((1, 4), 1, cubic(4), [5, 1, 7, 2]), "b": ((1, 4), 1, cubic(4), [3, 9, 8, 6])})
    assert pruned(allocate(*frames, Budget(sparsity=0.5, allocator="global"))) == [3, 1]


def test_lamp_divides_by_the_norms_that_are_not_smaller():
    # Scores 1/4, 1/3, 1 and 1/8, 3/7, 1, whatever the saliency says.
    frames = case({"a": ((1, 3), 1, cubic(3), [9, 8, 7], [2, 1, 1]), "b": ((1, 3), 1, cubic(3), [1, 2, 3], [3, 4, 1])})
    assert pruned(allocate(*frames, Budget(sparsity=1 / 6, allocator="lamp"))) == [0, 1]
    assert pruned(allocate(*frames, Budget(sparsity=3 / 6, allocator="lamp"))) == [2, 1]
    assert pruned(allocate(*frames, Budget(sparsity=4 / 6, allocator="lamp"))) == [2, 2]


def test_lamp_prunes_zero_blocks_first_even_in_a_layer_of_zeros():
    frames = case({"a": ((1, 4), 1, cubic(4), None, [1, 1, 1, 1]), "b": ((1, 4), 1, cubic(4), None, [0, 0, 0, 0])})
    assert pruned(allocate(*frames, Budget(sparsity=3 / 8, allocator="lamp"))) == [0, 3]


def test_erk_keeps_small_layers_denser_and_passes_on_what_they_cannot_take():
    # Densities 8/16 and 16/64. Of 20 blocks, 10 kept: 3.33 and 6.67; 15 kept: 5 is more than the 4 that there are.
    frames = case({"a": ((4, 4), 3, cubic(4)), "b": ((8, 8), 1, cubic(16))}, block_shape=(2, 2))
    assert pruned(allocate(*frames, Budget(sparsity=0.5, allocator="erk"))) == [1, 9]
    assert pruned(allocate(*frames, Budget(sparsity=0.25, allocator="erk"))) == [0, 5]


def test_lagrangian_takes_the_cheapest_distortion_first():
    frames = case({"a": ((1, 3), 1, [0, 1, 3, 9]), "b": ((1, 3), 1, [0, 1.5, 8, 20])})
    budget = Budget(sparsity=2 / 6, allocator="lagrangian", min_keep_ratio=0)
    assert pruned(allocate(*frames, budget)) == [1, 1]


def test_lagrangian_counts_distortion_per_mac():
    # A block of b saves four times the MACs of a block of a: 36 of 95 MACs are nine of b's 12, or b's two and one of a.
    frames = case({"a": ((1, 3), 1, [0, 1, 3, 9]), "b": ((1, 3), 4, [0, 2, 4.5, 20])}, head=False)
    assert pruned(allocate(*frames, Budget(macs=7 / 15, allocator="lagrangian"))) == [0, 2]
    assert pruned(allocate(*frames, Budget(macs=6 / 15, allocator="lagrangian"))) == [1, 2]


def test_lagrangian_steps_over_the_bumps_of_a_curve():
    # The hull of a goes straight to its dip at two blocks: slope 1/2, less than the 1 of b; then 5.
    frames = case({"a": ((1, 4), 1, [0, 5, 1, 6, 20]), "b": ((1, 4), 1, [0, 1, 2, 3, 4])})
    assert pruned(allocate(*frames, Budget(sparsity=2 / 8))) == [2, 0]
    assert pruned(allocate(*frames, Budget(sparsity=5 / 8))) == [2, 3]


def test_lagrangian_fills_its_last_segment_partly():
    curve = np.interp(np.arange(11), [0, 5, 10], [0, 1, 100])
    frames = case({"a": ((1, 10), 1, curve)}, points=3)
    assert pruned(allocate(*frames, Budget(sparsity=0.7))) == [7]


def test_points_beyond_the_floor_do_not_make_a_layer_look_cheap():
    # To its end a costs 1 per block, but its last block must stay, and up to there it costs 3.
    frames = case({"a": ((1, 4), 1, [0, 3, 6, 9, 4]), "b": ((1, 4), 1, [0, 2, 4, 6, 8])})
    assert pruned(allocate(*frames, Budget(sparsity=3 / 8))) == [0, 3]


def test_lpvit_equalises_the_slopes_of_the_layers():
    # Slopes 2x and 8x are equal at x = 0.8 and 0.2, which together prune half.
    share = np.arange(101) / 100
    frames = case({"a": ((10, 10), 1, share**2), "b": ((10, 10), 1, 4 * share**2)})
    budget = Budget(sparsity=0.5, allocator=SlopeRule(smoothing=1))
    assert pruned(allocate(*frames, budget)) == pytest.approx([80, 20], abs=1)


def power_case():
    share = np.arange(101) / 100
    return case({"narrow": ((40, 10), 1, share**2), "wide": ((10, 40), 1, share**2)}, block_shape=(2, 2))


def test_the_power_term_prunes_layers_of_much_power_more():
    # Power slopes -100*10/16 and -100*40/16; 2x - 62.5 beta = 2y - 250 beta with beta 0.4/187.5 makes y = x + 0.2.
    budget = Budget(sparsity=0.5, allocator=SlopeRule(smoothing=1))
    assert pruned(allocate(*power_case(), budget)) == pytest.approx([50, 50], abs=1)
    powered = budget.model_copy(update={"allocator": SlopeRule(smoothing=1, power_beta=0.4 / 187.5)})
    assert pruned(allocate(*power_case(), powered)) == pytest.approx([40, 60], abs=1)


def test_automatic_beta_is_the_ratio_of_the_mean_largest_slopes():
    budget = Budget(sparsity=0.5, allocator=SlopeRule(smoothing=1, power_beta="auto"), min_keep_ratio=0)
    by_hand = (1 - 0.99**2) / 0.01 / 156.25
    explicit = budget.model_copy(update={"allocator": SlopeRule(smoothing=1, power_beta=by_hand)})
    allocation = allocate(*power_case(), budget)
    assert allocation.equals(allocate(*power_case(), explicit))
    assert pruned(allocation) == pytest.approx([0, 99], abs=1)


def test_a_flat_power_term_of_zero_changes_nothing():
    off = Budget(macs=0.5, allocator="lpvit")
    zero = Budget(macs=0.5, allocator=SlopeRule(power_beta=0.0))
    assert allocate(*random_case(0), off).equals(allocate(*random_case(0), zero))


def test_lpvit_reaches_every_budget_on_curves_that_are_not_convex():
    # Concave: the steepest slope is at the start, so that no slope leads to the end.
    share = np.arange(101) / 100
    frames = case({"a": ((10, 10), 1, np.sqrt(share)), "b": ((10, 10), 1, np.sin(3 * share))})
    for sparsity in np.linspace(0, 0.95, 20).round(2).tolist():
        allocation = allocate(*frames, Budget(sparsity=sparsity, allocator="lpvit"))
        assert sum(pruned(allocation)) == round(200 * sparsity)


# --- the parts of the rules ------------------------------------------------------------------------------------------


def test_smoothing_is_a_weighted_mean_of_the_past():
    assert smooth(np.array([0.0, 1, 2]), 0.5) == pytest.approx([0, 2 / 3, 10 / 7])
    assert smooth(np.array([3.0, 3, 3]), 0.1) == pytest.approx([3, 3, 3])
    assert smooth(np.array([0.0, 5, 2]), 1).tolist() == [0, 5, 2]


@pytest.mark.parametrize("step", [2, 4, 5, 10])
def test_the_stencil_is_exact_for_polynomials_of_fourth_degree(step):
    x = np.linspace(0, 1, 101)
    slopes = curve_slopes(x**4 - x**2, x, step)
    assert slopes[2:-2] == pytest.approx((4 * x**3 - 2 * x)[2:-2], abs=1e-10)
    assert slopes == pytest.approx(4 * x**3 - 2 * x, abs=0.06)


@pytest.mark.parametrize("points", [2, 3, 6])
def test_the_stencil_is_exact_for_a_line_up_to_its_ends(points):
    x = np.linspace(0, 1, points)
    assert curve_slopes(3 * x, x, 4) == pytest.approx([3] * points)


def test_a_wider_stencil_looks_further():
    x = np.linspace(0, 1, 101)
    noisy = x + 0.1 * (np.arange(101) % 2)
    assert np.ptp(curve_slopes(noisy, x, 8)[10:-10]) < np.ptp(curve_slopes(noisy, x, 2)[10:-10])


def test_the_hull_lies_below_the_curve_and_its_slopes_rise():
    x, y = np.array([0, 1, 3, 4, 6]), np.array([0, 3.0, 1, 2.0, 4.0])
    assert lower_hull(x, y) == ([0, 2, 4], [pytest.approx(1 / 3), pytest.approx(1.0)])


# --- the budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize(
    "target", [{"macs": 0.9}, {"macs": 0.5}, {"macs": 0.45}, {"sparsity": 0.1}, {"sparsity": 0.55}]
)
def test_budget_is_met_within_one_block_for_every_allocator(allocator, target):
    for seed in range(5):
        curves, blocks, costs = random_case(seed)
        allocation = allocate(curves, blocks, costs, Budget(**target, allocator=allocator))
        achieved, one_block = recount(blocks, costs, allocation, target)
        assert allocation["achieved"].tolist() == [pytest.approx(achieved, rel=1e-12)] * 4
        assert allocation["target"].tolist() == list(target.values()) * 4
        if "macs" in target:
            assert target["macs"] - one_block < achieved <= target["macs"]
        else:
            assert target["sparsity"] <= achieved < target["sparsity"] + one_block


def recount(blocks, costs, allocation, target):
    """What the masks of an allocation achieve, and the share of the largest block, from the masks alone."""
    masks = build_keep_masks(blocks, allocation)
    costs = costs.set_index("layer")
    kept, dense, largest = costs.loc["head", "macs"] if "macs" in target else 0, 0, 0
    for layer, mask in masks.items():
        shape = costs.loc[layer, ["out_features", "in_features"]].tolist()
        per_weight = costs.loc[layer, "tokens"] if "macs" in target else 1
        sizes = BlockGrid(tuple(shape), (3, 4)).sizes() * per_weight
        kept += int(sizes[mask].sum())
        dense += int(sizes.sum())
        largest = max(largest, int(sizes.max()))
    if "macs" in target:
        total = int(costs["macs"].sum())
        return kept / total, largest / total
    return 1 - kept / dense, largest / dense


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_kept_macs_agree_with_the_masks(allocator):
    curves, blocks, costs = random_case(3)
    allocation = allocate(curves, blocks, costs, Budget(macs=0.6, allocator=allocator))
    masks, tokens = build_keep_masks(blocks, allocation), costs.set_index("layer")["tokens"]
    for row in allocation.to_dict("records"):
        shape = costs.set_index("layer").loc[row["layer"], ["out_features", "in_features"]].tolist()
        kept = BlockGrid(tuple(shape), (3, 4)).sizes()[masks[row["layer"]]].sum() * tokens[row["layer"]]
        assert row["macs_kept"] == int(kept)
        assert row["macs_dense"] == shape[0] * shape[1] * tokens[row["layer"]]
        assert row["keep_ratio"] == row["blocks_kept"] / row["blocks"] == masks[row["layer"]].double().mean().item()


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("target", [{"macs": 1.0}, {"sparsity": 0.0}])
def test_a_budget_of_everything_prunes_nothing(allocator, target):
    allocation = allocate(*random_case(1), Budget(**target, allocator=allocator))
    assert pruned(allocation) == [0, 0, 0, 0]
    assert set(allocation["achieved"]) == set(target.values())


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_the_least_reachable_budget_in_the_message_can_be_met(allocator):
    frames = random_case(2)
    budget = Budget(macs=0.01, allocator=allocator, min_keep_ratio=0.2)
    with pytest.raises(LpvitError, match=r"macs 0\.01 is impossible.*min_keep_ratio 0\.2.*raise 'macs'") as error:
        allocate(*frames, budget)
    assert "\n" not in str(error.value)
    least = float(str(error.value).split("at least ")[1].split()[0])
    allocate(*frames, budget.model_copy(update={"macs": least}))
    with pytest.raises(LpvitError):
        allocate(*frames, budget.model_copy(update={"macs": least - 0.001}))


def test_an_impossible_sparsity_says_how_far_it_can_go():
    frames = case({"a": ((1, 4), 1, cubic(4)), "b": ((1, 4), 1, cubic(4))})
    with pytest.raises(LpvitError, match=r"0\.9 is impossible, at most 0\.7500 can be pruned.*lower 'sparsity'"):
        allocate(*frames, Budget(sparsity=0.9))


def test_uniform_plus_of_a_single_layer_says_why_it_can_prune_nothing():
    with pytest.raises(LpvitError, match=r"at most 0\.0000 can be pruned .*the first layer dense"):
        allocate(*case({"a": ((1, 4), 1, cubic(4))}), Budget(sparsity=0.5, allocator="uniform_plus"))


@given(seed=st.integers(0, 10**6), ratio=st.floats(0, 0.5), allocator=st.sampled_from(ALLOCATORS))
@settings(max_examples=40, deadline=None)
def test_no_layer_falls_below_its_floor(seed, ratio, allocator):
    budget = Budget(macs=0.8, allocator=allocator, min_keep_ratio=ratio)
    try:
        allocation = allocate(*random_case(seed, points=11), budget)
    except LpvitError:
        reject()
    floors = [blocks_always_kept(count, ratio) for count in allocation["blocks"]]
    assert (allocation["blocks_kept"] >= floors).all()


def test_the_floor_is_rounded_up_and_never_nothing():
    assert [blocks_always_kept(count, 0.05) for count in (1, 20, 21, 100)] == [1, 1, 2, 5]
    assert blocks_always_kept(100, 0.07) == 7  # 0.07 * 100 is 7.000000000000001 in floats
    assert blocks_always_kept(9, 0.0) == 1


def test_a_budget_that_is_a_whole_number_of_blocks_is_met_exactly():
    frames = case({"a": ((10, 10), 3, cubic(100))}, head=False)
    for percent in range(5, 100):
        assert allocate(*frames, Budget(macs=percent / 100))["blocks_kept"].item() == percent


# --- lagrangian against the exact optimum ----------------------------------------------------------------------------

increments = st.lists(st.integers(1, 50), min_size=2, max_size=5).map(sorted)


@given(layers=st.lists(increments, min_size=1, max_size=3), data=st.data())
@settings(max_examples=50, deadline=None)
def test_lagrangian_is_optimal_on_convex_curves(layers, data):
    """Among all allocations that prune as much, when blocks cost the same; within one block when they do not."""
    tokens = data.draw(st.lists(st.integers(1, 4), min_size=len(layers), max_size=len(layers)))
    sparsity = data.draw(st.integers(1, 20)) / 40
    curves = [np.append(0, np.cumsum(steps)) for steps in layers]
    names = [f"layer{i}" for i in range(len(layers))]

    def solve(tokens):
        sizes = [len(steps) for steps in layers]
        frames = case(
            {
                name: ((1, size), token, curve)
                for name, size, token, curve in zip(names, sizes, tokens, curves, strict=True)
            },
            head=False,
        )
        dense = sum(size * token for size, token in zip(sizes, tokens, strict=True))
        counts = pruned(allocate(*frames, Budget(macs=1 - sparsity, min_keep_ratio=0)))
        needed = round(dense * sparsity + 0.499999)
        options = itertools.product(*(range(size) for size in sizes))
        best = min(distortion(o) for o in options if cost(o, tokens) >= needed)
        return counts, best

    def distortion(counts):
        return sum(curve[count] for curve, count in zip(curves, counts, strict=True))

    def cost(counts, tokens):
        return sum(count * token for count, token in zip(counts, tokens, strict=True))

    try:
        counts, best = solve([1] * len(layers))
        assert distortion(counts) == best
        counts, best = solve(tokens)
    except LpvitError:
        reject()
    last_steps = [steps[count - 1] for steps, count in zip(layers, counts, strict=True) if count]
    assert best <= distortion(counts) <= best + max(last_steps, default=0)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_lagrangian_never_takes_back_what_a_larger_budget_pruned(seed):
    frames = random_case(seed, points=17)
    kept = [allocate(*frames, Budget(macs=macs))["blocks_kept"].to_numpy() for macs in (0.3, 0.45, 0.6, 0.61, 0.9)]
    assert all((smaller <= larger).all() for smaller, larger in itertools.pairwise(kept))


@pytest.mark.parametrize("macs", [0.3, 0.5, 0.8])
def test_lagrangian_costs_no_more_distortion_than_the_others(macs):
    curves, blocks, costs = random_case(7, block_shape=(1, 1), points=None)
    convex = pd.concat(
        curve.assign(distortion=np.append(0, np.cumsum(np.sort(np.diff(curve["distortion"])))))
        for _, curve in curves.groupby("layer", sort=False)
    )
    of_layer = {name: curve["distortion"].to_numpy() for name, curve in convex.groupby("layer")}

    def distortion(allocator):
        allocation = allocate(convex, blocks, costs, Budget(macs=macs, allocator=allocator))
        return sum(of_layer[row["layer"]][row["blocks"] - row["blocks_kept"]] for row in allocation.to_dict("records"))

    one_block = max(np.diff(curve).max() for curve in of_layer.values())
    assert all(
        distortion("lagrangian") <= distortion(other) + one_block for other in ALLOCATORS if other != "uniform_plus"
    )


# --- exact against all others ----------------------------------------------------------------------------------------


def bumpy_case(seed):
    """Random layers whose curves are neither convex nor monotone, between eleven points."""
    curves, blocks, costs = random_case(seed, points=11)
    noise = np.random.default_rng(seed).uniform(0, 2, len(curves)) * curves["distortion"].mean()
    return curves.assign(distortion=(curves["distortion"] + noise) * (curves["blocks_pruned"] > 0)), blocks, costs


def interpolated_distortion(curves, allocation):
    pruned_of = dict(zip(allocation["layer"], pruned(allocation), strict=True))
    return sum(
        np.interp(pruned_of[layer], curve["blocks_pruned"], curve["distortion"])
        for layer, curve in curves.groupby("layer")
    )


@given(
    seed=st.integers(0, 10**6),
    kept=st.floats(0.3, 1),
    quantity=st.sampled_from(["macs", "sparsity", "energy", "latency"]),
)
@settings(max_examples=20, deadline=None)
def test_exact_is_never_worse_than_any_other_allocator(seed, kept, quantity):
    frames = bumpy_case(seed)
    latency = random_latency(frames[2], seed)
    target = {quantity: 1 - kept if quantity == "sparsity" else kept}
    if quantity == "latency":
        target["latency_table"] = "x"
    distortion = {}
    for allocator in ALLOCATORS:
        try:
            budget = Budget(**target, allocator=allocator, min_keep_ratio=0.1)
            allocation = allocate(*frames, budget, latency=latency)
        except LpvitError:
            continue
        distortion[allocator] = interpolated_distortion(frames[0], allocation)
    assert all(distortion["exact"] <= other + 1e-9 * abs(other) for other in distortion.values())


def test_exact_stays_small_where_a_block_costs_far_more_than_what_is_still_open():
    frames = bumpy_case(9)
    budget = Budget(latency=1.0, latency_table="x", allocator="exact", min_keep_ratio=0.1)
    tracemalloc.start()
    allocate(*frames, budget, latency=random_latency(frames[2], 9))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6


def test_exact_equals_the_best_of_all_allocations():
    curves = {"a": [0, 4, 1, 6], "b": [0, 1, 5, 5.5], "c": [0, 3, 3, 8]}
    tokens = {"a": 2, "b": 3, "c": 1}
    frames = case({name: ((1, 3), tokens[name], curve) for name, curve in curves.items()}, head=False)
    for kept in range(6, 18):
        found = pruned(allocate(*frames, Budget(macs=kept / 18, allocator="exact", min_keep_ratio=0)))
        removed = {
            counts: sum(count * token for count, token in zip(counts, tokens.values(), strict=True))
            for counts in itertools.product(range(3), repeat=3)
        }
        allowed = [counts for counts, cost in removed.items() if 18 - kept <= cost < 18 - kept + 3]
        best = min(sum(curve[n] for curve, n in zip(curves.values(), c, strict=True)) for c in allowed)
        assert sum(curve[n] for curve, n in zip(curves.values(), found, strict=True)) == best


@given(seed=st.integers(0, 10**6), macs=st.sampled_from([0.35, 0.5, 0.8]))
@settings(max_examples=15, deadline=None)
def test_lagrangian_equals_exact_to_one_block_on_convex_curves(seed, macs):
    curves, blocks, costs = random_case(seed, block_shape=(1, 1), points=None)
    curves = pd.concat(
        curve.assign(distortion=np.append(0, np.cumsum(np.sort(np.diff(curve["distortion"])))))
        for _, curve in curves.groupby("layer", sort=False)
    )
    lagrangian, exact = (
        interpolated_distortion(curves, allocate(curves, blocks, costs, Budget(macs=macs, allocator=allocator)))
        for allocator in ("lagrangian", "exact")
    )
    one_block = max(np.diff(curve["distortion"]).max() for _, curve in curves.groupby("layer"))
    assert exact <= lagrangian <= exact + one_block


# --- energy and latency ----------------------------------------------------------------------------------------------


def latency_rows(costs, times, block_shape=(3, 4)):
    """A table of ``times``, layer -> {sparsity: ms}."""
    rows = [
        {
            **cost[["out_features", "in_features", "tokens"]],
            "block_rows": block_shape[0],
            "block_columns": block_shape[1],
            "sparsity": sparsity,
            "milliseconds": time,
        }
        for _, cost in costs.iterrows()
        for sparsity, time in times.get(cost["layer"], {}).items()
    ]
    return pd.DataFrame(rows)


def random_latency(costs, seed):
    """Times with a kernel for blocks that is slower than the dense product up to a third, and noisy."""
    rng = np.random.default_rng(seed)
    times = {}
    for layer, macs in costs[["layer", "macs"]].itertuples(index=False):
        falling = {share: (1.3 - share) * rng.uniform(0.9, 1.1) for share in (0.1, 0.3, 0.5, 0.7, 0.9)}
        times[layer] = {share: macs * 1e-5 * time for share, time in {0.0: 1.0, **falling}.items()}
    return latency_rows(costs, times)


def costs_by_hand(costs, allocation, latency, energy=HOROWITZ):
    """Share of the model's energy and of the prunable layers' milliseconds that an allocation keeps, of the blocks."""
    kept_of = dict(zip(allocation["layer"], allocation["macs_kept"], strict=True))
    joules, dense_joules, time, dense_time = 0.0, 0.0, 0.0, 0.0
    for row in costs.to_dict("records"):
        shape, tokens = (row["out_features"], row["in_features"]), row["tokens"]
        weights = kept_of.get(row["layer"], row["macs"]) / tokens
        joules += layer_energy(*shape, tokens, weights, energy)
        dense_joules += layer_energy(*shape, tokens, shape[0] * shape[1], energy)
        if row["layer"] in kept_of:
            time += milliseconds(latency, *shape, tokens, 1 - weights / (shape[0] * shape[1]))
            dense_time += milliseconds(latency, *shape, tokens, 0.0)
    return joules / dense_joules, time / dense_time


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_budgets_in_energy_and_latency_are_met_by_every_allocator(allocator):
    for seed in range(5):
        curves, blocks, costs = random_case(seed)
        latency = random_latency(costs, seed)
        for number, target in enumerate([{"energy": 0.6}, {"latency": 0.7, "latency_table": "x"}]):
            budget = Budget(**target, allocator=allocator)
            allocation = allocate(curves, blocks, costs, budget, latency=latency)
            kept, wanted = costs_by_hand(costs, allocation, latency)[number], next(iter(target.values()))
            assert allocation["achieved"].iloc[0] == pytest.approx(kept, rel=1e-6)
            largest_block = 0.1  # ten-odd blocks in the smallest layer, and steps in the time
            assert wanted - largest_block < kept <= wanted * (1 + 1e-9)


def test_energy_counts_weights_where_tokens_are_few():
    # By MACs a block of b is as good as four of a; its energy is that of its weights, read from DRAM all the same.
    frames = case({"a": ((1, 10), 1, np.arange(11)), "b": ((1, 10), 4, 2 * np.arange(11))}, head=False)
    assert pruned(allocate(*frames, Budget(macs=0.6)))[1] > 0
    fetching = Energy(mac=0.001, buffer=0, sram=0)
    assert pruned(allocate(*frames, Budget(energy=0.61), fetching)) == [8, 0]
    computing = Energy(dram=0, sram=0)
    assert pruned(allocate(*frames, Budget(energy=0.6), computing)) == pruned(allocate(*frames, Budget(macs=0.6)))


def test_latency_prunes_where_it_pays():
    # Layer a is slower with blocks up to four fifths; b saves time from the first block on.
    frames = case({"a": ((1, 10), 1, np.arange(11) / 10), "b": ((1, 10), 1, np.arange(11))}, head=False)
    costs = frames[2].assign(in_features=[10, 20])
    frames[1]["weights"] = np.repeat([1, 2], 10).astype(np.int32)
    steps = {"a": {0.0: 1.0, 0.1: 1.5, 0.8: 1.0, 1.0: 0.9}, "b": {0.0: 1.0, 1.0: 0.0001}}
    latency = latency_rows(costs, steps)
    allocation = allocate(*frames[:2], costs, Budget(latency=0.81, latency_table="x"), latency=latency)
    assert pruned(allocation) == [0, 4]


def test_a_layer_that_was_not_timed_is_named():
    curves, blocks, costs = random_case(0)
    latency = random_latency(costs[costs["layer"] != "fc1"], 0)
    with pytest.raises(LpvitError, match=r"latency_table: layer of 25x13 with \d tokens: not measured; measure it"):
        allocate(curves, blocks, costs, Budget(latency=0.7, latency_table="x"), latency=latency)


# --- two budgets -----------------------------------------------------------------------------------------------------

TWO = ["lagrangian", "exact"]


@given(
    seed=st.integers(0, 10**6),
    shares=st.dictionaries(st.sampled_from(["macs", "sparsity", "energy", "latency"]), st.floats(0.3, 0.9), min_size=2),
)
@settings(max_examples=15, deadline=None)
def test_two_budgets_are_both_met_and_exact_is_not_worse(seed, shares):
    targets = dict(itertools.islice(shares.items(), 2))
    if "latency" in targets:
        targets["latency_table"] = "x"
    curves, blocks, costs = bumpy_case(seed)
    latency = random_latency(costs, seed)
    distortion = {}
    for allocator in TWO:
        budget = Budget(**targets, allocator=allocator, min_keep_ratio=0.05)
        try:
            allocation = allocate(curves, blocks, costs, budget, latency=latency)
        except LpvitError:
            reject()
        for prefix in ("", "second_"):
            row = allocation.iloc[0]
            sign = -1 if row[f"{prefix}budget"] == "sparsity" else 1
            assert sign * row[f"{prefix}achieved"] <= sign * row[f"{prefix}target"] + 1e-9
            assert row[f"{prefix}target"] == targets[row[f"{prefix}budget"]]
        distortion[allocator] = interpolated_distortion(curves, allocation)
    assert distortion["exact"] <= distortion["lagrangian"] * (1 + 1e-9)


@given(layers=st.lists(increments, min_size=2, max_size=3), data=st.data())
@settings(max_examples=50, deadline=None)
def test_two_budgets_against_all_allocations(layers, data):
    """`exact` is the optimum; on convex curves, `lagrangian` is within three blocks of it."""
    tokens = data.draw(st.lists(st.integers(1, 5), min_size=len(layers), max_size=len(layers)))
    macs, sparsity = data.draw(st.integers(3, 9)) / 10, data.draw(st.integers(1, 7)) / 10
    curves = [np.append(0, np.cumsum(steps)) for steps in layers]
    frames = case(
        {
            f"layer{i}": ((1, len(steps)), token, curve)
            for i, (steps, token, curve) in enumerate(zip(layers, tokens, curves, strict=True))
        },
        head=False,
    )
    sizes = np.array([len(steps) for steps in layers])
    choices = np.array(list(itertools.product(*(range(size) for size in sizes))))
    distortions = sum(curve[counts] for curve, counts in zip(curves, choices.T, strict=True))
    meet_macs = choices @ tokens >= (1 - macs) * (sizes @ tokens) - 1e-9
    meet_sparsity = choices.sum(axis=1) >= sparsity * sizes.sum() - 1e-9
    if not (meet_macs & meet_sparsity).any():
        reject()
    best = distortions[meet_macs & meet_sparsity].min()
    found = {
        allocator: pruned(
            allocate(*frames, Budget(macs=macs, sparsity=sparsity, allocator=allocator, min_keep_ratio=0))
        )
        for allocator in TWO
    }
    distortion = {
        allocator: sum(curve[n] for curve, n in zip(curves, counts, strict=True)) for allocator, counts in found.items()
    }
    for counts in found.values():
        assert np.dot(counts, tokens) >= (1 - macs) * (sizes @ tokens) - 1e-9
        assert sum(counts) >= sparsity * sizes.sum() - 1e-9
    assert best == distortion["exact"] <= distortion["lagrangian"] <= best + 3 * max(map(max, layers))


def swin_like(seed=0, count=400, points=None):
    """Three layers of equal weights and 16, 4 and 1 tokens, of convex curves that rise less the fewer these are."""
    rng = np.random.default_rng(seed)
    layers = {}
    for i, tokens in enumerate((16, 4, 1)):
        curve = np.append(0, np.cumsum(np.sort(rng.gamma(2.5 - i, size=count))))
        layers[f"blocks.{i}.fc1"] = ((20, count // 20), tokens, curve)
    return case(layers, head=False, points=points)


@pytest.mark.parametrize("allocator", TWO)
@pytest.mark.parametrize("seed", range(2))
def test_where_both_of_two_budgets_bind_each_is_met_to_a_thousandth(allocator, seed):
    frames = swin_like(seed, count=1200, points=13)  # hulls of long segments, which would overshoot whole
    alone = allocate(*frames, Budget(macs=0.5))
    sparsity = 1 - alone["blocks_kept"].sum() / alone["blocks"].sum()
    allocation = allocate(*frames, Budget(macs=0.5, sparsity=sparsity + 0.1, allocator=allocator)).iloc[0]
    assert 0.5 - 0.001 < allocation["achieved"] <= 0.5
    assert sparsity + 0.1 <= allocation["second_achieved"] < sparsity + 0.1 + 0.001


@pytest.mark.parametrize("allocator", TWO)
def test_a_second_budget_that_the_first_meets_changes_nothing(allocator):
    frames = swin_like()
    alone = allocate(*frames, Budget(macs=0.5, allocator=allocator))
    met = 1 - alone["blocks_kept"].sum() / alone["blocks"].sum()
    macs_decide = Budget(macs=0.5, sparsity=met - 0.01, allocator=allocator)
    assert pruned(allocate(*frames, macs_decide)) == pruned(alone)
    energy_decides = Budget(macs=1.0, energy=0.5, allocator=allocator)
    assert pruned(allocate(*frames, energy_decides)) == pruned(
        allocate(*frames, Budget(energy=0.5, allocator=allocator))
    )


def test_the_frontier_passes_through_the_allocation_and_trades_one_budget_for_the_other(tmp_path):
    frames = swin_like(count=1000)
    budget = Budget(macs=0.5, sparsity=0.6)
    allocation = allocate(*frames, budget).iloc[0]
    trade = frontier(*frames, budget, levels=(0.5, 1.0), points=101)
    write_parquet(trade, tmp_path / "frontier.parquet", FRONTIER)
    for level, line in trade.groupby("level"):
        one_block = 16 / 21_000, 1 / 3000
        assert (np.diff(line["first"]) <= one_block[0]).all()  # fewer MACs and less sparsity the more MACs weigh
        assert (np.diff(line["second"]) <= one_block[1]).all()
        reached = interpolated_distortion(frames[0], allocate(*frames, budget)) * level
        assert line["distortion"].to_numpy() == pytest.approx(reached, rel=0.01)
    line = trade[trade["level"] == 1]
    assert np.interp(-0.5, -line["first"], line["second"]) == pytest.approx(allocation["second_achieved"], abs=0.002)


# --- the rest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_an_allocation_fits_its_schema_and_is_the_same_twice(allocator, tmp_path):
    budget = Budget(macs=0.5, allocator=allocator)
    allocation = allocate(*random_case(4), budget)
    write_parquet(allocation, tmp_path / "allocation.parquet", ALLOCATION)
    pd.testing.assert_frame_equal(
        read_parquet(tmp_path / "allocation.parquet", ALLOCATION),
        allocation.astype({"second_budget": "str"}),
        check_dtype=False,
    )
    assert allocation.equals(allocate(*random_case(4), budget))
    assert allocation["layer"].tolist() == ["qkv", "proj", "fc1", "fc2"]


def test_target_and_achieved_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        allocate(*random_case(0), Budget(macs=0.5))
    assert "lagrangian: macs target 0.5, achieved 0.49" in caplog.text


@pytest.mark.parametrize("column", ["saliency", "squared_norm"])
def test_a_score_that_is_not_finite_is_named(column):
    curves, blocks, costs = random_case(0)
    blocks.loc[blocks["layer"] == "fc1", column] = np.nan
    with pytest.raises(LpvitError, match=f"layer 'fc1': {column} is not finite"):
        allocate(curves, blocks, costs, Budget(macs=0.5))


def test_a_distortion_that_is_not_finite_is_named():
    curves, blocks, costs = random_case(0)
    curves.loc[curves["layer"] == "proj", "distortion"] = np.inf
    with pytest.raises(LpvitError, match="layer 'proj': distortion is not finite"):
        allocate(curves, blocks, costs, Budget(macs=0.5))


def test_frames_of_different_layers_are_refused():
    curves, blocks, costs = random_case(0)
    with pytest.raises(ValueError, match="same layers"):
        allocate(curves[curves["layer"] != "fc1"], blocks, costs, Budget(macs=0.5))


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_fifty_layers_of_nine_thousand_blocks_take_less_than_a_second(allocator, big_case):
    started = time.process_time()
    allocate(*big_case, Budget(macs=0.5, allocator=allocator))
    assert time.process_time() - started < 1


@pytest.fixture(scope="module")
def big_case():
    rng = np.random.default_rng(0)
    layers, count = {}, 96 * 94
    for i in range(50):
        saliency = rng.gamma(1.0, size=count)
        layers[f"blocks.{i}.fc1"] = ((96, 94), 197, np.append(0, np.cumsum(np.sort(saliency))) ** 2, saliency)
    return case(layers, points=101)


def test_allocation_imports_no_torch():
    code = "import sys, lpvit.allocation.allocate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
