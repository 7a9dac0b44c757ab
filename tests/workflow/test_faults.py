"""Nothing breaks it: a fault is told in one line, loses nothing, and the next run ends as if undisturbed.

The marker `faults` is for the long part: kinds of fault x stages.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Run, Workflow
from faults import Disturbed, differences, wait_for
from PIL import Image

RECIPE = Path("results/digits/vit/c64/b8/half/short")
STAGES = {
    "index_images": "results/digits/images.parquet",
    "train_dense": "results/digits/vit/dense.pt",
    "collect_statistics": "results/digits/vit/c64/b8/statistics.pt",
    "measure_rate_distortion": "results/digits/vit/c64/b8/curves.parquet",
    "build_masks": "results/digits/vit/c64/b8/half/pruned.pt",
    "finetune": f"{RECIPE}/finetuned.pt",
    "evaluate_finetuned": f"{RECIPE}/finetuned/accuracy.parquet",
    "summarize": "results/report/tiny/summary.csv",
}  # fmt: skip


@pytest.fixture
def disturbed(finished: tuple[Workflow, Run], tmp_path: Path) -> Workflow:
    """A copy of the finished workflow, to be broken."""
    shutil.copytree(finished[0].folder, tmp_path / "copy")
    return Workflow(tmp_path / "copy")


@pytest.fixture
def undisturbed(finished: tuple[Workflow, Run]) -> Path:
    return finished[0].folder / "results"


@pytest.mark.thorough
def test_an_orphan_stops_and_replaces_nothing_and_a_second_run_waits_for_the_first(
    disturbed: Workflow, tiny_config: dict[str, Any], change, undisturbed: Path
) -> None:
    longer = change(tiny_config, "recipes.deep", {**tiny_config["recipes"]["short"], "epochs": 500})
    longer = change(longer, "experiments.main.recipe", "deep")
    target = str(RECIPE.with_name("deep") / "finetuned.pt")
    first = Disturbed(disturbed, longer, target).until("epoch 1/500")
    training = first.job("finetune")

    second = disturbed.run(change(longer, "recipes.deep.epochs", 1), target)
    assert second.code != 0
    assert f"another run works in this folder (process {first.process.pid} on " in second.output
    assert "Traceback" not in second.output

    first.process.kill()  # Snakemake alone
    assert wait_for(lambda: not training.is_running() or training.status() == "zombie")
    first.process.wait()
    third = disturbed.run(change(longer, "recipes.deep.epochs", 1), target)
    assert third.code == 0, third.output
    assert len(pd.read_parquet(disturbed.folder / RECIPE.with_name("deep") / "history.parquet")) == 1
    assert not list(disturbed.folder.rglob("*.partial"))
    shutil.rmtree(disturbed.folder / RECIPE.with_name("deep"))
    assert differences(disturbed.folder / "results", undisturbed) == []


def test_ctrl_c_in_an_epoch_says_that_a_new_start_goes_on_and_does_not_look_finished(
    disturbed: Workflow, tiny_config: dict[str, Any], change
) -> None:
    longer = change(tiny_config, "recipes.deep", {**tiny_config["recipes"]["short"], "epochs": 500})
    longer = change(longer, "experiments.main.recipe", "deep")
    run = Disturbed(disturbed, longer, "--until", "finetune").until("epoch 2/500")
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
    done = run.end()
    assert done.code != 0
    assert done.output.count("interrupted: finished stages are kept; start again to resume") == 1
    assert "Traceback" not in done.output
    assert (disturbed.folder / RECIPE.with_name("deep") / "resume.pt").exists()


def test_results_are_known_without_snakemakes_memory_and_what_a_run_would_change_is_named(
    disturbed: Workflow, tiny_config: dict[str, Any], change
) -> None:
    shutil.rmtree(disturbed.folder / ".snakemake")
    assert disturbed.would_run(tiny_config) == {}
    run = disturbed.run(change(tiny_config, "budgets.half.macs", 0.3), "--dry-run")
    assert "reason: Params have changed since last execution: budget.macs: 0.6 -> 0.3" in run.output
    assert {"allocate_sparsity", "build_masks", "finetune"} <= run.jobs.keys()
    assert "measure_rate_distortion" not in run.jobs


@pytest.mark.thorough
def test_an_upgrade_names_its_modules_and_touch_keeps_the_results(
    disturbed: Workflow, tiny_config: dict[str, Any], undisturbed: Path
) -> None:
    for neutral in ("errors.py", "stages/stage.py", "store/artifacts.py"):
        with (disturbed.folder / "lpvit" / neutral).open("a") as module:
            module.write("\nEDITED = True\n")
    assert disturbed.would_run(tiny_config) == {}
    with (disturbed.folder / "lpvit/training/train.py").open("a") as module:
        module.write("\nEDITED = True\n")
    upgraded = disturbed.run(tiny_config, "--dry-run")
    assert "reason: Params have changed since last execution: code of training/train.py\n" in upgraded.output
    kept = disturbed.run(tiny_config, "--touch")
    assert kept.code == 0, kept.output
    shutil.rmtree(disturbed.folder / ".snakemake")
    assert disturbed.would_run(tiny_config) == {}
    assert differences(disturbed.folder / "results", undisturbed) == []


@pytest.mark.faults
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["group", "snakemake", "job", "interrupt"])
def test_a_kill_in_any_stage_loses_nothing(
    disturbed: Workflow, tiny_config: dict[str, Any], undisturbed: Path, stage: str, kind: str
) -> None:
    (disturbed.folder / STAGES[stage]).unlink()
    run = Disturbed(disturbed, tiny_config, STAGES[stage])
    job = run.job(stage.removesuffix("_finetuned"))  # one script evaluates all models
    time.sleep(np.random.default_rng(len(stage + kind)).uniform(0, 5))  # in its imports, its work, or after its end
    if kind == "group":
        os.killpg(run.process.pid, signal.SIGKILL)
    elif kind == "snakemake":
        run.process.kill()
    elif kind == "job":
        subprocess.run(["kill", "-9", str(job.pid)], check=False, capture_output=True)
    else:
        os.killpg(run.process.pid, signal.SIGINT)
    done = run.end()
    assert done.code != 0 or "100%" in done.output
    assert "Traceback" not in done.output or kind == "interrupt"  # Python's own, while it imports
    assert wait_for(lambda: not job.is_running() or job.status() == "zombie")
    again = disturbed.run(tiny_config, STAGES[stage])
    assert again.code == 0, again.output
    assert differences(disturbed.folder / "results", undisturbed) == []
    assert not list(disturbed.folder.rglob("*.partial"))
    assert stage not in disturbed.would_run(tiny_config)


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["train_dense", "collect_statistics", "build_masks", "finetune"])
def test_a_full_disk_is_one_line_and_loses_nothing(
    disturbed: Workflow, tiny_config: dict[str, Any], undisturbed: Path, stage: str
) -> None:
    file = disturbed.folder / STAGES[stage]
    room = file.stat().st_size // 2
    file.unlink()
    full = Disturbed(disturbed, tiny_config, STAGES[stage], under=["prlimit", f"--fsize={room}"]).end()
    assert full.code != 0
    assert "cannot be written (" in full.output
    assert "Traceback" not in full.output
    assert "Logging error" not in full.output
    assert not list(disturbed.folder.rglob("*.partial"))
    again = disturbed.run(tiny_config, STAGES[stage])
    assert again.code == 0, again.output
    assert differences(disturbed.folder / "results", undisturbed) == []


@pytest.mark.faults
@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs the right to mount",
)
def test_a_read_only_folder_is_one_line(disturbed: Workflow, tiny_config: dict[str, Any], change) -> None:
    mount = 'mount --bind results results && mount -o remount,ro,bind results && exec "$@"'
    config = change(tiny_config, "budgets.half.macs", 0.7)
    run = Disturbed(disturbed, config, under=["unshare", "--mount", "sh", "-c", mount, "sh"]).end()
    assert run.code != 0
    ours = "results: cannot be written (Read-only file system); allow it, or choose another folder"
    assert ours in run.output or "Write-protected output files" in run.output  # what is there already, to Snakemake
    assert "Traceback" not in run.output


@pytest.mark.faults
def test_a_training_without_memory_is_one_line_and_goes_on_with_more(
    disturbed: Workflow, tiny_config: dict[str, Any], change
) -> None:
    config = change(tiny_config, "recipes.wide", {**tiny_config["recipes"]["short"], "batch_size": 1024})
    config = change(config, "experiments.main.recipe", "wide")
    run = Disturbed(disturbed, config, "--until", "finetune", under=["prlimit", f"--data={1200 * 2**20}"]).end()
    assert run.code != 0
    assert "finetune: out of memory; lower a 'batch_size', or give it a larger machine" in run.output
    assert "Traceback" not in run.output
    again = disturbed.run(config, "--until", "finetune")
    assert again.code == 0, again.output


def photographs(root: Path, classes: tuple[str, str] = ("cat", "dog")) -> dict[str, Any]:
    """A small set of images, and a config that prunes a random model on it."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 100), ("val", 10)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"it's; {number}.png")
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    names = {"dataset": "d", "model": "m", "calibration": "c", "pruning": "p", "budget": "b"}
    return {
        "compute": {"device": "cpu", "threads": 1},
        "datasets": {"d": {"root": str(root), "loader": "memory"}},
        "models": {"m": {"timm": "vit_tiny_patch16_224", "options": options, "weights": "random"}},
        "calibrations": {"c": {"images": 64}},
        "prunings": {"p": {"block_shape": [8, 8], "points": 5}},
        "budgets": {"b": {"macs": 0.6}},
        "experiments": {"main": names},
    }


