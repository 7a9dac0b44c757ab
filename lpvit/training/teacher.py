"""The teacher of a recipe."""

from pathlib import Path

from torch import nn

from lpvit.errors import LpvitError
from lpvit.models.architecture import load_model
from lpvit.models.sources.checkpoints import load_weights, read_checkpoint
from lpvit.models.sources.timm import create_model
from lpvit.training.settings import Recipe


def load_teacher(recipe: Recipe, num_classes: int, dense: str | Path | None) -> nn.Module | None:
    """The teacher of a recipe, or None without distillation.

    Args:
        recipe: ``teacher`` is ``dense`` or a timm name, with timm's weights or a local ``teacher_checkpoint``.
        num_classes: Outputs of a timm teacher.
        dense: Artifact of the model before pruning; None where there is none yet.

    Raises:
        LpvitError: The teacher's weights are missing or do not fit.
    """
    if recipe.teacher is None:
        return None
    if recipe.teacher == "dense":
        if dense is None:
            raise LpvitError("teacher: 'dense' is the model in training; name one of timm")
        architecture, state = load_model(dense, "dense")
        return architecture.build(state)
    teacher = create_model(recipe.teacher, num_classes, pretrained=recipe.teacher_checkpoint is None)
    if recipe.teacher_checkpoint is not None:
        load_weights(teacher, read_checkpoint(recipe.teacher_checkpoint, teacher), recipe.teacher_checkpoint)
    return teacher
