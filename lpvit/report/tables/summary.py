"""The summary of all experiments, as CSV and as markdown."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lpvit.data.index import class_names
from lpvit.measure.intervals import wilson
from lpvit.report.formats import NAMES, human, interval, markdown
from lpvit.store.tables import Schema, read_parquet

WITHOUT_CLASSES = ("cosine", "relative_error", "same_class", "probe_images", "knn", "linear")

_SUMMARY_COLUMNS = [
    "dataset",
    "model",
    "experiment",
    "stage",
    "images",
    "images_skipped",
    "top1",
    "top1_low",
    "top1_high",
    "top5",
    *WITHOUT_CLASSES,
    "macs",
    "macs_ratio",
    "macs_all",
    "parameters",
    "sparsity",
    "power_term",
    "energy",
    "energy_ratio",
]


def gather(files: Iterable[str], entries: Iterable[Mapping[str, Any]], schema: Schema) -> pd.DataFrame:
    """Concatenates the tables of several models, with `NAMES` as first columns.

    Args:
        files: One per model.
        entries: Names of each model.
        schema: Of the files.
    """
    tables = [
        read_parquet(file, schema).assign(**{name: entry[name] for name in NAMES})
        for file, entry in zip(files, entries, strict=True)
    ]
    table = pd.concat(tables, ignore_index=True)
    return table.set_index(NAMES).reset_index()


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per evaluated model: every dense model once, then the models of each experiment.

    Args:
        rows: Schema ``METRICS`` and the columns ``experiment``, ``dataset`` and ``model``; one row per experiment and
            stage. Experiments that share a dense model each contain its row.

    Returns:
        Dataset, model, experiment (empty for dense), stage; images evaluated and images_skipped; top1 and top5 in %,
        top1_low and top1_high, the ends of top1's 95 % interval; without classes `WITHOUT_CLASSES` instead; macs and
        macs_all in MAC per image; macs_ratio, the share of the dense model's macs; parameters; sparsity; power_term, a
        share of the dense model's; energy in J per image, modelled, and energy_ratio, its share of the dense model's.
        Datasets, models and experiments in order of appearance.
    """
    dense = rows[rows["stage"] == "dense"].assign(experiment="").drop_duplicates(["dataset", "model"])
    of_dense = dense.set_index(["dataset", "model"])[["macs", "energy"]].add_prefix("dense_")
    table = pd.concat([dense, rows[rows["stage"] != "dense"]]).join(of_dense, on=["dataset", "model"])
    for quantity in ("macs", "energy"):
        table[f"{quantity}_ratio"] = table[quantity] / table[f"dense_{quantity}"]
    table["top1_low"], table["top1_high"] = wilson(table["top1"], table["images"])
    groups = [group for _, group in table.groupby(["dataset", "model"], sort=False)]
    return pd.concat(groups, ignore_index=True)[_SUMMARY_COLUMNS]


def difference(row: Mapping[Any, Any] | pd.Series, other: Mapping[Any, Any] | pd.Series) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies, by Newcombe's hybrid score method for independent samples.

    Two models that see the same images are paired, which makes the true interval narrower: the one here errs towards
    "no difference". (Newcombe, Interval estimation for the difference between independent proportions,
    1998, method 10.)

    Args:
        row: ``top1``, ``top1_low`` and ``top1_high`` in %, from `summary`.
        other: Likewise, of the model that is subtracted.

    Returns:
        Lower and upper end, in points.
    """
    lost = row["top1"] - other["top1"]
    below = math.hypot(row["top1"] - row["top1_low"], other["top1_high"] - other["top1"])
    above = math.hypot(row["top1_high"] - row["top1"], other["top1"] - other["top1_low"])
    return lost - below, lost + above


def most_frequent(images: pd.DataFrame) -> float:
    """Share of the most frequent class among the validation images: what a guess reaches; 0 without classes.

    Args:
        images: Schema ``IMAGES``.
    """
    if not class_names(images):
        return 0.0
    labels = images.loc[images["split"] == "validation", "label"]
    return float(labels.value_counts(normalize=True).max())


def left_out(rows: pd.DataFrame) -> str:
    """Notes about skipped images, one line per dataset; empty if there are none.

    Args:
        rows: As for `summary`.
    """
    some = rows[rows["images_skipped"] > 0].drop_duplicates("dataset")
    return "".join(
        f"\n{row['dataset']}: {row['images_skipped']} of {row['images'] + row['images_skipped']} validation images "
        "cannot be decoded and are skipped.\n"
        for row in some.to_dict("records")
    )


def read_summary(path: str | Path) -> pd.DataFrame:
    """Reads the CSV form of `summary`; names stay text, even if they look like numbers or missing values."""
    missing = {name: [""] for name in ("power_term", *WITHOUT_CLASSES, "top1", "top1_low", "top1_high", "top5")}
    names = dict.fromkeys(["dataset", "model", "experiment", "stage"], str)
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=missing)


def to_markdown(table: pd.DataFrame) -> str:
    """The `summary` as a markdown table in human units, aligned for the terminal.

    Skipped validation images are noted below it.
    """
    percent, number = "{:.2f} %".format, "{:.4f}".format
    told = {
        "top-1": table["top1"].map(percent, na_action="ignore"),
        "95 % interval": pd.Series(map(interval, table["top1_low"], table["top1_high"]), table.index),
        "top-5": table["top5"].map(percent, na_action="ignore"),
        "cosine": table["cosine"].map(number, na_action="ignore"),
        "relative error": table["relative_error"].map(number, na_action="ignore"),
        **{
            heading: table[name].map(percent, na_action="ignore")
            for name, heading in (("same_class", "same class"), ("knn", "neighbours"), ("linear", "linear probe"))
        },
    }
    shown = pd.DataFrame(
        {
            "dataset": table["dataset"],
            "model": table["model"],
            "experiment": table["experiment"].replace("", "-"),
            "stage": table["stage"],
            **{name: texts.fillna("-") for name, texts in told.items() if texts.replace("", None).notna().any()},
            "MACs": table["macs"].map(human),
            "of dense": (100 * table["macs_ratio"]).map("{:.1f} %".format),
            "all MACs": table["macs_all"].map(human),
            "parameters": table["parameters"].map(human),
            "sparsity": (100 * table["sparsity"]).map("{:.1f} %".format),
            "power": (100 * table["power_term"]).map("{:.1f} %".format, na_action="ignore").fillna("-"),
            "energy": (100 * table["energy_ratio"]).map("{:.1f} %".format),
        }
    )
    return markdown(shown, text_columns=4)
