"""A SLURM of its own on this machine: munge, controller and two nodes on the loopback interface.

All that it needs lies in one folder; neither ``/etc`` nor another SLURM is touched. Its processes, and the jobs that it
starts, carry that folder in their environment, by which the last of them is found and ended.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURED = Path("/etc/slurm/slurm.conf")
NODES = (socket.gethostname(), "localhost")  # two names of this machine
GPUS = ("/dev/null", "/dev/zero")  # of each node; SLURM asks for devices and looks no closer

_CONFIG = """\
ClusterName=lpvit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
MinJobAge=600
KillWait=2
GresTypes=gpu
NodeName={nodes[0]} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=200000 Gres=gpu:{gpus}
NodeName={nodes[1]} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=200000 Gres=gpu:{gpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """The reason why no SLURM can be started here; None if it can."""
    if CONFIGURED.exists():
        return f"a SLURM is configured here ({CONFIGURED}) and no second one is started beside it"
    if os.geteuid() != 0:
        return "SLURM's daemons start jobs as root only"
    if missing := [name for name in (*DAEMONS, "srun", "sbatch", "squeue", "scontrol") if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)}; run `make test-slurm` on Debian or Ubuntu"
    return None


@dataclass(frozen=True)
class Slurm:
    """A running one.

    Attributes:
        folder: Holds its configuration, logs and state.
        environment: Makes SLURM's commands talk to it.
    """

    folder: Path
    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout

    def jobs(self) -> dict[str, dict[str, str]]:
        """Number -> what `scontrol` tells of a job, of those that ended too."""
        lines = self.ask("scontrol", "--oneliner", "show", "job").splitlines()
        told = [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in lines if "JobId=" in line]
        return {job["JobId"]: job for job in told}

    def processes(self) -> list[int]:
        """Every process that came from it."""
        mark = f"LPVIT_SLURM={self.folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    variables = (entry / "environ").read_bytes().split(b"\0")
                except OSError:  # gone already
                    continue
                found += [int(entry.name)] if mark in variables else []
        return found


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Starts the daemons, and ends them and all that they started."""
    (folder / "bin").mkdir(parents=True)
    slurm = Slurm(folder, _environment(folder))
    _configure(folder)
    config = str(folder / "slurm.conf")
    daemons = []
    try:
        daemons.append(_start(slurm, "munged", "--foreground", "--force", *_munge_files(folder)))
        _wait((folder / "munge.socket").exists, slurm)
        daemons.append(_start(slurm, "slurmctld", "-D", "-f", config))
        daemons += [_start(slurm, "slurmd", "-D", "-f", config, "-N", node) for node in NODES]
        _wait(lambda: slurm.ask("sinfo", "--noheader", "--format=%T %D").split() == ["idle", str(len(NODES))], slurm)
        yield slurm
    finally:
        _stop(slurm, daemons)


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin",
        "SLURM_CONF": str(folder / "slurm.conf"),
        "LPVIT_SLURM": str(folder),
    }


def _configure(folder: Path) -> None:
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)
    folder.chmod(0o755)  # munge wants its folder to be safe from others, and its socket to be in reach of all
    values = {"folder": folder, "host": NODES[0], "nodes": NODES, "ports": _free_ports(3), "gpus": len(GPUS)}
    (folder / "slurm.conf").write_text(_CONFIG.format(**values))
    gpus = (f"NodeName={','.join(NODES)} Name=gpu File={device}\n" for device in GPUS)
    (folder / "gres.conf").write_text("".join(gpus))
    wrapper = folder / "bin" / "srun"  # the executor starts `srun` in a job without SLURM_CONF
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    wrapper.chmod(0o755)


def _munge_files(folder: Path) -> list[str]:
    kinds = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    return [f"--{option}={folder / f'munge.{suffix}'}" for option, suffix in kinds.items()]


def _start(slurm: Slurm, *command: str) -> subprocess.Popen[bytes]:
    """Starts a daemon, which Linux ends with the test that started it, however that ends."""
    with (slurm.folder / f"{command[0]}.{command[-1].rpartition('/')[2]}.log").open("wb") as log:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig=TERM", *command], env=slurm.environment, stdout=log, stderr=log, process_group=0
        )


def _wait(condition: Callable[[], bool], slurm: Slurm, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except subprocess.CalledProcessError:  # the controller does not answer yet
            pass
        time.sleep(0.1)
    logs = "\n".join(f"{log.name}: {log.read_text()[-1000:]}" for log in slurm.folder.glob("*.log"))
    raise TimeoutError(f"SLURM did not start in {seconds} s:\n{logs}")


def _stop(slurm: Slurm, daemons: list[subprocess.Popen[bytes]]) -> None:
    for daemon in reversed(daemons):
        daemon.terminate()
    for daemon in reversed(daemons):
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    while left := slurm.processes():  # jobs outlive the daemons
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
