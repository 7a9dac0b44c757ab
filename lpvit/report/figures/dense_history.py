"""History of the training of the dense model."""

import pandas as pd
from matplotlib.figure import Figure

from lpvit.report.figures import history

TITLE = "Training of the dense model"
CATEGORY = "Trainings"
CAPTION = (
    "Losses in nat, accuracy and learning rate by epoch, before anything was pruned. The training loss is what was "
    "minimised, augmentation and regularisation included; the validation loss is cross-entropy, on an axis of its own."
)


def draw(dense_history: pd.DataFrame) -> Figure:
    """As `lpvit.report.figures.history`.

    Args:
        dense_history: Schema ``HISTORY``.
    """
    return history.draw(dense_history)
