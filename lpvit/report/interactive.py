"""Converts the lines and bars of a matplotlib figure to an interactive plotly figure.

Every figure is drawn once; page and files show the same.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

GREY, LINE = "#737373", "#e5e5e5"  # of the axes, on white, in any colour scheme
DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
SYMBOLS = {".": "circle", "o": "circle", "D": "diamond-open", "*": "star"}
Trace = dict[str, Any]


def interactive(figure: Figure) -> dict[str, Any] | None:
    """Plotly's ``data`` and ``layout``; None for a figure with other elements than lines and bars.

    Args:
        figure: With its axes in a grid, and at most one colour bar.
    """
    panels = [axes for axes in figure.axes if axes.get_subplotspec() is not None and axes.get_label() != "<colorbar>"]
    if not all(map(_is_plain, panels)) or not any(axes.lines or axes.containers for axes in panels):
        return None
    shown = [axes for axes in panels if axes.axison]
    rows, columns = panels[0].get_subplotspec().get_gridspec().get_geometry()  # type: ignore[union-attr]
    layout: dict[str, Any] = {
        "grid": {"rows": rows, "columns": columns, "pattern": "independent", "xgap": 0.2, "ygap": 0.4},
        "height": 60 + (220 if rows > 1 or columns > 1 else 320) * rows,
        "margin": {"l": 60, "r": 16, "t": 36, "b": 44},
        "annotations": [],
    }
    data: list[Trace] = []
    for index, axes in enumerate(shown):
        at = str(index + 1) if index else ""
        labels = axes.get_xlabel() or figure.get_supxlabel(), axes.get_ylabel() or figure.get_supylabel()
        data += [{**trace, "xaxis": f"x{at}", "yaxis": f"y{at}"} for trace in _traces(axes, *labels)]
        for kind, label in zip("xy", (axes.get_xlabel(), labels[1]), strict=True):
            layout[f"{kind}axis{at}"] = _axis(axes, kind, label, shown[0] if index else None)
        place = {"xref": f"x{at} domain", "yref": f"y{at} domain", "x": 0, "y": 1, "xanchor": "left"}
        title = axes.get_title(loc="left") or axes.get_title()
        layout["annotations"].append({"text": title, "showarrow": False, "yanchor": "bottom", **place})
    if common := figure.get_supxlabel():
        below = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0, "yshift": -40}
        layout["annotations"].append({"text": common, "showarrow": False, "yanchor": "bottom", **below})
    named = _named_once(data) if _has_legend(figure, shown) else []
    layout["showlegend"] = bool(named)
    if named:
        layout["legend"] = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
        layout["height"] += 40
        layout["margin"]["b"] += 40
    return {"data": [*data, *_color_bar(figure)], "layout": layout}


def _has_legend(figure: Figure, panels: list[Axes]) -> bool:
    return bool(figure.legends) or any(axes.get_legend() for axes in panels)


def _named_once(data: list[Trace]) -> list[Trace]:
    """Traces that stand in the legend: the first of every name."""
    seen: set[str] = set()
    for trace in data:
        trace["showlegend"] = bool(trace.get("name")) and trace["name"] not in seen
        seen.add(trace.get("name", ""))
    return [trace for trace in data if trace["showlegend"]]


def _color_bar(figure: Figure) -> Iterator[Trace]:
    """The colour bar as a trace without points."""
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>":
            continue
        mappable = axes._colorbar.mappable  # type: ignore[attr-defined]  # matplotlib has no public way back
        low, high = float(mappable.norm.vmin), float(mappable.norm.vmax)
        count = mappable.cmap.N
        edges = [(i / count, (i + 1) / count, to_hex(mappable.cmap(i))) for i in range(count)]
        marker = {
            "color": [low],
            "cmin": low,
            "cmax": high,
            "colorscale": [[end, color] for start, stop, color in edges for end in (start, stop)],
            "showscale": True,
            "colorbar": {
                "title": {"text": axes.get_ylabel(), "side": "right"},
                "thickness": 12,
                "outlinewidth": 0,
                "tick0": 0,
                "dtick": max(1, math.ceil((high - low) / 7)),
            },
        }
        yield {"x": [None], "y": [None], "mode": "markers", "marker": marker, "showlegend": False, "hoverinfo": "skip"}


def _is_plain(axes: Axes) -> bool:
    bars = sum(len(bars) for bars in axes.containers if isinstance(bars, BarContainer))
    errors = any(isinstance(container, ErrorbarContainer) for container in axes.containers)
    return not (axes.images or axes.collections or errors) and len(axes.patches) == bars


def _traces(axes: Axes, x: str, y: str) -> Iterator[Trace]:
    for bars in axes.containers:
        assert isinstance(bars, BarContainer)  # others are not plain
        patches = list(bars.patches)
        yield {
            "type": "bar",
            "x": _rounded([patch.get_x() + patch.get_width() / 2 for patch in patches]),
            "y": _rounded([patch.get_height() for patch in patches]),
            "customdata": [patch.get_label() for patch in patches],
            "hovertemplate": f"%{{customdata}}<br>{y}: %{{y:.4g}}<extra></extra>",
            "marker": {"color": to_hex(patches[0].get_facecolor())},
        }
    for line in axes.lines:
        label, marker = str(line.get_label()), SYMBOLS.get(str(line.get_marker()))
        name = "" if label.startswith("_") else label
        horizontal, vertical = _positions(axes, line)
        drawn = line.get_linestyle() in DASHES
        yield {
            "mode": "+".join(["lines"] * drawn + ["markers"] * (marker is not None or len(horizontal) == 1)),
            "x": horizontal,
            "y": vertical,
            "name": name,
            "line": {"color": to_hex(line.get_color()), "dash": DASHES.get(str(line.get_linestyle()), "solid")},
            "marker": {"symbol": marker or "circle"},
            "hovertemplate": f"{name}<br>{x}: %{{x:.4g}}<br>{y}: %{{y:.4g}}<extra></extra>",
        }


def _positions(axes: Axes, line: Line2D) -> tuple[list[float], list[float]]:
    """In data; lines across the whole panel are given in shares of it."""
    in_data = line.get_transform().contains_branch_seperately(axes.transData)
    ends = axes.get_xlim(), axes.get_ylim()
    positions = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    return tuple(  # type: ignore[return-value]
        _rounded(values if is_data else low + (high - low) * values)
        for values, is_data, (low, high) in zip(positions, in_data, ends, strict=True)
    )


def _axis(axes: Axes, kind: str, label: str, first: Axes | None) -> dict[str, Any]:
    """One axis; shared axes zoom together, and are labelled as in matplotlib."""
    own = axes.xaxis if kind == "x" else axes.yaxis
    ends = axes.get_xlim() if kind == "x" else axes.get_ylim()
    shared = axes.get_shared_x_axes() if kind == "x" else axes.get_shared_y_axes()
    axis: dict[str, Any] = {"gridcolor": LINE, "zeroline": False, "linecolor": GREY, "automargin": True}
    if own.get_scale() == "log":
        axis |= {"type": "log", "range": np.log10(ends).tolist(), "exponentformat": "power", "dtick": 1}
    else:
        axis |= {"range": list(map(float, ends)), "nticks": 7, "exponentformat": "e"}
        ticks = own.get_majorticklocs()
        if isinstance(own.get_major_locator(), MaxNLocator) and np.all(ticks == np.round(ticks)):
            axis |= {"tick0": 0, "dtick": max(1, math.ceil((ends[1] - ends[0]) / 7))}
    if isinstance(own.get_major_formatter(), PercentFormatter):
        axis["ticksuffix"] = " %"
    inner = kind == "y" and first is not None and shared.joined(axes, first) and not _is_leftmost(axes)
    if label and not inner:
        axis["title"] = {"text": label}
    if first is not None and shared.joined(axes, first):
        axis["matches"] = kind
    return axis | {"showticklabels": not inner}


def _is_leftmost(axes: Axes) -> bool:
    place = axes.get_subplotspec()
    return place is not None and place.is_first_col()


def _rounded(numbers: Any) -> list[float]:
    return [float(f"{number:.4g}") for number in numbers]  # digits visible in a figure
