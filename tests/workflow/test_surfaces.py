"""The workflow as other tools meet it: by its standard place, as a module, with a config that names its mistakes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, TINY, Run, Workflow

from lpvit.store.holding import RUN, hold, release

MODULE = """
configfile: "config/config.yaml"


module lpvit:
    snakefile: "{snakefile}"
    config: config


use rule * from lpvit as lpvit_*


rule mine:
    default_target: True
    input:
        rules.lpvit_all.input,
"""


def snakemake(folder: Path, *arguments: str) -> Run:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return Run(done.returncode, done.stdout + done.stderr)


def test_the_standard_place_of_a_snakefile_runs_the_same(finished: tuple[Workflow, Run]) -> None:
    run = finished[0].run(TINY, "--snakefile", "workflow/Snakefile", "--dry-run")
    assert (run.code, run.jobs) == (0, {})
    assert "Nothing to be done" in run.output


@pytest.mark.thorough
def test_another_workflow_uses_it_as_a_module_in_the_layout_of_snakedeploy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN, "")
    for folder in ("config", "workflow"):
        (tmp_path / folder).mkdir()
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(TINY))
    text = MODULE.format(snakefile=REPOSITORY / "workflow/Snakefile")
    (tmp_path / "workflow/Snakefile").write_text(text)
    run = snakemake(tmp_path, "lpvit_index_images", "--dry-run")
    assert run.code != 0, "a rule with wildcards is no target"
    run = snakemake(tmp_path, "results/digits/images.parquet")
    assert run.code == 0, run.output
    assert set(run.jobs) == {"lpvit_index_images"}
    assert {"mine", "lpvit_finetune", "lpvit_check_experiments"} <= set(snakemake(tmp_path, "--dry-run").jobs)
    held = hold(tmp_path / "results")  # the folder of a module is guarded as well
    run = snakemake(tmp_path, "results/digits/images.parquet", "--forceall")
    release(held)
    assert run.code == 1
    assert "results: another run works in this folder" in run.output
    (tmp_path / "workflow/Snakefile").write_text(text.replace("config: config", 'config: config\n    prefix: "sub"'))
    run = snakemake(tmp_path, "--dry-run")
    assert run.code == 1
    assert (
        "module: 'prefix' is not followed; leave it out and set 'results: PREFIX/results' in its config" in run.output
    )


def test_a_key_that_stands_twice_stops_the_run_with_its_lines(workflow: Workflow) -> None:
    (workflow.folder / "twice.yaml").write_text("report: a\nbudgets: {half: {macs: 0.5}}\nreport: b\n")
    run = snakemake(workflow.folder, "--configfile", "twice.yaml", "--dry-run")
    assert run.code == 1
    assert "twice.yaml, line 3: 'report' appears here and in line 1; rename one" in run.output


def test_every_rule_says_what_it_does_and_none_the_same_as_another(workflow: Workflow) -> None:
    shutil.copytree(REPOSITORY / "config", workflow.folder / "config")
    rules = [line for line in snakemake(workflow.folder, "--list-rules").output.splitlines() if line[:1].islower()]
    assert len(rules) > 20
    told = [rule.partition(" (")[2] for rule in rules]
    assert all(told)
    assert len(set(told)) == len(told)


def test_a_first_run_names_no_reason_but_that_nothing_is_there(workflow: Workflow, tiny_config: dict) -> None:
    run = workflow.run(tiny_config, "--dry-run")
    assert "reason: Missing output files" in run.output
    assert "changed since last execution" not in run.output
