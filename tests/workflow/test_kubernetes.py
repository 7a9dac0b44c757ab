"""`profiles/kubernetes` with a stand-in for `kubectl` that starts the container's command on this machine."""

import os
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, TINY, Workflow

KUBECTL = f"""#!{sys.executable}
import json, os, subprocess, sys, yaml
from pathlib import Path

jobs = Path(os.environ["JOBS"])
action, *arguments = sys.argv[1:]
names = [argument for argument in arguments if argument.startswith("job.batch/")]
if action == "create":
    assert set(arguments) == {{"--output=name", "--filename=-"}}
    manifest = sys.stdin.read()
    name = f"{{yaml.safe_load(manifest)['metadata']['generateName']}}{{len(list(jobs.glob('*.yaml')))}}"
    Path(jobs, f"{{name}}.yaml").write_text(manifest)
    container = yaml.safe_load(manifest)["spec"]["template"]["spec"]["containers"][0]
    command = ["false"] if name == os.environ.get("KILLED") else container["command"]
    shell = 'trap "" INT; "$@" > "$0.log" 2>&1 && echo Complete > "$0" || echo Failed > "$0"'
    subprocess.Popen(["sh", "-c", shell, str(jobs / name), *command], stdout=-3, stdin=-3, start_new_session=True)
    print(f"job.batch/{{name}}")
elif action == "get":
    state = jobs / names[0].removeprefix("job.batch/")
    known = state.with_name(f"{{state.name}}.yaml").is_file()
    print(f"Job {{state.read_text().strip() if state.is_file() else ''}}" if known else "", end="")
else:
    Path(jobs, "deleted").write_text(" ".join(names))
"""


@pytest.fixture
def cluster(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cluster's jobs: manifest and log of each, and the condition with which it ended."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic", reason="needs lpvit[cluster]")
    for name in ("bin", "jobs"):
        (workflow.folder / name).mkdir()
    (command := workflow.folder / "bin/kubectl").write_text(KUBECTL)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(workflow.folder / "jobs"))
    return workflow.folder / "jobs"


@pytest.mark.thorough
def test_a_job_that_fails_is_submitted_again_with_more_and_the_run_ends_well(
    cluster: Path, workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILLED", "lpvit-train-dense-1")
    options = ["--profile", "profiles/kubernetes", "--seconds-between-status-checks", "1", "--latency-wait", "2"]
    run = workflow.run(TINY, *options, "results/digits/vit/dense.pt")
    assert run.code == 0, run.output
    assert (workflow.folder / "results/digits/vit/dense.pt").is_file()
    manifests = {file.stem: yaml.safe_load(file.read_text()) for file in cluster.glob("*.yaml")}
    assert manifests.keys() == {"lpvit-index-images-0", "lpvit-train-dense-1", "lpvit-train-dense-2"}
    pods = {name: manifest["spec"]["template"]["spec"] for name, manifest in manifests.items()}
    failed, retried = pods["lpvit-train-dense-1"], pods["lpvit-train-dense-2"]
    limits = [pod["containers"][0]["resources"]["limits"] for pod in (failed, retried)]
    assert limits == [{"cpu": 1, "memory": f"{size}M", "nvidia.com/gpu": 0} for size in (64_000, 128_000)]
    assert [pod["activeDeadlineSeconds"] for pod in (failed, retried)] == [86_400, 172_800]
    mounted = {mount["name"] for mount in retried["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in retried["volumes"]}


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ('echo "Job Complete"', "success"),
        ('echo "Job SuccessCriteriaMet Complete"', "success"),
        ('echo "Job FailureTarget Failed"', "failed"),
        ('echo "Job "', "running"),
        ("true", "failed"),  # deleted
        ("false", "running"),  # the server does not answer
    ],
)
def test_the_state_of_a_job_is_one_word(
    tmp_path: Path, answer: str, state: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (command := tmp_path / "kubectl").write_text(f"#!/bin/sh\n{answer}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert os.system(f"sh {REPOSITORY}/profiles/kubernetes/status.sh job.batch/lpvit-x") == 0
    assert capfd.readouterr().out == f"{state}\n"


def test_jobs_are_cancelled_by_their_names(cluster: Path) -> None:
    script = REPOSITORY / "profiles/kubernetes/cancel.sh"
    assert os.access(script, os.X_OK)
    assert os.system(f"{script} job.batch/a job.batch/b") == 0
    assert (cluster / "deleted").read_text() == "job.batch/a job.batch/b"
