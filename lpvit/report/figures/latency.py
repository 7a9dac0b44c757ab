"""Accuracy against milliseconds, of all final models."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from lpvit.report.measures import MEASURES, with_measure
from lpvit.report.places import draw_dense, draw_models, legend
from lpvit.report.style import looks, percent
from lpvit.report.tables.speed import placed

TITLE = "Accuracy against latency"
CATEGORY = "Speed"
CAPTION = (
    "Top-1 accuracy on the validation images against the measured time per image, with the 95 % intervals of "
    "both. Every model has its fastest configuration; a star is a dense model. A pruned model is "
    "placed by its speed-up over the dense model of the same run, so that experiments timed at different times "
    "can be compared."
)


def draw(speed: pd.DataFrame, series: Mapping[str, str]) -> Figure:
    """Top-1 accuracy against measured milliseconds per image, with 95 % intervals: a panel per dataset and batch size.

    Args:
        speed: From `lpvit.report.tables.speed.speed_summary`.
        series: As for the figure `tradeoff`.
    """
    speed = with_measure(speed)
    panels = list(speed.groupby(["dataset", "batch_size"], sort=True))
    figure = Figure(figsize=(3.2 * len(panels) + 1.8, 3.4), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    look_of = looks(series)
    for axes, ((dataset, batch_size), rows) in zip(grid, panels, strict=True):
        places = placed(rows)
        pruned = places[places["stage"] != "dense"].sort_values("time")
        for name, of_series in pruned.groupby(pruned["experiment"].map(series), sort=False):
            draw_models(axes, of_series, "time", look_of[str(name)])
        draw_dense(axes, places[places["stage"] == "dense"], "time")
        axes.set(title=f"{dataset}, batch size {batch_size}", xlabel="milliseconds per image", xlim=(0, None))
        axes.yaxis.set_major_formatter(percent())
        axes.margins(x=0.1, y=0.12)
    grid[0].set_ylabel(MEASURES[speed["measure"].iloc[0]].title)
    legend(figure, look_of, speed["experiment"], series)
    return figure
