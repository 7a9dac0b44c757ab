"""The report as one offline page: frames, figures and facts in, HTML out.

The text is in ``template/page.html``; here numbers are formatted.
"""

import base64
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from lpvit.report.charts import DENSE, chart_data
from lpvit.report.formats import human, joules
from lpvit.report.results import Cell, column_help, kept_by_layer, result_tables, structure_cell
from lpvit.report.tables.speed import speed_parts

NO_CLASSES = -1.0  # accuracy of what has none: unlike a missing value, it equals itself
TEMPLATE = Path(__file__).parent / "template"


@dataclass(frozen=True)
class Report:
    """Content of the page.

    Attributes:
        name: Of the report.
        summary: From `summary`.
        speed: From `read_speed`; no rows if nothing was measured.
        series: Experiment -> its series, from `lpvit.report.series`.
        experiments: Of each its ``name``, ``structure`` as text, ``decisions`` (section -> name and settings as text),
            ``figures`` (SVG ``file``, ``title`` and ``caption``, with plotly's JSON in the same folder), ``methods``, a
            paragraph, ``layers``, a frame of schema ``LAYERS``, of its last model, ``allocation``, a frame of schema
            ``ALLOCATION`` or None, and the ``rank_multiple`` of factors, else None.
        chance: Dataset -> top-1 in % of always guessing its most frequent class.
        command: Of the run, as a person types it, without a target: ``lpvit prune lpvit.yaml``.
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
    chance: Mapping[str, float]
    command: str
    tradeoff: str
    paper: Mapping[str, Any] | None
    facts: Mapping[str, Mapping[str, str]]
    durations: pd.DataFrame
    config: str
    written: str


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
        tables=list(result_tables(report.summary, fresh, _structures(report), report.chance)),
        help=column_help,
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
    of_models = summary.rename(columns={"top1": "model_top1"}).fillna({"model_top1": NO_CLASSES})
    known = {tuple(row) for row in of_models[[*same, "experiment"]].itertuples(index=False)}
    named = speed.fillna({"model_top1": NO_CLASSES}).assign(
        experiment=speed["experiment"].where(speed["stage"] != DENSE, "")
    )
    fits = pd.Series(
        [tuple(row) in known for row in named[[*same, "experiment"]].itertuples(index=False)], speed.index, bool
    )
    stale = sorted(set(speed.loc[~fits, "experiment"]))
    return speed[~speed["experiment"].isin(stale)], stale


def _structures(report: Report) -> dict[str, Cell]:
    return {
        experiment["name"]: structure_cell(
            experiment["structure"], experiment["allocation"], experiment["rank_multiple"]
        )
        for experiment in report.experiments
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
        kept = kept_by_layer(experiment["allocation"], experiment["rank_multiple"])
        yield {
            **experiment,
            "shown": shown,
            "elsewhere": elsewhere,
            "layers": [
                (
                    row["layer"],
                    kept.get(row["layer"])
                    or kept.get(row["layer"].rpartition(".")[0], "all"),  # of a factor: its layer
                    human(row["macs"]),
                    human(row["parameters"]),
                    joules(row["energy"]),
                )
                for row in experiment["layers"].to_dict("records")
            ],
        }


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
