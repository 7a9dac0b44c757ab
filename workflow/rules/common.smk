"""The checked config, the folders of its names, and helpers of all rules."""

import functools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

# The scripts import the package of this checkout, also in a conda environment that has only its dependencies. A
# workflow without the package, as deployed by snakedeploy, imports the installed package.
CHECKOUT = Path(str(workflow.current_basedir)).parent.parent
if (CHECKOUT / "lpvit").is_dir():
    sys.path.insert(0, str(CHECKOUT))
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ.update(PYTHONPATH=os.pathsep.join([str(CHECKOUT), *others]))

from lpvit.allocation.settings import FACTORS
from lpvit.config.config import Experiment, parse_config
from lpvit.config.files import require_sound
from lpvit.data.listing import stamps
from lpvit.errors import LpvitError
from lpvit.settings import Section, local_path
from lpvit.stages.console import VARIABLE, Console
from lpvit.stages.gpus import own_nodes, visible_gpus
from lpvit.store.provenance import source_digests

if os.environ.get(VARIABLE) and workflow.is_main_process:  # `lpvit prune`, which has switched off Snakemake's lines
    page = Path(local_path(config.get("results", "results")), "report", str(config.get("report", "main")), "index.html")
    logger.addHandler(Console(config, str(page)))

ENVIRONMENT = "../envs/lpvit.yaml"  # used with --software-deployment-method conda

DEFAULT_CONFIG = "config/config.yaml"

SALIENCIES, DISTORTIONS = "lpvit.structures.blocks.saliencies", "lpvit.structures.blocks.distortions"
STATISTICS = "lpvit.structures.blocks.statistics"

try:  # before Snakemake, which reports neither file nor line and keeps the last of duplicate keys
    require_sound(workflow.configfiles or filter(os.path.exists, [DEFAULT_CONFIG]))
except LpvitError as error:
    raise WorkflowError(*str(error).splitlines()) from None

# A file given by --configfile replaces the default one; merging would also run the default's experiments.
if not workflow.config_settings.configfiles:

    configfile: DEFAULT_CONFIG


if not workflow.is_main_process:  # which has said what it warns of
    logging.getLogger("lpvit.config").setLevel(logging.ERROR)

try:
    settings = parse_config(config)
except LpvitError as error:
    raise WorkflowError(*str(error).splitlines()) from None

if workflow.storage_settings.default_storage_provider is not None:  # records and settings lie beside the results
    raise WorkflowError(
        "--default-storage-provider: results must be in a folder of this machine; leave it out"
        " (on Kubernetes: --profile profiles/kubernetes)"
    )

CACHED = workflow.workflow_settings.cache is not None  # --cache: expensive results are shared between folders
NODES = settings.compute.nodes if isinstance(settings.compute.nodes, int) else 1  # of a training, from a scheduler
# The resource `gpu` of every rule, which profiles translate. Jobs of several nodes, which SLURM alone gives, have `gres`.
GPUS = int(settings.compute.device != "cpu")  # of a job that computes on one
GPUS_OF_TRAINING = GPUS * settings.compute.processes // own_nodes(settings.compute.nodes)
FOUND = len(visible_gpus())
if workflow.is_main_process and workflow.local_exec and not workflow.dryrun and FOUND:
    if GPUS_OF_TRAINING > FOUND:
        raise WorkflowError(f"config: compute.processes: needs {GPUS_OF_TRAINING} GPUs of this machine, it has {FOUND}")
    if "gpu" not in (workflow.resource_settings.resources or {}):
        workflow.global_resources["gpu"] = FOUND  # jobs at a time; each takes its own

RESULTS = str(settings.results)
if workflow.modifier.path_modifier.replace_prefix(RESULTS) != RESULTS:  # of a module; params hold paths as well
    raise WorkflowError(
        f"module: 'prefix' is not followed; leave it out and set 'results: PREFIX/{RESULTS}' in its config"
    )
