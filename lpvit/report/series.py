"""Which experiments belong together. Imports nothing, so that a dry-run stays fast."""

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any


def series_of(decisions: Mapping[str, Any]) -> dict[str, str]:
    """Joins the experiments that differ in nothing but how much they keep: a sweep, drawn as one line.

    Args:
        decisions: Experiment -> all that it decides but the targets of its budget, as plain values.

    Returns:
        Experiment -> name of its series: its own if it stands alone, else what the names begin with alike.
    """
    groups: dict[str, list[str]] = {}
    for name, decided in decisions.items():
        groups.setdefault(repr(decided), []).append(name)
    names = [_common_name(group) for group in groups.values()]
    return {
        experiment: name if names.count(name) == 1 else f"{group[0]} to {group[-1]}"
        for group, name in zip(groups.values(), names, strict=True)
        for experiment in group
    }


def _common_name(group: list[str]) -> str:
    if len(group) == 1:
        return group[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*group, strict=False))
    start = "".join(letters[0] for letters in alike)
    if all(name[len(start) :][:1].isdigit() for name in group):  # do not cut a number in two
        start = start.rstrip("0123456789")
    return re.sub(r"[_.+-]+$", "", start) or f"{group[0]} to {group[-1]}"
