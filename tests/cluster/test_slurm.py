"""The workflow through `profiles/slurm` on a real SLURM, started for these tests alone (`make test-slurm`)."""

import fcntl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Workflow
from slurm import NODES, Slurm, running_slurm, why_not

from lpvit.models.architecture import load_model
from lpvit.store.schemas import HISTORY
from lpvit.store.tables import read_parquet

pytestmark = pytest.mark.slurm

RECIPE = "results/digits/vit/c64/b8/half/short"
TRAINED = f"{RECIPE}/finetuned.pt"
# The executor waits 10 s longer after every status check that finds no job finished: 5, 15, 25 s.
SNAKEMAKE = """
import asyncio, sys
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

RemoteExecutor.sleep = lambda self: asyncio.sleep(2)
main(sys.argv[1:])
"""
FAST = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := why_not():
        pytest.skip(reason)
    with running_slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture(scope="module")
def config(tiny_config: dict[str, Any]) -> dict[str, Any]:
    """Asks SLURM for a GPU; torch finds none and computes on the CPU."""
    return {**tiny_config, "compute": {"device": "auto", "threads": 1}}


@pytest.fixture(scope="module")
def undisturbed(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same workflow without SLURM."""
    workflow = Workflow.copied_to(tmp_path_factory.mktemp("local"))
    run = workflow.run(config, TRAINED)
    assert run.code == 0, run.output
    return workflow.folder


@pytest.fixture(scope="module")
def through_slurm(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    return Workflow.copied_to(tmp_path_factory.mktemp("cluster"))


def start(workflow: Workflow, slurm: Slurm, config: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    command, environment = workflow.command(config)
    at = command.index("--cores")
    command[at : at + 2] = ["--profile", "profiles/slurm", *FAST, *arguments]
    at = command.index("-m")
    command[at : at + 2] = ["-c", SNAKEMAKE]
    with (workflow.folder / "output.txt").open("w") as output:
        return subprocess.Popen(
            command, cwd=workflow.folder, env=environment | slurm.environment, stdout=output, stderr=output, text=True
        )


def finish(run: subprocess.Popen[str], workflow: Workflow) -> str:
    code, output = run.wait(timeout=600), (workflow.folder / "output.txt").read_text()
    assert code == 0, output
    return output


def jobs_of(rule: str, slurm: Slurm) -> list[dict[str, str]]:
    return [job for job in slurm.jobs().values() if job["Comment"].startswith(f"rule_{rule}_")]


def wait_for(file: Path, text: str, run: subprocess.Popen[str]) -> None:
    while run.poll() is None and not (file.is_file() and text in file.read_text()):
        time.sleep(0.02)


def is_locked(file: Path) -> bool:
    with file.open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_cancelled_job_is_retried_with_more_and_the_results_are_those_of_a_local_run(
    slurm: Slurm, config: dict[str, Any], undisturbed: Path, through_slurm: Workflow
) -> None:
    run = start(through_slurm, slurm, config, TRAINED)
    results = through_slurm.folder / RECIPE
    wait_for(results / "finetuned.log", "epoch 1/2", run)
    (running,) = jobs_of("finetune", slurm)
    slurm.ask("scancel", running["JobId"])
    assert is_locked(through_slurm.folder / "results/.running")  # held by the run, and not asked for by its jobs
    finish(run, through_slurm)

    cancelled, retried = jobs_of("finetune", slurm)
    assert (cancelled["JobState"], retried["JobState"]) == ("CANCELLED", "COMPLETED")
    assert (cancelled["MinMemoryNode"], retried["MinMemoryNode"]) == ("62.50G", "125G")
    assert (cancelled["TimeLimit"], retried["TimeLimit"]) == ("1-00:00:00", "2-00:00:00")
    assert "epoch 1/2" not in (results / "finetuned.log").read_text()  # it resumed
    assert retried["TresPerJob"] == jobs_of("collect_statistics", slurm)[0]["TresPerJob"] == "gres:gpu:1"
    assert (results.parent / "allocation.parquet").is_file()
    assert not jobs_of("allocate_sparsity", slurm)  # beside Snakemake

    expected, found = (load_model(folder / TRAINED, "finetuned")[1] for folder in (undisturbed, through_slurm.folder))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_nothing_is_left_to_do_afterwards_without_slurm(through_slurm: Workflow, config: dict[str, Any]) -> None:
    assert through_slurm.run(config, "--dry-run", TRAINED).jobs == {}


def test_a_training_over_two_nodes_is_one_job_of_both(
    slurm: Slurm, config: dict[str, Any], through_slurm: Workflow
) -> None:
    results = through_slurm.folder / RECIPE
    of_one = read_parquet(results / "history.parquet", HISTORY)
    (through_slurm.folder / TRAINED).unlink()
    both = {**config, "compute": {"device": "cpu", "threads": 2, "processes": 2, "nodes": 2}}
    finish(start(through_slurm, slurm, both, TRAINED), through_slurm)
    job = jobs_of("finetune", slurm)[-1]
    assert (job["NumNodes"], set(job["NodeList"].split(","))) == ("2", set(NODES))
    of_two = read_parquet(results / "history.parquet", HISTORY)
    assert of_two["train_loss"].tolist() == pytest.approx(of_one["train_loss"].tolist(), rel=1e-4)


def test_nothing_stays_behind_when_a_test_fails(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    started = []

    def fail_with_a_job() -> None:
        with running_slurm(tmp_path / "slurm") as slurm:
            started.append(slurm)
            slurm.ask("sbatch", "--mem=100", f"--output={tmp_path}/job", "--wrap", "echo started; srun sleep 600")
            while not (tmp_path / "job").is_file() or "started" not in (tmp_path / "job").read_text():
                time.sleep(0.05)
            assert len(slurm.processes()) > 4  # munge, the controller, two nodes, and the job
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_with_a_job()
    assert started[0].processes() == []