DATASET = f"{RESULTS}/{{dataset}}"
MODEL = f"{DATASET}/{{model}}"
CALIBRATION = f"{MODEL}/{{calibration}}"
PRUNING = f"{CALIBRATION}/{{pruning}}"
BUDGET = f"{PRUNING}/{{budget}}"
ROUNDS = f"{BUDGET}/rounds"
RECIPE = f"{BUDGET}/{{recipe}}"
# Where a model is saved: `folder` is empty for the dense one, else the part of the path of budget and recipe.
FOLDER = f"{MODEL}{{folder}}"
STAGE = f"{FOLDER}/{{stage}}"  # the model is `STAGE.pt`; its measurements are in `STAGE/`
QUANTISED = "quantised@{quantisation}"
LATENCY = f"{MODEL}/latency{{added}}/{{block}}/latency.parquet"  # `added`: schemes, as in the name of a budget
REPORT = f"{RESULTS}/report/{settings.report}"

DECISIONS = ("dataset", "model", "calibration", "pruning", "budget", "recipe")  # folder by folder

experiments = settings.experiments


wildcard_constraints:
    dataset="[^/]+",
    model="[^/]+",
    calibration="[^/]+",
    pruning="[^/]+",
    budget="[^/]+",
    recipe="[^/]+",
    quantisation="[^/]+",
    folder="(|(/[^/]+){3,4})",
    stage="dense|pruned|finetuned|quantised@[^/]+",
    block=r"\d+x\d+|factors",
    added="(|@[^/]+)",


def spelled(wildcards) -> dict[str, str]:
    """The names of all decisions in a path: its wildcards, and those in `folder` or `place`."""
    names = dict(wildcards.items())
    below = names.get("folder", "").split("/")[1:]
    path = names.get("place", "report").split("/")
    return names | dict(zip(DECISIONS, path if path[0] != "report" else ())) | dict(zip(DECISIONS[2:], below))


def trained_stage(wildcards) -> str:
    """The source of a quantised or exported model: the last stage in its folder with float weights."""
    return "finetuned" if "recipe" in spelled(wildcards) else "pruned"


def kind_of(wildcards, stage: str = "") -> str:
    """The kind of a saved model: its stage, for a quantised one without the name of the precision."""
    quantised = {"pruned": "quantised", "finetuned": "finetuned_quantised"}[trained_stage(wildcards)]
    return quantised if (stage or wildcards.stage).startswith("quantised@") else stage or wildcards.stage


def exported_stage(wildcards) -> str:
    """The source of an exported file: the last model of its folder for `model`, or `quantised@...`."""
    return trained_stage(wildcards) if wildcards.file == "model" else wildcards.file


def masks_of(wildcards) -> str | list:
    return [] if wildcards.stage == "dense" else f"{FOLDER}/masks.pt".format(**wildcards)


def samples_of(wildcards) -> str:
    return f"{CALIBRATION}/samples.parquet".format(**spelled(wildcards))


def scaled(amount: int) -> Callable:
    """A resource that grows with every attempt: a job that ran out of memory or time gets more in a retry."""
    return lambda wildcards, attempt: amount * attempt


def all_cores(wildcards) -> int:
    """The cores of the run; under a scheduler, which has no such number, `compute.threads`."""
    return workflow.resource_settings.cores or settings.compute.threads


def chosen(section: Section, *fields: str, without: str | Collection[str] = ()) -> dict:
    """Settings as a param: plain values in a fixed order, so that reordering the config reruns nothing."""
    left_out = {without} if isinstance(without, str) else set(without)
    choice = {"include": set(fields) or None, "exclude": left_out}  # a line that begins with `include` is Snakemake's
    dump = section.model_dump(mode="json", **choice)
    return json.loads(json.dumps(dump, sort_keys=True))


def sources(script: str, *unused: str) -> Callable:
    """Digests of a script of workflow/scripts and of the modules that it imports: a param of every rule.

    Of strategies, those count that the path of the job chooses, but for packages that the script does not run
    (`unused`), although it reads their settings.
    """
    path = workflow.source_path(f"../scripts/{script}")

    def digests(wildcards) -> dict[str, str]:
        names = strategies_of(wildcards) | dict.fromkeys(unused, ())
        return digests_of(path, tuple((package, tuple(names[package])) for package in sorted(names)))

    return digests


@functools.cache
def digests_of(script: str, chosen: tuple) -> dict[str, str]:
    return source_digests(script, chosen=dict(chosen))


