"""Every key of every section: its change reruns the rules that read it and what follows from them, and nothing else.

The rules of one workflow with all kinds of experiments are asked for the inputs and params of their jobs, before and
after a change of one key. What differs reruns, with all that comes from it (`test_workflow.py` asks Snakemake itself).
"""

import functools
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import snakemake.rules
import yaml
from conftest import REPOSITORY, TINY
from sections import sections_of
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

from lpvit.allocation.settings import OUTCOMES, TARGETS
from lpvit.config.config import Config, Experiment, parse_config
from lpvit.settings import Section
from lpvit.store.records import _flat, _plain

# --- the workflow: something of every kind ---------------------------------------------------------------------------

VIT = TINY["models"]["vit"]
GIVEN = {"timm": VIT["timm"], "options": VIT["options"]}
GAUSS_NEWTON = {"block_shape": [8, 8], "saliency": "gauss_newton", "distortion": {"name": "gauss_newton"}}
RECIPE = TINY["recipes"]["short"]
PLAIN = {"dataset": "photos", "model": "random", "calibration": "c", "pruning": "b8", "budget": "half"}

CONFIG: dict[str, Any] = {
    "datasets": {
        "photos": {"root": "photos", "loader": "memory"},
        **{
            kind: {"root": "photos", "loader": "memory", "source": {"name": kind}} for kind in ("csv", "parquet", "tar")
        },
        "unlabelled": {"root": "unlabelled", "loader": "memory", "source": {"name": "unlabelled"}},
    },
    "models": {
        "random": {**GIVEN, "weights": "random"},
        "trained": {**GIVEN, "weights": "train", "recipe": "dense"},
        "given": {**GIVEN, "weights": "checkpoint", "checkpoint": "given.pt"},
        "hub": {"transformers": "hub", "weights": "random"},
        "coded": {"module": "coded:build", "weights": "random"},
        "vision": {"torchvision": "vit_b_16", "weights": "random"},
        "clip": {"open_clip": "ViT-B-32", "weights": "random"},
        "headless": {**GIVEN, "weights": "random", "num_classes": 0},
    },
    "calibrations": {"c": {"images": 64}},
    "prunings": {
        "b8": {"block_shape": [8, 8], "distortion": {"name": "taylor"}},
        "gn": GAUSS_NEWTON,
        "aligned": {**GAUSS_NEWTON, "basis": "aligned"},
        "factors": {"structure": "factors"},
        "mixed": {"structure": "mixed"},
        "width": {"structure": "width"},
    },
    "budgets": {
        "half": {"macs": 0.5},
        "narrow": {"macs": 0.5},
        "two": {"macs": 0.5, "energy": 0.5, "steps": 2},
        "rounds": {"macs": 0.5, "steps": 2, "reconstruction": "least_squares"},
        "fitted": {"macs": 0.5, "reconstruction": "least_squares"},
        "paper": {"macs": 0.5, "allocator": {"name": "lpvit"}},
        "timed": {"latency": 0.5},
        "timed_elsewhere": {"latency": 0.5, "latency_table": "latency.parquet"},
        "lost": {"points_lost": 1, "reconstruction": "least_squares"},
        "quick": {"milliseconds": 1},
    },
    "schemes": {
        "tokens": {"scheme": "token_selection", "before_blocks": [1]},
        "merged": {"scheme": "token_merging"},
        "sparse": {"scheme": "sparse_attention"},
    },
    "recipes": {
        "dense": RECIPE,
        "short": {**RECIPE, "rand_augment": None},
        "soft": {**RECIPE, "distillation": "soft", "teacher": "test_vit"},
        "features": {**RECIPE, "distillation": "features", "teacher": "dense"},
    },
    "quantisations": {"w8a8": {}},
    "experiments": {
        "plain": {**PLAIN, "recipe": "short", "quantisation": "w8a8", "published": {"row": "mine"}},
        "soft": {**PLAIN, "recipe": "soft"},
        "features": {**PLAIN, "recipe": "features"},
        **{kind: {**PLAIN, "dataset": kind} for kind in ("csv", "parquet", "tar")},
        **{kind: {**PLAIN, "model": kind} for kind in ("trained", "given", "hub", "coded", "vision", "clip")},
        "gn": {**PLAIN, "pruning": "gn", "budget": "two", "schemes": ["tokens"]},
        "rounds": {**PLAIN, "pruning": "gn", "budget": "rounds"},
        "aligned": {**PLAIN, "pruning": "aligned", "budget": "fitted"},
        "factors": {**PLAIN, "pruning": "factors", "budget": "fitted", "schemes": ["sparse"]},
        "mixed": {**PLAIN, "pruning": "mixed", "budget": "fitted", "schemes": ["merged"]},
        "width": {**PLAIN, "pruning": "width", "budget": "narrow"},
        **{budget: {**PLAIN, "budget": budget} for budget in ("paper", "timed", "timed_elsewhere")},
        "lost": {**PLAIN, "pruning": "factors", "budget": "lost"},
        "quick": {**PLAIN, "budget": "quick"},
        "unlabelled": {**PLAIN, "dataset": "unlabelled", "model": "headless", "budget": "fitted"},
    },
}

