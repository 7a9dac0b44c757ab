"""What tasks share whose labels are compared with the outputs of a model.

N = images; K = numbers that the model gives for an image.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.outputs import reading_of
from lpvit.progress import bar
from lpvit.training.tasks.task import Batches


class OutputLoss(nn.Module):
    """A function of outputs (N, K) and labels, as the loss of a training."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.reading, self.function = reading_of(model), function

    def forward(self, images: Tensor, output: Any, labels: Tensor) -> Tensor:
        return self.function(self.reading(output).float(), labels)


@torch.inference_mode()
def outputs_of(
    model: nn.Module, loader: Batches, device: torch.device | str, shown: bool = True
) -> tuple[Tensor, Tensor]:
    """All outputs and labels of a loader, on the CPU.

    Args:
        model: Moved to the device and left in evaluation mode.
        loader: Images and labels.
        device: Where to compute.
        shown: Show a bar.

    Returns:
        (N, K), float32, and (N, ...).

    Raises:
        LpvitError: There is no image.
    """
    dtype = next((weight.dtype for weight in model.to(device).eval().parameters()), None)
    reading, found, labels = reading_of(model), [], []
    for images, some in bar(loader, "evaluation", "batch", leave=False, shown=shown):
        found.append(reading(model(images.to(device=device, dtype=dtype))).float().cpu())
        labels.append(some.cpu())
    if not found:
        raise LpvitError("evaluation: there are no images")
    return torch.cat(found), torch.cat(labels)
