"""One process per run that has imported torch and timm and forks to run the scripts of jobs.

Importing them takes 4 to 5 s of processor time, more than most jobs. So a script that needs them starts with

    import lpvit.stages.preloaded

and continues in a fork of that process, if the run has one on this machine: with the same folder, environment, outputs,
signals and exit code. The job itself only waits. Without such a process (another machine, another Python, a script
started by hand), the script runs normally.

The forking process must not start threads or use a GPU; it only imports modules.
"""

import ctypes
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
from typing import NoReturn

ADDRESS = "LPVIT_PRELOADED"  # environment variable: the socket of the process
MODULES = ("torch", "timm", "pandas", "pyarrow.parquet", "pydantic", "matplotlib.figure", "snakemake.script")
LARGEST_REQUEST = 2**20  # bytes
PR_SET_PDEATHSIG = 1  # of prctl(2)


def start(modules: Sequence[str] = MODULES) -> None:
    """Starts the process for the jobs of this run; it ends with the run. It imports at the first request."""
    os.environ[ADDRESS] = str(Path(mkdtemp(prefix="lpvit-"), "socket"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(os.environ[ADDRESS])
    listener.listen(64)
    command = [sys.executable, "-m", "lpvit.stages.preloaded", str(listener.fileno()), *modules]
    subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])  # its end of file ends the process
    listener.close()


def hand_over(script: str) -> None:
    """Runs the script in a fork of the process and exits with its code; returns if there is no such process."""
    address = os.environ.get(ADDRESS)
    if address is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(address)
            environment = {name: value for name, value in os.environ.items() if name != ADDRESS}
            request = [sys.executable, script, str(Path.cwd()), environment]
            socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
            answer = connection.recv(64)  # after the script has ended
        except OSError:  # on another machine
            return
    if answer == b"refused":
        return
    _end_like(int(answer or 1))


def serve(listener: socket.socket, modules: Sequence[str]) -> None:
    """Forks for every script that a job of this run requests, until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the jobs and the run receive it as well
    jobs = selectors.DefaultSelector()
    jobs.register(sys.stdin.fileno(), selectors.EVENT_READ)
    jobs.register(listener, selectors.EVENT_READ)
    running: dict[int, tuple[int, socket.socket, int]] = {}  # descriptors: of the process and of the connection -> both
    while True:
        for key, _ in jobs.select():
            if key.fd == sys.stdin.fileno():
                shutil.rmtree(Path(listener.getsockname()).parent)
                return
            if key.fd == listener.fileno():
                connection, _ = listener.accept()
                request, descriptors, *_ = socket.recv_fds(connection, LARGEST_REQUEST, 3)
                if not _is_of_this_run(connection) or json.loads(request)[0] != sys.executable:
                    connection.send(b"refused")
                    connection.close()
                    continue
                for module in modules:
                    import_module(module)
                child = _fork(request, descriptors, listener)
                job = child, connection, os.pidfd_open(child)
                for descriptor in (connection.fileno(), job[2]):
                    jobs.register(descriptor, selectors.EVENT_READ)
                    running[descriptor] = job
            elif key.fd in running:
                child, connection, process = running[key.fd]
                if key.fd != process:  # the job was killed
                    os.kill(child, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                for descriptor in (connection.fileno(), process):
                    jobs.unregister(descriptor)
                    del running[descriptor]
                os.close(process)
                with suppress(OSError):
                    connection.send(str(code).encode())
                connection.close()


def _fork(request: bytes, descriptors: list[int], listener: socket.socket) -> int:
    """Runs a script in a fork of this process; returns the process id."""
    child = os.fork()
    if child:
        for descriptor in descriptors:
            os.close(descriptor)
        return child
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    listener.close()
    _, script, folder, environment = json.loads(request)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [script]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
    sys.exit()


def _is_of_this_run(connection: socket.socket) -> bool:
    """Whether the requesting process is a descendant of the run, and not of a scheduler."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    process, run = int.from_bytes(peer[:4], sys.byteorder), os.getppid()
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
elif hasattr(sys.modules["__main__"], "snakemake"):  # a script of the workflow
    hand_over(sys.argv[0])
