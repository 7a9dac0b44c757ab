"""Accuracy against MACs, of all experiments."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from lpvit.report.formats import STAGES
from lpvit.report.measures import MEASURES, with_measure
from lpvit.report.places import draw_dense, draw_models, legend
from lpvit.report.style import looks, percent

TITLE = "Accuracy against MACs"
CATEGORY = "Results"
CAPTION = (
    "Top-1 accuracy on the validation images, or agreement with the dense model where they have no classes, against "
    "multiply-accumulates in linear layers, with the 95 % interval for the number of images (Wilson): a panel for each "
    "stage, a star for the dense model. "
    "Experiments that differ only in their budget are joined by a line."
)


def draw(summary: pd.DataFrame, series: Mapping[str, str]) -> Figure:
    """Top-1 accuracy against MACs, with its 95 % interval: a row per dataset, a panel per stage.

    Args:
        summary: From `lpvit.report.tables.summary.summary`.
        series: Experiment -> its series, from `lpvit.report.series`; a series of several experiments is a line.
    """
    summary = with_measure(summary)
    datasets = list(summary["dataset"].unique())
    stages = [stage for stage in STAGES if stage in set(summary["stage"])]
    figure = Figure(figsize=(3.6 * len(stages) + 1.4, 3.4 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), len(stages), squeeze=False)
    look_of = looks(series)
    for row, dataset in zip(grid, datasets, strict=True):
        of_dataset = summary[summary["dataset"] == dataset]
        for axes, stage in zip(row, stages, strict=True):
            shown = of_dataset[of_dataset["stage"] == stage].sort_values("macs")
            for name, rows in shown.groupby(shown["experiment"].map(series), sort=False):
                draw_models(axes, rows, "macs", look_of[str(name)])
            draw_dense(axes, of_dataset[of_dataset["stage"] == "dense"], "macs")
            axes.set(title=f"{dataset}, {STAGES[stage]}", xlabel="MACs in linear layers", xlim=(0, None))
            axes.xaxis.set_major_formatter(EngFormatter())
            axes.yaxis.set_major_formatter(percent())
            axes.margins(y=0.12)
        row[0].set_ylabel(MEASURES[of_dataset["measure"].iloc[0]].title)
    legend(figure, look_of, summary["experiment"], series)
    return figure
