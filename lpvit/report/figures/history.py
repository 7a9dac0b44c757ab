"""History of the training of a pruned model."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lpvit.report.style import BLACK, GREY, percent

TITLE = "Fine-tuning"
CATEGORY = "Trainings"
CAPTION = (
    "Losses in nat, accuracy and learning rate by epoch, from the model before the training (diamond). The training "
    "loss is what was minimised, with augmentation, regularisation and distillation; the validation loss is "
    "cross-entropy, so each has an axis of its own. Without classes it is the relative error of the outputs, and their "
    "cosine stands for accuracy."
)


def draw(history: pd.DataFrame, before: pd.DataFrame | None = None) -> Figure:
    """Losses, accuracy and learning rate of a training, by epoch.

    Args:
        history: Schema ``HISTORY``.
        before: Schema ``ACCURACY``: the model before the training, if evaluated; drawn at epoch 0.
    """
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    minimised, loss, accuracy, rate = figure.subplots(1, 4)
    epochs = history["epoch"]
    marker = "." if len(history) <= 30 else ""
    minimised.plot(epochs, history["train_loss"], "--", color=GREY, marker=marker, label="training loss")
    minimised.set(title="training loss")
    of_classes = bool(history["top1"].notna().any())
    names = ("top1", "loss") if of_classes else ("cosine", "relative_error")
    top1, error = (None if before is None else before[name].iloc[0] for name in names)
    _draw_course(loss, epochs, history["validation_loss"], error)
    loss.set(title="validation loss")
    _draw_course(accuracy, epochs, history[names[0]], top1)
    accuracy.set(title="top-1, validation" if of_classes else "cosine, validation")
    if of_classes:
        accuracy.yaxis.set_major_formatter(percent())
    rate.plot(epochs, history["learning_rate"], color=BLACK, marker=marker, label="learning rate")
    rate.set(title="learning rate", ylim=(0, None))
    for axes in (minimised, loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_course(axes: Axes, epochs: pd.Series, values: pd.Series, before: float | None) -> None:
    marker = "." if len(epochs) <= 30 else ""
    axes.plot(epochs, values, color=BLACK, marker=marker, label="validation")
    if before is not None:
        axes.plot([0, epochs.iloc[0]], [before, values.iloc[0]], ":", color=BLACK)
        axes.plot(0, before, "D", color=BLACK, markerfacecolor="white", markersize=5, label="before training")
