"""Records of the settings and code of a result, in a file next to it.

Results with other settings than those of the run are recomputed, independent of Snakemake's own metadata.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lpvit import __version__
from lpvit.store.artifacts import write_text

PLACES = ("resume",)  # params that are locations and do not affect results
NAMED = 3  # changes listed in a message


def record_file(log: str | Path) -> Path:
    """The record of a job, next to its log: ``masks.log`` -> ``masks.settings.json``."""
    return Path(log).with_suffix(".settings.json")


def write_record(log: str | Path, rule: str, params: Mapping[str, Any], **effort: float) -> None:
    """Writes the record of a job after its results.

    Args:
        log: Of the job.
        rule: Of the job.
        params: Of the job.
        **effort: ``seconds`` and ``mebibytes`` of the job, if it ran.
    """
    record = {"rule": rule, "lpvit": __version__, "settings": _plain(params), **effort}
    write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", record_file(log))


def drop_record(log: str | Path) -> None:
    """Deletes the record before a job starts, so that partly overwritten results count as without a record."""
    record_file(log).unlink(missing_ok=True)


def read_record(log: str | Path) -> dict[str, Any] | None:
    """The settings in the record of a job; None without a valid record."""
    settings = _read(log).get("settings")
    return settings if isinstance(settings, dict) else None


def read_effort(log: str | Path) -> tuple[float, float] | None:
    """Seconds and mebibytes of a job; None if it did not run here or has no valid record."""
    try:
        record = _read(log)
        return float(record["seconds"]), float(record["mebibytes"])
    except (KeyError, TypeError, ValueError):
        return None


def _read(log: str | Path) -> dict[str, Any]:
    try:
        record = json.loads(record_file(log).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def changes(recorded: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Description of the differences: ``budget.macs: 0.5 -> 0.3``; empty if there are none."""
    old, new = dict(_flat(recorded)), dict(_flat(_plain(params)))
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]  # null: missing
    code = [key.removeprefix("sources/") for key in differing if key.startswith("sources/")]
    told = [
        f"{key}: {_shown(old.get(key))} -> {_shown(new.get(key))}"
        for key in differing
        if not key.startswith("sources/")
    ]
    told += [f"code of {name}" for name in code]
    more = [f"and {len(told) - NAMED} more"] if len(told) > NAMED else []
    return ", ".join(told[:NAMED] + more)


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Params after a round trip through JSON."""
    plain: dict[str, Any] = json.loads(json.dumps({key: value for key, value in params.items() if key not in PLACES}))
    return plain


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> value; lists are values unless they contain sections. Modules keep their slashes."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, dict) or not value:
        yield place, value
        return
    joint = "/" if place == "sources" else "."
    for key, item in value.items():
        yield from _flat(item, f"{place}{joint}{key}" if place else key)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
