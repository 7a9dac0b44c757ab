"""A pruned model with kernels that skip its pruned blocks."""

from copy import deepcopy

from torch import nn

from lpvit.api.pruned import Pruned
from lpvit.measure.sparsify import sparsify_layers
from lpvit.models.families import call_modules


def sparsify(pruned: Pruned, batch_size: int = 8) -> nn.Module:
    """A copy of a pruned model for inference on its device, block-sparse in the layers that this makes faster there.

    Both forms of every layer are timed, with the model's dtype and torch's number of threads. What stays dense, and
    why, is logged; printed, the model says which kernel runs.

    Args:
        pruned: From `lpvit.prune` or `lpvit.load`; left as it is.
        batch_size: Images per pass that it shall be fast for; any number will do later.

    Returns:
        In evaluation mode, without gradients.
    """
    model = call_modules(deepcopy(pruned.model).eval().requires_grad_(False))
    sparsify_layers(model, pruned.keep_masks, pruned.block_shape, batch_size)
    return model
