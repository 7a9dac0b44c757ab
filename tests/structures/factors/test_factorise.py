"""Factorised models: at full rank, under a budget, refitted, and against brute force where the network is linear."""

import logging
import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from tiny import MODELS, photographs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.costs.cost import measure_costs
from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import weight_matrix
from lpvit.models.architecture import create_model
from lpvit.store.schemas import BLOCKS, CURVES
from lpvit.structures.factors.factorise import Measured, factorise, factorised, measure
from lpvit.structures.factors.ranks import Form, allocated_ranks
from lpvit.structures.factors.settings import Factors, Metric

Batches = list[tuple[Tensor, Tensor]]
FORMS: tuple[Form, ...] = ("plain", "pivoted")
METRICS: tuple[Metric, ...] = ("two_sided", "activations", "fisher", "weights")


def dense_model(kind: str = "vit") -> nn.Module:
    name, options = MODELS[kind]
    torch.manual_seed(0)
    model = create_model(name, 5, options).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def batches(images: Tensor, size: int = 8) -> Batches:
    return [(batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in images.double().split(size)]


def distortion(model: nn.Module, dense: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float((model(images.double()) - dense(images.double())).square().sum(dim=1).mean())


class Linear(nn.Sequential):
    """Linear layers on images, in the form that `matrix_layers` looks at."""

    def __init__(self, *widths: int) -> None:
        layers = [nn.Linear(before, after) for before, after in pairwise(widths)]
        super().__init__(nn.Flatten(), *layers)
        self.pretrained_cfg = {"input_size": (1, 1, widths[0])}
        self.double().eval()


@pytest.fixture(scope="module")
def vit() -> tuple[nn.Module, Batches, Measured]:
    model, images = dense_model(), batches(photographs("vit"))
    return model, images, measure(model, images, Factors(rank_multiple=4, form="pivoted"), "cpu")


@pytest.mark.parametrize("refit", ["none", "reduced_rank_regression"])
@pytest.mark.parametrize("kind", ["vit", "deit", "swin"])
def test_at_full_rank_the_model_is_the_dense_one(kind: str, refit: str) -> None:
    model, images = dense_model(kind), batches(photographs(kind, 16))
    settings = Factors.model_validate({"refit": refit})
    measured = measure(model, images, settings, "cpu")
    ranks = {layer.name: min(layer.shape) for layer in measured.layers}
    compressed = factorised(model, images, measured, ranks, settings, "cpu")
    assert len([name for name, _ in compressed.named_modules() if name.endswith(".reduce")]) == len(ranks)
    assert distortion(compressed, model, images[0][0]) < 1e-16 * float(model(images[0][0]).square().sum())


@pytest.mark.parametrize("metric", METRICS)
def test_predicted_curves_are_true_where_the_network_is_linear(metric: Metric) -> None:
    torch.manual_seed(0)
    model = Linear(9, 12, 7, 3)
    images = batches(torch.randn(30, 1, 1, 9))
    settings = Factors(metric=metric, rank_multiple=1, form="pivoted", probes=3, layers=("1", "2"), refit="none")
    measured = measure(model, images, settings, "cpu")
    everything = torch.cat([batch for batch, _ in images])
    for (layer, blocks_pruned), point in measured.tables.curves.groupby(["layer", "blocks_pruned"]):
        units = measured.tables.blocks[measured.tables.blocks["layer"] == layer]
        rank = len(units) - blocks_pruned
        if blocks_pruned and rank:
            model_at_rank = factorised(model, images, measured, {layer: rank}, settings, "cpu")
            assert point["distortion"].item() == pytest.approx(distortion(model_at_rank, model, everything), rel=1e-6)
    assert (measured.tables.curves.groupby("layer")["distortion"].first() == 0).all()


def test_units_and_curves_are_tables_that_allocators_read(vit: tuple[nn.Module, Batches, Measured]) -> None:
    *_, measured = vit
    assert set(measured.tables.blocks.columns) == {column.name for column in BLOCKS.columns}
    assert set(measured.tables.curves.columns) == {column.name for column in CURVES.columns}
    for layer in measured.layers:
        units = measured.tables.blocks[measured.tables.blocks["layer"] == layer.name]
        curve = measured.tables.curves[measured.tables.curves["layer"] == layer.name]
        assert units["weights"].sum() == layer.out_features * layer.in_features
        assert units["saliency"].is_monotonic_increasing
        assert len(curve) == len(units) + 1


@pytest.mark.parametrize("allocator", ["lagrangian", "exact", "uniform", "global"])
@pytest.mark.parametrize("macs", [0.75, 0.5, 0.3])
def test_a_budget_is_met_to_one_step(vit: tuple[nn.Module, Batches, Measured], allocator: str, macs: float) -> None:
    model, images, measured = vit
    settings = Factors(rank_multiple=4, form="pivoted", refit="none")
    allocation = allocate(measured.tables, Budget(macs=macs, allocator=allocator))
    compressed = factorised(model, images, measured, allocated_ranks(allocation, 4), settings, "cpu")
    kept, total = measure_costs(compressed)["macs"].sum(), measure_costs(model)["macs"].sum()
    tokens = {layer.name: layer.tokens for layer in measured.layers}
    step = max(int(unit.weights) * tokens[str(unit.layer)] for unit in measured.tables.blocks.itertuples())
    assert macs * total - step < kept <= macs * total
    assert kept == pytest.approx(total * allocation["achieved"].iloc[0])


def test_its_multiply_adds_are_those_that_torch_counts(vit: tuple[nn.Module, Batches, Measured]) -> None:
    model, images, measured = vit
    compressed = factorised(
        model, images, measured, {layer.name: 4 for layer in measured.layers}, Factors(refit="none"), "cpu"
    )
    counts = []
    for each in (model, compressed):
        with FlopCounterMode(display=False) as counter:
            each(images[0][0][:1])
        counts.append(counter.get_total_flops() / 2)
    assert counts[0] - counts[1] == measure_costs(model)["macs"].sum() - measure_costs(compressed)["macs"].sum()


@pytest.mark.parametrize("metric", METRICS[1:])
def test_two_sided_factors_change_the_logits_less_than_the_baselines(metric: Metric) -> None:
    model, images = dense_model(), batches(photographs("vit", 48))
    found = {
        each: factorise(model, images, Budget(macs=0.6), Factors(metric=each, rank_multiple=1, refit="none"))
        for each in ("two_sided", metric)
    }
    errors = {each: distortion(compressed, model, images[0][0]) for each, compressed in found.items()}
    assert errors["two_sided"] < errors[metric]


@pytest.mark.parametrize("form", FORMS)
def test_a_refit_makes_up_for_what_was_lost(form: Form) -> None:
    model, images, unseen = dense_model(), batches(photographs("vit", 96)), photographs("vit", 128)[96:]
    found = {}
    for refit in ("none", "reduced_rank_regression"):
        settings = Factors.model_validate({"form": form, "rank_multiple": 1, "refit": refit})
        found[refit] = distortion(factorise(model, images, Budget(macs=0.3), settings), model, unseen)
    assert found["reduced_rank_regression"] < 0.8 * found["none"]


def test_pivoted_factors_equal_plain_ones_of_the_same_ranks(vit: tuple[nn.Module, Batches, Measured]) -> None:
    model, images, measured = vit
    ranks = {layer.name: 8 for layer in measured.layers}
    plain, pivoted = (factorised(model, images, measured, ranks, Factors(form=form), "cpu") for form in FORMS)
    torch.testing.assert_close(pivoted(images[0][0]), plain(images[0][0]))


def test_the_patch_embedding_and_the_head_become_factors_on_request() -> None:
    model, images = dense_model(), batches(photographs("vit"))
    compressed = factorise(
        model, images, Budget(macs=0.4), Factors(rank_multiple=1, layers=("patch_embed", "head", "qkv", "fc1", "fc2"))
    )
    assert isinstance(compressed.get_submodule("patch_embed.proj.reduce"), nn.Conv2d)
    assert weight_matrix(compressed.get_submodule("patch_embed.proj.expand")).shape[0] == 20


def test_the_dense_model_is_left_as_it_is(vit: tuple[nn.Module, Batches, Measured]) -> None:
    model, images, measured = vit
    before = deepcopy(model.state_dict())
    factorised(model, images, measured, {measured.layers[0].name: 4}, Factors(), "cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_too_few_images_say_from_how_many_on_they_would_do(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Linear(9, 12, 7, 3)
    with caplog.at_level(logging.WARNING):
        measure(model, batches(torch.randn(5, 1, 1, 9)), Factors(layers=("1", "2"), rank_multiple=1), "cpu")
    assert "2: 5 calibration images do not span its 12 inputs" in caplog.text
    assert "from 13 images on" in caplog.text


def test_a_layer_that_runs_twice_is_an_error_of_one_line() -> None:
    model = dense_model()
    model.blocks[1].mlp.fc1 = model.blocks[0].mlp.fc1
    with pytest.raises(LpvitError, match=r"^layers: 'blocks\.0\.mlp\.fc1' cannot be pruned: it runs more than once"):
        factorise(model, batches(photographs("vit", 4)), Budget(macs=0.5), Factors())


def test_images_that_are_not_finite_are_an_error_of_one_line() -> None:
    images = photographs("vit", 4)
    images[0, 0, 0, 0] = math.nan
    with pytest.raises(LpvitError, match=r"its output on the calibration images is NaN"):
        factorise(dense_model(), batches(images), Budget(macs=0.5), Factors())


@pytest.mark.parametrize("form", FORMS)
def test_refining_lowers_the_distortion_of_images_that_it_has_not_seen(form: Form) -> None:
    model, images, unseen = dense_model(), batches(photographs("vit", 96)), photographs("vit", 128)[96:]
    settings = Factors(form=form, rank_multiple=1)
    measured = measure(model, images, settings, "cpu")
    ranks = allocated_ranks(allocate(measured.tables, Budget(macs=0.3)), 1)
    found = {}
    for steps in (0, 60):
        refined = settings.model_copy(update={"refine_steps": steps})
        found[steps] = distortion(factorised(model, images, measured, ranks, refined, "cpu"), model, unseen)
    assert found[60] < found[0]
