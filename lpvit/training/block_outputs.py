"""Distillation of what transformer blocks give, in addition to the outputs of the model (FitNets, arXiv 1412.6550).

N = images of a batch; T = tokens of an image; D = features of the residual stream.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.network import analyse
from lpvit.models.edits import edits_of
from lpvit.training.features import relative_errors

KEY = "recipe: distillation_blocks"


class BlockDistillation(nn.Module):
    """A distillation loss, plus the relative squared error of the output of every transformer block times a weight.

    Args:
        student: The model in training; records from now on what its blocks give.
        loss: Of the student's outputs, with the dense model as its ``teacher``.
        weight: Of the sum over the blocks.

    Raises:
        LpvitError: The blocks of the two do not go together.
    """

    def __init__(self, student: nn.Module, loss: nn.Module, weight: float) -> None:
        super().__init__()
        require_same_bases(student)
        self.loss, self.weight = loss, weight
        teacher: nn.Module = loss.teacher.model  # type: ignore[union-attr, assignment]
        branches = analyse(teacher).branches.values()
        blocks = list(dict.fromkeys(branch.block for branch in branches if not branch.at_input))
        if not blocks:
            raise LpvitError(f"{KEY}: no transformer block of the dense model was found; leave it out")
        self.found, self.wanted = (_recorded(model, blocks) for model in (student, teacher))

    def forward(self, images: Tensor, output: Any, targets: Any) -> Tensor:
        """The mean over a batch of images (N, C, H, W), after the student's pass over them, as that of ``loss``."""
        total: Tensor = self.loss(images, output, targets)
        for block, found in self.found.items():
            wanted = self.wanted[block].detach()[:, : found.shape[1]]  # the last block may give its first tokens alone
            if found.shape != wanted.shape:
                raise LpvitError(
                    f"{KEY}: '{block}' gives {tuple(found.shape[1:])} numbers, that of the dense model "
                    f"{tuple(wanted.shape[1:])}; leave it out"
                )
            errors = relative_errors(found.float().flatten(1, -2), wanted.float().flatten(1, -2))
            total = total + self.weight * errors.mean()
        return total


def require_same_bases(student: nn.Module) -> None:
    """Checks that the residual stream of a model has the coordinates of the dense model.

    Raises:
        LpvitError: It was turned (`lpvit.bases`).
    """
    for edit in edits_of(student):
        if "residual" in getattr(edit, "freedoms", ()):
            raise LpvitError(
                f"{KEY}: the residual stream of the model is in aligned bases, that of the dense model is not; leave "
                "it out, or leave 'residual' out of 'basis'"
            )


def _recorded(model: nn.Module, blocks: Sequence[str]) -> dict[str, Tensor]:
    """Block -> its output in the latest pass of a model."""
    outputs: dict[str, Tensor] = {}
    for block in blocks:
        try:
            module = model.get_submodule(block)
        except AttributeError:
            raise LpvitError(f"{KEY}: the model has no '{block}' as the dense model has; leave it out") from None
        module.register_forward_hook(lambda _, __, output, block=block: outputs.update({block: output}))
    return outputs