# --- which rules read a key ------------------------------------------------------------------------------------------

INDEX, SAMPLE, DENSE = {"index_images"}, {"sample_calibration"}, {"fetch_dense", "train_dense"}
LOADED = {
    *("evaluate", "train_dense", "align_model", "collect_statistics", "measure_rate_distortion", "prune_iteratively"),
    *("search_outcome", "build_masks", "narrow_model", "finetune", "quantise"),
}
STATISTICS = {"collect_statistics", "measure_rate_distortion", "prune_iteratively"}
CURVES = {"measure_rate_distortion", "prune_iteratively"}
ALLOCATION = {"prune_iteratively", "search_outcome", "allocate_sparsity", "trace_frontier", "export_model"}
COMPRESSION = {"search_outcome", "allocate_sparsity", "build_masks", "trace_frontier"}
SCHEMES, TRAINING, QUANTISATION = (
    {"count_costs", "build_masks", "narrow_model"},
    {"finetune", "train_dense"},
    {"quantise"},
)

Rules = set[str]
NAMED: dict[str, dict[str, tuple[Any, Rules]]] = {
    "datasets.photos": {
        "source": ("csv", INDEX),
        "root": ("elsewhere", INDEX | LOADED),
        "train": ("training", INDEX),
        "validation": ("test", INDEX),
        "validation_share": (0.1, INDEX),
        "class_order": ("natural", INDEX),
        "on_bad_image": ("skip", INDEX),
        "loader": ("timm", LOADED),
    },
    "datasets.unlabelled": {"probe": ("photos", {"evaluate"})},
    "datasets.csv.source": dict.fromkeys(("path_column", "label_column", "images"), ("other", INDEX)),
    "datasets.parquet.source": dict.fromkeys(("image_column", "label_column"), ("other", INDEX)),
    "datasets.tar.source": dict.fromkeys(("image_suffix", "label_suffix", "label_key"), (".other", INDEX)),
    "models.random": {
        "timm": ("deit_tiny_patch16_224", DENSE),
        "options": ({**VIT["options"], "depth": 3}, DENSE),
        "data_config": ({"crop_pct": 0.9}, DENSE),
        "output": (("logits",), DENSE),
        "weights": ("pretrained", DENSE),
        "seed": (1, DENSE),
    },
    "models.given": {"checkpoint": ("other.pt", DENSE)},
    "models.headless": {"num_classes": (3, DENSE)},
    "models.trained": {"recipe": ("short", DENSE)},
    "models.hub": {"transformers": ("hub2", DENSE)},
    "models.vision": {"torchvision": ("vit_b_32", DENSE)},
    "models.clip": {"open_clip": ("ViT-B-16", DENSE)},
    "models.coded": {"module": ("coded:other", DENSE)},
    "calibrations.c": {"images": (32, SAMPLE), "seed": (1, SAMPLE | {"search_outcome"})},
    "prunings.b8": {
        "batch_size": (32, LOADED - {"evaluate", "train_dense", "finetune"}),
        "block_shape": ([8, 4], STATISTICS | COMPRESSION | {"measure_latency"}),
        "basis": ("aligned", STATISTICS | {"search_outcome", "build_masks", "finetune"}),
        "saliency": ("l1", CURVES),
        "distortion": ("empirical", CURVES),
        "points": (50, CURVES),
        "layers": (["qkv", "fc1"], STATISTICS),
    },
    "prunings.b8.distortion": {"order": (1, CURVES)},
    "prunings.gn": {"probes": (3, STATISTICS)},
    "prunings.gn.distortion": {"form": ("diagonal", CURVES), "correction_images": (8, CURVES)},
    "prunings.factors": {
        "batch_size": (32, LOADED - {"evaluate", "train_dense", "finetune"}),
        "rank_multiple": (4, CURVES | COMPRESSION),
        "form": ("pivoted", CURVES | COMPRESSION),
        "metric": ("fisher", STATISTICS | COMPRESSION),
        "refine_steps": (9, COMPRESSION),
        "probes": (3, STATISTICS),
        "layers": (["qkv", "fc1"], STATISTICS),
    },
    "prunings.mixed": {
        "batch_size": (32, LOADED - {"evaluate", "train_dense", "finetune"}),
        "block_shape": ([8, 4], STATISTICS | COMPRESSION),
        "rank_multiple": (4, CURVES | COMPRESSION),
        "form": ("pivoted", CURVES | COMPRESSION),
        "basis": (["residual"], {"align_model"}),
        "probes": (3, STATISTICS),
        "layers": (["qkv", "fc1"], STATISTICS),
    },
    "prunings.width": {"batch_size": (32, {"narrow_model"})},
    "budgets.narrow": {"macs": (0.4, {"narrow_model", "export_model"})},
    "budgets.half": {
        **dict.fromkeys(("macs", "sparsity", "parameters", "bytes", "energy"), (0.4, ALLOCATION)),
        "latency": (0.4, ALLOCATION),
        "points_lost": (2, ALLOCATION),
        "allocator": ("uniform", ALLOCATION),
        "min_keep_ratio": (0.1, ALLOCATION),
        "reconstruction": ("least_squares", {"build_masks", "export_model"}),
    },
    "budgets.rounds": {"steps": (3, ALLOCATION)},
    "budgets.paper.allocator": {
        "smoothing": (0.4, ALLOCATION), "stencil_step": (5, ALLOCATION), "power_beta": (0.5, ALLOCATION),
    },
    "budgets.timed_elsewhere": {"latency_table": ("other.parquet", ALLOCATION)},
    "budgets.lost": {"held_out": (500, ALLOCATION), "points_lost": (2, ALLOCATION)},
    "budgets.quick": {"milliseconds": (2, ALLOCATION)},
    "schemes.tokens": {
        "keep_tokens": (0.6, SCHEMES), "before_blocks": ([0], SCHEMES), "temperatures": ([5.0, 0.5], SCHEMES),
    },
    "schemes.merged": {"merged_tokens": (3, SCHEMES)},
    "schemes.sparse": {"pattern": ("block", SCHEMES), "stride": (4, SCHEMES)},
    "recipes.short": {
        "epochs": (3, TRAINING),
        "batch_size": (32, TRAINING),
        "accumulation": (2, TRAINING),
        "learning_rate": (0.1, TRAINING),
        "learning_rate_batch_size": (32, TRAINING),
        "min_learning_rate": (1e-5, TRAINING),
        "warmup_epochs": (1, TRAINING),
        "crop_scale": ([0.5, 1], TRAINING),
        "crop_ratio": ([0.5, 1], TRAINING),
        "rand_augment": ("rand-m9", TRAINING),
        "repeated_augmentation": (2, TRAINING),
        "precision": ("bfloat16", TRAINING),
        "seed": (1, TRAINING),
        **dict.fromkeys(("weight_decay", "clip_grad_norm", "label_smoothing", "drop_path", "mixup"), (0.25, TRAINING)),
        **dict.fromkeys(("cutmix", "horizontal_flip", "color_jitter", "random_erasing", "ema_decay"), (0.25, TRAINING)),
        **dict.fromkeys(("choose_by", "pruned_over"), (0.25, TRAINING)),
    },
    "recipes.soft": {
        "distillation": ("hard", TRAINING),
        "teacher": ("vit_tiny_patch16_224", TRAINING),
        "teacher_checkpoint": ("given.pt", TRAINING),
        "distillation_alpha": (0.9, TRAINING),
        "distillation_temperature": (9, TRAINING),
    },
    "recipes.features": {"features_loss": ("cosine", TRAINING), "distillation_blocks": (1, TRAINING)},
    "quantisations.w8a8": {
        "precision": ("bfloat16", QUANTISATION),
        "layers": (["fc1"], QUANTISATION),
        "rounding": ("nearest", QUANTISATION),
    },
}  # fmt: skip