@pytest.mark.faults
def test_with_two_threads_instead_of_one_masks_are_equal(
    disturbed: Workflow, tiny_config: dict[str, Any], change, undisturbed: Path
) -> None:
    made = [STAGES[stage] for stage in ("collect_statistics", "measure_rate_distortion", "build_masks")]
    for file in made:
        (disturbed.folder / file).unlink()
    run = disturbed.run(change(tiny_config, "compute.threads", 2), *made)
    assert run.code == 0, run.output
    assert run.jobs.keys() >= {"collect_statistics", "build_masks"}
    masks = Path(STAGES["build_masks"]).relative_to("results")
    assert (
        differences((disturbed.folder / "results" / masks).parent, (undisturbed / masks).parent).count("masks.pt") == 0
    )


@pytest.mark.faults
def test_images_that_are_broken_or_bombs_are_named_or_left_out(workflow: Workflow, change) -> None:
    config = photographs(workflow.folder / "images")
    broken, bomb = (workflow.folder / f"images/train/{name}/it's; 7.png" for name in ("cat", "dog"))
    broken.write_bytes(broken.read_bytes()[:150])
    Image.new("1", (19_000, 10_000)).save(bomb)
    run = workflow.run(config, "--until", "index_images")
    assert run.code != 0
    assert f"index_images: {broken}: " in run.output
    assert f"{bomb}: DecompressionBombError" in run.output
    assert "Traceback" not in run.output
    skipped = workflow.run(change(config, "datasets.d.on_bad_image", "skip"), "--until", "sample_calibration")
    assert skipped.code == 0, skipped.output
    assert "2 of 220 images cannot be decoded and are left out" in skipped.output


