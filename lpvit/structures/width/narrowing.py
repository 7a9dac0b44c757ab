"""The baseline of block sparsity: a narrower transformer, by Torch-Pruning (Fang et al., CVPR 2023)."""

import copy
import importlib.util
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import Attention, Mlp
from timm.models import VisionTransformer
from torch import nn

from lpvit.costs.cost import measure_costs
from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import matrix_layers, weight_matrix
from lpvit.models.analysis.passes import Batches
from lpvit.models.edits import record_edit
from lpvit.models.outputs import read
from lpvit.models.sources.timm import input_size
from lpvit.refitting.reconstruction import Fit, fit_in_order, matrix_layer, weight_with_bias
from lpvit.structures.width.edit import NarrowerShapes, fit_heads

if TYPE_CHECKING:
    from torch_pruning.pruner import BasePruner

HALVINGS = 12  # of the pruning ratio: widths are integers, so MACs change in steps

_logger = logging.getLogger(__name__)


def require_narrowable(model: nn.Module) -> None:
    """Checks that a model can be made narrower here.

    Raises:
        LpvitError: It is not a ViT or DeiT of timm, has parts other than standard attention and MLP, or Torch-Pruning
            is not installed.
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
    """A part whose channels Torch-Pruning's groups do not cover; empty if there is none."""
    if model.attn_pool is not None:
        return f"the attention pool of {type(model).__name__} ('attn_pool', as in SigLIP)"
    for name, module in model.named_modules():
        if name.endswith(".mlp") and type(module) is not Mlp:
            return f"'{name}', a {type(module).__name__}"
        if name.endswith(".attn") and type(module) is not Attention:
            return f"'{name}', a {type(module).__name__}"
    return ""


def require_width(model: nn.Module, macs: float) -> None:
    """Checks that some width of a model is within a share of its MACs; which channels remain does not matter for it.

    Args:
        model: On any device, also the meta device; not modified.
        macs: Share of the dense model's MACs in matrix layers.

    Raises:
        LpvitError: As `narrow`.
    """
    require_narrowable(model)
    model = copy.deepcopy(model).eval().to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.zero_()
        parameter.grad = torch.zeros_like(parameter)
    _widest_within(model, macs)


@dataclass(frozen=True)
class Narrowed:
    """A narrower model, and its removed channels in Torch-Pruning's order, to remove them from another copy."""

    model: nn.Module
    history: list[Any]


def narrow(model: nn.Module, calibration: Batches, macs: float, reconstruct: bool = False) -> nn.Module:
    """The widest model within a share of the dense MACs: embedding, heads' width and MLP, one ratio for all.

    Channels are removed by Torch-Pruning's group Taylor importance, with LPViT's gradient of the mean squared logit.

    Args:
        model: A ViT or DeiT of timm; not modified.
        calibration: Images for the averaged gradient and the reconstruction.
        macs: Share of the dense model's MACs in matrix layers.
        reconstruct: Whether each layer is then refitted to its remaining outputs in the dense model.

    Returns:
        In evaluation mode, with the edit recorded.

    Raises:
        LpvitError: As `require_narrowable`, or no width is within the budget.
    """
    require_narrowable(model)
    model = copy.deepcopy(model).eval()  # else dropout would make the gradient random
    for images, _ in calibration:
        outputs = read(model, model(images.to(next(model.parameters()).device)))
        outputs.square().mean(dim=1).sum().backward()  # type: ignore[no-untyped-call]
    best = _widest_within(model, macs)
    best.model.zero_grad()
    record_edit(best.model, NarrowerShapes.between(model, best.model))
    widths = (matrix_layers(network)[0].out_features for network in (model, best.model))  # of the embedding
    share = _macs(best.model) / _macs(model)
    _logger.info("narrower: %.1f %% of the MACs, embedding of %d -> %d", 100 * share, *widths)
    if reconstruct:
        fit_in_order(model, best.model, _fits(model, best), calibration, device=next(model.parameters()).device)
    return best.model


def _widest_within(model: nn.Module, macs: float) -> Narrowed:
    dense = _macs(model)
    low, high = 0.0, 1.0
    best = None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        candidate = _narrowed(model, ratio)
        if candidate is not None and _macs(candidate.model) > macs * dense:
            low = ratio
        else:
            high, best = ratio, candidate or best
    if best is None:
        raise LpvitError(f"budget: no width of this model is within macs {macs:g}; raise 'macs'")
    return best


def _narrowed(model: nn.Module, ratio: float) -> Narrowed | None:
    """Reduces every width by the same ratio; None if nothing would remain."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    narrower = copy.deepcopy(model)
    for name, parameter in narrower.named_parameters():
        parameter.grad = None if (gradient := gradients[name]) is None else gradient.clone()
    pruner = _pruner(narrower, ratio)
    pruner.step()
    attentions = _attentions(narrower)
    if any(attention.qkv.out_features < 3 * attention.num_heads for attention in attentions):
        return None
    for attention in attentions:
        fit_heads(attention)
    return Narrowed(narrower, pruner.pruning_history())


def _pruner(model: nn.Module, ratio: float) -> "BasePruner":
    """Torch-Pruning's pruner of a model, which works in place."""
    import torch_pruning

    classifiers = model.get_classifier()  # type: ignore[operator]  # two of a distilled DeiT
    return torch_pruning.pruner.BasePruner(
        model,
        next(model.parameters()).new_zeros(1, *input_size(model)),
        importance=torch_pruning.importance.GroupTaylorImportance(),
        pruning_ratio=ratio,
        ignored_layers=[*classifiers] if isinstance(classifiers, tuple) else [classifiers],
        num_heads={attention.qkv: attention.num_heads for attention in _attentions(model)},
        prune_head_dims=True,
        unwrapped_parameters=[(parameter, parameter.dim() - 1) for parameter in model.parameters(recurse=False)],
    )


def _attentions(model: nn.Module) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def _fits(model: nn.Module, narrowed: Narrowed) -> list[Fit]:
    """The fits of every layer after the patch embedding, whose outputs equal those of the dense one."""
    numbered = copy.deepcopy(model)  # every weight is the number of its row
    layers = [layer.name for layer in matrix_layers(model)]
    for name in layers:
        weight = matrix_layer(numbered, name).weight.data
        weight.copy_(torch.arange(len(weight)).view(-1, *[1] * (weight.dim() - 1)).expand_as(weight))
    _pruner(numbered, 0.0).load_pruning_history(narrowed.history)
    fits = []
    for name in layers[1:]:
        layer = matrix_layer(narrowed.model, name)
        keep = torch.ones_like(weight_matrix(layer), dtype=torch.bool)
        rows = weight_matrix(matrix_layer(numbered, name))[:, 0].long()
        fits.append(Fit(name, rows, weight_with_bias(layer).detach(), keep))
    return fits


def _macs(model: nn.Module) -> int:
    return int(measure_costs(model)["macs"].sum())
