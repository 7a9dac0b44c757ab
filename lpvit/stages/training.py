"""Inputs of the stages that train."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from lpvit.data.classes import require_same_order
from lpvit.data.index import class_names
from lpvit.data.preprocessing import Preprocessing
from lpvit.models.architecture import Architecture
from lpvit.settings import Compute
from lpvit.store.provenance import fingerprint
from lpvit.store.schemas import HISTORY, IMAGES
from lpvit.store.tables import read_parquet
from lpvit.training.job import Training
from lpvit.training.loss import Teacher
from lpvit.training.nodes import nodes_of
from lpvit.training.settings import Recipe
from lpvit.training.splits import SplitLoaders
from lpvit.training.tasks.classification import Classification
from lpvit.training.tasks.following import Following
from lpvit.training.tasks.task import Task
from lpvit.training.teacher import load_teacher


def read_training(
    snakemake: Any, compute: Compute, architecture: Architecture, state: dict[str, torch.Tensor]
) -> Training:
    """A training by the params ``recipe``, ``dataset`` and ``resume``, on the input ``images``, without masks.

    Args:
        snakemake: The object that Snakemake gives to the script of a rule with these inputs and params; with the input
            ``dense`` where the dense model may be the teacher.
        compute: From `lpvit.stages.stage.stage`.
        architecture: Of the model.
        state: Its initial weights.

    Raises:
        LpvitError: The model was trained on other classes, or in another order; or as
            `lpvit.training.teacher.load_teacher`.
    """
    recipe = Recipe.model_validate(snakemake.params.recipe)
    model: nn.Module = architecture.build(state)
    images = read_parquet(snakemake.input.images, IMAGES)
    teacher = load_teacher(recipe, architecture.source.num_classes, snakemake.input.get("dense"))
    if names := class_names(images):
        require_same_order(architecture.classes, names, "the model")
        task: Task = Classification()
    else:
        assert teacher is not None, "the config asks for distillation where images have no classes"
        task = Following(Teacher(model, teacher, "outputs"))
    task.require_recipe(recipe)
    loaders = SplitLoaders(images, snakemake.params.dataset, Preprocessing.from_model(model), recipe, compute)
    return Training(
        model,
        recipe,
        loaders,
        resume_file=Path(snakemake.params.resume),
        fingerprint=fingerprint(dict(snakemake.params.items()), *snakemake.input),
        device=torch.device(compute.device),
        threads=compute.threads,
        processes=compute.processes,
        nodes=nodes_of(compute.nodes, compute.node_command),
        checkpoint_minutes=compute.checkpoint_minutes,
        events=None if compute.tensorboard is None else compute.tensorboard / Path(snakemake.output[0]).with_suffix(""),
        make_held_out=loaders.held_out if recipe.choose_by else None,
        teacher=teacher,
        task=task,
    )


def history_table(history: pd.DataFrame) -> pd.DataFrame:
    """The history of a training in schema ``HISTORY``; null is what its task does not measure."""
    return history.reindex(columns=[column.name for column in HISTORY.columns])
