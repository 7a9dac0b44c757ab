"""What `analyse` proves about a model, on models made to break each assumption."""

from copy import deepcopy

import pytest
import timm
import torch
from families import VIT, images_for, member
from timm.layers import LayerNorm
from torch import Tensor, nn
from torch.nn import functional

import lpvit
from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import prunable_layers, transformer_blocks
from lpvit.models.analysis.network import analyse
from lpvit.structures.blocks.products import block_products
from lpvit.structures.blocks.weights import pruned_weights

ROLES = ("qkv", "proj", "fc1", "fc2")


def with_size(model: nn.Module, size: int = 32) -> nn.Module:
    model.pretrained_cfg = {"input_size": (3, size, size)}  # type: ignore[assignment]
    return model.eval()


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = member("ViT")

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)


class Normalise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * 2 - 1


@pytest.mark.parametrize("wrapped", [Backbone, lambda: nn.Sequential(Normalise(), member("ViT"))])
def test_roles_do_not_depend_on_where_a_transformer_sits(wrapped) -> None:
    plain, inside = analyse(member("ViT")), analyse(with_size(wrapped()))
    assert [layer.role for layer in inside.layers] == [layer.role for layer in plain.layers]
    assert len(inside.resume_points) >= len(transformer_blocks(inside.model)) == 2


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "twins_pcpvt_small"])
def test_nothing_before_the_first_block_is_pruned_unasked(name: str) -> None:
    network = analyse(timm.create_model(name, num_classes=5).eval())
    layers = prunable_layers(network.layers, [role for role in ROLES if role in {x.role for x in network.layers}])
    first = next(layer.name for layer in network.layers if layer.role == "qkv" or "attn" in layer.name)
    before = {layer.name for layer in network.layers[: [x.name for x in network.layers].index(first)]}
    assert not before & {layer.name for layer in layers}


def test_a_unit_whose_output_is_not_all_that_is_used_later_is_left_out() -> None:
    class Skipping(nn.Module):
        """Adds the first block's output to the last one's."""

        def __init__(self) -> None:
            super().__init__()
            self.vit = member("ViT")

        def forward(self, images: Tensor) -> Tensor:
            vit = self.vit
            tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
            first = vit.blocks[0](tokens)
            return vit.forward_head(vit.norm(vit.blocks[1](first) + vit.patch_embed(images).mean() + first))

    network = analyse(with_size(Skipping()))
    assert "vit.blocks.0" in network.resume_points or "vit.blocks.1" not in network.resume_points
    assert "vit.blocks.1" not in network.resume_points


def test_a_weight_that_is_used_through_a_function_is_named() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = member("BEiT")  # as timm builds it: its attention uses the weight of qkv by itself

        def forward(self, images: Tensor) -> Tensor:
            return self.vit(images)

    model = Functional()
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = False
    with pytest.raises(
        LpvitError,
        match=r"multiply-adds in linear products.*'vit\.blocks\.0\.attn\.qkv\.weight' in 'vit\.blocks\.0\.attn'",
    ):
        analyse(with_size(model))


