"""Reads the inputs of figures, by the parameter names of their functions."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd

from lpvit.report.tables.paper import read_paper
from lpvit.report.tables.speed import read_speed
from lpvit.report.tables.summary import most_frequent, read_summary
from lpvit.store.schemas import ACCURACY, ALL, ALLOCATION, HISTORY, IMAGES, LAYERS
from lpvit.store.tables import read_parquet


def read_masks(path: str) -> dict[str, Any]:
    """Layer -> keep mask (R, C), True where the block is kept, as an array; only these need torch."""
    from lpvit.structures.blocks.masks import load_masks

    return {layer: keep_mask.numpy() for layer, keep_mask in load_masks(path)[0].items()}


_READERS: dict[str, Callable[[str], Any]] = {
    **{schema.file.removesuffix(".parquet"): partial(read_parquet, schema=schema) for schema in ALL},
    "before": partial(read_parquet, schema=ACCURACY),
    "dense_history": partial(read_parquet, schema=HISTORY),
    "masks": read_masks,
    "paper": read_paper,
    "speed": read_speed,
    "speed_up": pd.read_csv,
    "summary": read_summary,
}


def read_artifact(name: str, path: str) -> Any:
    """An artifact as a frame; keep masks as a dictionary of arrays.

    Args:
        name: Of the artifact, as a parameter of a figure.
        path: Its file.

    Raises:
        LpvitError: The file is missing, damaged or of another version.
    """
    return _READERS[name](path)


def with_frames(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment of the page, whose ``layers`` and ``allocation`` (or None) are files, with their frames instead."""
    file = experiment["allocation"]
    allocation = None if file is None else read_parquet(file, ALLOCATION)
    return {**experiment, "layers": read_parquet(experiment["layers"], LAYERS), "allocation": allocation}


def read_chance(images: Mapping[str, str]) -> dict[str, float]:
    """Dataset -> top-1 in % of always guessing its most frequent class.

    Args:
        images: Dataset -> its ``images.parquet``.
    """
    return {name: 100 * most_frequent(read_parquet(file, IMAGES)) for name, file in images.items()}
