"""Runs a function in several processes on one or several machines, with torch's elastic launcher.

``torch.distributed.launcher`` is the basis of ``torchrun`` and part of torch. It finds a free port, monitors the
processes, and stops all of them when one fails. Every further machine runs its own launcher
(``python -m lpvit.training.launcher FILE``), started by that of the first machine, with the work in a file.
"""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from threading import Thread
from types import ModuleType
from typing import TypeVar

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lpvit.errors import LpvitError
from lpvit.store.holding import RUN, end_with_the_run
from lpvit.training.nodes import Nodes, free_port

Argument = TypeVar("Argument")


def launch(
    function: Callable[[Argument, int, int], None],
    argument: Argument,
    processes: int,
    backend: str,
    nodes: Nodes = Nodes(),  # noqa: B008 - frozen
) -> None:
    """Calls ``function(argument, rank, processes)`` in new processes that form a process group; waits for all.

    Log records of rank 0 are forwarded to this process's loggers. The processes end when this one ends or is killed.

    Args:
        function: A function of an importable module.
        argument: Picklable; everything it refers to is defined in an importable module, not in the running script.
        processes: How many, over all nodes.
        backend: ``gloo`` on CPUs, ``nccl`` on GPUs; a process uses the GPU of its local rank.
        nodes: Where; they share the folder in which this process runs.

    Raises:
        LpvitError: One of the processes raised it; same message. Or the processes do not divide over the nodes.
        ChildFailedError: Another exception in one of the processes; contains its traceback.
    """
    if processes % len(nodes):
        raise LpvitError(f"compute.processes: {processes} do not divide over {len(nodes)} nodes")
    job = pickle.dumps((function, argument))  # as bytes: torch would share the tensors' memory among the processes
    group = _Group(processes, backend, logging.getLogger().getEffectiveLevel(), nodes.hosts, _meeting_point(nodes))
    shared = TemporaryDirectory(prefix="lpvit-", dir="." if nodes.hosts else None)
    with shared as folder, _relayed_log() as log, _hidden_main_module():
        file = Path(folder, "job")
        file.write_bytes(pickle.dumps((group, job, os.environ.get(RUN, ""))))
        command = [sys.executable, "-m", "lpvit.training.launcher", str(file.resolve())]
        with _further_nodes([nodes.start(host, [*command, host]) for host in nodes.hosts[1:]]), _quiet_agent():
            group.run(0, job, log, Path(folder, "errors"))


@dataclass(frozen=True)
class _Group:
    """Settings shared by the launchers of all nodes."""

    processes: int
    backend: str
    level: int
    hosts: tuple[str, ...]
    meeting_point: str

    def run(self, node: int, job: bytes, log: Connection | None, folder: Path) -> None:
        """Starts the processes of one node and waits for them."""
        count = max(1, len(self.hosts))
        several = {"rdzv_backend": "static", "rdzv_configs": {"rank": node}} if count > 1 else {}
        config = LaunchConfig(
            min_nodes=count,
            max_nodes=count,
            nproc_per_node=self.processes // count,
            run_id="lpvit",
            rdzv_endpoint=self.meeting_point,
            local_addr=self.hosts[node] if self.hosts else "localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
            **({"rdzv_backend": "c10d"} | several),  # type: ignore[arg-type]
        )
        try:
            elastic_launch(config, _work)(job, self.backend, os.getpid(), log, self.level)
        except ChildFailedError:
            for message in _user_errors(folder):
                raise LpvitError(message) from None
            raise


def local_rank() -> int:
    """The number of this process on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _meeting_point(nodes: Nodes) -> str:
    return f"{nodes.hosts[0]}:{free_port(nodes.hosts[0])}" if len(nodes) > 1 else "localhost:0"


@contextmanager
def _further_nodes(launchers: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ends the launchers of the other nodes with this one, and raises if one of them failed."""
    try:
        yield
        for launcher in launchers:
            if launcher.wait():
                raise LpvitError(f"compute.nodes: the launcher of another node ended with {launcher.returncode}")
    finally:
        for launcher in launchers:
            launcher.terminate()


def _work(job: bytes, backend: str, parent: int, log: Connection | None, level: int) -> None:
    """Entry point of each process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # sent when the parent dies; must also interrupt a blocked collective
    if os.getppid() != parent:  # it died before torch registered that signal
        sys.exit("the launching process is gone")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank == 0 and log is not None:
        logging.basicConfig(handlers=[_PipeHandler(log)], level=level, format="%(message)s", force=True)
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(backend)
    function, argument = pickle.loads(job)
    function(argument, rank, world_size)
    distributed.destroy_process_group()


def _user_errors(folder: Path) -> Iterator[str]:
    """Messages of the LpvitErrors among the processes' error files.

    The launcher may report others first, because they lose the connection to the process that raised.
    """
    prefix = f"{LpvitError.__name__}: "
    for file in sorted(folder.rglob("error.json")):
        message = json.loads(file.read_text())["message"]["message"]
        if message.startswith(prefix):
            yield message.removeprefix(prefix)


class _PipeHandler(QueueHandler):
    """Sends records through a pipe, which a killed process cannot leave locked as it could a queue."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(Queue())  # stays empty
        self.connection = connection

    def enqueue(self, record: logging.LogRecord) -> None:
        self.connection.send(record)


@contextmanager
def _relayed_log() -> Iterator[Connection]:
    """The end of a pipe; log records sent through it are handled by this process's loggers."""
    reader, writer = Pipe(duplex=False)
    thread = Thread(target=_relay, args=(reader,), daemon=True)
    thread.start()
    try:
        yield writer
    finally:
        writer.close()  # the last writer once the processes have ended, so the reader sees the end of the pipe
        thread.join(timeout=5)


def _relay(reader: Connection) -> None:
    with reader, suppress(EOFError, OSError):  # OSError: the sender was killed while writing a record
        while True:
            record = reader.recv()
            logging.getLogger(record.name).handle(record)


@contextmanager
def _hidden_main_module() -> Iterator[None]:
    """Keeps spawned processes from running the caller's script a second time, as they do on start."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Silences torch's log records of a failure, which repeat the exception."""
    loggers = [
        logging.getLogger(f"torch.distributed.elastic.{name}")
        for name in ("multiprocessing.api", "agent.server.local_elastic_agent")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _main(file: str, host: str) -> int:
    """The launcher of a further node."""
    group, job, os.environ[RUN] = pickle.loads(Path(file).read_bytes())
    end_with_the_run()
    with TemporaryDirectory(prefix="lpvit-") as folder:
        try:
            group.run(group.hosts.index(host), job, None, Path(folder))
        except (LpvitError, ChildFailedError) as error:
            print(f"{host}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    # Pickled classes refer to this module by its import name, not as __main__.
    from lpvit.training.launcher import _main as main

    sys.exit(main(*sys.argv[1:]))
