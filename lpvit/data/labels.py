"""Labels of images as class numbers, the same checks wherever labels are read.

N = images of a batch.
"""

import torch
from torch import Tensor

from lpvit.errors import LpvitError


def class_numbers(labels: Tensor, images: int, classes: int) -> Tensor:
    """Checks the labels of a batch: integers from 0, shape (N,) or (N, 1).

    Args:
        labels: As the loader gives them.
        images: N.
        classes: Outputs of the model.

    Returns:
        Shape (N,), int64.

    Raises:
        LpvitError: The labels have another form or do not fit the model, or it has a single output.
    """
    if classes < 2:
        raise LpvitError(f"model: has {classes} output, which is right for every label; a classifier needs two or more")
    if labels.shape == (images, 1):
        labels = labels[:, 0]
    if labels.shape != (images,):
        one_hot = "; of one-hot labels give argmax(dim=1)" if labels.shape == (images, classes) else ""
        raise LpvitError(
            f"labels: found shape {tuple(labels.shape)} for {images} images, expected ({images},){one_hot}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise LpvitError(f"labels: found {labels.dtype}, expected class numbers from 0; convert them with .long()")
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        counted_from_1 = int(labels.min()) > 0 and int(labels.max()) == classes
        remedy = "they count from 1: subtract 1" if counted_from_1 else "omit images of no or another class"
        raise LpvitError(f"labels: found {int(outside[0])}, the model has classes 0 to {classes - 1}; {remedy}")
    return labels.long()