# What all jobs share: rules that have the key among their params, whatever the experiment
COSTS = {"total_costs", "allocate_sparsity", "prune_iteratively", "trace_frontier"}
SHARED: dict[str, dict[str, tuple[Any, Rules]]] = {
    "energy": {
        "dtype": ("int8", COSTS),
        **dict.fromkeys(("mac", "dram", "sram", "buffer", "reuse"), (9.0, COSTS)),
        "batch_size": (9, COSTS),
    },
    "benchmark": {
        "dtype": ("bfloat16", {"benchmark_model", "measure_latency"}),
        "layer_batch_size": (4, {"measure_latency"}),
        "configurations": (["dense", "sparse"], {"benchmark_model"}),
        "batch_sizes": ([1], {"benchmark_model"}),
        "seconds": (1, {"benchmark_model"}),
        "energy_seconds": (1, {"benchmark_model"}),
        "engines": (["openvino_int8"], {"benchmark_model"}),
        "engine_images": (9, {"benchmark_model"}),
    },
    "export": {"opset": (19, {"export_model"}), "image_size": ("dynamic", {"export_model"})},
    "experiments.plain.published": {
        "row": ("yours", {"paper_tables"}),
        "top1": (80, {"paper_tables"}),
        "gmacs": (2.5, {"paper_tables"}),
        "stage": ("dense", {"paper_tables"}),
    },
    "compute": {  # where and how fast, not what
        "device": ("cpu", set()),
        "threads": (2, set()),
        "processes": (2, set()),
        "nodes": (["one", "two"], set()),
        "node_command": ("rsh {host}", set()),
        "checkpoint_minutes": (1, set()),
        "tensorboard": ("events", set()),
        "scratch": ("/tmp/scratch", set()),
        "evaluation_batch_size": (64, set()),
    },
    "": {"scale": ("proxy", {"paper_tables", "write_page", "write_speed_to_page"})},
}

