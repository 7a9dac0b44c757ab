"""The report as one offline page: frames, figures and facts in, HTML out.

The text is in ``template/page.html``; here numbers are formatted.
"""

import base64
import importlib.resources
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from lpvit.report.charts import DENSE, chart_data
from lpvit.report.formats import STAGES, human, interval, joules
from lpvit.report.tables.speed import speed_parts

TEMPLATE = Path(__file__).parent / "template"


@dataclass(frozen=True)
class Report:
    """Content of the page.

    Attributes:
        name: Of the report.
        summary: From `summary`.
        speed: From `read_speed`; no rows if nothing was measured.
        series: Experiment -> its series, from `lpvit.report.series`.
        experiments: Of each its ``name``, ``decisions`` (section -> name and settings as text), ``figures`` (SVG
            ``file``, ``title`` and ``caption``, with plotly's JSON in the same folder) and ``layers``, a frame
            of schema ``LAYERS``, of its last model.
        tradeoff: Figure of accuracy against MACs (SVG file).
        paper: Text, table and figure (SVG file) of the paper's rows, or None.
        facts: Title -> name -> value.
        durations: From `lpvit.report.environment.durations`.
        config: The given config.
        written: When, as text.
    """

    name: str
    summary: pd.DataFrame
    speed: pd.DataFrame
    series: Mapping[str, str]
    experiments: Sequence[Mapping[str, Any]]
    tradeoff: str
    paper: Mapping[str, Any] | None
    facts: Mapping[str, Mapping[str, str]]
    durations: pd.DataFrame
    config: str
    written: str


@dataclass(frozen=True)
class Cell:
    """A cell of a sortable table: text, sort key, and a remark in small print."""

    text: str
    value: float | str
    note: str = ""


def render(report: Report, interactive: bool = True) -> str:
    """The self-contained page: figures, data, style and scripts are included.

    Args:
        report: Its content.
        interactive: With the interactive chart and the figures of every experiment; without, it is short enough for a
            frame of Snakemake's report (browsers open at most 2 MB there), which lists these figures separately.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    fresh, stale = up_to_date(report.speed, report.summary)
    plotly = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    return environment.get_template("page.html").render(
        report=report,
        tables=list(_tables(report.summary, fresh)),
        experiments=list(_experiments(report)),
        chart=chart_data(report.summary, fresh, report.series),
        interactive=interactive,
        plotly=plotly.read_text(encoding="utf-8") if interactive else "",
        speed=list(speed_parts(fresh)) if len(fresh) else [],
        stale=stale,
        csv={"summary": _data_uri(report.summary.to_csv(index=False).encode(), "text/csv")}
        | ({"speed": _data_uri(fresh.to_csv(index=False).encode(), "text/csv")} if len(fresh) else {}),
        durations=[
            (row["stage"], row["of"], _time(row["seconds"]), _size(row["mebibytes"]))
            for row in report.durations.to_dict("records")
        ],
        image=_image,
    )


def up_to_date(speed: pd.DataFrame, summary: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Measured speeds of the models of the summary, and the experiments whose model has changed since.

    Speed is measured on request, so it may belong to a model before the last change of the config.
    """
    same = ["dataset", "model", "stage", "model_top1", "energy"]
    of_models = summary.rename(columns={"top1": "model_top1"})
    known = {tuple(row) for row in of_models[[*same, "experiment"]].itertuples(index=False)}
    named = speed.assign(experiment=speed["experiment"].where(speed["stage"] != DENSE, ""))
    fits = pd.Series(
        [tuple(row) in known for row in named[[*same, "experiment"]].itertuples(index=False)], speed.index, bool
    )
    stale = sorted(set(speed.loc[~fits, "experiment"]))
    return speed[~speed["experiment"].isin(stale)], stale


def best(rows: pd.DataFrame) -> pd.Series:
    """Pareto-optimal models: no other is more accurate with as many MACs (to 0.5 %) or fewer.

    Args:
        rows: Of one dataset and model: ``macs`` and ``top1`` of final models.
    """
    return pd.Series(
        [
            (rows.loc[rows["macs"] <= 1.005 * macs, "top1"] <= top1).all()
            for macs, top1 in zip(rows["macs"], rows["top1"], strict=True)
        ],
        rows.index,
        bool,
    )


