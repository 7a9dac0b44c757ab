"""The inputs of a training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from lpvit.data.loading import Loader
from lpvit.structures.blocks.grid import KeepMasks
from lpvit.training.nodes import Nodes
from lpvit.training.settings import Recipe
from lpvit.training.tasks.classification import Classification
from lpvit.training.tasks.task import Task

# (rank, processes, device) -> this process's shard of the training split (the same number of batches on every rank,
# each of batch_size / processes images) and of the validation split (of any size)
MakeLoaders = Callable[[int, int, torch.device], tuple[Loader, Loader]]
MakeHeldOut = Callable[[int, int, torch.device], Loader]  # likewise, a shard of images that choose the epoch


@dataclass(frozen=True)
class Training:
    """A model, its recipe, data and devices. Can be pickled, so that every process gets its own copy.

    Attributes:
        model: Initial weights; not modified. A recipe without ``drop_path`` keeps its own stochastic depth.
        recipe: Hyperparameters; the augmentation of single images is done by the loaders.
        make_loaders: Called once in every process. With several, it must be picklable, from an importable module.
        resume_file: Checkpoint of each epoch. It is not deleted; do so once the result is saved.
        fingerprint: Identifies everything that the result depends on; a resume file with another one is ignored.
        device: Where to train; process i of several uses GPU i.
        threads: CPU threads, over all processes.
        processes: How many, over all nodes.
        nodes: Their machines, which share a file system.
        checkpoint_minutes: Between checkpoints within an epoch.
        events: Folder for TensorBoard's events of this training, if any.
        keep_masks: Kept blocks; all other weights are and remain exactly zero.
        block_shape: (r, c) of the keep masks.
        make_held_out: Images that are in neither split, by which the epoch is chosen; None keeps the last epoch.
        teacher: For a recipe with distillation; not modified. It gets the student's images, converted to its own
            normalisation and size.
        task: What is learnt from the labels, and what is measured after an epoch.
    """

    model: nn.Module
    recipe: Recipe
    make_loaders: MakeLoaders
    resume_file: Path
    fingerprint: str
    device: torch.device
    threads: int = 1
    processes: int = 1
    nodes: Nodes = field(default_factory=Nodes)
    checkpoint_minutes: float = 10.0
    events: Path | None = None
    keep_masks: KeepMasks = field(default_factory=dict)
    block_shape: tuple[int, int] = (1, 1)
    make_held_out: MakeHeldOut | None = None
    teacher: nn.Module | None = None
    task: Task = field(default_factory=Classification)
