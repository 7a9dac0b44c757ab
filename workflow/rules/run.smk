"""One run at a time, which can be interrupted; and what Snakemake knows of earlier ones, right also without its own memory."""

import atexit
import contextlib
import signal

import psutil
import snakemake.persistence
from snakemake_interface_executor_plugins.settings import ExecMode

from lpvit.store.artifacts import remove_leftovers
from lpvit.store.holding import hold, release
from lpvit.store.records import changes, read_record, write_record


def hold_folder() -> None:
    """Lets one run at a time work here, as Snakemake's own lock does, but a killed run leaves no lock behind."""
    try:
        atexit.register(release, hold(RESULTS))
    except LpvitError as error:
        raise WorkflowError(str(error)) from None
    remove_leftovers(RESULTS)


def write_records() -> None:
    """For what no stage wrote down: results that came from a cache, or that `snakemake --touch` lets pass."""
    for job in filter(is_ours, workflow.dag.needrun_jobs(exclude_finished=False)):
        params = dict(job.params.items())
        if all(Path(file).exists() for file in job.output) and changes(read_record(job.log[0]) or {}, params):
            write_record(job.log[0], job.rule.name, params)


def is_ours(job) -> bool:
    return "sources" in job.rule.params.keys()


class Changes(str):
    """What differs from the settings that made the results of a job; Snakemake prints it as the reason to run it."""

    def __iter__(self):
        return iter(self.files)


Memory = getattr(snakemake.persistence, "PersistenceBase", None) or snakemake.persistence.Persistence


def has_metadata(memory, job, ask=Memory.has_metadata) -> bool:
    """Of each of our jobs something is known: at least that nobody knows how its results came about."""
    return is_ours(job) or ask(memory, job)


def params_changed(memory, job, file=None, ask=Memory.params_changed, remembers=Memory.has_metadata):
    """By the record that lies beside the results; where there is none, by Snakemake's memory."""
    recorded = read_record(job.log[0]) if is_ours(job) else None
    if recorded is None and (not is_ours(job) or remembers(memory, job)):
        return ask(memory, job, file=file)
    if recorded is None:
        change = Changes("made by unknown settings" if any(Path(made).exists() for made in job.output) else "")
    else:
        change = Changes(changes(recorded, dict(job.params.items())))
    change.files = [file] if file is not None else list(job.output)
    return change


Memory.has_metadata, Memory.params_changed = has_metadata, params_changed


def interrupt(*_) -> None:
    """Ctrl-C: the jobs end, also those that did not get the signal; Snakemake cleans up."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.terminate()
    print(
        "interrupted: what is finished stays, and a new start goes on from here",
        file=sys.stderr,
    )
    raise SystemExit(128 + signal.SIGINT)


if workflow.exec_mode == ExecMode.DEFAULT and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupt)