def strategies_of(wildcards) -> dict[str, Collection[str]]:
    """Registry -> strategies that the decisions in a path select: none if decided later, all for a report."""
    names = spelled(wildcards)
    figures = {"lpvit.report.figures": [names["figure"]] if "figure" in names else []}
    if "dataset" not in names:
        return figures
    pruning = settings.prunings[names["pruning"]] if "pruning" in names else None
    parts = dict(pruning.parts) if pruning is not None else {}
    blocks = parts.get("blocks")
    schemes = names["schemes"].split("@") if "schemes" in names else names.get("budget", "").split("@")[1:]
    return figures | {
        "lpvit.models.sources": [settings.models[names["model"]].source] if "model" in names else [],
        "lpvit.data.layouts": [settings.datasets[names["dataset"]].source.name],
        "lpvit.data.loaders": sorted({settings.datasets[name].loader for name in read_with(names["dataset"])}),
        "lpvit.structures": sorted({pruning.structure, *parts}) if pruning else [],
        SALIENCIES: [blocks.saliency.name] if blocks else [],
        DISTORTIONS: [blocks.distortion.name] if blocks else [],
        STATISTICS: [statistic.name for statistic in blocks.statistics] if blocks else [],
        "lpvit.allocation.allocators": [budget_of(wildcards).allocator.name] if "budget" in names else [],
        "lpvit.schemes.kinds": sorted({settings.schemes[name].scheme for name in schemes}),
    }


def read_with(dataset: str) -> list[str]:
    """The datasets whose images are read in experiments on one: itself, and its `probe`."""
    return [dataset, *filter(None, [settings.datasets[dataset].probe])]


def images_of(wildcards) -> dict:
    """The params that a stage needs to read images."""
    return chosen(settings.datasets[wildcards.dataset], "root", "loader")


def reference_of(wildcards) -> str | list:
    """The model that others are compared with, where images have no classes."""
    return [] if settings.datasets[wildcards.dataset].source.labelled else f"{MODEL}/dense.pt"


def probe_of(wildcards) -> str | list:
    """The images with classes, of another dataset, that the outputs of a model are classified on."""
    probe = settings.datasets[wildcards.dataset].probe
    return [] if probe is None else f"{RESULTS}/{probe}/images.parquet"


def probe_images_of(wildcards) -> dict | None:
    probe = settings.datasets[wildcards.dataset].probe
    return None if probe is None else chosen(settings.datasets[probe], "root", "loader")


@functools.cache
def listing_of(dataset: str) -> dict | None:
    """Fingerprint of the files of a dataset, which changes with every added, removed or replaced image."""
    asked = settings.datasets[dataset]
    return asked.listing()._asdict() if asked.root is not None else None


def recipe_of(name: str | None) -> dict | None:
    return None if name is None else chosen(settings.recipes[name])


def checkpoint_of(wildcards) -> list[str]:
    """The files of a dense model's weights: inputs, so that replacing them is detected."""
    return [existing(file, f"models.{wildcards.model}.checkpoint") for file in settings.models[wildcards.model].files]


def teacher_of(recipe: str | None) -> str | list:
    """The file of a teacher's weights, as an input."""
    file = None if recipe is None else settings.recipes[recipe].teacher_checkpoint
    return [] if file is None else existing(file, f"recipes.{recipe}.teacher_checkpoint")


def stamps_of(*files: str | list) -> dict[str, list[int]]:
    """Sizes and times of given files, if any; Snakemake only detects newer ones."""
    return stamps(file for file in files if file)


def existing(file: Path, key: str) -> str:
    if not file.is_file():
        raise WorkflowError(f"config: {key}: {file} not found; correct the path")
    return str(file)


def measures_images(wildcards) -> bool:
    return settings.prunings[wildcards.pruning].measures_images


def is_reconstructed(wildcards) -> bool:
    return budget_of(wildcards).reconstruction != "none"


def is_by_outcome(wildcards) -> bool:
    return budget_of(wildcards).by_outcome


def one_of(names: Iterable[str]) -> str:
    """Wildcard constraint: these names and no others."""
    return f"({'|'.join(map(re.escape, names)) or '(?!)'})"


def prunings_of(*structures: str) -> str:
    """Wildcard constraint: the prunings of some structures."""
    return one_of(name for name, pruning in settings.prunings.items() if pruning.structure in structures)


def basis_of(wildcards) -> str:
    """The model that a pruning prunes: the dense one, or the same in aligned bases."""
    aligned = settings.prunings[wildcards.pruning].freedoms
    return (f"{PRUNING}/aligned.pt" if aligned else f"{MODEL}/dense.pt").format(**wildcards)


