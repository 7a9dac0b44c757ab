"""A function in several processes on one machine, through torch's own elastic launcher.

``torch.distributed.launcher`` is what ``torchrun`` runs on: kept with torch, no further dependency. It finds the free
port, watches the processes, and stops all of them when one fails.
"""

import json
import logging
import os
import pickle
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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

Argument = TypeVar("Argument")


def launch(function: Callable[[Argument, int, int], None], argument: Argument, processes: int, backend: str) -> None:
    """Calls ``function(argument, rank, processes)`` in new processes that form a process group; waits for all.

    Log records of rank 0 arrive at this process's loggers. The processes end with this one, however it ends.

    Args:
        function: A function of an importable module.
        argument: Can be pickled; whatever it refers to stands in an importable module, not in the script that runs.
        processes: How many.
        backend: ``gloo`` on CPUs, ``nccl`` on GPUs; process ``rank`` uses GPU ``rank``.

    Raises:
        LpvitError: One of the processes raised it; same message.
        ChildFailedError: Another exception in one of the processes; holds its traceback.
    """
    job = pickle.dumps((function, argument))  # as bytes: torch would share the tensors' memory among the processes
    with TemporaryDirectory(prefix="lpvit-") as folder, _relayed_log() as log, _hidden_main_module(), _quiet_agent():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        level = logging.getLogger().getEffectiveLevel()
        try:
            elastic_launch(config, _work)(job, backend, os.getpid(), log, level)
        except ChildFailedError:
            for message in _user_errors(Path(folder)):
                raise LpvitError(message) from None
            raise


def _work(job: bytes, backend: str, parent: int, log: Connection, level: int) -> None:
    """What each process runs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # comes when the parent dies; must also end a blocked collective
    if os.getppid() != parent:  # it died before torch asked for that signal
        sys.exit("the launching process is gone")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank == 0:
        logging.basicConfig(handlers=[_PipeHandler(log)], level=level, format="%(message)s", force=True)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend)
    function, argument = pickle.loads(job)
    function(argument, rank, world_size)
    distributed.destroy_process_group()


def _user_errors(folder: Path) -> Iterator[str]:
    """Messages of the LpvitErrors among the processes' error files.

    Others may have failed first in the eyes of the launcher: they lose the connection to the process that raised.
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
        writer.close()  # with the processes gone, the last writer: the reader comes to its end
        thread.join(timeout=5)


def _relay(reader: Connection) -> None:
    with reader, suppress(EOFError, OSError):  # OSError: the sender was killed in the middle of a record
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
    """Leaves the telling of a failure to the exception, which says the same as torch's log records."""
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
