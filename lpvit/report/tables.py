"""Tables that people read: the summary of all experiments, as CSV and as markdown."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lpvit.store.schemas import Schema, read_parquet

NAMES = ["dataset", "model", "experiment"]  # columns that say which model a row is of

STAGES = {
    "pruned": "pruned alone",
    "quantised": "pruned, quantised",
    "finetuned": "fine-tuned",
    "finetuned_quantised": "fine-tuned, quantised",
}

BUDGETS = {
    "macs": "MACs kept, of the dense model",
    "sparsity": "sparsity of the prunable layers",
    "energy": "modelled energy kept, of the dense model",
    "latency": "measured time kept, of the prunable layers",
}


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
    """The tables of several models as one, with `NAMES` before the columns of each.

    Args:
        files: One of each model.
        entries: Its names, of each model.
        schema: Of the files.
    """
    tables = [
        read_parquet(file, schema).assign(**{name: entry[name] for name in NAMES})
        for file, entry in zip(files, entries, strict=True)
    ]
    table = pd.concat(tables, ignore_index=True)
    return table.set_index(NAMES).reset_index()


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per evaluated model: every dense model once, then what each experiment made of it.

    Args:
        rows: Schema ``METRICS`` and the columns ``experiment``, ``dataset`` and ``model``; one row per experiment and
            stage. Experiments that share a dense model each bring its row.

    Returns:
        Dataset, model, experiment (empty for dense), stage; images evaluated and images_skipped; top1 and top5 in %,
        top1_low and top1_high, the ends of top1's 95 % interval; macs and macs_all in MAC per image; macs_ratio, the
        share of the dense model's macs; parameters; sparsity; power_term, a share of the dense model's; energy in J per
        image, modelled, and energy_ratio, its share of the dense model's. Datasets, models and experiments in order of
        appearance.
    """
    dense = rows[rows["stage"] == "dense"].assign(experiment="").drop_duplicates(["dataset", "model"])
    of_dense = dense.set_index(["dataset", "model"])[["macs", "energy"]].add_prefix("dense_")
    table = pd.concat([dense, rows[rows["stage"] != "dense"]]).join(of_dense, on=["dataset", "model"])
    for quantity in ("macs", "energy"):
        table[f"{quantity}_ratio"] = table[quantity] / table[f"dense_{quantity}"]
    table["top1_low"], table["top1_high"] = wilson(table["top1"], table["images"])
    groups = [group for _, group in table.groupby(["dataset", "model"], sort=False)]
    return pd.concat(groups, ignore_index=True)[_SUMMARY_COLUMNS]


def wilson(accuracy: pd.Series, images: pd.Series, z: float = 1.96) -> tuple[pd.Series, pd.Series]:
    """Interval of a share that was counted, by Wilson's score: for few images and near 100 % as good as for many.

    Args:
        accuracy: In %.
        images: Number of them that it was counted on.
        z: Quantile of the normal distribution; 1.96 gives 95 %.

    Returns:
        Lower and upper ends, in %.
    """
    share, z2 = accuracy / 100, z**2 / images
    centre = (share + z2 / 2) / (1 + z2)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    return 100 * (centre - half), 100 * (centre + half)


def left_out(rows: pd.DataFrame) -> str:
    """Which datasets were evaluated without all of their images: a line each, below a table; empty if none.

    Args:
        rows: As for `summary`.
    """
    some = rows[rows["images_skipped"] > 0].drop_duplicates("dataset")
    return "".join(
        f"\n{row['dataset']}: {row['images_skipped']} of {row['images'] + row['images_skipped']} validation images "
        "cannot be decoded and are left out.\n"
        for row in some.to_dict("records")
    )


def read_summary(path: str | Path) -> pd.DataFrame:
    """Reads the CSV form of `summary`; names stay text, also when they look like numbers or like missing values."""
    missing = {"power_term": [""]}
    names = dict.fromkeys(["dataset", "model", "experiment", "stage"], str)
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=missing)


def to_markdown(table: pd.DataFrame) -> str:
    """The `summary` as a markdown table in human units, aligned so that it also reads well in a terminal.

    Validation images that were left out are told below it.
    """
    shown = pd.DataFrame(
        {
            "dataset": table["dataset"],
            "model": table["model"],
            "experiment": table["experiment"].replace("", "-"),
            "stage": table["stage"],
            "top-1": table["top1"].map("{:.2f} %".format),
            "95 % interval": [*map(interval, table["top1_low"], table["top1_high"])],
            "top-5": table["top5"].map("{:.2f} %".format),
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


def interval(low: float, high: float) -> str:
    return f"{low:.1f} to {high:.1f}"


def human(quantity: float) -> str:
    """Three significant digits and an SI prefix: 4608000000 -> ``4.61 G``; whole numbers below 1000 as they are."""
    if quantity < 1000 and float(quantity).is_integer():
        return str(int(quantity))
    thousands = 0
    while float(f"{quantity:.3g}") >= 1000:
        quantity /= 1000
        thousands += 1
    decimals = 3 - len(str(int(float(f"{quantity:.3g}"))))
    return f"{quantity:.{decimals}f} {' kMGTP'[thousands]}".rstrip()


def joules(energy: float) -> str:
    """Three significant digits in the unit that fits: 0.0000025 -> ``2.50 µJ``."""
    for prefix, size in (("", 1.0), ("m", 1e-3), ("µ", 1e-6)):
        if energy >= size:
            return f"{human(energy / size)} {prefix}J"
    return f"{human(energy / 1e-9)} nJ"


def markdown(table: pd.DataFrame, text_columns: int) -> str:
    cells = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]

    def line(row: Sequence[str]) -> str:
        padded = [
            c.ljust(w) if i < text_columns else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < text_columns else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *(line(row) for row in cells[1:])]) + "\n"