DRAWN = {"plot"}  # is last: its facts come from what its inputs come from

PATHS = {  # sections of their own, and names that choose the folders of files, so that others are made
    Config: {*Config.model_fields} - {"scale"},
    Experiment: set(Experiment.model_fields),
}


# Params of other names than those of the keys that they come from
PARAMS = {
    r"rows\.0\.recipe.*": "published.stage",
    r"rows\.0\.": "published.",
    r"dataset\..*": "benchmark.engines",
    "proxy": "scale",
}


class Asked:
    """The workflow of a config, whose jobs can be asked for their inputs and params under other settings.

    Attributes:
        jobs: First output -> job.
        before: What `needs` says of this config.
        next: First output of a job -> those of the jobs that take its outputs.
    """

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
            asked = api.workflow(
                resource_settings=ResourceSettings(cores=2),
                config_settings=ConfigSettings(configfiles=[folder / "config.yaml"]),
                snakefile=REPOSITORY / "Snakefile",
                workdir=folder,
            )
            workflow = asked._workflow  # there is no public way to its jobs
            asked.dag(DAGSettings(targets={"all", "benchmark", "export"}))
            workflow.dag_settings = DAGSettings(targets={"all", "benchmark", "export"})
            workflow._prepare_dag(forceall=True, ignore_incomplete=True, lock_warn_only=True)
            workflow._build_dag()
        self.names, self.folder = workflow.globals, folder
        self.jobs = {str(job.output[0]): job for job in workflow.dag.jobs if job.output}
        self.asked = {output: job for output, job in self.jobs.items() if job.rule.name not in DRAWN}
        outputs = {job: output for output, job in self.jobs.items()}
        depending = workflow.dag.depending
        self.before = self.needs(parse_config(config))
        self.next = {
            output: {outputs[job] for job in depending[each] if job in outputs} for output, each in self.jobs.items()
        }

    def needs(self, settings: Config) -> dict[str, tuple[list[str], dict[str, Any]]]:
        """First output of every job -> its inputs and params."""
        self.names["settings"] = settings
        self.names["listing_of"].cache_clear()
        return {output: (self.inputs(job), self.params(job)) for output, job in self.asked.items()}

    @staticmethod
    def inputs(job: Any) -> list[str]:
        return sorted(map(str, job.rule.expand_input(job.wildcards_dict)[0]))

    @staticmethod
    def params(job: Any) -> dict[str, Any]:
        params, _ = job.rule.expand_params(job.wildcards_dict, job.input, job.output, job)
        return dict(params.items())

    def with_what_follows(self, outputs: Iterable[str]) -> set[str]:
        found, waiting = set(), list(outputs)
        while waiting:
            if (output := waiting.pop()) not in found:
                found.add(output)
                waiting += self.next[output]
        return found


