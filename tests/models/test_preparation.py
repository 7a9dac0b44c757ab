"""States that a model can be in when it is pruned."""

import logging
from copy import deepcopy

import pytest
import torch
from tiny import dense_model, photographs
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import lpvit
from lpvit.errors import LpvitError
from lpvit.models.preparation import plain_copy, prepared


def same(model: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        return torch.allclose(model.eval()(photographs("vit", 3)), other(photographs("vit", 3)), atol=1e-6)


def test_gradient_checkpointing_is_off_in_the_copy_and_on_in_the_model() -> None:
    model = dense_model("vit")
    model.set_grad_checkpointing(True)
    copy = prepared(model, photographs("vit", 2))
    assert (model.grad_checkpointing, copy.grad_checkpointing) == (True, False)
    pruned = lpvit.prune(model, photographs("vit").split(8), budget=0.7, block_shape=(4, 4))
    assert pruned.report.loc["(model)", "keep_ratio"] <= 0.7


def test_masks_of_torch_are_folded_into_the_weights_of_the_copy() -> None:
    model = dense_model("vit")
    layer = model.blocks[0].mlp.fc1
    prune.l1_unstructured(layer, "weight", 0.5)
    model(photographs("vit", 1))
    copy = plain_copy(model)
    assert isinstance(layer.weight_mask, Tensor)  # the owner's stays as it is
    weight = copy.get_parameter("blocks.0.mlp.fc1.weight")
    assert torch.equal(weight, layer.weight)
    assert (weight == 0).float().mean() == 0.5
    assert same(model, copy)


def test_parametrisations_are_folded() -> None:
    model = dense_model("vit")
    parametrizations.weight_norm(model.blocks[1].mlp.fc2)
    copy = plain_copy(model)
    assert "blocks.1.mlp.fc2.weight" in dict(copy.named_parameters())
    assert "blocks.1.mlp.fc2.weight" not in dict(model.named_parameters())
    assert same(model, copy)


def test_compiled_modules_are_as_before_in_the_copy() -> None:
    model = dense_model("vit")
    names = list(model.state_dict())
    model.blocks[0] = torch.compile(model.blocks[0])
    model.blocks[1].compile()
    copy = plain_copy(model)
    assert list(copy.state_dict()) == names
    assert all(module._compiled_call_impl is None for module in copy.modules())


def test_a_forward_that_accelerate_replaced_is_restored() -> None:
    model = dense_model("vit")
    plain, original = deepcopy(model), model.forward
    model._original_forward = original  # as accelerate's prepare_model does
    model.forward = lambda images: original(images).float() * 2
    assert same(plain, plain_copy(model))


def test_adapters_that_are_not_merged_are_named() -> None:
    model = dense_model("vit")
    model.blocks[0].attn.qkv.lora_A = nn.Linear(20, 2)
    with pytest.raises(LpvitError, match=r"'blocks\.0\.attn\.qkv' is an adapter of PEFT; merge it"):
        lpvit.prune(model, photographs("vit").split(8), budget=0.7)


class HalfBody(nn.Module):
    """A body in bfloat16 under a head in float32, as mixed checkpoints are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = dense_model("vit", global_pool="avg").to(torch.bfloat16)
        self.body.head = nn.Identity()
        self.head = nn.Linear(20, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images.to(torch.bfloat16)).float())


def test_mixed_types_are_saved_and_loaded_as_they_are(tmp_path) -> None:
    torch.manual_seed(0)
    model = HalfBody()
    pruned = lpvit.prune(model, photographs("vit").split(8), budget=0.7, block_shape=(4, 4))
    lpvit.save(pruned, tmp_path / "mixed.safetensors")
    loaded = lpvit.load(tmp_path / "mixed.safetensors", model=HalfBody())
    assert {name: value.dtype for name, value in loaded.model.state_dict().items()} == {
        name: value.dtype for name, value in model.state_dict().items()
    }
    assert torch.equal(loaded.model(photographs("vit", 3)), pruned.model(photographs("vit", 3)))


def test_finetuning_says_what_is_frozen(caplog: pytest.LogCaptureFixture) -> None:
    batches = [(photographs("vit", 8), torch.arange(8) % 5)]
    pruned = lpvit.prune(dense_model("vit"), batches, budget=0.7, block_shape=(4, 4))
    recipe = lpvit.Recipe(epochs=1, batch_size=8, learning_rate=1e-3)
    pruned.model.requires_grad_(False)
    with pytest.raises(LpvitError, match="all its parameters are frozen"):
        lpvit.finetune(pruned, batches, batches, recipe=recipe)
    pruned.model.head.requires_grad_(True)
    with caplog.at_level(logging.INFO, "lpvit"):
        tuned = lpvit.finetune(pruned, batches, batches, recipe=recipe)
    assert "parameters are frozen, such as 'cls_token'" in caplog.text
    assert torch.equal(tuned.model.blocks[0].attn.qkv.weight, pruned.model.blocks[0].attn.qkv.weight)
    assert not torch.equal(tuned.model.head.weight, pruned.model.head.weight)


def test_a_dynamic_image_size_is_kept(tmp_path) -> None:
    import timm

    options = {"img_size": 16, "patch_size": 4, "embed_dim": 20, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, dynamic_img_size=True, **options)
    some = torch.randn(8, 3, 16, 16)
    pruned = lpvit.prune(model, [some], budget=0.7, block_shape=(4, 4))
    lpvit.save(pruned, tmp_path / "dynamic.safetensors", options=options | {"dynamic_img_size": True})
    larger = torch.randn(2, 3, 24, 20)
    assert torch.equal(lpvit.load(tmp_path / "dynamic.safetensors").model(larger), pruned.model(larger))
