"""What Snakemake remembers of earlier runs, completed by the records that lie beside the results.

Snakemake compares the params of a job with what its folder `.snakemake` remembers of the last time. Where that is lost
(a fresh clone, results that were copied) it takes any result for current; where settings differ it prints both whole.
`complete` lets the record of the job answer instead (`lpvit.store.records`), which names the settings that differ.

Snakemake has no public way to do so: an input that stands for the settings reruns every job once more under the trigger
`input`, and params are not looked at without its memory. So two methods of one of its classes are replaced, here and
nowhere else; `tests/workflow/test_persistence.py` holds the oldest and the newest version of Snakemake to it.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import snakemake
import snakemake.persistence

from lpvit.errors import LpvitError
from lpvit.store.records import changes, read_record

METHODS = {"has_metadata": ["self", "job"], "params_changed": ["self", "job", "file"]}


class Changes(str):
    """What differs from the settings that made the results of a job; Snakemake prints it as the reason to run it."""

    files: list[str]

    def __iter__(self) -> Any:
        """The outputs that are out of date, for ``snakemake --list-changes``."""
        return iter(self.files)


def complete(is_ours: Callable[[Any], bool]) -> None:
    """Lets records answer for the jobs of this workflow.

    Args:
        is_ours: Whether a job keeps a record; others, of a workflow that takes this one as a module, are left alone.

    Raises:
        LpvitError: This version of Snakemake keeps its memory in another way.
    """
    memory = _memory()
    remembers, differs = memory.has_metadata, memory.params_changed

    def has_metadata(self: Any, job: Any) -> bool:
        """Of our jobs always: without memory and record, it is known that nobody knows how the results came about."""
        return is_ours(job) or remembers(self, job)

    def params_changed(self: Any, job: Any, file: str | None = None) -> Any:
        recorded = read_record(job.log[0]) if is_ours(job) else None
        if recorded is None and (not is_ours(job) or remembers(self, job)):
            return differs(self, job, file=file)
        if recorded is None:
            change = Changes("made by unknown settings" if any(Path(made).exists() for made in job.output) else "")
        else:
            change = Changes(changes(recorded, dict(job.params.items())))
        change.files = [file] if file is not None else list(job.output)
        return change

    memory.has_metadata, memory.params_changed = has_metadata, params_changed


def _memory() -> Any:
    """The class that both methods belong to."""
    place: Any = snakemake.persistence
    memory = getattr(place, "PersistenceBase", None) or getattr(place, "Persistence", None)
    for name, expected in METHODS.items():
        method = getattr(memory, name, None)
        if method is None or list(inspect.signature(method).parameters) != expected:
            raise LpvitError(
                f"snakemake {snakemake.__version__}: keeps its memory in a way that lpvit does not know "
                f"({name}); install a version that pyproject.toml allows"
            )
    return memory
