"""History of the training of the dense model."""

import pandas as pd
from matplotlib.figure import Figure

from lpvit.report.figures import history

TITLE = "Training of the dense model"
CATEGORY = "Trainings"
CAPTION = (
    "Loss, accuracy and learning rate by epoch, before anything was pruned; dashed: on training images. The "
    "training loss counts augmentation, regularisation and distillation, so it may exceed the "
    "validation loss."
)


def draw(dense_history: pd.DataFrame) -> Figure:
    """As `lpvit.report.figures.history`.

    Args:
        dense_history: Schema ``HISTORY``.
    """
    return history.draw(dense_history)
