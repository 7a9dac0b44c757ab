"""The machines of a training, and starting a process on each."""

import os
import shlex
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lpvit.errors import LpvitError

_SLURM = "srun --overlap --nodes=1 --ntasks=1 --nodelist={host}"


@dataclass(frozen=True)
class Nodes:
    """Machines with a shared file system, this one first.

    Attributes:
        hosts: Their addresses; empty for this machine only.
        command: Starts a command on another machine; ``{host}`` is replaced by its address.
    """

    hosts: tuple[str, ...] = ()
    command: str = "ssh {host}"

    def __len__(self) -> int:
        return max(1, len(self.hosts))

    def start(self, host: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Starts a command on another machine, in the folder of this process."""
        script = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(command)}"
        start = shlex.split(self.command.format(host=host))
        if start[0] == "ssh":  # joins its arguments to one shell line
            return subprocess.Popen([*start, script])
        return subprocess.Popen([*start, "sh", "-c", script])


def nodes_of(asked: Sequence[str] | int | Literal["slurm"], command: str) -> Nodes:
    """The nodes of the config.

    Args:
        asked: Addresses, this machine first; the number of nodes of the SLURM job; or ``slurm``: all of them.
        command: For addresses; SLURM uses ``srun``.

    Raises:
        LpvitError: This is no SLURM job, or it has another number of nodes.
    """
    if asked == 1:
        return Nodes()
    if not isinstance(asked, int | str):
        return Nodes(tuple(asked), command)
    hosts = _hosts_of_job(asked)
    if asked not in ("slurm", len(hosts)):
        raise LpvitError(f"compute.nodes: {asked}, but this SLURM job has {len(hosts)}; correct one of them")
    return Nodes(tuple(hosts) if len(hosts) > 1 else (), _SLURM)


def _hosts_of_job(asked: int | str) -> list[str]:
    """Nodes of the SLURM job, this one first; the environment of a job step lists only those of the step."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise LpvitError(
            f"compute.nodes: '{asked}', but this is no SLURM job; run with --profile profiles/slurm, or name hosts"
        )
    nodes = _told("squeue", "--noheader", f"--jobs={job}", "--format=%N")
    this = os.environ.get("SLURMD_NODENAME")
    return sorted(_told("scontrol", "show", "hostnames", *nodes), key=lambda host: host != this)


def _told(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def free_port(host: str) -> int:
    """A free port for the rendezvous of the processes."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
