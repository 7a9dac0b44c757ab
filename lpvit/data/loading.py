"""Datasets, calibration samples and loaders.

N = images of a batch; C, H, W = channels, height and width of the model's input.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.data.epochs import EpochPlan
from lpvit.data.memory import MemoryLoader
from lpvit.data.preprocessing import Augmentation, Preprocessing
from lpvit.data.timm_loader import TimmLoader
from lpvit.errors import LpvitError
from lpvit.settings import Compute

if TYPE_CHECKING:
    from lpvit.data.dali import DaliLoader

_logger = logging.getLogger(__name__)


class Loader(Protocol):
    """Batches of images and labels; the same epoch comes out the same twice."""

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and augmentation of the next pass."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (N, C, H, W), float32, normalised, and labels (N,), int64, on the device."""
        ...


def make_loader(
    images: pd.DataFrame,
    root: str | Path | None,
    preprocessing: Preprocessing,
    *,
    loader: Literal["dali", "memory", "timm"],
    batch_size: int,
    threads: int,
    device: torch.device | str,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    repeats: int = 1,
) -> Loader:
    """A loader of the named kind; with an augmentation it trains (see `EpochPlan` for order and shards).

    Args:
        images: Columns ``path`` and ``label``; their order is that of evaluation.
        root: Folder that the paths are relative to; None for the digits set.
        preprocessing: Of the model.
        loader: ``dali``: JPEG files, RGB; ``memory``: decoded once and held; ``timm``: whatever Pillow reads.
        batch_size: Images per batch of this process.
        threads: Threads (`dali`, `memory`) or worker processes (`timm`).
        device: Where the batches go; ``dali`` decodes there.
        augmentation: Random steps of training; None evaluates.
        seed: Of order and augmentation.
        rank: Of this process.
        world_size: Number of processes that share an epoch.
        repeats: Repeated augmentation (training only).

    Raises:
        LpvitError: The loader cannot run here or cannot read these images; the message names one that can.
    """
    root = None if root is None else Path(root)
    device = torch.device(device)
    training = augmentation is not None
    plan = EpochPlan(len(images), batch_size, training, seed, rank, world_size, repeats)
    purpose = "training" if training else "evaluation"
    _logger.info("loader '%s': %d images for %s on %s, %d threads", loader, len(images), purpose, device, threads)
    arguments = (images, root, preprocessing, augmentation, plan, threads, device)
    if loader == "memory":
        return MemoryLoader(*arguments)
    if loader == "timm":
        return TimmLoader(*arguments)
    if loader == "dali":
        return _import_dali_loader()(*arguments)
    raise LpvitError(f"loader: '{loader}' is unknown; choose dali, memory or timm")


def evaluation_loader(
    images: pd.DataFrame, dataset: Mapping[str, Any], model: nn.Module, batch_size: int, compute: Compute
) -> Loader:
    """The images of a stage in their order, as its model takes them.

    Args:
        images: Columns ``path`` and ``label``.
        dataset: ``root`` and ``loader`` of the config's dataset.
        model: Gives the preprocessing.
        batch_size: Images per batch.
        compute: Threads, and the device that the batches go to.

    Raises:
        LpvitError: As `make_loader`.
    """
    return make_loader(
        images,
        dataset["root"],
        Preprocessing.from_model(model),
        loader=dataset["loader"],
        batch_size=batch_size,
        threads=compute.threads,
        device=compute.device,
    )


def _import_dali_loader() -> "type[DaliLoader]":
    try:
        from lpvit.data.dali import DaliLoader
    except ImportError as error:
        raise LpvitError(
            f"loader 'dali': NVIDIA DALI cannot be imported ({error}); "
            "pip install 'lpvit[dali]', or choose 'loader: timm'"
        ) from None
    return DaliLoader
