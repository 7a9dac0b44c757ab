"""The competitor of block sparsity: the same transformer made narrower, by Torch-Pruning (Fang et al., CVPR 2023)."""

import copy
import importlib.util
import logging

from timm.layers import Attention, Mlp
from timm.models import VisionTransformer
from torch import nn

from lpvit.errors import LpvitError
from lpvit.models.architecture import fit_heads, input_size
from lpvit.models.cost import measure_costs
from lpvit.models.layers import matrix_layers
from lpvit.models.passes import Batches

HALVINGS = 12  # of the pruning ratio: widths are whole numbers, so that MACs move in steps

_logger = logging.getLogger(__name__)


def require_narrowable(model: nn.Module) -> None:
    """Makes sure that a model can be made narrower here.

    Raises:
        LpvitError: It is not a ViT or DeiT of timm, has parts that are no plain attention or MLP, or Torch-Pruning is
            not installed.
    """
    if not isinstance(model, VisionTransformer):
        raise LpvitError(
            f"structure: 'width' narrows ViT and DeiT, not {type(model).__name__}; use 'structure: blocks'"
        )
    if odd := _what_does_not_narrow(model):
        raise LpvitError(f"structure: 'width' cannot narrow {odd}; use 'structure: blocks'")
    if importlib.util.find_spec("torch_pruning") is None:
        raise LpvitError("structure: 'width' needs Torch-Pruning, which is not installed; pip install 'lpvit[width]'")


def _what_does_not_narrow(model: VisionTransformer) -> str:
    """A part whose channels Torch-Pruning's groups do not follow; empty where there is none."""
    if model.attn_pool is not None:
        return f"the attention pool of {type(model).__name__} ('attn_pool', as in SigLIP)"
    for name, module in model.named_modules():
        if name.endswith(".mlp") and type(module) is not Mlp:
            return f"'{name}', a {type(module).__name__}"
        if name.endswith(".attn") and type(module) is not Attention:
            return f"'{name}', a {type(module).__name__}"
    return ""


def narrow(model: nn.Module, calibration: Batches, macs: float) -> nn.Module:
    """The widest model within a share of the dense MACs: embedding, heads' width and MLP, one ratio for all.

    Channels go by Torch-Pruning's group Taylor importance, from LPViT's gradient, that of the mean squared logit.

    Args:
        model: A ViT or DeiT of timm; left as it is.
        calibration: Images that the gradient is averaged over.
        macs: Share of the dense model's MACs in matrix layers.

    Raises:
        LpvitError: As `require_narrowable`, or no width is within the budget.
    """
    require_narrowable(model)
    model = copy.deepcopy(model).eval()  # else dropout would make the gradient random
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
    if best is None:
        raise LpvitError(f"budget: no width of this model is within macs {macs:g}; raise 'macs'")
    best.zero_grad()
    widths = (matrix_layers(network)[0].out_features for network in (model, best))  # of the embedding
    _logger.info("narrower: %.1f %% of the MACs, embedding of %d -> %d", 100 * _macs(best) / dense, *widths)
    return best


def _narrowed(model: nn.Module, ratio: float) -> nn.Module | None:
    """Every width cut by the same ratio; None where nothing would be left."""
    import torch_pruning

    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    narrower = copy.deepcopy(model)
    for name, parameter in narrower.named_parameters():
        parameter.grad = None if (gradient := gradients[name]) is None else gradient.clone()
    attentions = [module for module in narrower.modules() if isinstance(module, Attention)]
    classifiers = narrower.get_classifier()  # type: ignore[operator]  # two of a distilled DeiT
    images = next(narrower.parameters()).new_zeros(1, *input_size(model))
    pruner = torch_pruning.pruner.BasePruner(
        narrower,
        images,
        importance=torch_pruning.importance.GroupTaylorImportance(),
        pruning_ratio=ratio,
        ignored_layers=[*classifiers] if isinstance(classifiers, tuple) else [classifiers],
        num_heads={attention.qkv: attention.num_heads for attention in attentions},
        prune_head_dims=True,
        unwrapped_parameters=[(parameter, parameter.dim() - 1) for parameter in narrower.parameters(recurse=False)],
    )
    pruner.step()
    if any(attention.qkv.out_features < 3 * attention.num_heads for attention in attentions):
        return None
    for attention in attentions:
        fit_heads(attention)
    return narrower


def _macs(model: nn.Module) -> int:
    return int(measure_costs(model)["macs"].sum())