def compression_of(wildcards) -> dict:
    """The settings of a pruning that decide, with an allocation, how the model is compressed."""
    pruning = settings.prunings[wildcards.pruning]
    return chosen(pruning, "structure", *pruning.compress_keys)


def measured_by(wildcards) -> dict:
    """The settings of a pruning that its scores and curves depend on."""
    pruning = settings.prunings[wildcards.pruning]
    return chosen(pruning, without=pruning.after_curves)


def compresses_by_statistics(wildcards) -> bool:
    return settings.prunings[wildcards.pruning].compresses_by_statistics


def last_step(file: str) -> Callable:
    """Scores or curves for the allocation of a budget: of the dense model, or after its pruning rounds."""
    return branch(
        lambda wildcards: budget_of(wildcards).steps > 1,
        then=f"{ROUNDS}/{file}",
        otherwise=f"{PRUNING}/{file}",
    )


def latency_of(wildcards) -> str | list:
    """The latency table of a budget in milliseconds: given, or measured on this machine; empty for other budgets."""
    budget = budget_of(wildcards)
    if budget.latency is None:
        return []
    if budget.latency_table is not None:
        return str(budget.latency_table)
    names = spelled(wildcards)
    _, at, schemes = names["budget"].partition("@")
    return [LATENCY.format(**names, added=at + schemes, block=block) for block in blocks_of(names["pruning"])]


def latency_stamp_of(wildcards) -> dict[str, list[int]]:
    """Size and time of a latency table that the config gives."""
    table = budget_of(wildcards).latency_table
    return stamps_of(str(table) if table else [])


def blocks_of(pruning: str) -> list[str]:
    """What the layers of a pruning are timed as: blocks of a shape, or factors."""
    shapes = settings.prunings[pruning].timed_shapes
    return ["factors" if shape == FACTORS else "x".join(map(str, shape)) for shape in shapes]


def energy_of(wildcards) -> dict:
    """The constants of the energy model for an energy budget; empty for other budgets."""
    return chosen(settings.energy) if budget_of(wildcards).energy is not None else {}


def batch_size_of(wildcards) -> int:
    """Images per pass of the stages that run the model on calibration images."""
    return settings.prunings[wildcards.pruning].batch_size


def rounds_on_images(wildcards) -> bool:
    return settings.quantisations[wildcards.quantisation].looks_at_images


def rounding_images_of(wildcards) -> dict | None:
    """The params of a quantisation that needs images, as for a reconstruction."""
    if not rounds_on_images(wildcards):
        return None
    return images_of(wildcards) | chosen(settings.prunings[spelled(wildcards)["pruning"]], "batch_size")


def names_of(experiment: Experiment) -> dict:
    """The wildcards of an experiment; schemes are part of the name of its budget, `budget@scheme@scheme`."""
    names = experiment.model_dump()
    return names | {"budget": "@".join([experiment.budget, *experiment.schemes])}


def budget_of(wildcards):
    """The settings of a budget, with schemes or without."""
    return settings.budgets[spelled(wildcards)["budget"].partition("@")[0]]


def schemes_of(wildcards) -> list[dict]:
    """The settings of the schemes in the name of a budget."""
    return [chosen(settings.schemes[name]) for name in wildcards.budget.split("@")[1:]]


def costs_of(wildcards) -> str:
    """The costs for a budget: of the dense model, with its schemes if any."""
    names = spelled(wildcards)
    _, at, schemes = names["budget"].partition("@")
    return f"{MODEL}/costs{at}{schemes}.parquet".format(**names)


def evaluated(experiment: Experiment) -> dict[str, str]:
    """Stage -> folder of its metrics."""
    names = names_of(experiment)
    folders = {"dense": f"{MODEL}/dense".format(**names), "pruned": f"{BUDGET}/pruned".format(**names)}
    if experiment.recipe is not None:
        folders["finetuned"] = f"{RECIPE}/finetuned".format(**names)
    if experiment.quantisation is not None:
        folders["quantised"] = f"{BUDGET}/{QUANTISED}".format(**names)
    if experiment.quantisation is not None and experiment.recipe is not None:
        folders["finetuned_quantised"] = f"{RECIPE}/{QUANTISED}".format(**names)
    return folders


def final_of(experiment: Experiment) -> str:
    """The folder of the metrics of the last model of an experiment."""
    return list(evaluated(experiment).values())[-1]
