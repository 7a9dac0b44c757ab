"""Blocks that know of the bias."""

from copy import deepcopy

import torch
from tiny import photographs, sized_model
from torch import Tensor, nn

from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.structures.blocks.centring import centred_products, input_means, move_biases
from lpvit.structures.blocks.masks import expand_keep_masks
from lpvit.structures.blocks.products import block_products
from lpvit.structures.blocks.weights import pruned_weights

SHAPE = (4, 5)
ROLES = ("qkv", "proj", "fc1", "fc2")


def batches(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part))) for part in images.split(7)]


def test_the_mean_is_that_of_all_tokens_that_a_layer_multiplies() -> None:
    model, images = sized_model("vit"), photographs("vit")
    layers = matrix_layers(model)
    means = input_means(model, batches(images), layers, "cpu")
    seen: dict[str, Tensor] = {}
    hook = model.blocks[0].mlp.fc2.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    torch.testing.assert_close(
        means["blocks.0.mlp.fc2"], seen["x"].flatten(0, 1).double().mean(dim=0), rtol=1e-5, atol=1e-6
    )
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(0, 2, 3)).flatten().double()
    torch.testing.assert_close(means["patch_embed.proj"], patches, rtol=1e-4, atol=1e-6)


def test_a_layer_without_a_bias_has_a_mean_of_zero() -> None:
    model = sized_model("vit", qkv_bias=False)
    means = input_means(model, batches(photographs("vit")), matrix_layers(model), "cpu")
    assert not means["blocks.0.attn.qkv"].any()
    assert means["blocks.0.attn.proj"].any()


def test_centred_products_are_those_of_the_model_whose_layer_is_given_centred_inputs() -> None:
    model, images = sized_model("vit"), photographs("vit")
    layers = prunable_layers(matrix_layers(model), ROLES)
    means = input_means(model, batches(images), layers, "cpu")
    found = centred_products(model, batches(images), means, SHAPE, 2, "cpu")
    shifted = deepcopy(model)
    for layer in layers:
        module = shifted.get_submodule(layer.name)
        mean = means[layer.name].float()
        module.bias.data += module.weight.data @ mean
        module.register_forward_pre_hook(lambda _, inputs, mean=mean: (inputs[0] - mean,))
    expected: dict[str, Tensor] = {}
    for layer in layers:
        expected |= _products_behind_hooks(shifted, images, layer)
    for layer in layers:
        scale = float(expected[layer.name].abs().max())
        torch.testing.assert_close(found[layer.name], expected[layer.name], rtol=1e-3, atol=1e-3 * scale)


def _products_behind_hooks(model: nn.Module, images: Tensor, layer) -> dict[str, Tensor]:
    return block_products(model, batches(images), [layer], SHAPE, 2, "cpu")


def test_with_a_mean_of_zero_centred_products_are_plain_ones() -> None:
    model, images = sized_model("vit"), photographs("vit")
    layers = prunable_layers(matrix_layers(model), ROLES)
    zeros = {layer.name: torch.zeros(layer.in_features) for layer in layers}
    plain = block_products(model, batches(images), layers, SHAPE, 2, "cpu")
    for layer, found in centred_products(model, batches(images), zeros, SHAPE, 2, "cpu").items():
        torch.testing.assert_close(found, plain[layer], rtol=1e-3, atol=1e-4)


def test_a_moved_bias_keeps_the_mean_of_a_layers_outputs() -> None:
    model, images = sized_model("vit"), photographs("vit")
    layers = prunable_layers(matrix_layers(model), ROLES)[:1]
    means = input_means(model, batches(images), layers, "cpu")
    masks = {"blocks.0.attn.qkv": torch.rand(15, 4, generator=torch.Generator().manual_seed(0)) < 0.5}
    pruned = deepcopy(model)
    pruned.load_state_dict(pruned_weights(model, masks, SHAPE, None, "cpu", means))
    outputs = []
    for network in (model, pruned):
        hook = network.blocks[0].attn.qkv.register_forward_hook(lambda _, __, out: outputs.append(out.flatten(0, 1)))
        with torch.no_grad():
            network(images)
        hook.remove()
    torch.testing.assert_close(outputs[1].mean(dim=0), outputs[0].mean(dim=0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[1], atol=0.1)


def test_a_layer_that_keeps_all_blocks_keeps_its_bias() -> None:
    model = sized_model("vit")
    layers = prunable_layers(matrix_layers(model), ROLES)
    means = {layer.name: torch.ones(layer.in_features, dtype=torch.float64) for layer in layers}
    expanded = expand_keep_masks(model, {"blocks.0.attn.qkv": torch.ones(15, 4, dtype=torch.bool)}, SHAPE)
    before = model.blocks[0].attn.qkv.bias.clone()
    move_biases(model.state_dict(), expanded, means)
    assert torch.equal(model.blocks[0].attn.qkv.bias, before)
