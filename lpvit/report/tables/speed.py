"""Tables of speed and energy, as measured. Frames in, frames or text out.

`NAMES` are the columns that identify the model of a row.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from lpvit.measure.intervals import wilson
from lpvit.report.formats import NAMES, markdown
from lpvit.report.tables.summary import WITHOUT_CLASSES

_FACTS = ["device_name", "threads", "dtype", "kernel", "torch"]
_SHAPE = ["out_features", "in_features", "tokens"]
_LEAST_TO_RANK = 3  # models


def speed_summary(speed: pd.DataFrame, metrics: pd.DataFrame, energy: pd.DataFrame) -> pd.DataFrame:
    """Results of every configuration in every benchmark, with the accuracy of its model.

    Args:
        speed: Schema ``SPEED`` and `NAMES`.
        metrics: Schema ``METRICS`` and `NAMES`: the dense model of every experiment, and the one that was benchmarked.
        energy: Schema ``ENERGY`` and `NAMES`.

    Returns:
        `NAMES`, and of ``SPEED`` all but ``rounds`` and ``device``, with the stage ``dense`` for dense configurations;
        ``top1`` in % with ``top1_low`` and ``top1_high``, the ends of its 95 % interval, and ``model_top1``, which
        differs if an engine quantises itself; without classes `WITHOUT_CLASSES` instead; ``power_term`` and ``energy``
        (J per image, modelled) as in ``METRICS``;
        ``joules`` per image, net of the idle power, null if not measured.
    """
    stage = speed["stage"].where(~speed["configuration"].str.startswith("dense"), "dense")
    keys = [*NAMES, "configuration", "batch_size"]
    of_model = metrics[[*NAMES, "stage", "top1", *WITHOUT_CLASSES, "images", "power_term", "energy"]]
    table = speed.assign(stage=stage).merge(
        of_model, on=[*NAMES, "stage"], validate="many_to_one", suffixes=("_own", "")
    )
    table["model_top1"] = table["top1"]
    for column in ("top1", "images"):
        table[column] = table.pop(f"{column}_own").fillna(table[column])
    table["top1_low"], table["top1_high"] = wilson(table["top1"], table["images"])
    last = table.groupby(NAMES)["batch_size"].transform("max")  # the batch size of the energy measurement
    joules = (
        energy.assign(joules=energy["joules_net"] / energy["images"])
        .groupby([*NAMES, "configuration"])["joules"]
        .median()
    )
    table = table.assign(batch=last).join(joules, on=[*NAMES, "configuration"])
    table["joules"] = table["joules"].where(table["batch_size"] == table["batch"])
    accuracy = ["images", "top1", "top1_low", "top1_high", "model_top1", *WITHOUT_CLASSES]
    of_setup = [column for column in speed.columns if column not in (*keys, *accuracy, "stage", "rounds", "device")]
    return table[
        [*NAMES, "stage", "configuration", "batch_size", *of_setup, *accuracy, "power_term", "energy", "joules"]
    ]


def speed_markdown(table: pd.DataFrame, energy: pd.DataFrame) -> str:
    """`speed_summary` as markdown: a table per machine and dtype, and energy, or why it was not measured.

    Args:
        table: From `speed_summary`.
        energy: Schema ``ENERGY``.
    """
    parts = [f"{facts}\n\n{markdown(shown, text_columns=4)}" for facts, shown in speed_parts(table)]
    return "\n".join([*parts, _energy_told(table, energy)])


def speed_parts(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Machine and dtype with their table as text, for each of them.

    Args:
        table: From `speed_summary`.
    """
    for facts, rows in table.groupby(_FACTS, sort=False):
        device_name, threads, dtype, kernel, torch = facts
        yield f"{device_name}, {threads} threads, {dtype}, kernel {kernel}, torch {torch}", _shown(rows)


def read_speed(path: str | Path) -> pd.DataFrame:
    """Reads the CSV form of `speed_summary`; names stay text; no rows without a file or with an older one."""
    none = pd.DataFrame(
        columns=[*NAMES, "stage", "configuration", "batch_size", *_FACTS, "model_top1", "energy", "joules"]
    )
    if not Path(path).is_file():
        return none
    names = dict.fromkeys([*NAMES, "stage", "configuration", *_FACTS], str)
    missing = ("power_term", "joules", "top1", "top1_low", "top1_high", "model_top1", *WITHOUT_CLASSES)
    table = pd.read_csv(path, dtype=names, keep_default_na=False, na_values={name: [""] for name in missing})
    return table if set(none) <= set(table) else none


