import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, TINY
from sections import sections_of

from lpvit.allocation.allocators.lagrangian import Lagrangian
from lpvit.allocation.allocators.lpvit import SlopeRule
from lpvit.allocation.settings import Budget
from lpvit.config.config import Config, parse_config
from lpvit.errors import LpvitError
from lpvit.schemes.kinds.token_merging import TokenMerging
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.width.settings import Width

VALID = yaml.safe_load("""
datasets:
  digits: {source: digits, loader: memory}
  imagenet: {root: data/imagenet}
models:
  tiny: {timm: vit_tiny_patch16_224, weights: train, recipe: long}
  local: {timm: vit_tiny_patch16_224, weights: checkpoint, checkpoint: weights.pt}
calibrations: {c10: {images: 10}}
prunings: {b16: {block_shape: [16, 16]}}
budgets:
  half: {macs: 0.5}
  sparse: {sparsity: 0.7, allocator: {name: lpvit, power_beta: auto}}
  slopes: {macs: 0.5, allocator: {name: lpvit}}
recipes:
  long: {epochs: 1, batch_size: 8, learning_rate: 1e-3}
  soft: {epochs: 1, batch_size: 8, learning_rate: 0.001, distillation: soft, teacher: dense}
experiments:
  main: {dataset: digits, model: tiny, calibration: c10, pruning: b16, budget: half, recipe: long}
""")


BETA = "budgets.slopes.allocator.power_beta"
CORRECTION = "belongs to distortion 'gauss_newton': write distortion: {name: gauss_newton"


def changed(path, value):
    """The valid config with one key set; with ``...`` it is left out."""
    raw = copy.deepcopy(VALID)
    *parents, last = path.split("/")
    node = raw
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return raw


def test_a_valid_config_is_filled_with_defaults():
    config = parse_config(VALID)
    assert isinstance(config, Config)
    assert config.recipes["long"].learning_rate == 0.001  # YAML reads 1e-3 as text
    assert config.budgets["half"].allocator == Lagrangian()
    assert config.budgets["slopes"].allocator == SlopeRule(smoothing=0.5, stencil_step=4, power_beta="off")
    assert config.prunings["b16"].structure == "blocks"
    assert config.prunings["b16"].block_shape == (16, 16)
    assert config.prunings["b16"].points == 101
    assert config.compute.device == "auto"
    assert str(config.results) == "results"


