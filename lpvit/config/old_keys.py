"""Reads keys of the last release in a config for one more release; delete this file with the next."""

from collections.abc import Mapping
from typing import Any

from lpvit.allocation.settings import Budget
from lpvit.settings import Section, with_moved_keys
from lpvit.structures.blocks.settings import Blocks

SECTIONS: dict[str, type[Section]] = {"prunings": Blocks, "budgets": Budget}


def upgraded(raw: Any) -> tuple[Any, list[str]]:
    """Moves old keys of a config to their new place, and returns a line for each.

    Other errors are left unchanged.
    """
    if not isinstance(raw, Mapping):
        return raw, []
    raw, lines = dict(raw), []
    benchmark = raw.get("benchmark")
    if isinstance(benchmark, Mapping) and "arms" in benchmark and "configurations" not in benchmark:
        raw["benchmark"] = {{"arms": "configurations"}.get(key, key): value for key, value in benchmark.items()}
        lines.append("benchmark.arms: is 'configurations' now; write configurations: " + str(benchmark["arms"]))
    for section, kind in SECTIONS.items():
        for name, entry in _entries(raw, section).items():
            if entry.get("structure") in (None, "blocks"):
                moved, of_entry = with_moved_keys(kind, entry)
                raw[section] = {**raw[section], name: moved}
                lines += [f"{section}.{name}: {line}" for line in of_entry]
    for name, budget in _entries(raw, "budgets").items():
        if budget.get("structure") in ("blocks", "width"):
            raw["budgets"] = {**raw["budgets"], name: {key: budget[key] for key in budget if key != "structure"}}
            lines.append(f"budgets.{name}: structure: {_with_structure(raw, name, budget['structure'])}")
    return raw, lines


def _entries(raw: Mapping[str, Any], section: str) -> dict[str, Mapping[str, Any]]:
    """The entries of a section that are keys with values."""
    entries = raw.get(section)
    found = entries.items() if isinstance(entries, Mapping) else ()
    return {name: entry for name, entry in found if isinstance(entry, Mapping)}


def _with_structure(raw: dict[str, Any], budget: str, structure: str) -> str:
    """Gives the experiments of a budget a pruning with its structure; for blocks they already have one."""
    if structure == "blocks":
        return "belongs to the pruning now; omit it"
    for name, experiment in _entries(raw, "experiments").items():
        if experiment.get("budget") == budget:
            measured = _entries(raw, "prunings").get(str(experiment.get("pruning")), {})
            batch = {key: measured[key] for key in ("batch_size",) if key in measured}
            new = f"{experiment.get('pruning')}_width"
            raw["prunings"] = {**_entries(raw, "prunings"), new: {"structure": "width", **batch}}
            raw["experiments"] = {**raw["experiments"], name: {**experiment, "pruning": new}}
    return (
        "belongs to the pruning now; write a pruning {structure: width} and name it in the experiments of this budget"
    )