def energy_ranking(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of modelled and measured energies over the models of a dataset.

    Args:
        table: From `speed_summary`; each model counts with its configuration of least energy.

    Returns:
        One row per dataset, model and machine with 3 models or more whose energy was measured: ``models``, their
        number; ``power_term`` and ``energy``, the correlations with ``joules``, -1 to 1.
    """
    measured = table.dropna(subset="joules").assign(experiment=table["experiment"].where(table["stage"] != "dense", ""))
    rows = []
    for names, group in measured.groupby(["dataset", "model", "device_name", "dtype"]):
        best = group.groupby("experiment")[["power_term", "energy", "joules"]].min()
        if len(best) >= _LEAST_TO_RANK:
            ranks = best.rank().corr()["joules"]
            rows.append((*names, len(best), ranks["power_term"], ranks["energy"]))
    return pd.DataFrame(rows, columns=["dataset", "model", "device_name", "dtype", "models", "power_term", "energy"])


def speed_up_by_sparsity(latency: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Speed-up of all linear layers of a model together, at equal sparsity.

    Args:
        latency: Schema ``LATENCY``, of any block shapes.
        costs: Schema ``COSTS``: how often each shape occurs.

    Returns:
        ``block`` (as "32x64"), ``sparsity``, ``speed_up``: dense over block-sparse milliseconds, by rising sparsity.
    """
    count = costs.value_counts(_SHAPE)
    rows = []
    for (height, width), table in latency.groupby(["block_rows", "block_columns"]):
        shapes = [shape.sort_values("sparsity") for _, shape in table.groupby(_SHAPE)]
        counts = [int(count[tuple(shape[_SHAPE].iloc[0])]) for shape in shapes]
        pruned = [shape[shape["sparsity"] > 0] for shape in shapes]
        dense = sum(n * shape["milliseconds"].iloc[0] for n, shape in zip(counts, shapes, strict=True))
        first, last = (max(s["sparsity"].iloc[0] for s in pruned), min(s["sparsity"].iloc[-1] for s in pruned))
        for sparsity in np.linspace(first, last, 18):
            times = [np.interp(sparsity, shape["sparsity"], shape["milliseconds"]) for shape in pruned]
            sparse = sum(n * time for n, time in zip(counts, times, strict=True))
            rows.append((f"{height}x{width}", sparsity, dense / sparse))
    return pd.DataFrame(rows, columns=["block", "sparsity", "speed_up"])


def break_even(curve: pd.DataFrame) -> float:
    """The sparsity from which on block-sparse layers are faster than dense ones.

    Args:
        curve: ``sparsity``, rising, and ``speed_up``.

    Returns:
        Interpolated; the lowest sparsity if they always are, NaN if they never are.
    """
    sparsity, gain = curve["sparsity"].to_numpy(), curve["speed_up"].to_numpy() - 1
    slower = np.flatnonzero(gain < 0)
    if len(slower) == 0:
        return float(sparsity[0])
    last = slower[-1]
    if last == len(gain) - 1:
        return float("nan")
    return float(np.interp(0, gain[last : last + 2], sparsity[last : last + 2]))


def placed(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per dense model and per fastest configuration of each other model, with its time.

    That is ``time`` with ``time_low`` and ``time_high``, the ends of its 95 % interval, in ms per image.

    A dense model has the median over the experiments. The others are placed by their speed-up over the dense
    configuration of the same run, so different load during the experiments shifts none.

    Args:
        rows: From `speed_summary`, of one dataset and batch size.
    """
    references = rows[rows["configuration"] == rows["reference"]].copy()
    for end in ("", "_low", "_high"):
        per_image = references[f"milliseconds{end}"] / references["batch_size"]
        references[f"time{end}"] = per_image.groupby(references["model"]).transform("median")
    dense = references.drop_duplicates("model")
    rest = rows[rows["stage"] != "dense"]
    pruned = rest.loc[rest.groupby("experiment", sort=False)["speed_up"].idxmax()].copy()
    of_dense = pruned["model"].map(dense.set_index("model")["time"])
    for end, of_speed_up in (("", ""), ("_low", "_high"), ("_high", "_low")):
        pruned[f"time{end}"] = of_dense / pruned[f"speed_up{of_speed_up}"]
    return pd.concat([dense, pruned], ignore_index=True)


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    def interval(name: str, decimals: int) -> Iterator[str]:
        columns = table[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False, name=None)
        return (f"{median:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})" for median, low, high in columns)

    return pd.DataFrame(
        {
            **{name: table[name] for name in NAMES},
            "configuration": table["configuration"].str.replace("_", ", "),
            "batch size": table["batch_size"].map(str),
            "ms per pass": [*interval("milliseconds", 2)],
            "images/s": table["images_per_second"].map("{:.0f}".format),
            "speed-up": [*interval("speed_up", 2)],
            "top-1": table["top1"].map("{:.2f} %".format, na_action="ignore").fillna("-"),
            "mJ per image": table["joules"].map(lambda joules: "-" if pd.isna(joules) else f"{1e3 * joules:.3g}"),
        }
    )


def _energy_told(table: pd.DataFrame, energy: pd.DataFrame) -> str:
    lines = [f"Energy: not measured: {reason}" for reason in energy["reason"].dropna().unique()]
    lines += [
        f"Energy of {row.models} models of {row.model} on {row.dataset} ({row.device_name}, {row.dtype}), rank "
        f"correlation with the joules measured: power term {row.power_term:.2f}, energy model {row.energy:.2f}"
        for row in energy_ranking(table).itertuples()
    ]
    return "\n".join(f"{line}." for line in lines) + "\n"