def test_a_config_survives_being_written_and_read():
    config = parse_config(VALID)
    assert parse_config(config.model_dump(mode="json")) == config


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse_config(VALID).budgets["half"].macs = 0.7


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("budgets/half/macs", 1),
        ("budgets/slopes/allocator/power_beta", 0.25),
        ("budgets/slopes/allocator/power_beta", False),  # YAML's bare `off`
        ("budgets/slopes/allocator", "lpvit"),
        ("budgets/slopes/allocator", {"name": "exact"}),
        ("budgets/half", {"sparsity": 0}),
        ("budgets/half/energy", 0.5),
        ("budgets/half", {"sparsity": 0.5, "latency": 0.5, "latency_table": "x.parquet", "allocator": "exact"}),
        ("budgets/half", {"latency": 0.5}),
        (
            "benchmark",
            {"configurations": ["dense_compiled", "dense"], "batch_sizes": [8, "largest"], "dtype": "bfloat16"},
        ),
        ("energy", {"dtype": "int8", "mac": 0.3, "batch_size": 32}),
        ("budgets/half", {"sparsity": 0.93, "min_keep_ratio": 0.07}),
        ("budgets/slopes/allocator/smoothing", 1),
        ("prunings/b16/block_shape", [1, 64]),
        ("prunings/b16/distortion", "gauss_newton"),
        ("prunings/b16/distortion", {"name": "gauss_newton", "form": "diagonal"}),
        ("prunings/b16/structure", "blocks"),
        ("prunings/b16", {"structure": "width"}),
        ("schemes", {"selection": {"scheme": "token_selection", "keep_tokens": 0.5}, "merging": "token_merging"}),
        ("quantisations", {"half": {"precision": "bfloat16"}, "int8": {"rounding": "nearest"}}),
        ("prunings/b16", {"block_shape": [8, 8], "saliency": "gauss_newton", "probes": 8}),
        ("budgets/half/allocator", "exact"),
        ("prunings/b16/layers", ["fc1", "head"]),
        ("experiments/main/recipe", None),
        ("recipes/long/ema_decay", 0.999),
        ("recipes/long/crop_scale", [1.0, 1.0]),
        ("models/tiny/options", {"class_token": False}),
        ("datasets/digits-8.x+y", {"source": "digits", "loader": "memory"}),
        ("compute", {"device": "cuda", "processes": 4}),
    ],
)
def test_what_makes_sense_is_accepted(path, value):
    parse_config(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # unknown and missing keys
        ("budget", {}, "budget: unknown key; did you mean 'budgets'?"),
        ("budgets/half/mac", 0.5, "budgets.half.mac: unknown key; did you mean 'macs'?"),
        ("prunings/b16/block_size", 4, "prunings.b16.block_size: unknown key; did you mean 'block_shape'?"),
        ("compute", {"thread": 2}, "compute.thread: unknown key; did you mean 'threads'?"),
        ("calibrations/c10/zzz", 1, "calibrations.c10.zzz: unknown key; known are images, seed"),
        ("datasets", ..., "datasets: missing"),
        ("models/tiny/timm", ..., "models.tiny: timm: missing"),
        ("experiments/main/budget", ..., "experiments.main.budget: missing"),
        # references
        ("experiments/main/budget", "hal", "experiments.main.budget: no 'hal' in budgets; did you mean 'half'?"),
        ("experiments/main/recipe", "x", "experiments.main.recipe: no 'x' in recipes; known are long, soft"),
        ("models/tiny/recipe", "lung", "models.tiny.recipe: no 'lung' in recipes; did you mean 'long'?"),
        # types
        ("budgets/half/macs", "much", "budgets.half.macs: expected a number, found 'much'"),
        ("budgets/half/macs", True, "budgets.half: macs: found true, expected a value"),
        ("recipes/long/epochs", 2.5, "recipes.long.epochs: expected a whole number, found 2.5"),
        ("prunings/b16/block_shape", 16, "prunings.b16.block_shape: expected a list, found 16"),
        ("prunings/b16/block_shape", [16], "prunings.b16.block_shape.1: missing"),
        ("prunings/b16/layers", "qkv", "prunings.b16.layers: expected a list, found 'qkv'"),
        ("budgets/half", None, "budgets.half: expected keys with values, found None"),
        ("budgets", None, "budgets: expected keys with values, found None"),
        ("experiments/my run", VALID["experiments"]["main"], "experiments.my run: expected letters, digits"),
        ("report", "a/b", "report: expected letters, digits"),
        # ranges
        ("budgets/half/macs", 0, "budgets.half.macs: expected more than 0, found 0"),
        ("budgets/half/macs", 1.5, "budgets.half.macs: expected at most 1, found 1.5; it is a share: 1.5 % is 0.015"),
        ("budgets/half/macs", float("nan"), "budgets.half.macs: expected a finite number, found nan"),
        ("recipes/long/learning_rate", float("inf"), "learning_rate: expected a finite number, found inf"),
        ("recipes/long/crop_scale", [1.0, 0.1], "recipes.long.crop_scale: found [1.0, 0.1], expected a positive"),
        ("recipes/long/crop_ratio", [0, 1], "recipes.long.crop_ratio: found [0.0, 1.0], expected a positive"),
        ("prunings/b16/block_shape", [16, 0], "prunings.b16.block_shape.1: expected more than 0, found 0"),
        ("prunings/b16/points", 1, "prunings.b16.points: expected at least 2, found 1"),
        ("prunings/b16/layers", [], "prunings.b16.layers: expected at least 1 of them"),
        ("experiments", {}, "experiments: expected at least 1 of them"),
        # choices
        ("compute", {"device": "gpu"}, "compute.device: expected 'auto', 'cpu' or 'cuda', found 'gpu'"),
        (
            "datasets/digits/loader",
            "dalli",
            "datasets.digits.loader: expected 'dali', 'memory' or 'timm', found",
        ),
        ("budgets/half/allocator", "magic", "budgets.half.allocator: no 'magic'; known are erk, exact, global, lagr"),
        ("budgets/half/allocator", "unifrom", "budgets.half.allocator: no 'unifrom'; did you mean 'uniform'?"),
        ("budgets/half/allocator", {"smoothing": 1}, "budgets.half.allocator: name: missing; known are erk, exact"),
        ("budgets/half/allocator", 3, "budgets.half.allocator: expected keys with values, found 3"),
        ("budgets/half/allocator", {"name": ["erk"]}, "budgets.half.allocator: no '['erk']'; did you mean 'erk'?"),
        ("budgets/slopes/allocator/power_beta", "on", f"{BETA}: expected 'off' or 'auto', found 'on' or expected"),
        ("budgets/slopes/allocator/power_beta", True, f"{BETA}: expected 'off' or 'auto', found 'on' or expected"),
        ("budgets/slopes/allocator/power_beta", -1, f"{BETA}: expected 'off' or 'auto', found -1 or expected"),
        ("prunings/b16/structure", "blokcs", "prunings.b16: no 'blokcs'; did you mean 'blocks'?"),
        ("prunings/b16", None, "prunings.b16: expected keys with values, found None"),
        ("prunings/b16", {"points": 5}, "prunings.b16.block_shape: missing"),
        ("prunings/b16", "width", "prunings.b16: expected keys with values, found 'width'"),
        (
            "schemes",
            {"tokens": {"scheme": "token_mergin"}},
            "schemes.tokens: no 'token_mergin'; did you mean 'token_merging'?",
        ),
        # keys of another strategy
        (
            "budgets/half/power_beta",
            "auto",
            "budgets.half.power_beta: belongs to allocator 'lpvit': write allocator: {na",
        ),
        (
            "budgets/half/allocator",
            {"name": "erk", "smoothing": 1},
            "allocator.smoothing: belongs to allocator 'lpvit', not",
        ),
        (
            "budgets/slopes/allocator/smothing",
            1,
            "budgets.slopes.allocator.smothing: unknown key; did you mean 'smoothing'",
        ),
        ("prunings/b16/correction_images", 4, f"b16.correction_images: {CORRECTION}, correction_images: ...}}"),
        (
            "prunings/b16",
            {"structure": "width", "block_shape": [1, 1]},
            "b16.block_shape: belongs to structure 'blocks'",
        ),
        (
            "prunings/b16",
            {"structure": "width", "batchsize": 1},
            "b16.batchsize: unknown key; did you mean 'batch_size'?",
        ),
        (
            "schemes",
            {"tokens": {"scheme": "token_merging", "stride": 7}},
            "belongs to scheme 'sparse_attention', not to",
        ),
        (
            "quantisations",
            {"a": {"precision": "bfloat16", "rounding": "nearest"}},
            "a: rounding: belongs to precision 'int8'",
        ),
        # keys that belong together
        (
            "budgets/half",
            {},
            "budgets.half: give one of 'macs', 'sparsity', 'parameters', 'bytes', 'energy', 'latency', or",
        ),
        ("budgets/half", {"macs": 0.5, "energy": 0.5, "sparsity": 0.5}, "budgets.half: give one of 'macs', 'sparsity'"),
        ("budgets/sparse/macs", 0.5, "allocator: 'lpvit' meets one budget, found macs and sparsity; use 'lagrangian'"),
        (
            "benchmark",
            {"configurations": ["sparse"]},
            "benchmark: configurations: list 'dense', the baseline of the others",
        ),
        ("benchmark", {"configurations": ["dense", "dense"]}, "benchmark: configurations: list 'dense'"),
        ("benchmark", {"configurations": ["dense", "spars"]}, "benchmark.configurations.1: "),
        ("benchmark", {"batch_sizes": [1, "large"]}, "benchmark.batch_sizes.1: "),
        ("budgets/half/latency_table", "x.parquet", "budgets.half: latency_table: give the table"),
        ("budgets/sparse/sparsity", 0.96, "budgets.sparse: sparsity: 0.96 is impossible while min_keep_ratio 0.05"),
        ("datasets/imagenet", {}, "datasets.imagenet: root: missing"),
        ("datasets/digits/root", "x", "datasets.digits: source 'digits' takes no root"),
        ("datasets/digits/loader", "dali", "datasets.digits: source 'digits' needs 'loader: memory'"),
        (
            "datasets/imagenet/label_column",
            "y",
            "datasets.imagenet.label_column: belongs to source 'csv': write source: {",
        ),
        ("datasets/imagenet/source", "sql", "datasets.imagenet.source: no 'sql'; known are csv, digits, folder"),
        ("datasets/report", {"root": "x"}, "datasets.report: the folder 'report' is for reports"),
        ("models/tiny/weights", "checkpoint", "models.tiny: checkpoint: give a path together with"),
        ("models/local/checkpoint", ..., "models.local: checkpoint: give a path together with"),
        ("models/tiny/weights", "random", "models.tiny: recipe: 'weights: random' is not trained"),
        ("models/tiny/recipe", ..., "models.tiny: recipe: missing; 'weights: train' needs"),
        ("recipes/long/teacher", "dense", "recipes.long: teacher: give a teacher together with 'distillation: soft'"),
        ("recipes/long/distillation", "hard", "recipes.long: teacher: give a teacher together with"),
        # keys that would do nothing
        (
            "prunings/b16",
            {"structure": "factors", "refine_steps": 5},
            "experiments.main.budget: 'half': refine_steps: refines what 'reconstruction: least_squares' has refitted",
        ),
        (
            "prunings/b16/probes",
            8,
            "prunings.b16: probes: is for 'gauss_newton', as saliency or as distortion; leave it",
        ),
        ("recipes/long/distillation_alpha", 0.3, "recipes.long: distillation_alpha: belongs to distillation 'soft' or"),
        ("recipes/long/distillation_temperature", 3, "recipes.long: distillation_temperature: belongs to distillation"),
        (
            "recipes/long",
            {"epochs": 1, "batch_size": 8, "learning_rate": 1, "color_jitter": 0.3, "rand_augment": "rand-m9"},
            "recipes.long: color_jitter: does nothing with 'rand_augment'",
        ),
        ("recipes/long/distillation_blocks", 1, "recipes.long: distillation_blocks: compares the blocks with those of"),
        ("recipes/long/pruned_over", 0.5, "models.tiny.recipe: 'long' has 'pruned_over', but a dense model has no"),
        ("datasets/digits/train", "x", "datasets.digits: train: source 'digits' has its own splits"),
        ("datasets/digits/on_bad_image", "skip", "datasets.digits: on_bad_image: source 'digits' has its own splits"),
        (
            "datasets/imagenet",
            {"root": "x", "validation_share": 0.1, "validation": "test"},
            "datasets.imagenet: validation: 'validation_share' of 'train' is used instead; leave it out",
        ),
        ("models/local/seed", 1, "models.local: seed: 'weights: checkpoint' draws no weights; leave it out"),
        ("benchmark", {"engine_images": 5}, "benchmark: engine_images: is for 'engines' in int8; leave it out"),
        ("compute", {"node_command": "x {host}"}, "compute: node_command: is for addresses in 'nodes'; SLURM has its"),
        ("recipes/soft/teacher_checkpoint", "x.pt", "recipes.soft: teacher_checkpoint: only a timm teacher takes"),
    ],
)
def test_what_makes_no_sense_is_named_in_one_line(path, value, message):
    with pytest.raises(LpvitError) as error:
        parse_config(changed(path, value))
    assert message in str(error.value)
    assert str(error.value).startswith("config: ")
    assert "\n" not in str(error.value)


