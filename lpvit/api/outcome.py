"""What a budget by outcome measures of a compressed model, for the library and the pipeline."""

from collections.abc import Callable, Iterable
from dataclasses import astuple

from torch import Tensor, nn

from lpvit.allocation.settings import Budget
from lpvit.inference.model_latency import milliseconds_per_image
from lpvit.pruning.outcome import Estimate
from lpvit.structures.structure import Compressed
from lpvit.training.evaluation import correct_images, points_lost


def outcome_measure(
    budget: Budget, model: nn.Module, image: Tensor, held_out: Callable[[], Iterable[tuple[Tensor, Tensor]]]
) -> Callable[[Compressed], Estimate]:
    """The measure of a budget in points lost or in milliseconds.

    Args:
        budget: With an outcome.
        model: Dense.
        image: A batch of one, on the device to compute on.
        held_out: Gives the labelled batches on which points are lost; called only for these.
    """
    if budget.milliseconds is not None:
        return lambda compressed: Estimate(*astuple(milliseconds_per_image(compressed, image)))
    labelled = held_out()
    dense = correct_images(model, labelled, image.device)
    return lambda compressed: Estimate(*points_lost(dense, correct_images(compressed.model, labelled, image.device)))
