"""GPUs are spread over jobs: with a list of devices that this machine does not have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lpvit.stages.gpus import VISIBLE, gpus_asked, own_nodes, take_gpus, visible_gpus

TAKE = """
import sys
from pathlib import Path
from lpvit.stages.gpus import take_gpus

print(take_gpus(int(sys.argv[1]), Path(sys.argv[2])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Starts jobs that take GPUs of three and hold them until they are ended."""
    monkeypatch.setenv(VISIBLE, "0,GPU-8a,2")
    running = []

    def start(count: int) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, "-c", TAKE, str(count), str(tmp_path)]
        job = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(job)
        return job, job.stdout.readline().strip()

    yield start
    for job in running:
        job.communicate()


def test_jobs_that_run_together_take_different_gpus_and_share_only_when_none_is_free(jobs) -> None:
    first, taken = jobs(1)
    assert taken == "['0']"
    assert jobs(2)[1] == "['GPU-8a', '2']"
    assert jobs(1)[1] == "['0']"
    first.communicate()
    assert jobs(2)[1] == "['0', 'GPU-8a']"


def test_a_job_sees_the_gpus_that_it_asked_for_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "0, 1,2")
    assert take_gpus(2, tmp_path) == ["0", "1"]
    assert os.environ[VISIBLE] == "0,1"
    assert take_gpus(0, tmp_path) == []
    assert os.environ[VISIBLE] == ""
    assert visible_gpus() == []


def test_gpus_are_asked_for_by_their_resource_or_by_that_of_slurm() -> None:
    asked = [{}, {"gpu": 0}, {"gpu": 2}, {"gpu": 0, "gres": "gpu:3"}, {"gres": "gpu:a100:4"}, {"gres": None, "gpu": 1}]
    assert [gpus_asked(resources) for resources in asked] == [0, 0, 2, 3, 4, 1]


def test_without_gpus_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "-1")
    assert take_gpus(1, tmp_path) == []
    assert os.environ[VISIBLE] == "-1"


def test_without_a_folder_for_locks_gpus_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "0,1")
    assert take_gpus(1, tmp_path / "no/such") == ["0"]


def test_processes_divide_over_the_machines_of_the_run_not_over_those_of_a_scheduler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [own_nodes(asked) for asked in ((), ("a", "b"), 4)] == [1, 2, 1]
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    assert own_nodes("slurm") == 3