def test_every_problem_gets_its_line():
    raw = changed("experiments/main/budget", "hal")
    raw["experiments"]["main"]["model"] = "tine"
    with pytest.raises(LpvitError) as error:
        parse_config(raw)
    lines = [
        "config: experiments.main.model: no 'tine' in models; did you mean 'tiny'?",
        "config: experiments.main.budget: no 'hal' in budgets; did you mean 'half'?",
    ]
    assert str(error.value).splitlines() == lines
    raw = changed("budgets/half/macs", 2)
    raw["recipes"]["long"]["epochs"] = 0
    with pytest.raises(LpvitError, match=r"config: budgets\.half\.macs.*\nconfig: recipes\.long\.epochs"):
        parse_config(raw)


@pytest.mark.parametrize("raw", [None, [], "text"])
def test_a_file_without_keys_is_refused(raw):
    with pytest.raises(LpvitError, match=r"^config: expected keys with values, found"):
        parse_config(raw)


def test_a_name_that_yaml_reads_as_a_number_is_refused():
    raw = copy.deepcopy(VALID)
    raw["budgets"][1] = {"macs": 0.5}
    with pytest.raises(LpvitError, match=r"config: budgets\.1: expected text, found 1"):
        parse_config(raw)


@pytest.mark.parametrize("freedoms", ["aligned", ["hidden", "residual"], ["hidden"]])
def test_blocks_are_not_compared_with_those_in_other_bases(freedoms):
    raw = changed("prunings/b16/basis", freedoms)
    distilled = {"distillation": "soft", "teacher": "dense", "distillation_blocks": 1}
    raw["recipes"]["blocks"] = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, **distilled}
    raw["experiments"]["main"]["recipe"] = "blocks"
    if freedoms == ["hidden"]:
        parse_config(raw)
        return
    with pytest.raises(
        LpvitError, match=r"^config: experiments\.main\.recipe: 'blocks' has 'distillation_blocks', but in"
    ):
        parse_config(raw)


