"""Loaders of images: their base class, and functions that create one.

N = images of a batch; C, H, W = channels, height and width of the model's input.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.data import loaders
from lpvit.data.epochs import EpochPlan
from lpvit.data.preprocessing import Augmentation, Preprocessing
from lpvit.data.scratch import copy_to_scratch, scratch_folder
from lpvit.errors import LpvitError
from lpvit.settings import Compute
from lpvit.strategies import module_names

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFiles:
    """Labelled images and the name of their loader.

    Attributes:
        table: Columns ``path`` (see `lpvit.data.encoded`) and ``label``; their order is that of evaluation.
        root: Folder that the paths are relative to; None for the digits set.
        loader: Name of one of the `lpvit.data.loaders`.
    """

    table: pd.DataFrame
    root: Path | None
    loader: str


@dataclass
class Loader(ABC):
    """Batches of images and labels; an epoch is reproducible.

    Attributes:
        files: What to read.
        preprocessing: Of the model.
        plan: Order of the images; of training, if there is an augmentation.
        threads: Threads, or worker processes.
        device: Where the batches go.
        augmentation: Random steps of training; None evaluates.
    """

    files: ImageFiles
    preprocessing: Preprocessing
    plan: EpochPlan
    threads: int
    device: torch.device
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:  # noqa: B027 - most loaders override it
        """Prepares the loader before the first epoch.

        Raises:
            LpvitError: The loader cannot read these images.
        """

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.plan)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and augmentation of the next pass."""
        self.plan.epoch = epoch

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (N, C, H, W), float32, normalised, and labels (N,), int64, on the device.

        Raises:
            LpvitError: An image cannot be decoded.
        """


def make_loader(
    files: ImageFiles,
    preprocessing: Preprocessing,
    plan: EpochPlan,
    threads: int,
    device: torch.device | str,
    augmentation: Augmentation | None = None,
) -> Loader:
    """Creates the loader that ``files`` names; for the arguments, see `Loader`.

    Raises:
        LpvitError: The loader cannot run here or cannot read these images; the message names one that can.
    """
    modules = module_names(loaders.__name__)
    if files.loader not in modules:
        raise LpvitError(f"loader: '{files.loader}' is unknown; choose one of {', '.join(modules)}")
    purpose = "evaluation" if augmentation is None else "training"
    _logger.info(
        "loader '%s': %d images for %s on %s, %d threads", files.loader, len(files.table), purpose, device, threads
    )
    loader: Loader = import_module(modules[files.loader]).ImageLoader(
        files, preprocessing, plan, threads, torch.device(device), augmentation
    )
    return loader


def evaluation_loader(
    images: pd.DataFrame, dataset: Mapping[str, Any], model: nn.Module, batch_size: int, compute: Compute
) -> Loader:
    """The images of a stage in order, preprocessed for its model.

    Args:
        images: Columns ``path`` and ``label``.
        dataset: ``root`` and ``loader`` of the config's dataset.
        model: Gives the preprocessing.
        batch_size: Images per batch.
        compute: Threads, and the device that the batches go to.

    Raises:
        LpvitError: As `make_loader`.
    """
    plan = EpochPlan(len(images), batch_size)
    files = image_files(images, dataset, compute.scratch)
    return make_loader(files, Preprocessing.from_model(model), plan, compute.threads, compute.device)


def image_files(images: pd.DataFrame, dataset: Mapping[str, Any], scratch: Path | None) -> ImageFiles:
    """Images of a dataset of the config, or their copies in the scratch folder; see `evaluation_loader`.

    Raises:
        LpvitError: They cannot be copied.
    """
    if dataset["root"] is None:
        return ImageFiles(images, None, dataset["loader"])
    root = Path(dataset["root"])
    if scratch is None:
        return ImageFiles(images, root, dataset["loader"])
    folder = scratch_folder(scratch)
    copies = images.assign(path=copy_to_scratch(images["path"].tolist(), root, folder))
    return ImageFiles(copies, folder, dataset["loader"])
