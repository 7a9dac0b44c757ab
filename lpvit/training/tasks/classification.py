"""One class for each image."""

import torch
from torch import nn

from lpvit.models.heads import require_classifier
from lpvit.models.preparation import width_of
from lpvit.training import evaluation
from lpvit.training.evaluation import Accuracy, evaluation_sums, over_processes
from lpvit.training.features import FeatureLoss
from lpvit.training.loss import TrainingLoss
from lpvit.training.settings import Recipe
from lpvit.training.tasks.task import Batches, Task


class Classification(Task):
    """Cross-entropy, alone or with distillation; accuracy."""

    unfit = ()

    def classes(self, model: nn.Module) -> int | None:
        return width_of(model)

    def require(self, model: nn.Module) -> None:
        require_classifier(model)

    def require_recipe(self, recipe: Recipe) -> None:
        """All of a recipe is for it."""

    def criterion(self, model: nn.Module, recipe: Recipe, teacher: nn.Module | None) -> nn.Module:
        if recipe.distillation == "features":
            return FeatureLoss(model, teacher, recipe.features_loss)
        alpha, temperature = recipe.distillation_alpha, recipe.distillation_temperature
        return TrainingLoss(model, teacher, recipe.distillation, alpha, temperature)

    def measure(self, model: nn.Module, loader: Batches, device: torch.device | str, shown: bool = True) -> Accuracy:
        return Accuracy.from_sums(over_processes(evaluation_sums(model, loader, device, shown)))

    def evaluate(self, model: nn.Module, loader: Batches, device: torch.device | str) -> Accuracy:
        return evaluation.evaluate(model, loader, device)

    def __str__(self) -> str:
        return "classification"
