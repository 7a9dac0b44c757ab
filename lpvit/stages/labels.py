"""Labels of the lines of a run's log. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpvit.settings import local_path

SECTIONS = ("dataset", "model", "calibration", "pruning", "budget", "recipe")  # folder by folder below the results


def label_of(log: str | Path, config: Mapping[str, Any]) -> str:
    """What tells the stage of a log file from those of other experiments: the decisions that differ between them.

    Args:
        log: In the folder of its result.
        config: The raw config, with ``results`` and ``experiments``.

    Returns:
        For example ``factors/half``; the last two folders for a result of no single experiment.
    """
    folder, results = Path(log).parent, local_path(config.get("results", "results"))
    parts = folder.relative_to(results).parts if folder.is_relative_to(results) else folder.parts
    experiments = list((config.get("experiments") or {}).values())
    if not parts or not all(isinstance(each, Mapping) for each in experiments):
        return "/".join(parts[-2:])
    if parts[0] not in {each.get("dataset") for each in experiments}:
        return "/".join(parts[-2:])
    varied = [len({repr((each.get(name), each.get("schemes", ()))) for each in experiments}) > 1 for name in SECTIONS]
    told = [part for part, varies in zip(parts, varied, strict=False) if varies]
    return "/".join([*told, *parts[len(SECTIONS) :]]) or parts[-1]
