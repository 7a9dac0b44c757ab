"""Factorised models: at full rank, under a budget, refitted, and against brute force where the network is linear."""

import logging
import math
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from tiny import MODELS, photographs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lpvit.allocation.allocate import allocate
from lpvit.allocation.feasibility import Shapes
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.costs.cost import measure_costs
from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import LayerSpec, weight_matrix
from lpvit.models.sources.timm import create_model
from lpvit.moments.moments import LayerMoments
from lpvit.pruning.prune import prune
from lpvit.pruning.rounds import measure as measure_options
from lpvit.store.schemas import BLOCKS, CURVES
from lpvit.structures.factors.factorise import factorised
from lpvit.structures.factors.ranks import Form, allocated_ranks
from lpvit.structures.factors.settings import Factors, Metric
from lpvit.structures.factors.structure import FactorStructure, moments_of

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


@dataclass(frozen=True)
class Measured:
    """What the structure found of a model."""

    layers: list[LayerSpec]
    moments: dict[str, LayerMoments]
    tables: LayerTables


def measure(model: nn.Module, images: Batches, settings: Factors, device: str) -> Measured:
    structure = FactorStructure(settings)
    options, statistics = measure_options(model, images, structure, device)
    assert statistics is not None
    tables = LayerTables(options.curves, options.blocks, measure_costs(model))
    return Measured(structure.layers(model), moments_of(statistics, device), tables)


def factorise(model: nn.Module, images: Batches, budget: Budget, settings: Factors) -> nn.Module:
    structure = FactorStructure(settings)
    shapes = Shapes(measure_costs(model), structure.pieces(model))
    return prune(model, images, structure, budget, shapes, "cpu").model


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


@pytest.mark.parametrize("refitted", [False, True])
@pytest.mark.parametrize("kind", ["vit", "deit", "swin"])
def test_at_full_rank_the_model_is_the_dense_one(kind: str, refitted: bool) -> None:
    model, images = dense_model(kind), batches(photographs(kind, 16))
    settings = Factors()
    measured = measure(model, images, settings, "cpu")
    ranks = {layer.name: min(layer.shape) for layer in measured.layers}
    compressed = factorised(model, images if refitted else None, measured.moments, ranks, settings, "cpu")
    assert len([name for name, _ in compressed.named_modules() if name.endswith(".reduce")]) == len(ranks)
    assert distortion(compressed, model, images[0][0]) < 1e-16 * float(model(images[0][0]).square().sum())


@pytest.mark.parametrize("metric", METRICS)
def test_predicted_curves_are_true_where_the_network_is_linear(metric: Metric) -> None:
    torch.manual_seed(0)
    model = Linear(9, 12, 7, 3)
    images = batches(torch.randn(30, 1, 1, 9))
    settings = Factors(metric=metric, rank_multiple=1, form="pivoted", probes=3, layers=("1", "2"))
    measured = measure(model, images, settings, "cpu")
    everything = torch.cat([batch for batch, _ in images])
    for (layer, blocks_pruned), point in measured.tables.curves.groupby(["layer", "blocks_pruned"]):
        units = measured.tables.blocks[measured.tables.blocks["layer"] == layer]
        rank = len(units) - blocks_pruned
        if blocks_pruned and rank:
            model_at_rank = factorised(model, None, measured.moments, {layer: rank}, settings, "cpu")
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
    model, _, measured = vit
    settings = Factors(rank_multiple=4, form="pivoted")
    allocation = allocate(measured.tables, Budget(macs=macs, allocator=allocator))
    compressed = factorised(model, None, measured.moments, allocated_ranks(allocation, 4), settings, "cpu")
    kept, total = measure_costs(compressed)["macs"].sum(), measure_costs(model)["macs"].sum()
    tokens = {layer.name: layer.tokens for layer in measured.layers}
    step = max(int(unit.weights) * tokens[str(unit.layer)] for unit in measured.tables.blocks.itertuples())
    assert macs * total - step < kept <= macs * total
    assert kept == pytest.approx(total * allocation["achieved"].iloc[0])


def test_its_multiply_adds_are_those_that_torch_counts(vit: tuple[nn.Module, Batches, Measured]) -> None:
    model, images, measured = vit
    ranks = {layer.name: 4 for layer in measured.layers}
    compressed = factorised(model, None, measured.moments, ranks, Factors(), "cpu")
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
        each: factorise(model, images, Budget(macs=0.6), Factors(metric=each, rank_multiple=1))
        for each in ("two_sided", metric)
    }
    errors = {each: distortion(compressed, model, images[0][0]) for each, compressed in found.items()}
    assert errors["two_sided"] < errors[metric]


@pytest.mark.parametrize("form", FORMS)
def test_a_refit_makes_up_for_what_was_lost(form: Form) -> None:
    model, images, unseen = dense_model(), batches(photographs("vit", 96)), photographs("vit", 128)[96:]
    found = {}
    for reconstruction in ("none", "least_squares"):
        budget = Budget(macs=0.3, reconstruction=reconstruction)
        found[reconstruction] = distortion(
            factorise(model, images, budget, Factors(form=form, rank_multiple=1)), model, unseen
        )
    assert found["least_squares"] < 0.8 * found["none"]


def test_pivoted_factors_equal_plain_ones_of_the_same_ranks(vit: tuple[nn.Module, Batches, Measured]) -> None:
    model, images, measured = vit
    ranks = {layer.name: 8 for layer in measured.layers}
    plain, pivoted = (factorised(model, images, measured.moments, ranks, Factors(form=form), "cpu") for form in FORMS)
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
    factorised(model, images, measured.moments, {measured.layers[0].name: 4}, Factors(), "cpu")
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
        factorise(dense_model(), batches(images), Budget(macs=0.5), Factors(rank_multiple=1))


@pytest.mark.parametrize("form", FORMS)
def test_refining_lowers_the_distortion_of_images_that_it_has_not_seen(form: Form) -> None:
    model, images, unseen = dense_model(), batches(photographs("vit", 96)), photographs("vit", 128)[96:]
    settings = Factors(form=form, rank_multiple=1)
    measured = measure(model, images, settings, "cpu")
    ranks = allocated_ranks(allocate(measured.tables, Budget(macs=0.3)), 1)
    found = {}
    for steps in (0, 60):
        refined = settings.model_copy(update={"refine_steps": steps})
        found[steps] = distortion(factorised(model, images, measured.moments, ranks, refined, "cpu"), model, unseen)
    assert found[60] < found[0]
