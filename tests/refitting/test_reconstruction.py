"""Reconstruction against textbook least squares, and what it must and must not do to whole networks."""

import logging
import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from tiny import counted_calls
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import matrix_layers
from lpvit.models.sources.timm import create_model
from lpvit.refitting.least_squares import Moments, SingularError, fit_layer, fit_rows
from lpvit.refitting.reconstruction import RIDGES
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masks import expand_keep_masks, verify_pruned, zero_pruned
from lpvit.structures.blocks.weights import reconstruct

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4}
MODELS = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
}
BLOCK_SHAPE = (5, 3)  # rectangular, and ragged in every layer below

Batches = list[tuple[Tensor, Tensor]]
Masks = dict[str, Tensor]


def batches(images: Tensor, size: int) -> Batches:
    return [(batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in images.split(size)]


def random_masks(model: nn.Module, share: float = 0.5) -> Masks:
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for layer in matrix_layers(model):
        grid = BlockGrid(layer.shape, BLOCK_SHAPE)
        masks[layer.name] = torch.rand(grid.rows, grid.columns, generator=generator) < share
    return masks


def pruned_only(model: nn.Module, masks: Masks) -> nn.Module:
    pruned = deepcopy(model)
    zero_pruned(pruned.state_dict(), expand_keep_masks(pruned, masks, BLOCK_SHAPE))
    return pruned


def rebuilt(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    copy = deepcopy(model)
    copy.load_state_dict(state)
    return copy


def moments_of(inputs: Tensor, targets: Tensor) -> Moments:
    moments = Moments.zeros(targets.new_zeros(targets.shape[1], inputs.shape[1]))
    moments.add(inputs, targets)
    return moments


@pytest.fixture(scope="module")
def case() -> Callable[[str], tuple[nn.Module, Tensor]]:
    def build(kind: str) -> tuple[nn.Module, Tensor]:
        name, options = MODELS[kind]
        model = create_model(name, 5, options).double()
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():  # timm starts with weights so small that outputs hardly depend on images
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        coarse = torch.randn(40, 3, 4, 4, dtype=torch.float64, generator=generator)  # pixels predict their neighbours
        return model, nn.functional.interpolate(coarse, model.pretrained_cfg["input_size"][1:], mode="bilinear")

    return build


class Network(nn.Sequential):
    """Linear layers on flattened images, in the form that `matrix_layers` looks at."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(nn.Flatten(), *layers)
        first = next(layer for layer in layers if isinstance(layer, nn.Linear))
        self.pretrained_cfg = {"input_size": (1, 1, first.in_features)}
        self.double().eval()

    def images(self, count: int, mean: float = 0.0) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        images = torch.randn(count, *self.pretrained_cfg["input_size"], dtype=torch.float64, generator=generator)
        return images + mean


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("biases", [0, 1])
@pytest.mark.parametrize("shape", [(11, 7), (6, 13), (5, 3)])
@pytest.mark.parametrize("systems_at_once", [1, 3])
def test_rows_agree_with_ordinary_least_squares_on_stacked_equations(
    shape: tuple[int, int], biases: int, ridge: float, systems_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    like_size = "lpvit.refitting.least_squares._of_like_size"
    monkeypatch.setattr(like_size, lambda patterns: patterns.sum(dim=1).argsort().split(systems_at_once))
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    rows, columns = shape
    inputs, targets, weight = normal(40, columns) + 1, normal(40, rows) - 2, normal(rows, columns + biases)
    inputs = torch.cat([inputs, torch.ones(40, biases, dtype=torch.float64)], dim=1)
    grid = BlockGrid(shape, BLOCK_SHAPE)
    keep = grid.expand(torch.rand(grid.rows, grid.columns, generator=generator) < 0.6)
    keep[0] = False  # a row that keeps nothing but its bias

    fitted = fit_rows(moments_of(inputs, targets), weight, keep, ridge)

    strength = ridge * inputs[:, :columns].square().sum(dim=0).mean()
    for row in range(rows):
        kept = [column for column in range(columns + biases) if column >= columns or keep[row, column]]
        pull = torch.diag(torch.tensor([0.0 if column >= columns else strength.sqrt() for column in kept])).double()
        stacked = torch.cat([inputs[:, kept], pull])
        aims = torch.cat([targets[:, row], pull @ weight[row, kept]])
        expected = torch.zeros(columns + biases, dtype=torch.float64)
        if kept:
            expected[kept] = torch.linalg.lstsq(stacked, aims[:, None], driver="gelsd").solution[:, 0]
        torch.testing.assert_close(fitted[row], expected, rtol=1e-9, atol=1e-9)
        assert all(fitted[row, column] == 0 for column in range(columns) if not keep[row, column])


def test_an_infinite_ridge_keeps_the_dense_weights_and_bias() -> None:
    weight, keep = torch.randn(4, 7, dtype=torch.float64), torch.rand(4, 6) < 0.5
    moments = moments_of(torch.randn(9, 7, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64))
    fitted = fit_rows(moments, weight, keep, math.inf)
    assert torch.equal(fitted[:, 6], weight[:, 6])
    assert torch.equal(fitted[:, :6], weight[:, :6] * keep)


def test_the_error_of_the_moments_is_that_of_the_outputs() -> None:
    inputs, targets = torch.randn(30, 7, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    weight = torch.randn(4, 7, dtype=torch.float64)
    expected = (targets - inputs @ weight.T).square().sum() / targets.square().sum()
    split = moments_of(inputs[:11], targets[:11]) + moments_of(inputs[11:], targets[11:])
    assert split.relative_error(weight) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("tokens", [4, 40])  # fewer than inputs: a fit that is worth nothing on other tokens
@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_ridge_is_never_worse_on_held_out_tokens_than_no_fit(seed: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    weight, keep = normal(4, 9), torch.rand(4, 9, generator=generator) < 0.7

    def moments(count: int) -> Moments:
        inputs = normal(count, 9)
        return moments_of(inputs, inputs @ weight.T + 3 * normal(count, 4))

    fit, held_out = moments(tokens), moments(25)
    _, before, after = fit_layer(fit, held_out, weight, keep, RIDGES)
    assert before == pytest.approx(held_out.relative_error(weight * keep), rel=1e-12)
    assert after <= before
    assert after == min(held_out.relative_error(fit_rows(fit, weight, keep, ridge)) for ridge in RIDGES)


def test_a_ridge_too_weak_for_a_singular_system_is_passed_over_and_none_at_all_fails() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, keep = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    inputs = torch.randn(50, 1, dtype=torch.float64, generator=generator).expand(50, 3)  # thrice the same
    moments = moments_of(inputs, inputs @ weight.T)
    fitted, _, after = fit_layer(moments, moments, weight, keep, [0.0, 1e-3])
    torch.testing.assert_close(fitted, weight)
    assert after == pytest.approx(0, abs=1e-12)
    with pytest.raises(SingularError):
        fit_layer(moments, moments, weight, keep, [math.inf, 0.0])


def test_a_quarter_of_many_systems_chooses_the_ridge_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.ones(64, 12).double(), torch.randn(40, 12, dtype=torch.float64, generator=generator)
    keep = torch.rand(64, 12, generator=generator) < 0.6
    fit, held_out = moments_of(inputs, inputs @ weight.T), moments_of(inputs[:9], inputs[:9] @ weight.T)
    fitted, before, after = fit_layer(fit, held_out, weight, keep, RIDGES)
    rows = torch.unique(keep, dim=0, return_inverse=True)[1] % 4 == 0
    asked = held_out.of_outputs(rows)
    errors = {ridge: asked.relative_error(fit_rows(fit, weight, keep, ridge)[rows]) for ridge in RIDGES}
    assert before == pytest.approx(asked.relative_error((weight * keep)[rows]), rel=1e-9)
    assert after == pytest.approx(min(errors.values()), rel=1e-9)
    torch.testing.assert_close(fitted, fit_rows(fit + held_out, weight, keep, min(errors, key=errors.__getitem__)))


def test_a_ridge_too_weak_for_a_system_that_did_not_choose_it_gives_way_to_the_next() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.ones(64, 12).double(), torch.randn(40, 12, dtype=torch.float64, generator=generator)
    inputs[:, 1] = inputs[:, 0]
    keep = torch.rand(64, 12, generator=generator) < 0.6
    keep[:, 1] = False
    places = torch.unique(keep, dim=0, return_inverse=True)[1]
    keep[-1] = keep[places == 1][0] | (torch.arange(12) < 2)
    asked = torch.unique(keep, dim=0, return_inverse=True)[1] % 4 == 0
    assert not asked[keep[:, 0] & keep[:, 1]].any()
    moments = moments_of(inputs, inputs @ weight.T)
    fitted, *_ = fit_layer(moments, moments, weight, keep, [0.0, 1e-2])
    torch.testing.assert_close(fitted, fit_rows(moments + moments, weight, keep, 1e-2))


def test_a_fit_that_only_learns_noise_is_turned_down() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, keep = torch.zeros(4, 9, dtype=torch.float64), torch.ones(4, 9, dtype=torch.bool)

    def noise(count: int) -> Moments:
        inputs, targets = (torch.randn(count, n, dtype=torch.float64, generator=generator) for n in (9, 4))
        return moments_of(inputs, targets)

    fitted, before, after = fit_layer(noise(5), noise(500), weight, keep, RIDGES)
    assert torch.equal(fitted, weight)
    assert before == after == 1


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_changes_where_all_blocks_stay(case: Callable, kind: str) -> None:
    model, images = case(kind)
    masks = {layer: torch.ones_like(mask) for layer, mask in random_masks(model).items()}
    state = reconstruct(model, masks, BLOCK_SHAPE, batches(images, 8), device="cpu")
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_layer_with_all_blocks_kept_changes_nothing_though_others_are_pruned(case: Callable) -> None:
    model, images = case("vit")
    masks = random_masks(model)
    masks["blocks.1.attn.qkv"].fill_(True)
    state = reconstruct(model, masks, BLOCK_SHAPE, batches(images, 8), device="cpu")
    same = {name for name, value in model.state_dict().items() if torch.equal(state[name], value)}
    assert {"blocks.1.attn.qkv.weight", "blocks.1.attn.qkv.bias", "blocks.0.norm1.weight"} <= same
    assert "blocks.1.attn.proj.weight" not in same


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_network_comes_nearer_to_its_dense_one_and_keeps_its_zeros(case: Callable, kind: str) -> None:
    model, images = case(kind)
    masks = random_masks(model, share=0.7)  # patch embedding and heads included
    before = {name: value.clone() for name, value in model.state_dict().items()}

    state = reconstruct(model, masks, BLOCK_SHAPE, batches(images, 8), device="cpu")

    verify_pruned(state, expand_keep_masks(model, masks, BLOCK_SHAPE))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for layer in masks:
        assert not torch.equal(state[f"{layer}.weight"], pruned_only(model, masks).state_dict()[f"{layer}.weight"])
    with torch.no_grad():
        dense = model(images)
        lost = (pruned_only(model, masks)(images) - dense).square().sum()
        left = (rebuilt(model, state)(images) - dense).square().sum()
    assert left < 0.5 * lost


@pytest.mark.parametrize("kind", MODELS)
def test_resumed_passes_give_what_full_passes_layer_by_layer_give(case: Callable, kind: str) -> None:
    model, images = case(kind)
    masks = random_masks(model)
    pruned = pruned_only(model, masks)
    expanded = expand_keep_masks(model, masks, BLOCK_SHAPE)

    def reaching(network: nn.Module, layer: str) -> Tensor:
        caught: list[Tensor] = []
        hook = network.get_submodule(layer).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        network(images)
        hook.remove()
        return caught[0]

    with torch.no_grad():
        for layer in masks:
            module, dense = pruned.get_submodule(layer), model.get_submodule(layer)
            inputs, targets = reaching(pruned, layer), dense(reaching(model, layer))
            if layer.endswith("mlp.fc2"):  # aims at the output of the dense block
                norm = layer.replace("mlp.fc2", "norm2")
                targets = targets + reaching(model, norm) - reaching(pruned, norm)
            if isinstance(module, nn.Conv2d):
                inputs = nn.functional.unfold(inputs, module.kernel_size, stride=module.stride).mT
                targets = targets.flatten(2).mT
            inputs = inputs.reshape(-1, inputs.shape[-1])
            weight = dense.weight.flatten(1)
            if module.bias is not None:
                inputs = nn.functional.pad(inputs, (0, 1), value=1)
                weight = torch.cat([weight, dense.bias[:, None]], dim=1)
            moments = moments_of(inputs, targets.reshape(-1, targets.shape[-1]))
            fitted = fit_rows(moments, weight, expanded[f"{layer}.weight"].flatten(1), 0.1)
            columns = module.weight[0].numel()
            module.weight.copy_(fitted[:, :columns].view_as(module.weight))
            if module.bias is not None:
                module.bias.copy_(fitted[:, columns])
    state = reconstruct(model, masks, BLOCK_SHAPE, batches(images, 8), ridges=[0.1], device="cpu")
    torch.testing.assert_close(state, dict(pruned.state_dict()), rtol=1e-7, atol=1e-9)


def test_the_transformer_blocks_before_a_layer_run_no_second_time(case: Callable) -> None:
    model, images = case("vit")
    masks = {layer: mask for layer, mask in random_masks(model).items() if layer.startswith("blocks.1.")}
    runs = counted_calls(model, "blocks.0.mlp.fc1", "blocks.1.attn.qkv")  # deepcopy takes hooks along: of both networks
    reconstruct(model, masks, BLOCK_SHAPE, batches(images, 40), device="cpu")
    assert runs.count("blocks.0.mlp.fc1") == 2  # once a network
    assert runs.count("blocks.1.attn.qkv") == 2 * 3  # on the way to proj, fc1 and fc2


def test_a_pruned_input_that_never_varies_is_made_up_for_by_the_bias_exactly() -> None:
    model = Network(nn.Linear(4, 3))
    images = model.images(50, mean=5.0)
    images[..., 2:] = 5.0  # what is pruned is a constant
    masks = {"1": torch.tensor([[True, False]])}
    state = reconstruct(model, masks, (3, 2), batches(images, 10), ridges=[1e-2], device="cpu")
    torch.testing.assert_close(rebuilt(model, state)(images), model(images), rtol=1e-9, atol=1e-9)
    weight = model.state_dict()["1.weight"]
    torch.testing.assert_close(state["1.weight"][:, :2], weight[:, :2], rtol=1e-9, atol=1e-9)
    expected = model.state_dict()["1.bias"] + 5.0 * weight[:, 2:].sum(dim=1)
    torch.testing.assert_close(state["1.bias"], expected, rtol=1e-9, atol=1e-9)


def test_a_layer_without_bias_gets_none() -> None:
    model = Network(nn.Linear(4, 3, bias=False))
    masks = {"1": torch.tensor([[True, False]])}
    state = reconstruct(model, masks, (3, 2), batches(model.images(50), 10), device="cpu")
    assert set(state) == {"1.weight"}


def test_the_second_layer_makes_up_for_what_the_first_lost() -> None:
    first, second = nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False)
    model = Network(first, second)
    with torch.no_grad():
        first.weight[4:] = first.weight[:4]  # features come twice: pruning the second half loses nothing, in the end
    masks = {"1": torch.tensor([[True], [False]]), "2": torch.tensor([[True, False]])}
    images = model.images(100)

    state = reconstruct(model, masks, (4, 4), batches(images, 25), ridges=[1e-9], device="cpu")

    target = model(images)
    only_pruned = deepcopy(model)
    with torch.no_grad():
        first_half = model.state_dict()["2.weight"].clone()
        first_half[:, 4:] = 0
        only_pruned.load_state_dict({"1.weight": state["1.weight"], "2.weight": first_half})
    assert (only_pruned(images) - target).abs().max() > 0.1
    torch.testing.assert_close(rebuilt(model, state)(images), target, rtol=1e-6, atol=1e-6)


def test_batches_do_not_matter_and_a_second_run_gives_the_same_bits(case: Callable) -> None:
    model, images = case("swin")
    masks = random_masks(model)
    once, again, other = (
        reconstruct(model, masks, BLOCK_SHAPE, batches(images, size), device="cpu") for size in (8, 8, 3)
    )
    assert all(torch.equal(value, again[name]) for name, value in once.items())
    torch.testing.assert_close(once, other, rtol=1e-7, atol=1e-9)


def test_a_layer_whose_inputs_do_not_determine_its_weights_is_named() -> None:
    model = Network(nn.Linear(6, 4))
    masks = {"1": torch.tensor([[True], [False]])}
    with pytest.raises(LpvitError, match=r"^1: its inputs on the calibration images do not determine .*singular"):
        reconstruct(model, masks, (2, 6), batches(model.images(4), 4), ridges=[0.0], device="cpu")


def test_a_layer_that_overflows_is_named(case: Callable) -> None:
    model, images = case("vit")
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc2.bias")[0] = float("nan")
    with pytest.raises(LpvitError, match=r"^blocks\.0\.mlp\.fc2: its inputs or outputs on .* are NaN or infinite"):
        reconstruct(model, random_masks(model), BLOCK_SHAPE, batches(images, 8), device="cpu")


def test_one_line_tells_the_error_before_and_after(case: Callable, caplog: pytest.LogCaptureFixture) -> None:
    model, images = case("vit")
    with caplog.at_level(logging.INFO, "lpvit.refitting.reconstruction"):
        reconstruct(model, random_masks(model, 0.7), BLOCK_SHAPE, batches(images, 8), device="cpu")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("reconstruction: error of the outputs on held-out images ")
    before, after = (float(part.split()[-1]) for part in line.split("%")[:2])
    assert after < before
    assert line.endswith("(mean of 10 layers)")


def test_single_precision_agrees_to_its_own_rounding(case: Callable) -> None:
    model, images = case("vit")
    masks = random_masks(model, 0.7)
    exact = reconstruct(model, masks, BLOCK_SHAPE, batches(images, 8), ridges=[0.1], device="cpu")
    single = reconstruct(
        deepcopy(model).float(), masks, BLOCK_SHAPE, batches(images.float(), 8), ridges=[0.1], device="cpu"
    )
    for name, value in single.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-3, atol=1e-3)
