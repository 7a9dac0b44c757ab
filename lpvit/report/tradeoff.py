"""Accuracy against what it costs: counted (MACs) and measured (milliseconds). Frames in, matplotlib figures out.

Every model stands at its true place, whoever stands there too.
"""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from lpvit.report.looks import DENSE_LOOK, Look, looks, percent, styled
from lpvit.report.speed import placed
from lpvit.report.tables import STAGES

LEGEND_ROWS = 14


@styled
def plot_tradeoff(table: pd.DataFrame, series: Mapping[str, str]) -> Figure:
    """Top-1 accuracy against MACs, with its 95 % interval: a row per dataset, a panel per stage.

    Args:
        table: From `summary`.
        series: Experiment -> its series, from `lpvit.report.series`; a series of several experiments is a line.
    """
    datasets = list(table["dataset"].unique())
    stages = [stage for stage in STAGES if stage in set(table["stage"])]
    figure = Figure(figsize=(3.6 * len(stages) + 1.4, 3.4 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), len(stages), squeeze=False)
    look_of = looks(series)
    for row, dataset in zip(grid, datasets, strict=True):
        of_dataset = table[table["dataset"] == dataset]
        for axes, stage in zip(row, stages, strict=True):
            shown = of_dataset[of_dataset["stage"] == stage].sort_values("macs")
            for name, rows in shown.groupby(shown["experiment"].map(series), sort=False):
                _draw(axes, rows, "macs", look_of[str(name)])
            _draw_dense(axes, of_dataset[of_dataset["stage"] == "dense"], "macs")
            axes.set(title=f"{dataset}, {STAGES[stage]}", xlabel="MACs in linear layers", xlim=(0, None))
            axes.xaxis.set_major_formatter(EngFormatter())
            axes.yaxis.set_major_formatter(percent())
            axes.margins(y=0.12)
        row[0].set_ylabel("top-1 accuracy")
    _legend(figure, look_of, table["experiment"], series)
    return figure


@styled
def plot_latency(table: pd.DataFrame, series: Mapping[str, str]) -> Figure:
    """Top-1 accuracy against measured milliseconds per image, with 95 % intervals: a panel per dataset and batch size.

    Args:
        table: From `speed_summary`.
        series: As for `plot_tradeoff`.
    """
    panels = list(table.groupby(["dataset", "batch_size"], sort=True))
    figure = Figure(figsize=(3.2 * len(panels) + 1.8, 3.4), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    look_of = looks(series)
    for axes, ((dataset, batch_size), rows) in zip(grid, panels, strict=True):
        places = placed(rows)
        pruned = places[places["stage"] != "dense"].sort_values("time")
        for name, of_series in pruned.groupby(pruned["experiment"].map(series), sort=False):
            _draw(axes, of_series, "time", look_of[str(name)])
        _draw_dense(axes, places[places["stage"] == "dense"], "time")
        axes.set(title=f"{dataset}, batch size {batch_size}", xlabel="milliseconds per image", xlim=(0, None))
        axes.yaxis.set_major_formatter(percent())
        axes.margins(x=0.1, y=0.12)
    grid[0].set_ylabel("top-1 accuracy")
    _legend(figure, look_of, table["experiment"], series)
    return figure


def _draw(axes: Axes, rows: pd.DataFrame, cost: str, look: Look, line: str = "-") -> None:
    """A mark for each row at its cost and top-1, with the intervals of those of the two that have one."""
    axes.errorbar(
        rows[cost],
        rows["top1"],
        xerr=_reach(rows, cost),
        yerr=_reach(rows, "top1"),
        color=look.color,
        marker=look.marker,
        markersize=look.size,
        linestyle=line,
        elinewidth=1,
        capsize=2,
        zorder=3,
    )


def _reach(rows: pd.DataFrame, name: str) -> list[pd.Series] | None:
    """How far an interval goes down and up from the value."""
    if f"{name}_low" not in rows:
        return None
    return [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]


def _draw_dense(axes: Axes, dense: pd.DataFrame, cost: str) -> None:
    _draw(axes, dense, cost, DENSE_LOOK, line="")
    for row in dense.to_dict("records"):
        axes.annotate(str(row["model"]), (row[cost], row["top1"]), (-6, 6), textcoords="offset points", ha="right")


def _legend(figure: Figure, look_of: Mapping[str, Look], experiments: pd.Series, series: Mapping[str, str]) -> None:
    shown = {series[name] for name in experiments if name}
    marks = [("dense", DENSE_LOOK)] + [(name, look) for name, look in look_of.items() if name in shown]
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, markersize=look.size, linestyle="", label=name)
        for name, look in marks
    ]
    figure.legend(handles=handles, loc="outside right center", ncols=-(-len(handles) // LEGEND_ROWS))