@pytest.mark.faults
def test_an_image_that_goes_or_comes_reruns_what_depends_on_it_and_in_between_is_named(workflow: Workflow) -> None:
    config = photographs(workflow.folder / "images")
    assert workflow.run(config, "--until", "fetch_dense", "sample_calibration").code == 0
    assert "index_images" not in workflow.would_run(config)
    samples = pd.read_parquet(workflow.folder / "results/d/m/c/samples.parquet")
    gone = workflow.folder / "images" / samples["path"][0]
    gone.unlink()
    run = workflow.run(config, "--until", "collect_statistics", "--rerun-triggers", "mtime")  # the index is not asked
    assert run.code != 0
    assert str(gone) in run.output
    assert "Traceback" not in run.output
    changed = workflow.run(config, "--dry-run")
    assert "listing.files: 220 -> 219" in changed.output
    assert {"index_images", "fetch_dense", "collect_statistics"} <= changed.jobs.keys()
    again = workflow.run(config, "--until", "collect_statistics")
    assert again.code == 0, again.output


@pytest.mark.faults
def test_hostile_names_are_names(workflow: Workflow, change) -> None:
    config = photographs(workflow.folder / "im ages;$(touch pwned)", ("a\nb", "`touch pwned`"))
    config = change(config, "results", "re sults;$(touch pwned)&")
    run = workflow.run(config, "--until", "build_masks")
    assert run.code == 0, run.output
    assert (workflow.folder / config["results"] / "d/m/c/p/b/masks.pt").exists()
    assert not list(workflow.folder.rglob("pwned"))
    for name in ("..", "a/b", "a b", "a\nb", "$(touch pwned)"):
        refused = workflow.run(change(config, "budgets", {name: {"macs": 0.6}}), "--dry-run")
        assert refused.code != 0
        assert "config: budgets" in refused.output
        assert "Traceback" not in refused.output