def test_a_layer_that_does_something_else_is_refused_by_its_name() -> None:
    class Scaled(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return functional.linear(inputs, self.weight, self.bias) * 3

    model = member("ViT")
    odd = Scaled(32, 96)
    odd.load_state_dict(model.blocks[1].attn.qkv.state_dict())
    model.blocks[1].attn.qkv = odd
    with pytest.raises(LpvitError, match=r"'blocks\.1\.attn\.qkv' cannot be pruned: the output of Scaled is not"):
        prunable_layers(analyse(model).layers, ROLES)


class TokensFirst(nn.Module):
    """A transformer block within which tokens come first and images second, as nn.MultiheadAttention has them."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attn, self.mlp = block.attn, block.mlp

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(tokens)
        return tokens + self.mlp(tokens.transpose(0, 1)).transpose(0, 1)


def test_a_layer_whose_input_does_not_begin_with_the_images_is_refused_by_name() -> None:
    model = member("ViT")
    for name, block in enumerate(model.blocks):
        model.blocks[name] = TokensFirst(block)
    layers = analyse(model).layers
    assert len(prunable_layers(layers, ("qkv", "proj"))) == 4
    with pytest.raises(LpvitError, match=r"'blocks\.0\.mlp\.fc1' cannot be pruned: its input does not begin with"):
        prunable_layers(layers, ROLES)


def test_shared_blocks_and_tied_weights_are_refused_by_name() -> None:
    shared = member("ViT")
    shared.blocks[1] = shared.blocks[0]
    with pytest.raises(LpvitError, match=r"'blocks\.0\.attn\.qkv' cannot be pruned: it runs more than once"):
        prunable_layers(analyse(shared).layers, ROLES)
    tied = member("ViT")
    tied.blocks[1].mlp.fc1.weight = tied.blocks[0].mlp.fc1.weight
    with pytest.raises(LpvitError, match=r"'blocks\.0\.mlp\.fc1' cannot be pruned.*tied"):
        prunable_layers(analyse(tied).layers, ROLES)


def test_what_cannot_be_watched_is_refused_in_one_line() -> None:
    images = [images_for(member("ViT"), 4)]
    for model, message in (
        (torch.compile(member("ViT")), "compiled"),
        (nn.DataParallel(member("ViT")), "DataParallel"),
        ("vit", "found str"),
    ):
        with pytest.raises(LpvitError, match=message):
            lpvit.prune(model, images, budget=0.5, block_shape=(8, 8))
    with pytest.raises(LpvitError, match="batch without images"):
        lpvit.prune(member("ViT"), [images[0][:0]], budget=0.5, block_shape=(8, 8))


def test_products_are_right_before_an_activation_that_works_in_place() -> None:
    plain, in_place = member("ViT"), member("ViT")
    for block in plain.blocks:
        block.mlp.act = nn.ReLU()
    for block in in_place.blocks:
        block.mlp.act = nn.ReLU(inplace=True)
    batch = [(images_for(plain, 3), torch.zeros(3))]
    layers = prunable_layers(analyse(plain).layers, ("fc1", "fc2"))
    expected, found = (block_products(model, batch, layers, (8, 8), 2, "cpu") for model in (plain, in_place))
    for layer in expected:
        torch.testing.assert_close(found[layer], expected[layer])


@pytest.mark.parametrize("family", ["DeiT-III", "DINOv2", "DINOv3", "BEiT"])
def test_the_last_layer_of_a_block_is_fitted_as_if_layer_scale_were_part_of_it(family: str) -> None:
    """Where the scale stands must not matter: in a parameter, in a module, or in the weights themselves."""
    scaled = member(family)
    network = analyse(lpvit_form(scaled))
    (layer, branch) = next(iter(network.branches.items()))
    assert not torch.allclose(branch.scale, torch.ones_like(branch.scale), atol=0.05)
    folded = deepcopy(network.model)
    for name, other in network.branches.items():
        module = folded.get_submodule(name)
        module.weight.data *= other.scale[:, None]
        if module.bias is not None:
            module.bias.data *= other.scale
        unscale(folded.get_submodule(other.block))
    batches = [(images_for(scaled, 40), torch.zeros(40))]
    masks = {name: torch.arange(module_blocks(network.model, name)).view(4, -1) % 3 > 0 for name in network.branches}
    states = [pruned_weights(model, masks, (8, 8), batches, "cpu") for model in (network.model, folded)]
    expected = states[1][f"{layer}.weight"] / branch.scale[:, None]
    torch.testing.assert_close(states[0][f"{layer}.weight"], expected, rtol=1e-2, atol=1e-3)


def lpvit_form(model: nn.Module) -> nn.Module:
    from lpvit.models.sources.families import call_modules

    return call_modules(model)


def module_blocks(model: nn.Module, layer: str) -> int:
    weight = model.get_submodule(layer).weight
    return (weight.shape[0] // 8) * (weight.shape[1] // 8)


def unscale(block: nn.Module) -> None:
    if isinstance(getattr(block, "gamma_2", None), nn.Parameter):
        block.gamma_2.data.fill_(1.0)
    else:
        block.ls2.gamma.data.fill_(1.0)


def test_a_block_that_normalises_after_its_layers_has_no_branch() -> None:
    assert analyse(lpvit_form(member("SwinV2"))).branches == {}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_prune_works_in_any_gradient_mode_and_dtype(context) -> None:
    with context():
        model = member("ViT").to(torch.bfloat16)
        images = [images_for(model, 6)]
        pruned = lpvit.prune(model, images, budget=0.6, block_shape=(8, 8))
    assert next(pruned.model.parameters()).dtype == torch.bfloat16
    frozen = member("ViT").double().requires_grad_(False)
    assert lpvit.prune(frozen, images, budget=0.6, block_shape=(8, 8)).model(images[0].double()).dtype == torch.float64


def test_load_gives_the_dtype_that_was_saved(tmp_path) -> None:
    model = member("ViT").to(torch.bfloat16)
    pruned = lpvit.prune(model, [images_for(model, 6)], budget=0.6, block_shape=(8, 8))
    lpvit.save(pruned, tmp_path / "half.safetensors", options=VIT)
    loaded = lpvit.load(tmp_path / "half.safetensors").model
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_layer_norms_are_not_layers() -> None:
    network = analyse(member("ViT"))
    assert not any(isinstance(network.model.get_submodule(layer.name), LayerNorm) for layer in network.layers)