FILES = ("given.pt", "other.pt", "latency.parquet", "other.parquet", "coded.py", "hub/config.json", "hub2/config.json")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder, handler = tmp_path_factory.mktemp("asked"), signal.getsignal(signal.SIGINT)
    for place in ("photos/train/cat", "photos/val/cat", "elsewhere/train/cat", "unlabelled", "hub", "hub2"):
        (folder / place).mkdir(parents=True)
    for file in FILES:
        (folder / file).touch()
    with pytest.MonkeyPatch.context() as patch:  # Snakemake changes the process that it runs in
        patch.chdir(folder)
        patch.setattr(snakemake.rules, "get_function_params", functools.cache(snakemake.rules.get_function_params))
        patch.setattr("sys.path", [*sys.path])
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        yield Asked(CONFIG, folder)
    signal.signal(signal.SIGINT, handler)


def changed(place: str, key: str, value: Any) -> dict[str, Any]:
    """The config with another value of one key; of a budget in the place of the one that it has."""
    config = json.loads(json.dumps(CONFIG))
    section = functools.reduce(lambda inner, name: inner.setdefault(name, {}), filter(None, place.split(".")), config)
    if key in (*TARGETS, *OUTCOMES):
        section.pop("macs", None)
    section[key] = value
    return config


def of_name(asked: Asked, output: str, section: str, name: str) -> bool:
    """Whether the path of a job spells a name of a section, or its model is trained by a recipe of this name."""
    names = asked.names["spelled"](asked.jobs[output].wildcards)
    budget, _, schemes = names.get("budget", "").partition("@")
    if section == "schemes":
        return name in [*schemes.split("@"), *names.get("schemes", "").split("@")]
    if section == "recipes" and "recipe" not in names:
        return CONFIG["models"].get(names.get("model"), {}).get("recipe") == name
    return name == (budget if section == "budgets" else names.get(section[:-1]))


NAMED_KEYS = [(place, key) for place, keys in NAMED.items() for key in keys]


@pytest.mark.parametrize(("place", "key"), NAMED_KEYS)
def test_a_key_of_a_name_reruns_what_reads_it_and_what_follows(asked: Asked, place: str, key: str) -> None:
    value, rules = NAMED[place][key]
    before, after = asked.before, asked.needs(parse_config(changed(place, key, value)))
    found = {output for output in before if before[output] != after[output]}
    assert_reruns(asked, found, rules, *place.split(".")[:2])


