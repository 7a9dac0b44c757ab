"""The paper's tables: published values and ours. Frames in, frames or text out."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lpvit.measure.intervals import wilson
from lpvit.report.formats import interval, markdown

GIGA = 1e9
DISTILLED = (
    "Rows of DeiT prune the distilled checkpoints, whose published dense accuracy is 81.2 % (DeiT-S) and 83.4 % "
    "(DeiT-B); the paper's dense rows are those without distillation."
)
PROXY = (
    "A proxy: small models and images replace those of the rows. It shows that every row runs, and must not be "
    "compared with the published values."
)


def paper_macs(layers: pd.DataFrame, costs: pd.DataFrame, window_tokens: int | None) -> float:
    """Multiply-accumulates of a model as the published code counts them.

    It counts linear layers with their biases, no attention product, the classifier once per class, and one window of
    Swin's attention.

    Args:
        layers: Of the model, schema ``LAYERS``.
        costs: Of the dense model, schema ``COSTS``.
        window_tokens: Tokens of a window, of Swin.
    """
    table = layers.merge(costs.drop(columns=["role", "macs"]), on="layer", suffixes=("", "_dense"))
    biases = table["parameters_dense"] - table["out_features"] * table["in_features"]
    seen = table["tokens"].astype(float)
    if window_tokens is not None:
        seen = seen.mask(table["role"].isin(["qkv", "proj"]), window_tokens)
    counted = (table["macs"] / table["tokens"] + biases) * seen
    return float((counted * table["out_features"].where(table["role"] == "head", 1)).sum())


def paper_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row for every row of the paper.

    Args:
        rows: ``experiment``; ``row``, ``top1`` and ``gmacs`` as published; ``dense`` and ``final``, the rows of
            ``METRICS``; ``paper_macs`` of the final model; ``recipe`` with ``epochs`` and ``teacher``, or None.

    Returns:
        Accuracies in %, for ``top1`` also the ends of its 95 % interval; MACs in G per image.
    """
    table = pd.DataFrame(
        {
            "row": row["row"],
            "experiment": row["experiment"],
            "published_top1": row["top1"],
            "top1": row["final"]["top1"],
            "images": row["final"]["images"],
            "dense_top1": row["dense"]["top1"],
            "published_gmacs": row["gmacs"],
            "gmacs_all": row["final"]["macs_all"] / GIGA,
            "gmacs_linear": row["final"]["macs"] / GIGA,
            "gmacs_paper": row["paper_macs"] / GIGA,
            "epochs": (row["recipe"] or {}).get("epochs", 0),
            "teacher": (row["recipe"] or {}).get("teacher") or "",
        }
        for row in rows
    ).astype({"published_top1": float, "published_gmacs": float})
    table.insert(4, "difference", table["top1"] - table["published_top1"])
    table["top1_low"], table["top1_high"] = wilson(table["top1"], table["images"])
    return table


def paper_markdown(table: pd.DataFrame, proxy: bool) -> str:
    """The table as markdown, with notes.

    Args:
        table: From `paper_table`.
        proxy: Small models and images replace those of the rows: not comparable with published values.
    """
    return f"{paper_note(proxy)}\n\n{markdown(paper_shown(table, proxy), text_columns=2)}"


def paper_note(proxy: bool) -> str:
    return PROXY if proxy else DISTILLED


def paper_shown(table: pd.DataFrame, proxy: bool) -> pd.DataFrame:
    """`paper_table` as text, in human units; arguments as of `paper_markdown`."""
    shown = pd.DataFrame(
        {
            "row": table["row"],
            "experiment": table["experiment"],
            "published": table["published_top1"].map("{:.2f} %".format, na_action="ignore"),
            "ours": table["top1"].map("{:.2f} %".format),
            "95 % interval": [*map(interval, table["top1_low"], table["top1_high"])],
            "difference": table["difference"].map("{:+.2f}".format, na_action="ignore"),
            "ours, dense": table["dense_top1"].map("{:.2f} %".format),
            "published MACs": table["published_gmacs"].map("{:.2f} G".format, na_action="ignore"),
            "all MACs": table["gmacs_all"].map(_giga),
            "in linear layers": table["gmacs_linear"].map(_giga),
            "by the paper's formula": table["gmacs_paper"].map(_giga),
            "epochs": table["epochs"].astype(str),
            "teacher": table["teacher"].replace("", None),
        }
    )
    if proxy:
        shown = shown.drop(columns=["published", "difference", "published MACs"])
    return shown.fillna("-")


def read_paper(csv: str | Path) -> pd.DataFrame:
    """Reads the CSV form of `paper_table`; names stay text."""
    return pd.read_csv(csv, dtype={"row": str, "experiment": str, "teacher": str}).fillna({"teacher": ""})


def paper_of(csv: str | Path, figure: str | Path, proxy: bool) -> dict[str, Any]:
    """The paper's rows for the page: text, table and figure.

    Args:
        csv: Of `paper_table`.
        figure: `lpvit.report.figures.paper`, as SVG.
        proxy: As for `paper_markdown`.
    """
    return {"text": paper_note(proxy), "table": paper_shown(read_paper(csv), proxy), "figure": str(figure)}


def _giga(value: float) -> str:
    return f"{value:.2f} G" if value >= 0.1 else f"{1e3 * value:.2f} M"
