"""One process per run that has imported torch and timm and forks to run the scripts of jobs.

Importing them takes 4 to 5 s of processor time, more than most jobs. So a script that needs them starts with

    import lpvit.stages.preloaded

and continues in a fork of that process, if the run has one on this machine: with the same folder, environment, outputs,
signals and exit code. The job itself only waits. Without such a process (another machine, another Python, a script
started by hand), the script runs normally. What measures time runs in a process of its own.

The forking process must not start threads or use a GPU; it only imports modules.
"""

import atexit
import ctypes
import gc
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple, NoReturn

ADDRESS = "LPVIT_PRELOADED"  # environment variable: the socket of the process
MODULES = ("torch", "timm", "pandas", "pyarrow.parquet", "pydantic", "matplotlib.figure", "snakemake.script")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # as Snakemake sets them for a job
LARGEST_REQUEST = 2**20  # bytes
PR_SET_PDEATHSIG = 1  # of prctl(2)


def start(threads: int, modules: Sequence[str] = MODULES) -> None:
    """Starts the process for the jobs of this run; it ends with the run. It imports at the first request.

    Args:
        threads: Of a job; libraries that read it when they are imported keep it.
        modules: To import.
    """
    os.environ[ADDRESS] = str(Path(mkdtemp(prefix="lpvit-"), "socket"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(os.environ[ADDRESS])
    listener.listen(64)
    command = [sys.executable, "-m", "lpvit.stages.preloaded", str(listener.fileno()), *modules]
    environment = os.environ | dict.fromkeys(THREADS, str(threads))
    descriptors = [listener.fileno()]
    subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=descriptors, env=environment)  # that ends with the run
    listener.close()


def hand_over(script: str) -> None:
    """Runs the script in a fork of the process and exits with its code; returns if there is no such process."""
    address = os.environ.get(ADDRESS)
    if address is None:
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it waits; the run says what happened, once
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(address)
            environment = {name: value for name, value in os.environ.items() if name != ADDRESS}
            request = [sys.executable, script, str(Path.cwd()), environment]
            socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
            answer = connection.recv(64)  # after the script has ended
        except OSError:  # on another machine
            answer = b"refused"
    if answer == b"refused":
        signal.signal(signal.SIGINT, handler)
        return
    _end_like(int(answer or 1))


class _Job(NamedTuple):
    """A script that runs in a fork: the number of its process, and what says that it or its job has ended."""

    process: int
    ended: int
    connection: socket.socket


def serve(listener: socket.socket, modules: Sequence[str]) -> None:
    """Forks for every script that a job of this run requests, until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the jobs and the run receive it as well
    events = selectors.DefaultSelector()
    events.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
    events.register(listener, selectors.EVENT_READ, None)
    running: set[_Job] = set()
    while True:
        for key, _ in events.select():
            if key.fd == sys.stdin.fileno():
                shutil.rmtree(Path(listener.getsockname()).parent)
                return
            if key.data is None:
                job = _accept(listener, modules)
                if job is not None:
                    running.add(job)
                    events.register(job.ended, selectors.EVENT_READ, job)
                    events.register(job.connection, selectors.EVENT_READ, job)
            elif key.data in running:
                running.remove(key.data)
                events.unregister(key.data.ended)
                events.unregister(key.data.connection)
                _end(key.data, is_given_up=key.fd != key.data.ended)


def _accept(listener: socket.socket, modules: Sequence[str]) -> _Job | None:
    """Starts what the next job asks for; None if it is not of this run."""
    connection, _ = listener.accept()
    request, descriptors, *_ = socket.recv_fds(connection, LARGEST_REQUEST, 3)
    python, script, folder, environment = json.loads(request)
    job = None
    if _is_of_this_run(connection) and python == sys.executable:
        for module in modules:
            with suppress(ImportError):  # the script says so if it needs it
                import_module(module)
        gc.freeze()  # or the first collection of every fork copies all that is shared
        process = os.fork()
        if not process:
            listener.close()
            _run(script, folder, environment, descriptors)
        job = _Job(process, os.pidfd_open(process), connection)
    else:
        connection.send(b"refused")
        connection.close()
    for descriptor in descriptors:
        os.close(descriptor)
    return job


def _end(job: _Job, *, is_given_up: bool) -> None:
    """Sends a job the exit code of its script, or kills the script of a job that is gone."""
    if is_given_up:
        os.kill(job.process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(job.process, 0)[1])
    os.close(job.ended)
    with suppress(OSError):
        job.connection.send(str(code).encode())
    job.connection.close()


def _run(script: str, folder: str, environment: dict[str, str], descriptors: Sequence[int]) -> NoReturn:
    """Runs a script as if this process had been started for it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [script]
    sys.path[0] = str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except KeyboardInterrupt:
        code = -signal.SIGINT
    except SystemExit as ended:
        code = _code_of(ended)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    _end_like(code)  # modules are not torn down: what `gc.freeze` keeps would be reported as leaks


def _code_of(ended: SystemExit) -> int:
    """The exit code of `sys.exit`, which prints anything but a number."""
    if ended.code is None or isinstance(ended.code, int):
        return ended.code or 0
    sys.stderr.write(f"{ended.code}\n")
    return 1


def _is_of_this_run(connection: socket.socket) -> bool:
    """Whether the requesting process is a descendant of the run, and not of a scheduler."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    process, run = int.from_bytes(peer[:4], sys.byteorder), os.getppid()
    with suppress(OSError):  # it has ended
        while process > 1 and process != run:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == run


def _end_like(code: int) -> NoReturn:
    """Ends this process with an exit code, or by the signal that the code represents."""
    if code < 0:
        with suppress(OSError):  # of what cannot be handled anyway
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    _end_like(0)
elif hasattr(sys.modules["__main__"], "snakemake"):  # a script of the workflow
    hand_over(sys.argv[0])
