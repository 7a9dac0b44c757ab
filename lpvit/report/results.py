"""The page's first table: every final model beside its dense one, with intervals. Frames in, cells out."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lpvit.measure.intervals import wilson
from lpvit.report.formats import STAGES, human, interval, joules
from lpvit.report.layers import kept_units
from lpvit.report.measures import MEASURES, with_measure
from lpvit.report.tables.summary import difference

DENSE = "dense"
MINUS, DASH = "\u2212", "\u2013"

COLUMNS = {  # column -> what it is, shown when a pointer rests on its heading
    "experiment": "name in the config; below it the stage of the model in this row",
    "structure": "what was removed, and what the layers keep: least to most over the layers",
    "top-1": "share of the validation images whose class has the highest logit, with the 95 % interval that their "
    "number leaves (Wilson)",
    "against dense": "points of top-1 gained or lost against the dense model, with the 95 % interval for two "
    "independent samples (Newcombe); both models see the same images, so the true interval is narrower",
    "before tuning": "top-1 after compression and refit, before any fine-tuning",
    "MACs": "multiply-accumulates of linear layers and convolutions per image, as the paper counts; below: share of "
    "dense",
    "energy": "modelled, not measured: energy of the layers that MACs counts, per image; below: share of dense",
    "power term": "the paper's proxy of power, summed over the pruned layers, as a share of that with all blocks",
    "all MACs": "MACs of all matrix products per image, those inside attention included",
    "parameters": "parameters that are stored: all but the pruned weights",
    "sparsity": "share of the weights of the prunable layers that is zero; factors have no zeros",
    "top-5": "share of the images whose class is among the five highest logits, with its 95 % interval (Wilson)",
}
WITHOUT_CLASSES = {  # likewise, where images have none
    "same class": "share of the images on which the highest logit is that of the class which the dense model gives",
    "cosine": "between the outputs of the model and of the dense one, the mean over the images",
    "linear probe": "share of the images of the probe that a linear classifier on the outputs gets right",
    "neighbours": "share of them that their nearest neighbours by the outputs get right",
    "relative error": "squared distance of the outputs from the dense model's, over the squared norm of these",
}
FASTER = "time of the fastest dense setup over that of this model's fastest, with the 95 % interval of the median"


@dataclass(frozen=True)
class Cell:
    """A cell of a sortable table: text, sort key, and a remark in small print."""

    text: str
    value: float | str
    note: str = ""


def column_help(column: str) -> str:
    """What a column of `result_tables` is."""
    return (COLUMNS | WITHOUT_CLASSES).get(column) or FASTER


def result_tables(
    summary: pd.DataFrame, speed: pd.DataFrame, structures: Mapping[str, Cell], chance: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """One table per dense model, with the final models of its experiments.

    Args:
        summary: From `lpvit.report.tables.summary.summary`.
        speed: From `lpvit.report.tables.speed.read_speed`, of models of the summary.
        structures: Experiment -> cell of its structure, from `structure_cell`.
        chance: Dataset -> top-1 in % of always guessing its most frequent class.
    """
    for (dataset, model), of_model in with_measure(summary).groupby(["dataset", "model"], sort=False):
        dense = of_model[of_model["stage"] == DENSE].iloc[0]
        by_experiment = of_model[of_model["stage"] != DENSE].groupby("experiment", sort=False)
        final = by_experiment.tail(1).set_index("experiment")
        pruned = by_experiment.head(1).set_index("experiment")
        timed = speed[(speed["dataset"] == dataset) & (speed["model"] == model)]
        cells = _cells(dense, dense, None, Cell(DENSE, DENSE), _speed_ups(timed, None))
        rows: list[dict[str, Any]] = [{"experiment": DENSE, "cells": cells}]
        for name, row in zip(final.index.astype(str), (row for _, row in final.iterrows()), strict=True):
            before = pruned.loc[name] if row["stage"] != "pruned" else None
            cells = _cells(row, dense, before, structures.get(name, Cell(DASH, "")), _speed_ups(timed, name))
            rows.append({"experiment": name, "stage": STAGES.get(row["stage"], row["stage"]), "cells": cells})
        guess, measure = chance.get(str(dataset), 0.0), MEASURES[dense["measure"]]
        compares_outputs = dense["measure"] in ("same_class", "cosine")
        said = nearest(final, measure.heading) if compares_outputs else verdict(final, dense, guess)
        yield {
            "dataset": dataset,
            "model": model,
            "columns": list(cells),
            "rows": rows,
            "measure": measure.heading,
            "best": set(final.index[best(final, guess)]),
            "images": int(dense[measure.images or "images"]),
            "skipped": int(dense["images_skipped"]),
            "verdict": [] if final.empty else list(said),
            "timed": len(timed) > 0,
        }


def structure_cell(structure: str, allocation: pd.DataFrame | None, rank_multiple: int | None) -> Cell:
    """The structure of an experiment, and what its layers keep.

    Args:
        structure: As text: ``blocks 16x16``, ``factors``, ``width``.
        allocation: Schema ``ALLOCATION``; None of a structure without layers to allocate to.
        rank_multiple: Of layers that are kept by ranks; None for blocks, 0 where layers differ in that.
    """
    if allocation is None:
        return Cell(structure, structure)
    if not rank_multiple:
        kept = 100 * allocation["macs_kept"] / allocation["macs_dense"]
        ends = kept.min(), kept.max()
        return Cell(structure, structure, f"keep {ends[0]:.0f} to {ends[1]:.0f} %")
    reduced = allocation[allocation["blocks_kept"] < allocation["blocks"]]
    ranks = rank_multiple * reduced["blocks_kept"]
    told = [f"ranks {ranks.min()} to {ranks.max()}"] if len(reduced) else []
    told += [f"{len(allocation) - len(reduced)} dense"] if len(reduced) < len(allocation) else []
    return Cell(structure, structure, ", ".join(told))


def kept_by_layer(allocation: pd.DataFrame | None, rank_multiple: int | None) -> dict[str, str]:
    """Layer -> what it keeps; a layer without an entry was not compressed."""
    if allocation is None:
        return {}
    return {row["layer"]: kept_units(row, rank_multiple) for row in allocation.to_dict("records")}


def best(rows: pd.DataFrame, chance: float = 0.0) -> pd.Series:
    """Models that are more accurate than every other with as many MACs (to 0.5 %) or fewer, by more than the interval.

    Args:
        rows: Of one dataset and model: ``macs``, ``top1`` and its interval, of final models.
        chance: Top-1 in % of a guess; a model within its interval is never best.
    """

    def leads(name: Any, row: pd.Series) -> bool:
        rivals = rows[(rows["macs"] <= 1.005 * row["macs"]) & (rows.index != name)]
        return row["top1_low"] > chance and all(difference(row, rival)[0] > 0 for _, rival in rivals.iterrows())

    return pd.Series([leads(name, row) for name, row in rows.iterrows()], rows.index, bool)


def verdict(final: pd.DataFrame, dense: pd.Series, chance: float) -> Iterator[str]:
    """What may be said about the accuracies of a table, in sentences.

    Args:
        final: Final models of the experiments, indexed by name.
        dense: Their dense model.
        chance: Top-1 in % of a guess.
    """
    if dense["top1_low"] <= chance:
        yield (
            f"The dense model is at chance: {_told(dense)}, where a guess of the most frequent class has {chance:.1f} "
            "%. Train it better first: nothing in this table can be compared."
        )
        return
    leader = final.sort_values(["top1", "macs"], ascending=[False, True]).iloc[0]
    heading = MEASURES[dense.get("measure", "top1")].heading
    yield f"Highest {heading}: {leader.name} with {_told(leader)} at {100 * leader['macs_ratio']:.1f} % of the MACs."
    lost, (low, high) = leader["top1"] - dense["top1"], difference(leader, dense)
    yield (
        f"The dense model has {_told(dense)}; the difference of {signed(lost)} points "
        f"({signed(low)} to {signed(high)}) is {'not ' if low <= 0 <= high else ''}significant."
    )
    alike = [str(name) for name, row in final.iterrows() if name != leader.name and difference(leader, row)[0] <= 0]
    if alike:
        yield f"Not significantly less accurate than {leader.name}: {', '.join(alike)}."
    if guessing := [str(name) for name, row in final.iterrows() if row["top1_low"] <= chance]:
        yield f"At chance ({chance:.1f} %): {', '.join(guessing)}."


def nearest(final: pd.DataFrame, heading: str) -> Iterator[str]:
    """What may be said where images have no classes, and models are compared with the dense one alone."""
    leader = final.sort_values(["top1", "macs"], ascending=[False, True]).iloc[0]
    yield (
        f"The images have no classes. Nearest to the dense model: {leader.name}, {heading} {_told(leader)}, at "
        f"{100 * leader['macs_ratio']:.1f} % of the MACs."
    )


def signed(points: float) -> str:
    """With its sign, and a minus as in print: ``+0.42``."""
    return f"{points:+.2f}".replace("-", MINUS)


def _told(row: pd.Series) -> str:
    return f"{row['top1']:.2f} % ({interval(row['top1_low'], row['top1_high'])})".removesuffix(" ()")


def _cells(
    row: pd.Series, dense: pd.Series, pruned: pd.Series | None, structure: Cell, faster: Mapping[str, Cell]
) -> dict[str, Cell]:
    """Column -> cell, for one model."""
    lost, (low, high) = row["top1"] - dense["top1"], difference(row, dense)
    ends = "" if math.isnan(low) else f"{signed(low)} to {signed(high)}"
    own = Cell("", 0.0) if row["stage"] == DENSE else Cell(signed(lost), lost, ends)
    without = {"relative error": Cell(f"{row['relative_error']:.4f}", row["relative_error"])}
    if row["measure"] == "linear":
        without["cosine"] = Cell(f"{100 * row['cosine']:.2f} %", row["cosine"])
        without["neighbours"] = Cell(f"{row['knn']:.2f} %", row["knn"])
    return {
        "structure": structure,
        MEASURES[row["measure"]].heading: _accuracy(row),
        "against dense": own,
        "before tuning": Cell("", -1) if pruned is None else _accuracy(pruned),
        "MACs": Cell(human(row["macs"]), row["macs"], f"{100 * row['macs_ratio']:.1f} %"),
        **faster,
        "energy": Cell(joules(row["energy"]), row["energy"], f"{100 * row['energy_ratio']:.1f} %"),
        "power term": _share(row["power_term"]),
        "all MACs": Cell(human(row["macs_all"]), row["macs_all"]),
        "parameters": Cell(human(row["parameters"]), row["parameters"]),
        "sparsity": Cell(f"{100 * row['sparsity']:.1f} %", row["sparsity"]),
        **({"top-5": _top5(row)} if row["measure"] == "top1" else without),
    }


def _accuracy(row: pd.Series) -> Cell:
    return Cell(f"{row['top1']:.2f} %", row["top1"], interval(row["top1_low"], row["top1_high"]))


def _top5(row: pd.Series) -> Cell:
    low, high = wilson(pd.Series([row["top5"]]), pd.Series([row["images"]]))
    return Cell(f"{row['top5']:.2f} %", row["top5"], interval(low.item(), high.item()))


def _share(value: float) -> Cell:
    return Cell(DASH, -1) if math.isnan(value) else Cell(f"{100 * value:.1f} %", value)


def _speed_ups(speed: pd.DataFrame, experiment: str | None) -> dict[str, Cell]:
    """The fastest configuration of a model at every batch size; None is the dense model."""
    cells = {}
    for batch_size, rows in speed.groupby("batch_size"):
        own = rows[(rows["experiment"] == experiment) & (rows["stage"] != DENSE)]
        cell = Cell("1.00\u00d7", 1.0) if experiment is None else Cell(DASH, -1)
        if len(own):
            setup = own.sort_values("speed_up").iloc[-1]
            ends = f"{setup['speed_up_low']:.2f} to {setup['speed_up_high']:.2f}"
            cell = Cell(f"{setup['speed_up']:.2f}\u00d7", setup["speed_up"], ends)
        cells[f"faster, batch {batch_size}"] = cell
    return cells
