"""The workflow as a user meets it: what runs, what reruns, what a kill and a full run leave behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pandas as pd
import pytest
import timm
import torch
from conftest import Run, Workflow

from lpvit.allocation.settings import Budget
from lpvit.api.checkpoint import load as load_pruned
from lpvit.api.prune import prune
from lpvit.data.loading import evaluation_loader
from lpvit.models.architecture import load_model
from lpvit.settings import Compute
from lpvit.store.artifacts import load
from lpvit.store.schemas import (
    ALL,
    ALLOCATION,
    BLOCKS,
    CHOICES,
    COSTS,
    CURVES,
    ENERGY,
    FREEDOMS,
    FRONTIER,
    LATENCY,
    LAYERS,
    METRICS,
    OUTCOMES,
    SAMPLES,
    SPEED,
)
from lpvit.store.tables import read_parquet
from lpvit.structures.blocks.masks import expand_keep_masks, load_masks, verify_pruned
from lpvit.structures.blocks.settings import Blocks

EVALUATION = {"evaluate_pruned", "total_costs_pruned", "evaluate_finetuned", "total_costs_finetuned"}
AFTER_ALLOCATION = {"allocate_sparsity", "build_masks", "finetune", *EVALUATION}
AFTER_CURVES = {"measure_rate_distortion"} | AFTER_ALLOCATION
AFTER_STATISTICS = {"collect_statistics"} | AFTER_CURVES
AFTER_DENSE = {"train_dense", "evaluate_dense", "total_costs_dense"} | AFTER_STATISTICS
REPORT = {
    "summarize",
    "plot",
    "write_page",
    "write_speed_to_page",
    "all",
    "trace_frontier",
    "measure_interactions",
}
CHECK = {"check_experiments"}
UNTIL = ("--until", "total_costs")

BUDGET = Path("results/digits/vit/c64/b8/half")


def stages(jobs: dict[str, int]) -> set[str]:
    return set(jobs) - REPORT - CHECK


def test_every_stage_runs_once_and_ends_in_a_table_that_names_the_report(finished: tuple[Workflow, Run]) -> None:
    workflow, run = finished
    assert stages(run.jobs) == {"index_images", "sample_calibration", *AFTER_DENSE}
    table = run.output[run.output.index("| dataset ") :]
    for word in ("dense", "pruned", "finetuned", "results/report/tiny"):
        assert word in table
    assert "leaked" not in run.output  # what an extension says when modules are torn down
    assert not list(workflow.folder.glob("results/**/*.partial"))
    assert not list(workflow.folder.glob("results/**/*resume.pt"))


def test_a_second_run_has_nothing_to_do(finished: tuple[Workflow, Run], tiny_config: dict) -> None:
    assert finished[0].would_run(tiny_config) == {}


def test_every_table_reads_back_under_its_schema(finished: tuple[Workflow, Run]) -> None:
    schemas = {schema.file: schema for schema in ALL}
    tables = list((finished[0].folder / "results").rglob("*.parquet"))
    assert {"images.parquet", "allocation.parquet", "metrics.parquet"} <= {table.name for table in tables}
    for table in tables:
        read_parquet(table, schemas[table.name.removeprefix("dense_")])


def test_pruned_and_finetuned_weights_are_zero_where_the_masks_say_so(finished: tuple[Workflow, Run]) -> None:
    folder = finished[0].folder / BUDGET
    keep_masks, block_shape = load_masks(folder / "masks.pt")
    for kind, file in (("pruned", "pruned.pt"), ("finetuned", "short/finetuned.pt")):
        architecture, state = load_model(folder / file, kind)
        verify_pruned(state, expand_keep_masks(architecture.build(state), keep_masks, block_shape))


def test_the_budget_is_kept_by_what_is_evaluated(finished: tuple[Workflow, Run]) -> None:
    results = finished[0].folder
    dense = read_parquet(results / "results/digits/vit/dense/metrics.parquet", METRICS).iloc[0]
    for stage in ("pruned", "short/finetuned"):
        kept = read_parquet(results / BUDGET / stage / "metrics.parquet", METRICS).iloc[0]
        assert 0.59 < kept["macs"] / dense["macs"] <= 0.6


@pytest.mark.parametrize(
    ("key", "value", "rerun"),
    [
        ("budgets.half.macs", 0.7, AFTER_ALLOCATION),
        ("budgets.half.allocator", "uniform", AFTER_ALLOCATION),
        ("budgets.half.steps", 2, AFTER_ALLOCATION | {"prune_iteratively"}),
        ("budgets.half.reconstruction", "least_squares", AFTER_ALLOCATION - {"allocate_sparsity"}),
        ("prunings.b8.order", 1, AFTER_CURVES),
        ("prunings.b8.distortion", "empirical", AFTER_CURVES),
        ("prunings.b8.saliency", "l1", AFTER_CURVES),
        ("prunings.b8.distortion", "gauss_newton", AFTER_STATISTICS),
        ("prunings.b8.saliency", "gauss_newton", AFTER_STATISTICS),
        ("prunings.b8.block_shape", [8, 16], AFTER_STATISTICS),
        ("calibrations.c64.seed", 1, {"sample_calibration"} | AFTER_STATISTICS),
        ("energy", {"dtype": "int8"}, {"total_costs_dense", "total_costs_pruned", "total_costs_finetuned"}),
        ("compute.threads", 2, set()),
        ("compute.evaluation_batch_size", 64, set()),
    ],
)
def test_a_changed_setting_reruns_its_stage_and_what_follows(
    finished: tuple[Workflow, Run], tiny_config: dict, change, key: str, value: object, rerun: set[str]
) -> None:
    assert stages(finished[0].would_run(change(tiny_config, key, value))) == rerun


@pytest.mark.thorough
def test_a_dense_model_learns_from_a_teacher_of_timm(workflow: Workflow, tiny_config: dict, change) -> None:
    teacher = timm.create_model("test_vit", num_classes=10)
    with torch.no_grad():
        teacher.head.bias[3] = 100  # of all images it says that they are a 3
    torch.save(teacher.state_dict(), workflow.folder / "teacher.pt")
    taught = {"distillation": "hard", "teacher": "test_vit", "distillation_alpha": 1.0, "epochs": 1}
    recipe = {**tiny_config["recipes"]["short"], **taught, "teacher_checkpoint": "teacher.pt", "learning_rate": 0.01}
    model = tiny_config["models"]["vit"]
    config = change(tiny_config, "models.vit.options", {**model["options"], "in_chans": 3})
    config = change(config, "models.vit.data_config", {"mean": [0.3] * 3, "std": [0.38] * 3, "crop_pct": 1.0})
    run = workflow.run(change(config, "recipes.short", recipe), "results/digits/vit/dense.pt")
    assert run.code == 0, run.output
    architecture, state = load_model(workflow.folder / "results/digits/vit/dense.pt", "dense")
    assert set(architecture.build(state)(torch.randn(20, 3, 8, 8)).argmax(dim=1).tolist()) == {3}


def test_a_second_experiment_shares_the_stages_in_common(
    finished: tuple[Workflow, Run], tiny_config: dict, change
) -> None:
    config = change(tiny_config, "budgets.more", {"macs": 0.8, "allocator": "uniform"})
    config = change(config, "experiments.more", {**tiny_config["experiments"]["main"], "budget": "more"})
    jobs = finished[0].would_run(config)
    assert stages(jobs) == AFTER_ALLOCATION
    assert all(jobs[stage] == 1 for stage in AFTER_ALLOCATION)


def test_a_precision_shares_everything_with_the_experiment_and_gets_rows_of_its_own(
    finished: tuple[Workflow, Run], tiny_config: dict, change, tmp_path: Path
) -> None:
    workflow = Workflow(shutil.copytree(finished[0].folder, tmp_path / "copy"))
    config = change(tiny_config, "quantisations", {"w8a8": {}})
    config = change(config, "experiments.main.quantisation", "w8a8")
    config = change(config, "export", {"opset": 19})
    run = workflow.run(config, "summarize", "export")
    assert run.code == 0, run.output
    assert stages(run.jobs) == {"quantise", "evaluate_quantised", "total_costs_quantised", "export_model", "export"}
    assert run.jobs["quantise"] == run.jobs["evaluate_quantised"] == run.jobs["export_model"] == 2
    table = pd.read_csv(workflow.folder / "results/report/tiny/summary.csv").set_index("stage")
    assert list(table.index) == ["dense", "pruned", "finetuned", "quantised", "finetuned_quantised"]
    assert table.loc["quantised", "macs"] == table.loc["pruned", "macs"]
    assert table.loc["quantised", "energy"] < 0.4 * table.loc["pruned", "energy"]
    folder = workflow.folder / BUDGET
    architecture, state = load_model(folder / "short/quantised@w8a8.pt", "finetuned_quantised")
    assert {str(value.dtype) for name, value in state.items() if "mlp.fc1.weight" in name} == {"torch.int8"}
    verify_pruned(state, expand_keep_masks(architecture.build(state), *load_masks(folder / "short/masks.pt")))
    exported, images = load_pruned(folder / "short/quantised@w8a8.safetensors"), torch.randn(4, 1, 8, 8)
    assert torch.equal(exported.model(images), architecture.build(state).eval()(images))
    opsets = {each.domain: each.version for each in onnx.load(folder / "short/quantised@w8a8.onnx").opset_import}
    assert opsets[""] == 19


def test_reordered_keys_rerun_nothing(finished: tuple[Workflow, Run], tiny_config: dict) -> None:
    reordered = {
        section: dict(reversed(value.items())) if isinstance(value, dict) else value
        for section, value in reversed(tiny_config.items())
    }
    reordered["models"] = {"vit": dict(reversed(tiny_config["models"]["vit"].items()))}
    assert stages(finished[0].would_run(reordered)) == set()


EDITED = {
    "allocation/allocate.py": AFTER_ALLOCATION,
    "allocation/knapsack.py": set(),  # of an allocator that is not chosen
    "structures/blocks/distortions/taylor.py": AFTER_CURVES,
    "structures/blocks/distortions/empirical.py": set(),  # not chosen
    "structures/blocks/rate_distortion.py": AFTER_CURVES,
    "structures/blocks/statistics/averaged_gradients.py": AFTER_STATISTICS,
    "structures/blocks/products.py": set(),  # of a statistic that is not needed
    "training/train.py": AFTER_DENSE,
    "training/launcher.py": set(),  # how a training is started
    "data/loaders/memory.py": AFTER_DENSE,
    "data/loaders/dali.py": set(),  # not chosen
    "report/figures/curves.py": set(),
}


@contextmanager
def appended(files: Iterable[Path], line: str) -> Iterator[None]:
    """While it lasts, files end with a further line."""
    originals = {file: file.read_text() for file in files}
    try:
        for file, text in originals.items():
            file.write_text(f"{text}\n{line}\n")
        yield
    finally:
        for file, text in originals.items():
            file.write_text(text)


@pytest.mark.parametrize("module", EDITED)
def test_an_edited_module_reruns_the_stages_that_import_it(
    finished: tuple[Workflow, Run], tiny_config: dict, module: str
) -> None:
    with appended([finished[0].folder / "lpvit" / module], "EDITED = True"):
        assert stages(finished[0].would_run(tiny_config)) == EDITED[module]


def test_a_comment_reruns_nothing(finished: tuple[Workflow, Run], tiny_config: dict) -> None:
    with appended([finished[0].folder / "lpvit" / module for module in EDITED], "# a comment"):
        assert finished[0].would_run(tiny_config) == {}


@pytest.mark.thorough
def test_schemes_are_added_to_the_pruned_model_trained_and_counted(tiny_config: dict, change, finished) -> None:
    workflow, _ = finished
    schemes = {
        "tokens": {"scheme": "token_selection", "keep_tokens": 0.5, "before_blocks": [1]},
        "rows": {"scheme": "sparse_attention", "pattern": "block", "stride": 4},
    }
    main = tiny_config["experiments"]["main"]
    config = change(tiny_config, "schemes", schemes)
    config = change(config, "experiments", {"main": main, "both": {**main, "schemes": ["rows", "tokens"]}})
    run = workflow.run(config)
    assert run.code == 0, run.output
    assert stages(run.jobs) == {"count_costs", *AFTER_ALLOCATION}
    folder = workflow.folder / "results/digits/vit/c64/b8"
    plain, both = (
        read_parquet(next(folder.glob(f"{budget}/*/finetuned/metrics.parquet")), METRICS).iloc[0]
        for budget in (main["budget"], f"{main['budget']}@rows@tokens")
    )
    assert both["macs"] < plain["macs"]
    costs = read_parquet(folder.parents[1] / "costs@rows@tokens.parquet", COSTS)
    assert both["macs"] / costs["macs"].sum() == pytest.approx(tiny_config["budgets"]["half"]["macs"], abs=0.01)
    assert plain["macs_all"] - both["macs_all"] > plain["macs"] - both["macs"]  # of attention too
    kinds = workflow.folder / "lpvit/schemes/kinds"
    for record in (folder / f"{main['budget']}@rows@tokens").rglob("*.settings.json"):
        sources = json.loads(record.read_text())["settings"]["sources"]
        chosen = {name.split("/")[2] for name in sources if name.startswith("schemes/kinds/")}
        assert chosen <= {"__init__.py", "token_selection", "sparse_attention"}
        if "schemes/edit.py" in sources:  # its script can add schemes to a model
            assert len(chosen) == 3, record
    (kinds / "token_merging/__init__.py").open("a").write("\nEDITED = True\n")  # not chosen
    assert stages(workflow.would_run(config)) == set()
    (kinds / "token_selection/__init__.py").open("a").write("\nEDITED = True\n")
    assert stages(workflow.would_run(config)) == stages(run.jobs)
    assert workflow.run(config, "--until", "count_costs").code == 0  # as if it was interrupted there
    left = stages(run.jobs) - {"count_costs", "allocate_sparsity"}  # the costs that it goes by are as before
    assert stages(workflow.would_run(config)) == left


@pytest.mark.thorough
def test_factors_and_aligned_blocks_are_experiments_like_others(tiny_config: dict, change, finished) -> None:
    workflow, _ = finished
    main = {**tiny_config["experiments"]["main"], "recipe": None, "budget": "refitted"}
    config = change(tiny_config, "budgets.refitted", {"macs": 0.6, "reconstruction": "least_squares"})
    config = change(config, "prunings.factors", {"structure": "factors", "rank_multiple": 2})
    config = change(config, "prunings.aligned", {**tiny_config["prunings"]["b8"], "basis": "aligned"})
    config = change(
        config, "budgets.by_outcome", {"points_lost": 20, "held_out": 100, "reconstruction": "least_squares"}
    )
    experiments = {name: {**main, "pruning": name} for name in ("factors", "aligned")}
    experiments["outcome"] = {**experiments["factors"], "budget": "by_outcome"}
    run = workflow.run(change(config, "experiments", experiments))
    assert run.code == 0, run.output
    folder = workflow.folder / "results/digits/vit/c64"
    dense = read_parquet(folder.parent / "costs.parquet", COSTS)["macs"].sum()
    for name, edits in (("factors", ["factors"]), ("aligned", ["bases", "blocks"])):
        metrics = read_parquet(folder / name / "refitted/pruned/metrics.parquet", METRICS).iloc[0]
        assert 0.5 < metrics["macs"] / dense <= 0.6
        architecture, state = load_model(folder / name / "refitted/pruned.pt", "pruned")
        assert [edit.kind for edit in architecture.edits] == edits
        assert architecture.build(state)(torch.rand(1, 1, 8, 8)).isfinite().all()
    assert read_parquet(folder / "aligned/freedoms.parquet", FREEDOMS)["used"].all()
    tried = read_parquet(folder / "factors/by_outcome/outcomes.parquet", OUTCOMES)
    metrics = read_parquet(folder / "factors/by_outcome/pruned/metrics.parquet", METRICS).iloc[0]
    (share,) = tried.loc[tried["chosen"], "macs"]
    assert share - 0.1 < metrics["macs"] / dense <= share
    assert (folder / "factors/by_outcome/outcomes.svg").exists()
    assert workflow.would_run(change(config, "experiments", experiments)) == {}


def test_an_allocation_alone_under_two_budgets_happens_for_real(tiny_config: dict, change, finished) -> None:
    workflow, _ = finished
    curves = workflow.folder / "results/digits/vit/c64/b8/curves.parquet"
    before = curves.stat().st_mtime_ns
    extra = change(tiny_config, "budgets.other", {"sparsity": 0.3, "energy": 0.9, "reconstruction": "least_squares"})
    main = {**tiny_config["experiments"]["main"], "budget": "other", "recipe": None}
    run = workflow.run(change(extra, "experiments", {"other": main}), *UNTIL, "trace_frontier")
    assert run.code == 0, run.output
    assert stages(run.jobs) == AFTER_ALLOCATION - {"finetune", "evaluate_finetuned", "total_costs_finetuned"}
    assert curves.stat().st_mtime_ns == before
    metrics = read_parquet(curves.parent / "other/pruned/metrics.parquet", METRICS).iloc[0]
    assert metrics["sparsity"] == pytest.approx(0.3, abs=0.01)
    dense = read_parquet(workflow.folder / "results/digits/vit/dense/metrics.parquet", METRICS).iloc[0]
    allocation = read_parquet(curves.parent / "other/allocation.parquet", ALLOCATION).iloc[0]
    assert allocation["second_achieved"] == pytest.approx(metrics["energy"] / dense["energy"], rel=1e-6)
    assert read_parquet(curves.parent / "other/frontier.parquet", FRONTIER)["level"].nunique() == 3


def test_gauss_newton_curves_and_the_exact_allocator_run_through_the_workflow(
    tiny_config: dict, change, finished
) -> None:
    workflow, _ = finished
    pruning = {**tiny_config["prunings"]["b8"], "saliency": "gauss_newton", "distortion": "gauss_newton"}
    config = change(tiny_config, "prunings", {"gn": pruning})
    config = change(config, "budgets.half.allocator", "exact")
    main = {**tiny_config["experiments"]["main"], "recipe": None, "pruning": "gn"}
    run = workflow.run(change(config, "experiments", {"gn": main}), *UNTIL)
    assert run.code == 0, run.output
    folder = workflow.folder / "results/digits/vit/c64/gn"
    products = load(folder / "statistics.pt", "statistics")["blocks.0.attn.qkv"]["block_products"]
    blocks, curves = read_parquet(folder / "blocks.parquet", BLOCKS), read_parquet(folder / "curves.parquet", CURVES)
    assert products.shape == (64 * 2, (blocks["layer"] == "blocks.0.attn.qkv").sum())
    assert (curves.groupby("layer")["distortion"].first() == 0).all()
    assert (curves.groupby("layer")["distortion"].last() > 0).all()
    allocation = read_parquet(folder / "half/allocation.parquet", ALLOCATION)
    assert 0.59 < allocation["achieved"].iloc[0] <= 0.6
    config = change(config, "prunings.gn.form", "diagonal")
    assert stages(workflow.would_run(change(config, "experiments", {"gn": main}))) == AFTER_CURVES - {
        "finetune", "evaluate_finetuned", "total_costs_finetuned",
    }  # fmt: skip


def test_the_library_prunes_as_the_workflow_does_whose_models_are_exported_on_request(
    tiny_config: dict, change, finished
) -> None:
    workflow, _ = finished
    pruning = Blocks(block_shape=(8, 8), saliency="gauss_newton", distortion="gauss_newton", batch_size=32)
    budget = Budget(macs=0.5, reconstruction="least_squares", steps=4)
    config = change(tiny_config, "prunings.ours", pruning.model_dump(mode="json"))
    config = change(config, "budgets.fitted", budget.model_dump(mode="json"))
    ours = {**tiny_config["experiments"]["main"], "pruning": "ours", "budget": "fitted", "recipe": None}
    run = workflow.run(change(config, "experiments.ours", ours), "export")
    assert run.code == 0, run.output

    results = workflow.folder / "results/digits/vit"
    architecture, dense = load_model(results / "dense.pt", "dense")
    samples = read_parquet(results / "c64/samples.parquet", SAMPLES)
    compute = Compute(device="cpu", threads=1)
    model = architecture.build(dense)
    loader = evaluation_loader(samples, {"root": None, "loader": "memory"}, model, 32, compute)
    pruned = prune(model, loader, budget=0.5, block_shape=(8, 8))
    exported = load_pruned(results / "c64/ours/fitted/model.safetensors")
    assert all(torch.equal(mask, exported.keep_masks[layer]) for layer, mask in pruned.keep_masks.items())
    assert exported.budget == pruned.budget
    weights, expected = exported.model.state_dict(), load_model(results / "c64/ours/fitted/pruned.pt", "pruned")[1]
    for name, value in pruned.model.state_dict().items():
        assert torch.equal(weights[name], expected[name])
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)  # threads may differ

    finetuned = workflow.folder / BUDGET / "short"
    expected, read = (
        load_model(finetuned / "finetuned.pt", "finetuned")[1],
        load_pruned(finetuned / "model.safetensors"),
    )
    assert all(torch.equal(value, expected[name]) for name, value in read.model.state_dict().items())
    assert read.budget == Budget(macs=0.6)
    assert (finetuned / "model.onnx").stat().st_size > 4 * sum(value.numel() for value in expected.values())


@pytest.mark.thorough
def test_speed_is_measured_on_request_and_so_is_the_table_of_a_budget_in_milliseconds(
    tiny_config: dict, change, finished
) -> None:
    workflow, _ = finished
    config = change(tiny_config, "benchmark", {"seconds": 0.02, "batch_sizes": [1, 4], "energy_seconds": 0.02})
    config = change(config, "budgets.timed", {"latency": 1.0})
    config = change(config, "quantisations", {"w8a8": {}})
    timed = {**tiny_config["experiments"]["main"], "budget": "timed", "recipe": None, "quantisation": "w8a8"}
    config = change(config, "experiments.timed", timed)
    config = change(config, "prunings.narrower", {"structure": "width"})
    config = change(config, "experiments.narrower", {**tiny_config["experiments"]["main"], "pruning": "narrower"})
    run = workflow.run(config, "benchmark")
    assert run.code == 0, run.output
    assert run.jobs["narrow_model"] == run.jobs["allocate_sparsity"] == run.jobs["build_masks"] == 1

    results = workflow.folder / "results/digits/vit"
    latency = read_parquet(results / "latency/8x8/latency.parquet", LATENCY)
    allocation = read_parquet(results / "c64/b8/timed/allocation.parquet", ALLOCATION)
    assert set(latency["tokens"]) == {1, 5}  # of the head, of the transformer blocks
    assert allocation["budget"].tolist() == ["latency"] * len(allocation)
    for folder, stage, setups in (
        (workflow.folder / BUDGET / "short/finetuned", "finetuned", {"dense", "masked", "sparse"}),
        (results / "c64/b8/timed/quantised@w8a8", "quantised", {"dense", "sparse"}),
    ):
        speed = read_parquet(folder / "speed.parquet", SPEED)
        assert set(speed["stage"]) == {stage}
        assert (speed["threads"] == 2).all()  # all cores of the run, whatever the threads of other stages
        choices = read_parquet(folder / "choices.parquet", CHOICES)
        layers = choices[choices["kind"] == "layer"]
        assert set(layers["module"]) == set(allocation["layer"])
        assert set(read_parquet(folder / "energy.parquet", ENERGY)["configuration"]) == setups
    report = workflow.folder / "results/report/tiny"
    table = pd.read_csv(report / "speed.csv")
    assert table.groupby("experiment").size().to_dict() == {"main": 6, "narrower": 6, "timed": 4}
    assert "| main       | sparse        |" in (report / "speed.md").read_text()
    assert {"speed_up.png", "latency.png", "choices.csv"} <= {file.name for file in report.iterdir()}

    narrower = results / "c64/narrower/half"
    metrics = read_parquet(narrower / "short/finetuned/metrics.parquet", METRICS).iloc[0]
    layers = read_parquet(narrower / "short/finetuned/layers.parquet", LAYERS)
    dense = read_parquet(results / "dense/metrics.parquet", METRICS).iloc[0]
    assert 0.5 < metrics["macs"] / dense["macs"] <= 0.6
    assert metrics["macs_all"] < dense["macs_all"]
    assert not layers["prunable"].any()
    architecture, state = load_model(narrower / "short/finetuned.pt", "finetuned")
    assert sum(value.numel() for value in state.values()) == metrics["parameters"]
    assert architecture.build(state).blocks[0].mlp.fc1.out_features < 128

    longer = workflow.run(change(config, "benchmark.seconds", 0.03), "benchmark", "--dry-run")
    assert stages(longer.jobs) == {
        "benchmark_model_quantised",
        "benchmark_model_finetuned",
        "summarize_speed",
        "benchmark",
    }
    assert stages(workflow.would_run(change(tiny_config, "benchmark", {"seconds": 0.03}))) == set()


@pytest.mark.thorough
def test_speed_is_summarised_where_nothing_loses_blocks(tiny_config: dict, change, finished) -> None:
    workflow, _ = finished
    config = change(tiny_config, "benchmark", {"seconds": 0.02, "batch_sizes": [1], "energy_seconds": 0.02})
    config = change(config, "report", "ranks")
    config = change(config, "prunings.ranks", {"structure": "factors"})
    only = {**tiny_config["experiments"]["main"], "pruning": "ranks", "recipe": None}
    run = workflow.run(change(config, "experiments", {"main": only}), "benchmark")
    assert run.code == 0, run.output
    report = workflow.folder / "results/report/ranks"
    assert len(pd.read_csv(report / "speed.csv")) == 3
    assert pd.read_csv(report / "speed_up.csv").empty
    assert not (report / "speed_up.png").exists()


def test_a_killed_workflow_finishes_with_the_same_weights(
    workflow: Workflow, tiny_config: dict, change, finished: tuple[Workflow, Run]
) -> None:
    command, environment = workflow.command(tiny_config)
    process = subprocess.Popen(
        command, cwd=workflow.folder, env=environment, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:  # kill it in the middle of the dense training
        if re.search("epoch 1/2, ", line):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    assert not (workflow.folder / "results/digits/vit/dense.pt").exists()
    again = workflow.run(tiny_config, str(BUDGET / "pruned.pt"))
    assert again.code == 0, again.output
    assert "epoch 1/2" not in again.output  # it resumed
    undisturbed = load_model(finished[0].folder / BUDGET / "pruned.pt", "pruned")[1]
    resumed = load_model(workflow.folder / BUDGET / "pruned.pt", "pruned")[1]
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("budgets.half.mcas", 0.5, "config: budgets.half.mcas: unknown key; did you mean 'macs'?"),
        ("budgets.half.macs", "much", "config: budgets.half.macs: "),
        ("budgets.half.macs", 1.5, "config: budgets.half.macs: "),
        ("experiments.main.budget", "hafl", "experiments.main.budget: no 'hafl' in budgets; did you mean 'half'?"),
    ],
)
def test_a_bad_config_stops_at_once_with_one_line(
    workflow: Workflow, tiny_config: dict, change, key: str, value: object, line: str
) -> None:
    run = workflow.run(change(tiny_config, key, value), "--dry-run")
    assert run.code != 0
    assert line in run.output
    assert "Traceback" not in run.output


def test_what_cannot_work_is_found_before_any_training(workflow: Workflow, tiny_config: dict) -> None:
    main, model = tiny_config["experiments"]["main"], tiny_config["models"]["vit"]
    wrong = {
        "budgets": ({"macs": 0.01}, "budget: macs 0.01 is impossible"),
        "prunings": ({"block_shape": [64, 64]}, "block_shape: 64x64 is larger than a layer of 96x32"),
        "models": ({**model, "timm": "vit_tinny"}, "models: timm knows no model 'vit_tinny'; did you mean"),
        "calibrations": ({"images": 10_000}, "calibration: 10000 images asked for"),
        "datasets": ({"root": "nowhere"}, "nowhere/train: folder not found"),
    }
    sections = {section: {**tiny_config[section], "wrong": value} for section, (value, _) in wrong.items()}
    experiments = {section: {**main, section.removesuffix("s"): "wrong"} for section in wrong}
    run = workflow.run({**tiny_config, **sections, "experiments": experiments})
    assert run.code != 0
    for section, (_, line) in wrong.items():
        assert f"experiments.{section}: {line}" in run.output
    assert "Traceback" not in run.output
    assert not list((workflow.folder / "results").rglob("dense*.pt"))
    assert not list((workflow.folder / "results").rglob("*.partial"))


def test_history_of_the_training_is_kept(finished: tuple[Workflow, Run]) -> None:
    history = pd.read_parquet(finished[0].folder / BUDGET / "short/history.parquet")
    assert history["epoch"].tolist() == [1, 2]


def test_another_file_in_the_place_of_a_checkpoint_reruns_what_comes_from_it(
    finished: tuple[Workflow, Run], tiny_config: dict, change
) -> None:
    workflow, _ = finished
    _, state = load_model(workflow.folder / "results/digits/vit/dense.pt", "dense")
    given = workflow.folder / "given.pt"
    torch.save(state, given)
    options = {key: tiny_config["models"]["vit"][key] for key in ("timm", "options", "data_config")}
    model = {**options, "weights": "checkpoint", "checkpoint": "given.pt"}
    config = change(tiny_config, "models.given", model)
    config = change(config, "experiments", {"main": {**tiny_config["experiments"]["main"], "model": "given"}})
    first = workflow.run(config, "--until", "fetch_dense")
    assert first.code == 0, first.output
    assert "fetch_dense" not in workflow.would_run(config)
    torch.save({name: value + 1 for name, value in state.items()}, given)
    assert "fetch_dense" in workflow.would_run(config)
    given.unlink()
    missing = workflow.run(config, "--dry-run")
    assert missing.code != 0
    assert "models.given.checkpoint: given.pt not found" in missing.output
