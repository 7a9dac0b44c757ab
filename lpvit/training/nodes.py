"""The machines of a training: which they are, and how a process is started on each."""

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
    """Machines that see the same files, this one first.

    Attributes:
        hosts: Their addresses; none is this machine alone.
        command: What starts a command on another, with ``{host}`` in the place of its address.
    """

    hosts: tuple[str, ...] = ()
    command: str = "ssh {host}"

    def __len__(self) -> int:
        return max(1, len(self.hosts))

    def start(self, host: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Starts a command on another machine, in the folder of this process."""
        script = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(command)}"
        start = shlex.split(self.command.format(host=host))
        if start[0] == "ssh":  # hands its arguments to a shell as one line
            return subprocess.Popen([*start, script])
        return subprocess.Popen([*start, "sh", "-c", script])


def nodes_of(asked: Sequence[str] | Literal["slurm"], command: str) -> Nodes:
    """The nodes that the config asks for.

    Args:
        asked: Addresses, this machine first, or ``slurm``: those that the job was given.
        command: For addresses; SLURM has its own.

    Raises:
        LpvitError: This is no SLURM job.
    """
    if asked != "slurm":
        return Nodes(tuple(asked), command)
    listed = os.environ.get("SLURM_JOB_NODELIST")
    if listed is None:
        raise LpvitError("compute.nodes: 'slurm', but this is no SLURM job; run with the SLURM profile, or name hosts")
    found = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True, check=True)
    this = socket.gethostname().partition(".")[0]
    hosts = sorted(found.stdout.split(), key=lambda host: host.partition(".")[0] != this)
    return Nodes(tuple(hosts) if len(hosts) > 1 else (), _SLURM)


def free_port(host: str) -> int:
    """A port at which the processes can meet."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
