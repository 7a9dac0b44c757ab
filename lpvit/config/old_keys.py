"""Keys of the last release in a config, which are read for one more; delete this file with the next."""

from collections.abc import Iterator, Mapping
from typing import Any

from lpvit.allocation.settings import Budget
from lpvit.settings import Section, with_moved_keys
from lpvit.structures.blocks.settings import Blocks

SECTIONS: dict[str, type[Section]] = {"prunings": Blocks, "budgets": Budget}


def upgraded(raw: Any) -> tuple[Any, list[str]]:
    """A config with every key where it is now, and a line for each that was elsewhere.

    What is wrong in any other way stays as it is.
    """
    if not isinstance(raw, Mapping):
        return raw, []
    raw, lines = dict(raw), []
    for section, kind in SECTIONS.items():
        for name, entry in _entries(raw, section):
            moved, of_entry = with_moved_keys(kind, entry)
            raw[section] = {**raw[section], name: moved}
            lines += [f"{section}.{name}: {line}" for line in of_entry]
    for name, budget in _entries(raw, "budgets"):
        if "structure" in budget:
            others = {key: value for key, value in budget.items() if key != "structure"}
            raw["budgets"] = {**raw["budgets"], name: others}
            lines.append(_move_structure(raw, name, budget["structure"]))
    return raw, lines


def _entries(raw: Mapping[str, Any], section: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    entries = raw.get(section)
    for name, entry in list(entries.items()) if isinstance(entries, Mapping) else ():
        if isinstance(entry, Mapping):
            yield name, entry


def _move_structure(raw: dict[str, Any], budget: str, structure: Any) -> str:
    """Gives the experiments of a budget a pruning of its structure; of blocks, they have one."""
    line = f"budgets.{budget}: 'structure' has moved: "
    if structure == "blocks":
        return f"{line}leave it out"
    prunings, experiments = dict(raw.get("prunings") or {}), dict(raw.get("experiments") or {})
    for name, experiment in _entries(raw, "experiments"):
        if experiment.get("budget") == budget:
            measured = prunings.get(experiment.get("pruning")) or {}
            new = f"{experiment.get('pruning')}_{structure}"
            batch = {"batch_size": measured["batch_size"]} if "batch_size" in measured else {}
            prunings[new] = {"structure": structure, **batch}
            experiments[name] = {**experiment, "pruning": new}
    raw.update(prunings=prunings, experiments=experiments)
    return f"{line}write a pruning {{structure: {structure}}}, and name it in the experiments of this budget"