def _tables(summary: pd.DataFrame, speed: pd.DataFrame) -> Iterable[dict[str, Any]]:
    """One table per dense model, with the models of its experiments."""
    for (dataset, model), of_model in summary.groupby(["dataset", "model"], sort=False):
        dense = of_model[of_model["stage"] == DENSE].iloc[0]
        by_experiment = of_model[of_model["stage"] != DENSE].groupby("experiment", sort=False)
        final = by_experiment.tail(1).set_index("experiment")
        pruned = by_experiment.head(1).set_index("experiment")["top1"]
        timed = speed[(speed["dataset"] == dataset) & (speed["model"] == model)]
        cells = _cells(dense, dense, math.nan, _speed_ups(timed, None))
        rows: list[dict[str, Any]] = [{"experiment": DENSE, "cells": cells}]
        for name, row in zip(final.index.astype(str), (row for _, row in final.iterrows()), strict=True):
            before = pruned[name] if row["stage"] != "pruned" else math.nan
            cells = _cells(row, dense, before, _speed_ups(timed, name))
            rows.append({"experiment": name, "stage": STAGES.get(row["stage"], row["stage"]), "cells": cells})
        yield {
            "dataset": dataset,
            "model": model,
            "columns": list(cells),
            "rows": rows,
            "best": set(final.index[best(final)]),
            "images": int(dense["images"]),
            "skipped": int(dense["images_skipped"]),
            "leader": None if final.empty else _leader(final, dense),
            "timed": len(timed) > 0,
        }


def _cells(row: pd.Series, dense: pd.Series, pruned: float, faster: Mapping[str, Cell]) -> dict[str, Cell]:
    """Column -> cell, for one model."""
    lost = row["top1"] - dense["top1"]
    return {
        "top-1": Cell(f"{row['top1']:.2f} %", row["top1"], interval(row["top1_low"], row["top1_high"])),
        "against dense": Cell("" if row["stage"] == DENSE else f"{lost:+.2f}".replace("-", "\u2212"), lost),
        "before tuning": Cell("" if math.isnan(pruned) else f"{pruned:.2f} %", -1 if math.isnan(pruned) else pruned),
        "MACs": Cell(human(row["macs"]), row["macs"], f"{100 * row['macs_ratio']:.1f} %"),
        **faster,
        "energy": Cell(joules(row["energy"]), row["energy"], f"{100 * row['energy_ratio']:.1f} %"),
        "power term": _share(row["power_term"]),
        "all MACs": Cell(human(row["macs_all"]), row["macs_all"]),
        "parameters": Cell(human(row["parameters"]), row["parameters"]),
        "sparsity": Cell(f"{100 * row['sparsity']:.1f} %", row["sparsity"]),
        "top-5": Cell(f"{row['top5']:.2f} %", row["top5"]),
    }


def _share(value: float) -> Cell:
    return Cell("\u2013", -1) if math.isnan(value) else Cell(f"{100 * value:.1f} %", value)


def _speed_ups(speed: pd.DataFrame, experiment: str | None) -> dict[str, Cell]:
    """The fastest configuration of a model at every batch size; None is the dense model."""
    cells = {}
    for batch_size, rows in speed.groupby("batch_size"):
        own = rows[(rows["experiment"] == experiment) & (rows["stage"] != DENSE)]
        cell = Cell("1.00\u00d7", 1.0) if experiment is None else Cell("\u2013", -1)
        if len(own):
            setup = own.sort_values("speed_up").iloc[-1]
            ends = f"{setup['speed_up_low']:.2f} to {setup['speed_up_high']:.2f}"
            cell = Cell(f"{setup['speed_up']:.2f}\u00d7", setup["speed_up"], ends)
        cells[f"faster, batch {batch_size}"] = cell
    return cells


def _leader(final: pd.DataFrame, dense: pd.Series) -> dict[str, str]:
    row = final.sort_values(["top1", "macs"], ascending=[False, True]).iloc[0]
    return {
        "name": str(row.name),
        "top1": f"{row['top1']:.2f} %",
        "interval": interval(row["top1_low"], row["top1_high"]),
        "macs": f"{100 * row['macs_ratio']:.1f} %",
        "dense": f"{dense['top1']:.2f} %",
    }


def _experiments(report: Report) -> Iterable[dict[str, Any]]:
    """The section of each experiment; figures of an earlier section are not repeated."""
    home: dict[str, str] = {}
    for experiment in report.experiments:
        shown, elsewhere = [], []
        for figure in experiment["figures"]:
            file = figure["file"]
            if home.setdefault(file, experiment["name"]) == experiment["name"]:
                shown.append({**figure, "panels": json.loads(Path(file).with_suffix(".json").read_text())})
            else:
                elsewhere.append({"title": figure["title"], "experiment": home[file]})
        layers = experiment["layers"]
        yield {
            **experiment,
            "shown": shown,
            "elsewhere": elsewhere,
            "layers": [
                (
                    row["layer"],
                    _kept(row),
                    human(row["macs"]),
                    human(row["parameters"]),
                    joules(row["energy"]),
                )
                for row in layers.to_dict("records")
            ],
        }


def _kept(layer: Mapping[Any, Any]) -> str:
    return f"{100 * layer['blocks_kept'] / layer['blocks']:.1f} %" if layer["blocks"] else "\u2013"


def _image(file: str) -> str:
    return _data_uri(Path(file).read_bytes(), "image/svg+xml")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def _size(mebibytes: float) -> str:
    return f"{mebibytes / 1024:.1f} GiB"
