"""Groups experiments into series. Imports nothing, so a dry run is fast."""

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any


def series_of(decisions: Mapping[str, Any]) -> dict[str, str]:
    """Groups experiments that differ only in the targets of their budgets: a sweep, drawn as one line.

    Args:
        decisions: Experiment -> all its decisions except the targets of its budget, as plain values.

    Returns:
        Experiment -> name of its series: its own if single, else the common prefix of the names.
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
    if all(name[len(start) :][:1].isdigit() for name in group):  # do not split a number
        start = start.rstrip("0123456789")
    return re.sub(r"[_.+-]+$", "", start) or f"{group[0]} to {group[-1]}"
