"""One interruptible run at a time; reruns are decided by our records instead of Snakemake's metadata."""

import atexit
import contextlib
import signal

import psutil
from snakemake_interface_executor_plugins.settings import ExecMode

from lpvit.stages import persistence, preloaded
from lpvit.store.artifacts import remove_leftovers
from lpvit.store.holding import hold, release
from lpvit.store.records import changes, read_record, write_record


def hold_folder() -> None:
    """Locks the results folder for this run; unlike Snakemake's lock, it ends with the process."""
    try:
        atexit.register(release, hold(RESULTS))
    except LpvitError as error:
        raise WorkflowError(str(error)) from None
    remove_leftovers(RESULTS)
    of_digits = ["sklearn.datasets" for dataset in settings.datasets.values() if dataset.source.name == "digits"]
    preloaded.start(settings.compute.threads, [*preloaded.MODULES, *of_digits])


def write_records() -> None:
    """Writes the records of results from a cache or accepted by `snakemake --touch`, which no stage has written."""
    for job in filter(is_ours, workflow.dag.needrun_jobs(exclude_finished=False)):
        params = dict(job.params.items())
        if all(Path(file).exists() for file in job.output) and changes(read_record(job.log[0]) or {}, params):
            write_record(job.log[0], job.rule.name, params)


def is_ours(job) -> bool:
    return "sources" in job.rule.params.keys()


try:
    persistence.complete(is_ours)
except LpvitError as error:
    raise WorkflowError(str(error)) from None


persistence.add_hook(workflow, "onstart", hold_folder)
persistence.add_hook(workflow, "onsuccess", write_records)


def interrupt(*_) -> None:
    """Ctrl-C: ends all jobs, also those that did not receive the signal; Snakemake cleans up."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.terminate()
    print(
        "interrupted: finished stages are kept; start again to resume",
        file=sys.stderr,
    )
    raise SystemExit(128 + signal.SIGINT)


if workflow.exec_mode == ExecMode.DEFAULT and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupt)