def test_a_structure_that_a_budget_does_not_suit_is_told_with_the_experiment():
    raw = changed("prunings/b16", {"structure": "width"})
    raw["budgets"]["half"] = {"energy": 0.5}
    with pytest.raises(
        LpvitError, match=r"^config: experiments\.main\.budget: 'half': structure 'width' takes a budget of"
    ):
        parse_config(raw)


def test_every_key_has_a_description():
    found = set(sections_of(Config))
    assert {Budget, SlopeRule, Blocks, Width, TokenMerging} <= found
    assert all(field.description or key == "name" for section in found for key, field in section.model_fields.items())
    assert all(section.__doc__ for section in found)


def test_a_dry_run_needs_no_torch():
    code = """
import sys, yaml
from lpvit.config.config import parse_config
for file in sys.argv[1:]:
    parse_config(yaml.safe_load(open(file)))
assert not {"torch", "pandas", "timm"} & set(sys.modules)
"""
    files = map(str, (REPOSITORY / "config").glob("*.yaml"))
    subprocess.run([sys.executable, "-c", code, *files], check=True)


@pytest.mark.parametrize(
    ("settings", "probes"),
    [
        ({}, 0),
        ({"distortion": "empirical"}, 0),
        ({"distortion": "gauss_newton"}, 2),
        ({"saliency": "gauss_newton", "distortion": "empirical", "probes": 4}, 4),
    ],
)
def test_probes_are_used_only_where_something_is_gauss_newton(settings, probes):
    assert Blocks(block_shape=(16, 16), **settings).probes_used == probes


