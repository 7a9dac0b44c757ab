"""The checked config, the folders that it spells, and what every rule shares."""

import functools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The scripts import the package of this checkout, also in a conda environment that has only its dependencies; a workflow
# that was fetched alone, as by snakedeploy, imports the package that is installed.
CHECKOUT = Path(str(workflow.current_basedir)).parent.parent
if (CHECKOUT / "lpvit").is_dir():
    sys.path.insert(0, str(CHECKOUT))
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ.update(PYTHONPATH=os.pathsep.join([str(CHECKOUT), *others]))

from lpvit.config.config import Experiment
from lpvit.settings import Section
from lpvit.config.config import parse_config
from lpvit.config.files import require_sound
from lpvit.data.listing import list_splits, stamps
from lpvit.errors import LpvitError
from lpvit.store.provenance import source_digests

ENVIRONMENT = "../envs/lpvit.yaml"  # used with --software-deployment-method conda

DEFAULT_CONFIG = "config/config.yaml"

try:  # before Snakemake reads them, which names neither file nor line and keeps the last of two keys of one name
    require_sound(workflow.configfiles or filter(os.path.exists, [DEFAULT_CONFIG]))
except LpvitError as error:
    raise WorkflowError(*str(error).splitlines()) from None

# A file given by --configfile replaces the default one: merged, the default's experiments would run as well.
if not workflow.config_settings.configfiles:

    configfile: DEFAULT_CONFIG


if not workflow.is_main_process:  # which has said what it warns of
    logging.getLogger("lpvit.config").setLevel(logging.ERROR)

try:
    settings = parse_config(config)
except LpvitError as error:
    raise WorkflowError(*str(error).splitlines()) from None

CACHED = workflow.workflow_settings.cache is not None  # --cache: what is dear to make is shared between folders
GPUS = int(settings.compute.device != "cpu")  # of a job that computes on one
NODES = settings.compute.nodes if isinstance(settings.compute.nodes, int) else 1  # of a training

RESULTS = str(settings.results)
DATASET = f"{RESULTS}/{{dataset}}"
MODEL = f"{DATASET}/{{model}}"
CALIBRATION = f"{MODEL}/{{calibration}}"
PRUNING = f"{CALIBRATION}/{{pruning}}"
BUDGET = f"{PRUNING}/{{budget}}"
ROUNDS = f"{BUDGET}/rounds"
RECIPE = f"{BUDGET}/{{recipe}}"
QUANTISED = "quantised@{quantisation}"
LATENCY = f"{MODEL}/latency/{{block}}/latency.parquet"
REPORT = f"{RESULTS}/report/{settings.report}"

experiments = settings.experiments


wildcard_constraints:
    dataset="[^/]+",
    model="[^/]+",
    calibration="[^/]+",
    pruning="[^/]+",
    budget="[^/]+",
    recipe="[^/]+",
    quantisation="[^/]+",
    block=r"\d+x\d+",


def scaled(amount: int) -> Callable:
    """A resource that grows with every attempt: a job that ran out of memory or time gets more when it is retried."""
    return lambda wildcards, attempt: amount * attempt


def gpus_of_training(wildcards) -> str:
    """The GPUs of each node, since a scheduler may deal out a total unevenly; none where nothing is trained."""
    trained = "recipe" in wildcards.keys() or settings.models[wildcards.model].recipe is not None
    return f"gpu:{settings.compute.processes // NODES}" if GPUS and trained else ""


def all_cores(wildcards) -> int:
    """Those of the run; a scheduler, which has no such number, gives the machine to this job alone."""
    return workflow.resource_settings.cores or settings.compute.threads


def chosen(section: Section, *fields: str, without: str | Collection[str] = ()) -> dict:
    """Settings as a param: plain values in a fixed order, so that reordering the config reruns nothing."""
    left_out = {without} if isinstance(without, str) else set(without)
    choice = {"include": set(fields) or None, "exclude": left_out}  # a line that begins with `include` is Snakemake's
    dump = section.model_dump(mode="json", **choice)
    return json.loads(json.dumps(dump, sort_keys=True))


@functools.cache
def sources(script: str) -> dict[str, str]:
    """Digests of a script of workflow/scripts and of the modules that it imports: a param of every rule."""
    return source_digests(workflow.source_path(f"../scripts/{script}"))


def images_of(wildcards) -> dict:
    """The params that a stage needs to read images."""
    return chosen(settings.datasets[wildcards.dataset], "source", "root", "loader")


