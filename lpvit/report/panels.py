"""Figures of an experiment as small multiples to zoom and to point at. Frames in, what plotly draws out.

The same is shown as by the figures of `lpvit.report.figures` that lie beside the page, for papers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from lpvit.report.figures import lowest_shown, place_layers
from lpvit.report.looks import shades
from lpvit.store.schemas import CURVES, HISTORY, METRICS, read_parquet

COLUMNS = 4
INK, GREY, LIGHT, LINE = "#000", "#737373", "#a6a6a6", "#e5e5e5"  # on white, in any colour scheme
Trace = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One of the small multiples: its title, what is drawn, and how its vertical axis differs from the others'."""

    title: str
    traces: Sequence[Trace]
    vertical: dict[str, Any] = field(default_factory=dict)


def panels_of(file: str, layers: pd.DataFrame, unit: str, before: str) -> dict[str, Any] | None:
    """What plotly draws instead of a figure; None of one that is a picture.

    Args:
        file: The figure; its data lie beside it.
        layers: Schema ``LAYERS``, of the experiment's last model.
        unit: Of the distortion.
        before: Metrics of the model that the fine-tuning began with.
    """
    data = Path(file).with_suffix(".parquet")
    match data.stem:
        case "curves":
            return curve_panels(read_parquet(data, CURVES), layers, unit)
        case "allocation":
            return allocation_panels(layers)
        case "history":
            return history_panels(read_parquet(data, HISTORY), read_parquet(before, METRICS))
        case "dense_history":
            return history_panels(read_parquet(data, HISTORY))
    return None


def curve_panels(curves: pd.DataFrame, layers: pd.DataFrame, unit: str) -> dict[str, Any]:
    """Rate-distortion curves: a panel a role, a line a layer, coloured by depth."""
    placed = place_layers(layers, curves["layer"].unique())
    deepest = int(placed["depth"].max())
    colors = [to_hex(color) for color in shades(deepest + 1)]
    positive = curves[curves["distortion"] > 0]  # the others have no logarithm
    panels = []
    for role, of_role in placed.groupby("role", sort=False):
        lines = [(layer, depth, positive[positive["layer"] == layer]) for layer, depth in of_role["depth"].items()]
        traces = [
            _line(100 * curve["sparsity"], curve["distortion"], str(layer), colors[depth])
            | {"hovertemplate": f"{layer}<br>%{{x:.0f}} % pruned: %{{y:.3g}} {unit}<extra></extra>"}
            for layer, depth, curve in lines
        ]
        panels.append(Panel(str(role), traces))
    ends = np.log10([lowest_shown(curves), positive["distortion"].max()])
    vertical = {"type": "log", "range": [ends[0], ends[1] + 0.1], "exponentformat": "power", "dtick": 1}
    return _figure(
        panels, {"title": {"text": "sparsity (%)"}, "range": [0, 100], "dtick": 50}, vertical, f"distortion ({unit})"
    )


def allocation_panels(layers: pd.DataFrame) -> dict[str, Any]:
    """Share of its blocks that every layer keeps, against the mean over all: a panel a role, a bar a layer."""
    pruned = layers[layers["blocks"] > 0].set_index("layer")
    placed = place_layers(layers, pruned.index)[["depth"]].join(pruned)
    mean = 100 * placed["blocks_kept"].sum() / placed["blocks"].sum()
    panels = []
    for role, of_role in placed.groupby("role", sort=False):
        bars = {
            "type": "bar",
            "x": of_role["depth"].tolist(),
            "y": _rounded(100 * of_role["blocks_kept"] / of_role["blocks"]),
            "customdata": list(zip(of_role.index, of_role["blocks_kept"], of_role["blocks"], strict=True)),
            "hovertemplate": "%{customdata[0]}: %{y:.1f} %, %{customdata[1]} of %{customdata[2]} blocks<extra></extra>",
            "marker": {"color": LIGHT},
        }
        ends = [of_role["depth"].min() - 0.5, of_role["depth"].max() + 0.5]
        panels.append(Panel(str(role), [bars, _line(ends, [mean, mean], "all blocks", INK, dash="dash")]))
    return _figure(panels, _counted("transformer block", placed["depth"]), {"range": [0, 100]}, "blocks kept (%)")


def history_panels(history: pd.DataFrame, before: pd.DataFrame | None = None) -> dict[str, Any]:
    """Loss, accuracy and learning rate by epoch; at epoch 0 the model that the training began with, if it is known."""
    epochs = history["epoch"]
    begin = [] if before is None else [0]
    loss, top1 = ([] if before is None else before[name].tolist() for name in ("loss", "top1"))
    panels = [
        Panel(
            "loss (nat)",
            [
                _line(epochs, history["train_loss"], "training", GREY, dash="dash"),
                _line([*begin, *epochs], [*loss, *history["validation_loss"]], "validation", INK),
            ],
        ),
        Panel("top-1 accuracy (%)", [_line([*begin, *epochs], [*top1, *history["top1"]], "top-1", INK)]),
        Panel(
            "learning rate", [_line(epochs, history["learning_rate"], "learning rate", INK)], {"rangemode": "tozero"}
        ),
    ]
    return _figure(panels, _counted("epoch", epochs), {"exponentformat": "e"}, "", alike=False)


def _counted(title: str, numbers: pd.Series) -> dict[str, Any]:
    """An axis of whole numbers."""
    return {"title": {"text": title}, "tick0": 0, "dtick": -(-int(numbers.max()) // 6)}


def _line(
    x: Sequence[float] | pd.Series, y: Sequence[float] | pd.Series, name: str, color: str, dash: str = "solid"
) -> Trace:
    mode = "lines+markers" if len(x) == 1 else "lines"
    return {"mode": mode, "x": _rounded(x), "y": _rounded(y), "name": name, "line": {"color": color, "dash": dash}}


def _rounded(numbers: Sequence[float] | pd.Series) -> list[float]:
    return [float(f"{number:.4g}") for number in numbers]  # as many digits as a picture shows


def _figure(
    panels: Sequence[Panel], horizontal: dict[str, Any], vertical: dict[str, Any], label: str, alike: bool = True
) -> dict[str, Any]:
    """Panels row by row; those that are ``alike`` share their axes, also when one is zoomed."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    looks = {"gridcolor": LINE, "zeroline": False, "linecolor": GREY, "automargin": True}
    layout: dict[str, Any] = {
        "grid": {"rows": rows, "columns": columns, "pattern": "independent", "xgap": 0.2, "ygap": 0.4},
        "height": 60 + 220 * rows,
        "margin": {"l": 60, "r": 16, "t": 36, "b": 44},
        "annotations": [],
    }
    data: list[Trace] = []
    for index, panel in enumerate(panels):
        at = str(index + 1) if index else ""
        data += [{**trace, "xaxis": f"x{at}", "yaxis": f"y{at}"} for trace in panel.traces]
        own = {"title": {"text": label}} if index % columns == 0 and label else {}
        shared = alike and index > 0
        layout[f"xaxis{at}"] = looks | horizontal | ({"matches": "x"} if shared else {})
        layout[f"yaxis{at}"] = looks | vertical | panel.vertical | own | ({"matches": "y"} if shared else {})
        layout[f"yaxis{at}"]["showticklabels"] = not alike or index % columns == 0
        place = {
            "xref": f"x{at} domain",
            "yref": f"y{at} domain",
            "x": 0,
            "y": 1,
            "yanchor": "bottom",
            "xanchor": "left",
        }
        layout["annotations"].append({"text": panel.title, "showarrow": False, **place})
    return {"data": data, "layout": layout}
