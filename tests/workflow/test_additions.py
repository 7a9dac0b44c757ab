"""A figure is one file and a stage four: the diffs of CONTRIBUTING, applied to a copy of the workflow, are used."""

import re
import subprocess
import sys

import pandas as pd
import pytest
from conftest import REPOSITORY, Workflow

from lpvit.store.provenance import source_digests

FILES = {
    "spread.py": ["lpvit/report/figures/spread.py"],
    "measure_norms.py": [
        *("lpvit/costs/norms.py", "lpvit/store/schemas.py"),
        *("workflow/rules/dense.smk", "workflow/scripts/measure_norms.py"),
    ],
}


def diff_of(file: str) -> str:
    """The diff of CONTRIBUTING that adds a file."""
    diffs = re.findall(r"```diff\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (diff,) = (diff for diff in diffs if f"/{file}\n" in diff)
    return str(diff)


@pytest.fixture
def extended(workflow: Workflow) -> Workflow:
    diffs = "".join(map(diff_of, FILES))
    subprocess.run(["git", "apply", "-C1", "-"], input=diffs, cwd=workflow.folder, text=True, check=True)
    return workflow


@pytest.mark.parametrize("file", FILES)
def test_an_addition_touches_these_files_and_no_others(file: str) -> None:
    assert sorted(re.findall(r"^\+\+\+ b/(.*)", diff_of(file), re.MULTILINE)) == FILES[file]


def test_a_figure_is_drawn_for_every_experiment_that_makes_its_tables_and_shown_on_the_page(
    extended: Workflow, tiny_config: dict, change
) -> None:
    figure = "results/digits/vit/c64/b8/half/spread"
    run = extended.run(tiny_config, "--dry-run")
    (plot,) = re.findall(
        rf"rule plot:\n    input: (.*)\n    output: {figure}.svg, {figure}.png, {figure}.json", run.output
    )
    assert plot == "results/digits/vit/c64/b8/half/allocation.parquet"
    (page,) = re.findall(r"rule write_page:\n    input: (.*)\n", run.output)
    assert f"{figure}.svg" in page
    narrower = change(tiny_config, "budgets.half.structure", "width")
    assert f"{figure}.svg" not in extended.run(narrower, "--dry-run").output


def test_a_figure_that_was_added_is_drawn_and_is_code_of_its_own_job_alone(extended: Workflow) -> None:
    code = (
        "import pandas as pd\nfrom lpvit.report.drawing import draw\nfrom lpvit.report.interactive import interactive\n"
        "figure = draw('spread', {'allocation': pd.DataFrame({'keep_ratio': [0.5, 0.25]})})\n"
        "assert interactive(figure)['data'][0]['y'] == [25.0, 50.0]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=extended.folder, check=True)
    script, package = extended.folder / "workflow/scripts/plot.py", extended.folder / "lpvit"
    for figure in ("spread", "curves"):
        digests = source_digests(script, package, {"lpvit.report.figures": [figure]})
        assert ("report/figures/spread.py" in digests) == (figure == "spread")


def test_a_stage_runs_and_its_table_is_checked(extended: Workflow, tiny_config: dict, change) -> None:
    options = {key: tiny_config["models"]["vit"][key] for key in ("timm", "options", "data_config")}
    config = change(tiny_config, "models.vit", {**options, "weights": "random"})
    run = extended.run(config, "results/digits/vit/norms.parquet")
    assert run.code == 0, run.output
    assert set(run.jobs) == {"index_images", "fetch_dense", "measure_norms"}
    norms = pd.read_parquet(extended.folder / "results/digits/vit/norms.parquet")
    assert (norms["norm"] > 0).all()
    assert len(norms) == len(pd.read_parquet(extended.folder / "results/digits/vit/costs.parquet"))
