"""`profiles/slurm`: what jobs ask a scheduler for, and how that is changed without an edit of a rule."""

import re
import shutil

import pytest
from conftest import Workflow

pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs lpvit[slurm]")


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
        assert (asked[rule]["nodes"], asked[rule]["gres"]) == ("2", "gpu:2")
    assert asked["evaluate"]["gpu"] == "1"
    assert "gpu" not in asked["index_images"]
    assert (asked["build_masks"]["mem_mb"], asked["build_masks"]["gpu"]) == ("123", "0")
