"""The benchmark of pruning on the digits, small: it runs, measures what it says, and goes on after it was stopped."""

import pandas as pd
import pytest
import yaml
from conftest import Run, Workflow, run_benchmark

PLAN = {
    "calibration": 64,
    "validation": 100,
    "seeds": 2,
    "macs": [0.5],
    "block_shapes": [[8, 8]],
    "reconstructions": ["none", "least_squares"],
    "methods": {
        "paper": {"pruning": {"saliency": "taylor", "distortion": "taylor"}, "budget": {"allocator": "lpvit"}},
        "published": {
            "pruning": {"saliency": "taylor", "distortion": "taylor"},
            "budget": {"allocator": "lpvit"},
            "mask_saliency": "l1",
        },
        "ours": {"pruning": {"saliency": "gauss_newton", "distortion": "gauss_newton"}},
        "narrower": {"pruning": {"structure": "width"}},
        "brain": {"chosen_by": "optimal_brain_blocks"},
        "2:4": {"chosen_by": "two_of_four"},
        "gradual": {"pruning": {"saliency": "l1"}, "budget": {"allocator": "uniform"}, "pruned_over": 0.5},
    },
    "finetuning": {
        "images": 200,
        "timed_batch": 8,
        "block_shapes": [[8, 8]],
        "methods": [["ours", "least_squares"], ["narrower", "none"], ["gradual", "none"]],
        "recipe": {"epochs": 1, "batch_size": 50, "learning_rate": 1e-4, "distillation": "soft", "teacher": "dense"},
    },
}
FOLDER = "results/benchmarks/digits/vit"


@pytest.fixture(scope="module")
def benchmark(finished: tuple[Workflow, Run]):
    folder = finished[0].folder
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN))

    def run(*arguments: str) -> str:
        choice = ["--config", "config.yaml", "--dataset", "digits", "--model", "vit", "--plan", "plan.yaml"]
        return run_benchmark("pruning.py", folder, *choice, *arguments)

    return run


@pytest.mark.thorough
def test_every_arm_is_measured_once_and_at_its_budget(benchmark, finished: tuple[Workflow, Run]) -> None:
    table = benchmark()
    runs = pd.read_csv(finished[0].folder / FOLDER / "runs.csv")
    assert len(runs) == 2 * (4 * 2 + 2 + 1)
    assert not runs.duplicated(["method", "reconstruction", "seed"]).any()
    assert runs.loc[runs["method"] != "2:4", "achieved"].between(0.35, 0.5).all()
    assert runs.loc[runs["method"] == "2:4", "achieved"].between(0.5, 0.52).all()  # half of what it prunes
    assert (runs["seconds"] > 0).all()
    assert all(method in table for method in PLAN["methods"])

    distortion = runs.groupby(["method", "reconstruction"])["distortion"].mean()
    fitted, plain = distortion[:, "least_squares"], distortion[:, "none"]
    assert (fitted[plain.index.drop("gradual")] < plain.drop("gradual")).all()
    assert fitted["2:4"] < plain["ours"]
    assert fitted["brain"] < plain["ours"]
    assert distortion["ours", "none"] < distortion["paper", "none"]
    assert distortion["paper", "none"] != distortion["published", "none"]

    finetuned = pd.read_csv(finished[0].folder / FOLDER / "finetuned.csv")
    assert sorted(finetuned["method"]) == ["gradual", "narrower", "ours"]
    assert (finetuned["seed"] == 0).all()
    assert finetuned["finetuned_top1"].between(0, 100).all()
    assert (finetuned["speed_up"] > 0).all()


@pytest.mark.thorough
def test_a_run_that_was_stopped_goes_on_after_the_last_line(benchmark, finished: tuple[Workflow, Run]) -> None:
    benchmark()
    file = finished[0].folder / FOLDER / "runs.csv"
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole[:-2]))
    benchmark()
    again = file.read_text().splitlines(keepends=True)
    assert again[:-2] == whole[:-2]
    assert len(again) == len(whole)
