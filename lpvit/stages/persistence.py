"""Replaces Snakemake's metadata of earlier runs by our records next to the results.

Snakemake compares the params of a job with its metadata in `.snakemake`. Without metadata (a fresh clone, copied
results) it treats any result as current; if settings differ it prints both completely. `complete` uses the record of
the job instead (`lpvit.store.records`), which names the settings that differ.

Snakemake has no public interface for this: an input that represents the settings reruns every job once more under the
trigger `input`, and params are not compared without metadata. So two methods of one of its classes are replaced, only
here, as are the hooks of a run; tests run this with the oldest and the newest supported version of Snakemake.
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
    """Changes since the record of a job; Snakemake prints them as the reason to run it."""

    files: list[str]

    def __iter__(self) -> Any:
        """The outputs that are out of date, for ``snakemake --list-changes``."""
        return iter(self.files)


def complete(is_ours: Callable[[Any], bool]) -> None:
    """Uses records instead of metadata for the jobs of this workflow.

    Args:
        is_ours: Whether a job has a record; others, of a workflow that uses this one as a module, are not affected.

    Raises:
        LpvitError: This version of Snakemake has another interface to its metadata.
    """
    memory = _memory()
    remembers, differs = memory.has_metadata, memory.params_changed

    def has_metadata(self: Any, job: Any) -> bool:
        """Always true for our jobs, so that Snakemake calls `params_changed` for them."""
        return is_ours(job) or remembers(self, job)

    def params_changed(self: Any, job: Any, file: str | None = None) -> Any:
        recorded = read_record(job.log[0]) if is_ours(job) else None
        if recorded is None and (not is_ours(job) or remembers(self, job)):
            return differs(self, job, file=file)
        if recorded is None:
            change = Changes("no record of its settings" if any(Path(made).exists() for made in job.output) else "")
        else:
            change = Changes(changes(recorded, dict(job.params.items())))
        change.files = [file] if file is not None else list(job.output)
        return change

    memory.has_metadata, memory.params_changed = has_metadata, params_changed


def add_hook(workflow: Any, event: str, hook: Callable[[], None]) -> None:
    """Calls a function at an event of a run, also where this workflow is a module, whose hooks Snakemake ignores.

    Args:
        workflow: Of Snakemake.
        event: ``onstart`` or ``onsuccess``.
        hook: Called before what the workflow itself registers for this event, now or later.
    """

    def with_ours(theirs: Callable[..., None]) -> Callable[..., None]:
        def both(log: Any) -> None:
            hook()
            theirs(log)

        return both

    register = getattr(workflow, event)
    setattr(workflow, f"_{event}", with_ours(getattr(workflow, f"_{event}")))
    setattr(workflow, event, lambda theirs: register(with_ours(theirs)))


def _memory() -> Any:
    """Snakemake's class with both methods."""
    place: Any = snakemake.persistence
    memory = getattr(place, "PersistenceBase", None) or getattr(place, "Persistence", None)
    for name, expected in METHODS.items():
        method = getattr(memory, name, None)
        if method is None or list(inspect.signature(method).parameters) != expected:
            raise LpvitError(
                f"snakemake {snakemake.__version__}: has an unsupported interface to its metadata "
                f"({name}); install a version that pyproject.toml allows"
            )
    return memory