@functools.cache
def listing_of(dataset: str) -> dict | None:
    """What lies in the folder of a dataset, so that an image more or less counts as a change."""
    asked = settings.datasets[dataset]
    splits = {asked.train} if asked.validation_share else {asked.train, asked.validation}
    return list_splits(asked.root, splits)._asdict() if asked.root is not None else None


def recipe_of(name: str | None) -> dict | None:
    return None if name is None else chosen(settings.recipes[name])


def checkpoint_of(wildcards) -> str | list:
    """The file that a dense model's weights come from: an input, so that another file in its place counts as new."""
    file = settings.models[wildcards.model].checkpoint
    return [] if file is None else existing(file, f"models.{wildcards.model}.checkpoint")


def teacher_of(recipe: str | None) -> str | list:
    """The file of a teacher's weights, likewise."""
    file = None if recipe is None else settings.recipes[recipe].teacher_checkpoint
    return [] if file is None else existing(file, f"recipes.{recipe}.teacher_checkpoint")


def stamps_of(*files: str | list) -> dict[str, list[int]]:
    """Sizes and times of files that are given, if any; Snakemake sees only that one is newer."""
    return stamps(file for file in files if file)


def existing(file: Path, key: str) -> str:
    if not file.is_file():
        raise WorkflowError(f"config: {key}: {file} not found; correct the path")
    return str(file)


def measures_images(wildcards) -> bool:
    return settings.prunings[wildcards.pruning].measures_images


def is_reconstructed(wildcards) -> bool:
    return budget_of(wildcards).reconstruction != "none"


def prunings_of(structure: str) -> str:
    """Wildcard constraint: the prunings that remove blocks, or width."""
    names = [name for name, pruning in settings.prunings.items() if pruning.structure == structure]
    return "|".join(map(re.escape, names)) or "(?!)"


def last_step(file: str) -> Callable:
    """Scores or curves that a budget's allocation goes by: of the dense model, or of what its rounds left."""
    return branch(
        lambda wildcards: budget_of(wildcards).steps > 1,
        then=f"{ROUNDS}/{file}",
        otherwise=f"{PRUNING}/{file}",
    )


def latency_of(wildcards) -> str | list:
    """The latency table of a budget in milliseconds: as given, or measured on this machine; elsewhere none."""
    budget = budget_of(wildcards)
    if budget.latency is None:
        return []
    return str(budget.latency_table or LATENCY.format(**wildcards, block=block_of(wildcards.pruning)))


def block_of(pruning: str) -> str:
    return "x".join(map(str, settings.prunings[pruning].block_shape))


def energy_of(wildcards) -> dict:
    """The constants of the energy model where a budget counts energy; elsewhere they do not matter."""
    return chosen(settings.energy) if budget_of(wildcards).energy is not None else {}


def batch_size_of(wildcards) -> int:
    """Images per pass of the stages that show calibration images to the model."""
    return settings.prunings[wildcards.pruning].batch_size


def rounds_on_images(wildcards) -> bool:
    return settings.quantisations[wildcards.quantisation].looks_at_images


def rounding_images_of(wildcards) -> dict | None:
    """The params of a quantisation that looks at images, as those of a reconstruction."""
    if not rounds_on_images(wildcards):
        return None
    return images_of(wildcards) | chosen(settings.prunings[wildcards.pruning], "batch_size")


def names_of(experiment: Experiment) -> dict:
    """The wildcards of an experiment; its schemes are a part of its budget's name, `budget@scheme@scheme`."""
    names = experiment.model_dump()
    return names | {"budget": "@".join([experiment.budget, *experiment.schemes])}


def budget_of(wildcards):
    """The settings of a budget, with schemes or without."""
    return settings.budgets[wildcards.budget.partition("@")[0]]


def schemes_of(wildcards) -> list[dict]:
    """The settings of the schemes that a budget's name ends with."""
    return [chosen(settings.schemes[name]) for name in wildcards.budget.split("@")[1:]]


def costs_of(wildcards) -> str:
    """The costs that a budget goes by: those of the dense model, with its schemes if there are any."""
    _, at, schemes = wildcards.budget.partition("@")
    return f"{MODEL}/costs{at}{schemes}.parquet".format(**wildcards)


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
    """The folder of the metrics of the last model that an experiment makes."""
    return list(evaluated(experiment).values())[-1]