def assert_reruns(asked: Asked, found: Iterable[str], rules: Rules, section: str, name: str) -> None:
    """Whether the jobs of these rules and of a name rerun, with what follows, and no others."""
    reading = {
        output for output, job in asked.jobs.items() if job.rule.name in rules and of_name(asked, output, section, name)
    }
    rerun, expected = asked.with_what_follows(found), asked.with_what_follows(reading)
    assert rerun
    assert (sorted(rerun - expected), sorted(expected - rerun)) == ([], [])


def key_of(param: str) -> str:
    """The key that a param of a shared section comes from."""
    for pattern, key in PARAMS.items():
        param = re.sub(f"^{pattern}", key, param)
    return param


def test_a_key_of_all_reruns_the_rules_that_read_it(asked: Asked, tmp_path: Path, monkeypatch) -> None:
    """All of them are changed at once: the params of a job name each."""
    config = json.loads(json.dumps(CONFIG))
    for place, keys in SHARED.items():
        section = functools.reduce(
            lambda inner, name: inner.setdefault(name, {}), filter(None, place.split(".")), config
        )
        section |= {key: value for key, (value, _) in keys.items()}
    shutil.copytree(asked.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    after, found = Asked(config, tmp_path).before, set()
    for output, (_, params) in asked.before.items():
        new, old = dict(_flat(_plain(after[output][1]))), dict(_flat(_plain(params)))
        rule = asked.jobs[output].rule.name
        found |= {(rule, key_of(param)) for param in new.keys() | old.keys() if new.get(param) != old.get(param)}
    expected = {
        (rule, f"{place.rpartition('.')[2]}.{key}".strip("."))
        for place, keys in SHARED.items()
        for key, (_, rules) in keys.items()
        for rule in rules
    }
    of_config = {f"settings.{place}.{key}".replace("..", ".") for place, keys in SHARED.items() for key in keys}
    checked = {key for rule, key in found if rule == "check_experiments"}
    assert checked == of_config
    assert {each for each in found if each[0] != "check_experiments"} == expected


@pytest.mark.parametrize(
    ("file", "place", "rules"),
    [
        ("given.pt", "models.given", DENSE),
        ("hub/config.json", "models.hub", DENSE),
        ("coded.py", "models.coded", DENSE),
        ("latency.parquet", "budgets.timed_elsewhere", {"allocate_sparsity"}),
        ("photos/train/cat/new.jpg", "datasets.photos", INDEX),
    ],
)
def test_a_file_that_the_config_names_reruns_what_reads_it(asked: Asked, file: str, place: str, rules: Rules) -> None:
    path = asked.folder / file
    before = path.stat() if path.exists() else None
    path.write_text("another")
    after = asked.needs(parse_config(CONFIG))
    path.write_text("")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns)) if before else path.unlink()
    found = {output for output in after if asked.before[output] != after[output]}
    assert_reruns(asked, found, rules, *place.split("."))


def test_every_key_is_among_these() -> None:
    settings, found = parse_config(CONFIG), dict[type[Section], set[str]]()
    for place, keys in {**NAMED, **SHARED}.items():
        section: Any = settings
        for name in filter(None, place.split(".")):
            section = section[name] if isinstance(section, dict) else getattr(section, name)
        found.setdefault(type(section), set()).update(keys)
    tags = {"name", "scheme", "structure"}
    left = {
        kind: set(kind.model_fields) - found.get(kind, set()) - PATHS.get(kind, set()) - tags
        for kind in sections_of(Config)
    }
    assert {kind.__name__: keys for kind, keys in left.items() if keys} == {}


def test_scripts_know_the_config_by_their_params_alone() -> None:
    scripts = (REPOSITORY / "workflow/scripts").glob("*.py")
    assert [file.name for file in scripts if "snakemake.config" in file.read_text()] == [
        "write_page.py"
    ]  # which shows it