def test_schemes_that_undo_each_other_are_refused_in_the_config():
    raw = changed("experiments/main/schemes", ["merged", "sparse"])
    raw["schemes"] = {"merged": "token_merging", "sparse": {"scheme": "sparse_attention"}}
    message = "experiments.main.schemes: 'token_merging' and 'sparse_attention' both change the attention of a model"
    with pytest.raises(LpvitError, match=message):
        parse_config(raw)


def test_paths_hold_the_home_folder_and_variables_and_no_address_of_a_remote_store(
    change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("DISK", "/disk")
    config = change(change(TINY, "results", "~/results"), "compute.tensorboard", "$DISK/events")
    config = change(config, "datasets.digits", {"root": "${DISK}/photos", "class_order": "~/classes.txt"})
    settings = parse_config(config)
    assert settings.results == Path("/home/ada/results")
    assert settings.compute.tensorboard == Path("/disk/events")
    assert settings.datasets["digits"].root == Path("/disk/photos")
    assert settings.datasets["digits"].class_order == Path("/home/ada/classes.txt")
    assert parse_config(change(TINY, "compute.scratch", "$TMPDIR/x")).compute.scratch == Path("$TMPDIR/x")
    for key, found, message in (
        ("results", "s3://bucket/x", "config: results: 's3://bucket/x' is in a remote store; mount or copy it"),
        ("datasets.digits", {"root": "gs://x"}, "config: datasets.digits.root: 'gs://x' is in a remote store"),
        ("results", "$NOWHERE/x", "config: results: '$NOWHERE/x': the variable $NOWHERE is not set"),
    ):
        with pytest.raises(LpvitError, match=re.escape(message)) as error:
            parse_config(change(TINY, key, found))
        assert "\n" not in str(error.value)
