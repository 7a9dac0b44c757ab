"""Hooks and forwards that a user puts on modules: they survive, or are refused by name."""

import functools
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import dense_model, photographs
from torch import Tensor, nn

import lpvit
from lpvit.inference.sparsify import sparsify_layers

IMAGES = photographs("vit")


def doubled(module: nn.Module, inputs: Tensor, *others: object, **options: object) -> Tensor:
    """Another forward of attention or a layer, which tells when it is ignored."""
    output: Tensor = 2 * type(module).forward(module, inputs, *others, **options)
    return output


def with_forward(name: str) -> nn.Module:
    model = dense_model("vit").eval()
    module = model.get_submodule(name)
    module.forward = types.MethodType(doubled, module)  # type: ignore[method-assign]
    return model


def prune(model: nn.Module) -> lpvit.Pruned:
    return lpvit.prune(model, IMAGES.split(8), budget=0.6, block_shape=(8, 4))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(IMAGES)
    return output


def sparse_everywhere(pruned: lpvit.Pruned) -> nn.Module:
    model = pruned.model
    sparsify_layers(model, pruned.keep_masks, pruned.block_shape, only_faster=False)
    return model


@pytest.mark.parametrize("name", ["blocks.0", "blocks.0.attn", "blocks.1.mlp", "blocks.1.mlp.fc1", "blocks.0.norm1"])
def test_a_forward_of_an_instance_goes_through_pruning_and_sparse_layers(name: str) -> None:
    if name == "blocks.1.mlp.fc1":  # the product is not that of its weight
        with pytest.raises(lpvit.LpvitError, match=f"^layers: '{name}' cannot be pruned: the output of Linear is not"):
            prune(with_forward(name))
        return
    model = with_forward(name)
    expected = logits(model)
    pruned = prune(model)
    assert torch.equal(logits(model), expected)
    assert isinstance(vars(model.get_submodule(name))["forward"], types.MethodType)
    plain = dense_model("vit").eval()
    plain.load_state_dict(pruned.model.state_dict())
    found = logits(pruned.model)
    assert (found - logits(plain)).abs().max() > 1e-2
    torch.testing.assert_close(logits(lpvit.sparsify(pruned)), found, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(sparse_everywhere(pruned)), found, rtol=1e-4, atol=1e-4)


def test_a_forward_that_is_a_partial_of_its_module_is_taken() -> None:
    """As by accelerate."""
    model = dense_model("vit").eval()
    module = model.get_submodule("blocks.0.attn")
    module.forward = functools.update_wrapper(functools.partial(doubled, module), module.forward)  # type: ignore[method-assign]
    pruned = prune(model)
    assert pruned.model.get_submodule("blocks.0.attn").forward.args[0] is pruned.model.get_submodule("blocks.0.attn")  # type: ignore[union-attr]


@pytest.mark.parametrize("call", [prune, lambda model: lpvit.sparsify(lpvit.Pruned(model, {}, (1, 1)))])
def test_a_forward_that_would_compute_with_the_weights_of_the_original_is_refused(
    call: Callable[[nn.Module], object],
) -> None:
    model = dense_model("vit")
    attention = model.get_submodule("blocks.0.attn")
    original = attention.forward
    attention.forward = lambda *inputs, **options: 2 * original(*inputs, **options)  # type: ignore[method-assign]
    with pytest.raises(lpvit.LpvitError, match=r"^model: 'blocks.0.attn' has a forward that is not bound to it, so"):
        call(model)


@pytest.mark.parametrize(
    "name", ["mlp.act", "mlp.fc1", "mlp", "mlp.drop1", "attn", "attn.qkv", "norm1", "ls1", "drop_path1", ""]
)
def test_hooks_are_called_as_often_in_the_sparse_model(name: str) -> None:
    pruned = prune(dense_model("vit"))
    calls: list[str] = []
    pruned.model.get_submodule(f"blocks.1.{name}".rstrip(".")).register_forward_hook(lambda *_: calls.append(name))
    logits(pruned.model)
    expected = len(calls)
    fast = lpvit.sparsify(pruned)
    calls.clear()
    logits(fast)
    assert len(calls) == expected == 1
    fast = sparse_everywhere(pruned)
    calls.clear()
    logits(fast)
    assert len(calls) == 1


def test_what_would_be_lost_with_a_layer_is_refused_by_name(tmp_path: Path) -> None:
    pruned = prune(dense_model("vit"))
    hook = pruned.model.get_submodule("blocks.0.attn.qkv").register_forward_hook(lambda *_: None)
    message = "^model: 'blocks.0.attn.qkv' has hooks, lost with the layer that is replaced here; remove that first$"
    with pytest.raises(lpvit.LpvitError, match=message):
        lpvit.quantise(pruned, IMAGES.split(8))
    hook.remove()
    lpvit.quantise(pruned, IMAGES.split(8))
    model = dense_model("vit")
    model.get_submodule("blocks.0.attn.qkv").register_forward_hook(lambda *_: None)
    with pytest.raises(lpvit.LpvitError, match=message):
        lpvit.prune(model, IMAGES.split(8), budget=0.6, pruning=lpvit.Factors(rank_multiple=1))
