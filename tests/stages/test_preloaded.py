"""A script in a fork of the preloaded process is as it would be alone, and ends with its job and its run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY

RUN = """
import os, sys
from lpvit.stages import preloaded
preloaded.start(["wave"])
open("address", "w").write(os.environ[preloaded.ADDRESS])
print("started", flush=True)
for line in sys.stdin:
    os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", line)
"""
JOB = """
import os, signal, sys, time
snakemake = None
print("alone", flush=True)
import lpvit.stages.preloaded
print(f"{os.getcwd()} {os.environ['MINE']} {len(sys.argv)} {os.path.basename(__file__)}", flush=True)
print(f"preloaded {'wave' in sys.modules}", file=sys.stderr, flush=True)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A run with its process; lines that it is given are run as jobs."""
    (tmp_path / "run.py").write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "run.py"], cwd=tmp_path, env=environment, text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().strip()
    yield process
    process.kill()
    process.wait()


def job(run: subprocess.Popen, folder: Path, ending: str) -> None:
    """Starts a job of the run; its code, and what it prints, end up in files."""
    (folder / "job.py").write_text(f"{JOB}\n{ending}\n")
    run.stdin.write(f"MINE=yes {sys.executable} job.py > out 2> err; echo $? > code.new; mv code.new code\n")


def within(seconds: float, what: Path) -> str:
    for _ in range(int(10 * seconds)):
        if what.exists() and what.read_text().endswith("\n"):
            return what.read_text()
        time.sleep(0.1)
    raise AssertionError(f"{what} was not written")


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('why')", 1),
        ("raise ValueError('why')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_output_folder_environment_and_exit_code_are_those_of_the_script(
    run: subprocess.Popen, tmp_path: Path, ending: str, code: int
) -> None:
    job(run, tmp_path, ending)
    assert int(within(120, tmp_path / "code")) == code
    assert (tmp_path / "out").read_text() == f"alone\nalone\n{tmp_path} yes 1 job.py\n"  # the fork begins again
    error = (tmp_path / "err").read_text()
    assert error.startswith("preloaded True\n")
    assert ("why" in error) == ("why" in ending)


def test_a_job_that_is_killed_takes_its_fork_with_it_and_so_does_the_run(run: subprocess.Popen, tmp_path: Path) -> None:
    for victim in ("job", "run"):
        (tmp_path / "out").unlink(missing_ok=True)
        job(run, tmp_path, "print(os.getpid(), flush=True); time.sleep(600)")
        while not (tmp_path / "out").exists() or (tmp_path / "out").read_text().count("\n") < 4:
            time.sleep(0.1)
        fork = psutil.Process(int((tmp_path / "out").read_text().splitlines()[-1]))
        children = psutil.Process(run.pid).children(recursive=True)
        clients = [p for p in children if p.status() != psutil.STATUS_ZOMBIE and "job.py" in p.cmdline()]
        (clients[0] if victim == "job" else run).kill()
        psutil.wait_procs([fork], timeout=60)
        assert not fork.is_running() or fork.status() == psutil.STATUS_ZOMBIE


def test_a_script_of_another_run_or_scheduler_is_refused_and_runs_as_it_is(
    run: subprocess.Popen, tmp_path: Path
) -> None:
    assert run.poll() is None
    (tmp_path / "job.py").write_text(JOB)
    for place in ((tmp_path / "address").read_text(), str(tmp_path / "nowhere")):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "LPVIT_PRELOADED": place, "MINE": "no"}
        command = [sys.executable, "job.py"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"alone\n{tmp_path} no 1 job.py\n"
        assert done.stderr == "preloaded False\n"
