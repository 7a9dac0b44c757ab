"""Finds out which tokens of the last transformer block the head reads, and lets it compute no others.

N = images; T = tokens; D = width.
"""

import logging
from copy import deepcopy

import torch
from torch import Tensor, nn

from lpvit.bases.last_block.edit import FewTokens
from lpvit.bases.last_block.few_tokens import obstacle
from lpvit.bases.proof import Proof
from lpvit.models.analysis.layers import transformer_blocks
from lpvit.models.analysis.passes import evaluation_mode
from lpvit.models.analysis.trace import IMAGES, hooks, random_images
from lpvit.models.edits import apply_edit
from lpvit.models.outputs import read
from lpvit.models.sources.families import call_modules

_logger = logging.getLogger(__name__)


def drop_unread_tokens(model: nn.Module) -> tuple[nn.Module, str]:
    """Lets the last transformer block of a model compute what its head reads, if that is proved to change nothing.

    Args:
        model: A transformer of timm; left as it is.

    Returns:
        The model with its edit recorded, and an empty text; or a copy of the model as it is, and why, which is also
        said in the log.
    """
    block = transformer_blocks(model)[-1]
    narrower = call_modules(deepcopy(model)).eval()
    tokens, of = tokens_read(narrower, block)
    reason = f"the head reads {tokens} of {of} tokens" if 2 * tokens > of else obstacle(narrower.get_submodule(block))
    if not reason:
        dtype = next(model.parameters()).dtype
        proof = Proof.of(narrower.double(), dtype)
        if proof.error(apply_edit(narrower, FewTokens(block=block, tokens=tokens))) <= 1:
            return narrower.to(dtype), ""
        reason = "the logits would change"
    _logger.info("'%s' computes all its tokens: %s", block, reason)
    return call_modules(deepcopy(model)).eval(), reason


def tokens_read(model: nn.Module, block: str) -> tuple[int, int]:
    """How many of a block's tokens, up to the last one that the logits depend on, are read, and how many there are.

    Args:
        model: With logits that are differentiable in the block's output.
        block: Name of a module that gives (N, T, D); of anything else all is read.
    """
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[0]

    with evaluation_mode(model), torch.enable_grad(), hooks([model.get_submodule(block).register_forward_hook(keep)]):
        logits = read(model, model(random_images(model, IMAGES)))
        probe = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad((logits * probe.to(logits)).sum(), outputs[:1])
    if gradient.dim() != 3:
        return 1, 1
    tokens = gradient.abs().sum(dim=(0, 2)).nonzero()
    return int(tokens.max()) + 1, gradient.shape[1]
