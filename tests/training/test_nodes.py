"""Which machines a training gets from the config and from SLURM."""

from pathlib import Path

import pytest

from lpvit.config.config import parse_config
from lpvit.errors import LpvitError
from lpvit.settings import Compute
from lpvit.training.launcher import launch
from lpvit.training.nodes import Nodes, nodes_of


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step on node `b` of SLURM job 7, which has three nodes."""
    commands = {
        "squeue": '[ "$*" = "--noheader --jobs=7 --format=%N" ] && echo "[a-c]"',
        "scontrol": "printf 'a\\nb\\nc\\n'",
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "b", "SLURMD_NODENAME": "b"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize("asked", ["slurm", 3])
def test_all_nodes_of_the_slurm_job_train_and_the_one_that_asks_is_the_first(asked: object) -> None:
    nodes = nodes_of(asked, "ssh {host}")  # type: ignore[arg-type]
    assert nodes.hosts == ("b", "a", "c")
    assert nodes.command.startswith("srun ")


@pytest.mark.usefixtures("job")
def test_a_job_with_another_number_of_nodes_is_refused() -> None:
    with pytest.raises(LpvitError, match=r"^compute\.nodes: 2, but this SLURM job has 3; correct one of them$"):
        nodes_of(2, "ssh {host}")


@pytest.mark.parametrize("asked", ["slurm", 2])
def test_nodes_of_slurm_outside_of_a_job_are_refused(asked: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(LpvitError, match=rf"^compute\.nodes: '{asked}', but this is no SLURM job; run with --profile"):
        nodes_of(asked, "ssh {host}")  # type: ignore[arg-type]


def test_one_node_is_this_machine_and_addresses_are_taken_as_they_are() -> None:
    assert nodes_of(1, "ssh {host}") == Nodes()
    assert nodes_of(["a", "b"], "rsh {host}") == Nodes(("a", "b"), "rsh {host}")


@pytest.mark.parametrize("nodes", [2, ["a", "b"]])
def test_processes_that_do_not_divide_over_the_nodes_are_found_in_the_config(nodes: object, tiny_config: dict) -> None:
    with pytest.raises(LpvitError, match=r"^config: compute: processes: 3 do not divide over 2 nodes$"):
        parse_config({**tiny_config, "compute": {"processes": 3, "nodes": nodes}})
    assert Compute.model_validate({"processes": 4, "nodes": nodes})


def test_processes_that_do_not_divide_over_what_slurm_gave_are_refused() -> None:
    with pytest.raises(LpvitError, match=r"^compute\.processes: 3 do not divide over 2 nodes$"):
        launch(print, None, 3, "gloo", Nodes(("a", "b")))  # type: ignore[arg-type]
