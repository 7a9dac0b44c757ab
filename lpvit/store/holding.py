"""Who works in a folder of results: one run at a time, whose jobs end with it.

The file `.running` names the run that holds the folder. With it goes a lock of the operating system, which ends with
its process, and a sign of life, the file's time of change, for machines between which such a lock may not count.
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

RUN = "LPVIT_RUN"  # environment variable: the run that asked for a job
FILE = ".running"
SIGN_OF_LIFE = 15  # seconds between two
SILENCE = 120  # seconds after which a run of another machine counts as dead
LOST = 600  # seconds after which a job on another machine gives its run up; patient, for file systems that stall

logger = logging.getLogger(__name__)

_files: dict[str, IO[str]] = {}  # open as long as the process: a closed file loses its lock


@dataclass(frozen=True)
class Run:
    """A process that holds a folder.

    Attributes:
        folder: As its config says; jobs run in the same working directory.
        host: Name of its machine, for people.
        machine: Which kernel and which set of process numbers it lives in.
        process: Its number.
        started: When, in the kernel's count: another process may get the same number later.
        token: Tells two runs apart in any case.
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
        """Only known of a process on this machine."""
        return _started(self.process) == self.started

    @property
    def file(self) -> Path:
        return Path(self.folder, FILE)

    def holds(self) -> bool:
        """Whether the folder is still its own."""
        holder = _holder(self.file)
        return holder is not None and holder.token == self.token


def hold(folder: str | Path) -> Run:
    """Takes a folder for this process, until it ends or calls `release`; jobs that it starts know it by `RUN`.

    Raises:
        LpvitError: Another run works in the folder, or it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / FILE).open("a+")
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise LpvitError(f"{folder}: cannot be written ({reason}); allow it, or choose another folder") from None
    last, lock = _holder(folder / FILE), _lock(file)
    if lock == "taken" or (last is not None and _may_live(last, lock, folder)):
        who = "" if last is None else f" ({last})"
        if_dead = "" if last is None or last.is_here else f", or {SILENCE} s if it is dead"
        raise LpvitError(f"{folder}: another run works in this folder{who}; wait until it ends{if_dead}")
    if last is not None and not last.is_here:
        logger.warning("%s: taken over from %s, which gives no sign of life", folder, last)
    run = Run.this(folder)
    _write(file, json.dumps(asdict(run)))
    _files[run.token] = file
    os.environ[RUN] = json.dumps(asdict(run))
    Thread(target=_give_signs_of_life, args=(run,), daemon=True).start()
    return run


def release(run: Run) -> None:
    """Gives a folder back; what a killed run leaves instead is told apart by the next."""
    if run.holds():
        _write(_files[run.token], "")


def require_held() -> None:
    """Before a result takes its place: refuses it if the run that asked for it no longer holds the folder.

    Raises:
        LpvitError: Another run took the folder, whose results are newer.
    """
    run = _asked_by()
    if run is not None and not run.holds():
        raise LpvitError(f"{run.folder}: no longer held by the run that asked for this ({run}); nothing is written")


def end_with_the_run() -> None:
    """Ends this process, a job, as soon as the run that asked for it is gone or another took its folder."""
    run = _asked_by()
    if run is not None:
        Thread(target=_end_when, args=(_is_gone(run), run), daemon=True).start()


def _asked_by() -> Run | None:
    text = os.environ.get(RUN)
    return Run(**json.loads(text)) if text else None


def _end_when(gone: Callable[[], bool], run: Run) -> None:
    while not gone():
        time.sleep(1 if run.is_here else SIGN_OF_LIFE)
    logger.error("stopped: the run that asked for this (%s) is gone; a new start goes on from here", run)
    os.kill(os.getpid(), signal.SIGKILL)  # its own children end with it; nothing can hold this signal up


def _is_gone(run: Run) -> Callable[[], bool]:
    """Asked again and again, tells whether a run ended or lost its folder."""
    last = (0.0, time.monotonic())  # sign of life, when it was first seen

    def gone() -> bool:
        nonlocal last
        try:
            if not run.holds():
                return True
            sign = run.file.stat().st_mtime
        except OSError:  # a file system that stalls is not a dead run
            return False
        if run.is_here:
            return not run.is_alive
        if sign != last[0]:
            last = (sign, time.monotonic())
        return time.monotonic() - last[1] > LOST

    return gone


def _give_signs_of_life(run: Run) -> None:
    while run.holds():
        with suppress(OSError):  # a file system that stalls
            os.utime(run.file)
        time.sleep(SIGN_OF_LIFE)
    taker = _holder(run.file)
    if taker is not None:
        logger.error("stopped: %s was taken over by %s", run.folder, taker)
        os.kill(os.getpid(), signal.SIGINT)


def _lock(file: IO[str]) -> Literal["ours", "taken", "unknown"]:
    """Takes the operating system's lock, where the file system has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError:
        return "unknown"
    return "ours"


def _may_live(last: Run, lock: str, folder: Path) -> bool:
    """Whether the last run that named itself may still work, although no lock says so."""
    if last.is_here:
        return lock == "unknown" and last.is_alive
    with TemporaryFile(dir=folder) as probe:  # for the time of the file system, which may not be this machine's
        return os.fstat(probe.fileno()).st_mtime - (folder / FILE).stat().st_mtime < SILENCE


def _holder(file: Path) -> Run | None:
    try:
        return Run(**json.loads(file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # none, or of a version that wrote nothing
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
    """When a process began, by the kernel's line about it; empty where there is none, or only its exit code is left."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
