"""What a training is given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from lpvit.data.loading import Loader
from lpvit.structures.blocks.grid import KeepMasks
from lpvit.training.nodes import Nodes
from lpvit.training.settings import Recipe

# (rank, processes, device) -> this process's part of the training split (as many batches, all of the same size, for
# every rank: batch_size / processes images) and of the validation split (of any size)
MakeLoaders = Callable[[int, int, torch.device], tuple[Loader, Loader]]


@dataclass(frozen=True)
class Training:
    """A model to train, how, on what and where. Can be pickled, so that every process gets its own.

    Attributes:
        model: Its weights are the start; left as it is. Stochastic depth is what it was created with.
        recipe: What to do; the augmentation of single images is left to the loaders.
        make_loaders: Called once in every process. With several, it can be pickled and stands in an importable module.
        resume_file: Holds the state after each epoch. It stays: delete it once the result is saved.
        fingerprint: Names everything that the result depends on; a resume file with another one is not used.
        device: Where to train; process i of several uses GPU i.
        threads: CPU threads, over all processes.
        processes: How many, over all nodes.
        nodes: Where they are; the files of this machine are theirs too.
        checkpoint_minutes: Between the states within an epoch that a killed run goes on from.
        events: Folder for TensorBoard's events of this training, if any.
        keep_masks: Blocks whose weights stay; all others are and remain exactly zero.
        block_shape: (r, c) of the keep masks.
        teacher: For a recipe with distillation; left as it is. It sees the student's images, converted to its own
            normalisation and size.
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
    teacher: nn.Module | None = None
