"""Lock of a results folder: one run at a time, whose jobs end with it.

The file `.running` names the run that holds the folder. It has an operating system lock, which ends with the process,
and its modification time is a heartbeat for machines between which such a lock may not work.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Literal
from uuid import uuid4

from lpvit.errors import LpvitError

RUN = "LPVIT_RUN"  # environment variable: the run that started a job
FILE = ".running"
SIGN_OF_LIFE = 15  # seconds between two heartbeats
SILENCE = 120  # seconds after which a run of another machine counts as dead
LOST = 600  # seconds after which a job on another machine ends; long, because file systems may stall

logger = logging.getLogger(__name__)

_files: dict[str, IO[str]] = {}  # open for the life of the process: a closed file loses its lock


@dataclass(frozen=True)
class Run:
    """A process that holds a folder.

    Attributes:
        folder: As in the config; jobs run in the same working directory.
        host: Name of its machine, for messages.
        machine: Its kernel and process namespace.
        process: Process id.
        started: Start time by the kernel, because process ids are reused.
        token: Unique per run.
    """

    folder: str
    host: str
    machine: str
    process: int
    started: str
    token: str

    @classmethod
    def this(cls, folder: Path) -> "Run":
        process = os.getpid()
        return cls(str(folder), socket.gethostname(), _machine(), process, _started(process), uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    @property
    def is_here(self) -> bool:
        return self.machine == _machine()

    @property
    def is_alive(self) -> bool:
        """Known only for a process on this machine."""
        return _started(self.process) == self.started

    @property
    def file(self) -> Path:
        return Path(self.folder, FILE)

    def holds(self) -> bool:
        """Whether the run still holds the folder."""
        holder = _holder(self.file)
        return holder is not None and holder.token == self.token


def hold(folder: str | Path) -> Run:
    """Locks a folder for this process until it ends or calls `release`; jobs identify the run by `RUN`.

    Raises:
        LpvitError: Another run holds the folder, or it cannot be written.
    """
    folder = Path(folder)
    file = _open_lock(folder)
    last, lock = _holder(folder / FILE), _lock(file)
    if lock == "taken" or (last is not None and _may_live(last, lock, folder)):
        who = "" if last is None else f" ({last})"
        if_dead = "" if last is None or last.is_here else f", or {SILENCE} s if it is dead"
        raise LpvitError(f"{folder}: another run works in this folder{who}; wait until it ends{if_dead}")
    if last is not None and not last.is_here:
        logger.warning("%s: was held by %s, which has been silent and counts as dead", folder, last)
    run = Run.this(folder)
    _write(file, json.dumps(asdict(run)))
    _files[run.token] = file
    os.environ[RUN] = json.dumps(asdict(run))
    Thread(target=_give_signs_of_life, args=(run,), daemon=True).start()
    return run


def release(run: Run) -> None:
    """Releases a folder; the lock file of a killed run is recognised by the next run."""
    if run.holds():
        _write(_files[run.token], "")


def require_held() -> None:
    """Checks, before a result is stored, that the run that started this job still holds the folder.

    Raises:
        LpvitError: Another run, with newer results, holds the folder.
    """
    run = _asked_by()
    if run is not None and not run.holds():
        raise LpvitError(f"{run.folder}: no longer held by the run that started this job ({run}); nothing is written")


def end_with_the_run() -> None:
    """Ends this job as soon as its run has ended or another run holds the folder."""
    run = _asked_by()
    if run is not None:
        Thread(target=_end_when, args=(_is_gone(run), run), daemon=True).start()


def _asked_by() -> Run | None:
    text = os.environ.get(RUN)
    return Run(**json.loads(text)) if text else None


def _end_when(gone: Callable[[], bool], run: Run) -> None:
    while not gone():
        time.sleep(1 if run.is_here else SIGN_OF_LIFE)
    logger.error("stopped: the run that started this job (%s) has ended; start again to resume", run)
    os.kill(os.getpid(), signal.SIGKILL)  # its children end with it; this signal cannot be blocked


def _is_gone(run: Run) -> Callable[[], bool]:
    """Repeated check whether a run has ended or lost its folder."""
    last = (0.0, time.monotonic())  # heartbeat, when it was first seen

    def gone() -> bool:
        nonlocal last
        try:
            if not run.holds():
                return True
            sign = run.file.stat().st_mtime
        except OSError:  # a stalled file system is not a dead run
            return False
        if run.is_here:
            return not run.is_alive
        if sign != last[0]:
            last = (sign, time.monotonic())
        return time.monotonic() - last[1] > LOST

    return gone


def _give_signs_of_life(run: Run) -> None:
    while run.holds():
        with suppress(OSError):  # a stalled file system
            os.utime(run.file)
        time.sleep(SIGN_OF_LIFE)
    taker = _holder(run.file)
    if taker is not None:
        logger.error("stopped: %s is now held by %s", run.folder, taker)
        os.kill(os.getpid(), signal.SIGINT)


def _open_lock(folder: Path) -> IO[str]:
    """The lock file; that of another user, which only its owner can write, is replaced if no run holds it.

    Raises:
        LpvitError: The folder or the lock file cannot be written.
    """
    place = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
        place = folder / FILE
        if place.exists() and not os.access(place, os.W_OK):
            theirs = place.open()
            if _lock(theirs) == "taken":
                return theirs
            with theirs:
                _replace(place, theirs.read())  # a run that it names is looked at as in any other
        return place.open("a+")
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise LpvitError(f"{place}: cannot be written ({reason}); allow it, or choose another folder") from None


def _replace(file: Path, text: str) -> None:
    """Puts a file of this user with the same content and time in the place of another's."""
    status = file.stat()
    new = file.with_name(f"{FILE}.{os.getpid()}")
    new.write_text(text)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))  # its sign of life
    new.replace(file)


def _lock(file: IO[str]) -> Literal["ours", "taken", "unknown"]:
    """Acquires the operating system's lock, where the file system supports it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError:
        return "unknown"
    return "ours"


def _may_live(last: Run, lock: str, folder: Path) -> bool:
    """Whether the last recorded run may still be running, although it has no lock."""
    if last.is_here:
        return lock == "unknown" and last.is_alive
    with TemporaryFile(dir=folder) as probe:  # for the clock of the file system, which may differ from this machine's
        return os.fstat(probe.fileno()).st_mtime - (folder / FILE).stat().st_mtime < SILENCE


def _holder(file: Path) -> Run | None:
    try:
        return Run(**json.loads(file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # no file, or an empty one of an older version
        return None


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def _machine() -> str:
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


def _started(process: int) -> str:
    """Start time of a process from ``/proc``; empty if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
