"""A paragraph of methods for a publication, written from the settings of an experiment. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from lpvit.allocation.settings import Budget
from lpvit.data.settings import Calibration, Dataset
from lpvit.models.settings import Model
from lpvit.quantisation.settings import Quantisation
from lpvit.report.formats import BUDGETS
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.factors.settings import Factors
from lpvit.structures.settings import StructureSettings
from lpvit.training.settings import Recipe

METRICS = {
    "two_sided": "the covariance of its inputs and the sensitivity of the logits to its outputs",
    "activations": "the covariance of its inputs",
    "fisher": "the sensitivity of the logits to each of its rows",
    "weights": "the plain norm of its weights",
}
ACCURACY = (
    "Accuracies are top-1 on the validation split, with 95 % Wilson intervals; multiply-accumulates are those of "
    "linear layers and convolutions per image."
)
AGREEMENT = (
    "The images have no classes: models are compared by the agreement of their outputs with the dense model's on the "
    "validation split; multiply-accumulates are those of linear layers and convolutions per image."
)


def methods(
    name: str,
    dataset: tuple[str, Dataset],
    model: Model,
    compression: tuple[Calibration, StructureSettings, Budget],
    recipes: tuple[Recipe | None, Recipe | None],
    schemes: tuple[str, ...] = (),
    quantisation: Quantisation | None = None,
) -> str:
    """The paragraph of an experiment.

    Args:
        name: Of the experiment.
        dataset: Its name and settings.
        model: Dense model.
        compression: Calibration set, structure, and how much is kept.
        recipes: Of the dense model and of the compressed one.
        schemes: Names of token and attention schemes.
        quantisation: Of the compressed model.
    """
    (calibration, pruning, budget), (dense, tuned) = compression, recipes
    labelled = dataset[1].source.labelled
    sentences = [
        f"{name}: the dense model is {model.source}'s {model.name}{_options(model.options)}, "
        f"{_weights(model, dense)}, on {_dataset(*dataset)}.",
        f"{_structure(pruning)} {_budget(budget)}, measured on {calibration.images} training images "
        f"({'class-balanced, ' * labelled}seed {calibration.seed}).",
        _refit(budget),
        f"Besides, {', '.join(schemes)} reduces the tokens or the attention." if schemes else "",
        f"The compressed model was then fine-tuned {_training(tuned)}." if tuned else "It was not fine-tuned.",
        f"At last it was quantised to {quantisation.precision}." if quantisation else "",
        ACCURACY if labelled else AGREEMENT,
    ]
    return " ".join(filter(None, sentences))


def _options(options: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else ""


def _weights(model: Model, recipe: Recipe | None) -> str:
    start = {"pretrained": f"with {model.source}'s weights", "checkpoint": "with weights of a checkpoint"}.get(
        model.weights, ""
    )
    if recipe is None:
        return start or "with random weights"
    return f"{start + ', ' if start else ''}trained {_training(recipe)}"


def _training(recipe: Recipe) -> str:
    parts = [
        f"for {recipe.epochs} epochs with AdamW (batch size {recipe.batch_size}, peak learning rate "
        f"{recipe.learning_rate * recipe.learning_rate_scale:.3g}, {recipe.warmup_epochs:g} epochs of warm-up, "
        f"cosine decay, weight decay {recipe.weight_decay:g}, seed {recipe.seed})"
    ]
    if recipe.distillation != "none":
        teacher = "the dense model" if recipe.teacher == "dense" else f"timm's {recipe.teacher}"
        loss = f"{recipe.distillation} distillation from {teacher} (share {recipe.distillation_alpha:g} of the loss)"
        if recipe.distillation == "features":
            loss = f"the {recipe.features_loss} distance from the outputs of {teacher} as the loss, without labels"
        if recipe.distillation_blocks:
            loss += f" and, times {recipe.distillation_blocks:g}, the relative squared error of its transformer blocks"
        parts.append(f"with {loss}")
    if recipe.pruned_over:
        parts.append(f"with blocks pruned by magnitude over the first {100 * recipe.pruned_over:g} % of the steps")
    return ", ".join(parts)


def _dataset(name: str, dataset: Dataset) -> str:
    if dataset.validation_share:
        whose = "every class" if dataset.source.labelled else "the images"
        return f"{name}, {100 * dataset.validation_share:g} % of {whose} held out for validation"
    return f"{name}, with its own validation split"


def _structure(pruning: StructureSettings) -> str:
    if isinstance(pruning, Blocks):
        shape = "x".join(map(str, pruning.block_shape))
        basis = "" if pruning.basis == "given" else " of the same model in aligned bases"
        return (
            f"Blocks of {shape} weights were pruned from the layers {', '.join(pruning.layers)}{basis}, ranked by the "
            f"saliency '{pruning.saliency.name}' with rate-distortion curves by '{pruning.distortion.name}',"
        )
    if isinstance(pruning, Factors):
        return (
            f"The layers {', '.join(pruning.layers)} were replaced by {pruning.form} low-rank factors, ranks in "
            f"multiples of {pruning.rank_multiple}, truncated by {METRICS[pruning.metric]},"
        )
    return f"The model was compressed by the structure '{pruning.structure}'"


def _budget(budget: Budget) -> str:
    targets = " and ".join(f"{100 * target:g} % of {BUDGETS[name]}" for name, target in budget.targets.items())
    steps = f", in {budget.steps} rounds" if budget.steps > 1 else ""
    return f"to a budget of {targets}, allocated by '{budget.allocator.name}'{steps}"


def _refit(budget: Budget) -> str:
    if budget.reconstruction == "none":
        return "The remaining weights were not refitted."
    return "The remaining weights were refitted to the dense outputs by least squares, layer by layer in order."
