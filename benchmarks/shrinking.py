"""The competitor of block sparsity: the same transformer made narrower, by Torch-Pruning (Fang et al., CVPR 2023)."""

import copy

import torch_pruning
from torch import nn

from lpvit.cost import measure_costs
from lpvit.statistics import Batches

HALVINGS = 12  # of the pruning ratio: widths are whole numbers, so that MACs move in steps


def shrink(model: nn.Module, calibration: Batches, macs: float) -> nn.Module:
    """The widest model within a share of the dense MACs: embedding, heads' width and MLP, one ratio for all.

    Channels go by Torch-Pruning's group Taylor importance, from LPViT's gradient, that of the mean squared logit.

    Args:
        model: A ViT of timm; left as it is.
        calibration: Images that the gradient is averaged over.
        macs: Share of the dense model's MACs in matrix layers.
    """
    model = copy.deepcopy(model)
    for images, _ in calibration:
        model(images.to(next(model.parameters()).device)).square().mean(dim=1).sum().backward()
    dense = _macs(model)
    low, high = 0.0, 1.0
    best = None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        candidate = _narrowed(model, ratio)
        if candidate is not None and _macs(candidate) > macs * dense:
            low = ratio
        else:
            high, best = ratio, candidate or best
    assert best is not None, f"no width of this model is within {macs:g} of its MACs"
    best.zero_grad()
    return best


def _narrowed(model: nn.Module, ratio: float) -> nn.Module | None:
    """Every width cut by the same ratio; None where nothing would be left."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    narrow = copy.deepcopy(model)
    for name, parameter in narrow.named_parameters():
        parameter.grad = None if (gradient := gradients[name]) is None else gradient.clone()
    attentions = [module for module in narrow.modules() if hasattr(module, "qkv")]
    images = next(narrow.parameters()).new_zeros(1, *model.pretrained_cfg["input_size"])
    pruner = torch_pruning.pruner.BasePruner(
        narrow,
        images,
        importance=torch_pruning.importance.GroupTaylorImportance(),
        pruning_ratio=ratio,
        ignored_layers=[narrow.get_classifier()],
        num_heads={attention.qkv: attention.num_heads for attention in attentions},
        prune_head_dims=True,
    )
    pruner.step()
    for attention in attentions:  # timm keeps these numbers beside the weights
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.head_dim = attention.qkv.out_features // (3 * attention.num_heads)
        attention.attn_dim = attention.head_dim * attention.num_heads
        attention.scale = attention.head_dim**-0.5
    return narrow if all(attention.head_dim > 0 for attention in attentions) else None


def _macs(model: nn.Module) -> int:
    return int(measure_costs(model)["macs"].sum())
