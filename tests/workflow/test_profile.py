"""What jobs ask a scheduler for, how profiles translate it, and how many GPUs are used at a time."""

import os
import re
import shutil
from importlib.util import find_spec

import pytest
from conftest import REPOSITORY, Workflow


@pytest.fixture
def submitted(workflow: Workflow, tiny_config: dict, change, monkeypatch: pytest.MonkeyPatch):
    """The arguments of every job, by its rule, of a run with four GPUs a training; a command stands in for `qsub`."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic", reason="needs lpvit[cluster]")
    config = change(tiny_config, "compute", {"device": "auto", "processes": 4, "threads": 2})
    monkeypatch.setenv("PATH", f"{workflow.folder / 'bin'}:{os.environ['PATH']}")

    snakefile = workflow.folder / "workflow/Snakefile"  # short jobs too, as they would wait for those that are not run
    snakefile.write_text(re.sub(r"localrules:\n( +\w+,\n)+", "localrules: all\n", snakefile.read_text()))

    def submit(command: str, *arguments: str) -> dict[str, str]:
        (stand_in := workflow.folder / "bin" / command).parent.mkdir()
        given = "tr '\\n' ' '" if command == "kubectl" else "true"  # a manifest, on standard input
        stand_in.write_text(f'#!/bin/sh\necho "$@ $({given})" >> submitted.txt\necho 1\n')
        stand_in.chmod(0o755)
        run = workflow.run(config, "--jobs", "99", "--immediate-submit", "--notemp", *arguments)
        lines = (workflow.folder / "submitted.txt").read_text().splitlines()
        assert lines, run.output
        return {line.split("snakejob.")[1].split(".")[0]: line for line in lines}

    return submit


LONG = {
    "index_images",
    "train_dense",
    "collect_statistics",
    "measure_rate_distortion",
    "build_masks",
    "finetune",
    "plot",
}


def test_a_submit_command_gets_gpus_memory_and_time_of_every_rule(submitted) -> None:
    asked = "{threads} gpu={resources.gpu} mem={resources.mem_mb} time={resources.runtime}"
    lines = submitted(
        "submit",
        "--default-resources",
        *("mem_mb=4000", "runtime=60", "gpu=0"),
        "--executor",
        "cluster-generic",
        "--cluster-generic-submit-cmd",
        f"submit {asked}",
    )
    assert lines.keys() > LONG
    gpus = {rule: int(re.search(r"gpu=(\d+)", line)[1]) for rule, line in lines.items()}
    assert {rule for rule, count in gpus.items() if count == 4} == {"train_dense", "finetune"}
    assert {"collect_statistics", "evaluate"} < {rule for rule, count in gpus.items() if count == 1}
    assert {"index_images", "total_costs"} < {rule for rule, count in gpus.items() if count == 0}
    assert all(re.search(r"mem=\d{4,} time=\d+", line) for line in lines.values())


@pytest.mark.parametrize(
    ("command", "profile", "train", "index"),
    [
        (
            "qsub",
            "profiles/pbs",
            "-l select=1:ncpus=2:mem=64000mb:ngpus=4 -l walltime=24:0:00",
            "-l select=1:ncpus=2:mem=8000mb:ngpus=0 -l walltime=4:0:00",
        ),
        (
            "bsub",
            "profiles/lsf",
            "-n 2 -R span[hosts=1] rusage[mem=64000MB] -W 1440 -gpu num=4 /",
            "-n 2 -R span[hosts=1] rusage[mem=8000MB] -W 240 /",
        ),
        (
            "kubectl",
            "profiles/kubernetes",
            "limits: {cpu: 2, memory: 64000M, nvidia.com/gpu: 4}",
            "limits: {cpu: 2, memory: 8000M, nvidia.com/gpu: 0}",
        ),
    ],
)
@pytest.mark.thorough
def test_the_profile_of_a_scheduler_translates_what_every_rule_asks_for(
    submitted, command: str, profile: str, train: str, index: str
) -> None:
    lines = submitted(command, "--profile", profile)
    assert lines.keys() > LONG
    assert train in lines["train_dense"]
    assert index in lines["index_images"]
    if command == "kubectl":
        assert "activeDeadlineSeconds: 86400 " in lines["train_dense"]
        assert "activeDeadlineSeconds: 14400 " in lines["index_images"]


@pytest.mark.thorough
def test_jobs_of_this_machine_are_limited_by_its_gpus(
    workflow: Workflow, tiny_config: dict, change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-1")
    auto = change(tiny_config, "compute", {"device": "auto", "threads": 1})
    run = workflow.run(auto, "--until", "index_images")
    assert re.search(r"Provided resources: .*gpu=\D*2", run.output), run.output
    assert run.code == 0
    assert "gpu=1" in workflow.run(auto, "--until", "index_images", "--resources", "gpu=1", "--forceall").output
    four = workflow.run(change(auto, "compute.processes", 4), "--until", "index_images", "--forceall")
    assert four.code == 1
    assert "config: compute.processes: needs 4 GPUs of this machine, it has 2" in four.output


@pytest.mark.skipif(find_spec("snakemake_executor_plugin_slurm") is None, reason="needs lpvit[slurm]")
def test_every_job_asks_for_memory_and_time_and_the_command_line_has_the_last_word(
    workflow: Workflow, tiny_config: dict, change, monkeypatch: pytest.MonkeyPatch
) -> None:
    (commands := workflow.folder / "bin").mkdir()  # none of SLURM
    (commands / "which").symlink_to(shutil.which("which") or "")
    monkeypatch.setenv("PATH", str(commands))
    config = change(tiny_config, "compute", {"device": "auto", "processes": 4, "nodes": 2})
    overriding = ["--set-resources", "build_masks:mem_mb=123", "build_masks:gpu=0"]
    run = workflow.run(config, "--dry-run", "--profile", "profiles/slurm", *overriding)
    assert run.code == 0, run.output
    jobs = re.findall(r"^(?:local)?rule (\w+):\n((?: +.*\n)+)", run.output, re.MULTILINE)
    asked = {rule: dict(re.findall(r"(\w+)=([^\s,]+)", text)) for rule, text in jobs}
    assert {"index_images", "train_dense", "collect_statistics", "finetune", "summarize"} <= asked.keys()
    assert all({"mem_mb", "runtime"} <= resources.keys() for rule, resources in asked.items() if rule != "all")
    for rule in ("train_dense", "finetune"):
        assert (asked[rule]["nodes"], asked[rule]["gpu"], asked[rule]["gres"]) == ("2", "0", "gpu:2")
    assert (asked["evaluate"]["gpu"], asked["index_images"]["gpu"]) == ("1", "0")
    assert (asked["build_masks"]["mem_mb"], asked["build_masks"]["gpu"]) == ("123", "0")


def test_every_rule_but_the_local_ones_asks_for_memory_time_and_gpus() -> None:
    local = re.search(r"localrules:\n((?: +\w+,\n)+)", (REPOSITORY / "workflow/Snakefile").read_text())
    assert local
    rules = "\n".join(file.read_text() for file in sorted((REPOSITORY / "workflow/rules").glob("*.smk")))
    asking = {}
    for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", rules, re.MULTILINE):
        asking[name] = set(re.findall(r"^        (mem_mb|runtime|gpu)=", body, re.MULTILINE))
    submitted = asking.keys() - set(re.findall(r"\w+", local[1]))
    assert {name: asking[name] for name in submitted if len(asking[name]) < 3} == {}
