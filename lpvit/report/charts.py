"""Data of the page's chart: every model with its costs and style. Frames in, JSON out."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from lpvit.report.formats import STAGES, human, interval, joules
from lpvit.report.measures import MEASURES, with_measure
from lpvit.report.style import DENSE_LOOK, looks
from lpvit.report.tables.speed import placed

COSTS = {
    "macs": "MACs in linear layers, per image",
    "macs_all": "MACs of all matrix products, per image",
    "parameters": "parameters",
    "energy": "modelled energy (J per image)",
}
JOULES = "measured energy (J per image)"
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "*": "star"}
DENSE = "dense"

Place = dict[str, Any]  # x and, where it was measured, its interval and the accuracy of what ran; x as text


def chart_data(summary: pd.DataFrame, speed: pd.DataFrame, series: Mapping[str, str]) -> dict[str, Any]:
    """Data of everything that the chart can show.

    Args:
        summary: From `summary`.
        speed: From `read_speed`, of models that are in the summary.
        series: Experiment -> its series, from `lpvit.report.series`.

    Returns:
        ``axes`` and ``stages``, key -> label; ``looks``, series -> colour and symbol; ``datasets``, name -> models,
        each with its names, top-1 with interval and a position on every axis with a value; ``measures``, dataset ->
        what top-1 stands for.
    """
    summary, speed = with_measure(summary), with_measure(speed) if len(speed) else speed
    axes = dict(COSTS)
    measured: dict[tuple[str, str, str], dict[str, Place]] = {}
    for (dataset, model, experiment), key, label, place in _measured(speed) if len(speed) else ():
        axes[key] = label
        measured.setdefault((dataset, model, experiment), {})[key] = place
    final = summary.groupby(["dataset", "model", "experiment"], sort=False).tail(1).index
    datasets: dict[str, list[dict[str, Any]]] = {}
    for index, row in zip(summary.index, summary.to_dict("records"), strict=True):
        counted = {key: {"x": row[key], "told": human(row[key])} for key in ("macs", "macs_all", "parameters")}
        counted["energy"] = {"x": row["energy"], "told": joules(row["energy"])}
        names = row["dataset"], row["model"], row["experiment"]
        datasets.setdefault(row["dataset"], []).append(
            {
                "name": row["experiment"] or f"{row['model']}, dense",
                "series": series.get(row["experiment"], DENSE),
                "stage": row["stage"],
                "final": index in final,
                **_accuracy(row),
                "places": counted | (measured.get(names, {}) if index in final else {}),
            }
        )
    every = {DENSE: DENSE_LOOK, **looks(series)}
    stages = [stage for stage in summary["stage"].unique() if stage != DENSE]
    return {
        "axes": axes,
        "stages": {"final": "final", **{stage: STAGES.get(stage, stage) for stage in stages}},
        "looks": {name: {"color": look.color, "symbol": SYMBOLS[look.marker]} for name, look in every.items()},
        "datasets": datasets,
        "measures": {name: MEASURES[of["measure"].iloc[0]].title for name, of in summary.groupby("dataset")},
    }


def _measured(speed: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], str, str, Place]]:
    """Names of a model (no experiment for a dense one), key and label of an axis, and its position there."""
    for (_, batch_size), rows in speed.groupby(["dataset", "batch_size"]):
        key, label = f"milliseconds_{batch_size}", f"measured milliseconds per image, batch size {batch_size}"
        for row in placed(rows).to_dict("records"):
            time, low, high = row["time"], row["time_low"], row["time_high"]
            place = {"x": time, "low": low, "high": high, "told": f"{time:.3g} ms ({low:.3g} to {high:.3g})"}
            yield _names(row), key, label, place | {"accuracy": _accuracy(row)}
    known = speed.dropna(subset="joules")
    for row in known.loc[known.groupby(["dataset", "model", "experiment", "stage"])["joules"].idxmin()].to_dict(
        "records"
    ):
        place = {"x": row["joules"], "told": joules(row["joules"]), "accuracy": _accuracy(row)}
        yield _names(row), "joules", JOULES, place


def _accuracy(row: Mapping[Any, Any]) -> dict[str, Any]:
    top1, low, high = row["top1"], row["top1_low"], row["top1_high"]
    told = f"{top1:.2f} % ({interval(low, high)})".removesuffix(" ()")
    return {
        "top1": top1,
        "low": top1 if math.isnan(low) else low,
        "high": top1 if math.isnan(high) else high,
        "told": told,
    }


def _names(row: Mapping[Any, Any]) -> tuple[str, str, str]:
    return row["dataset"], row["model"], "" if row["stage"] == DENSE else row["experiment"]
