"""The interface of a structure: what may be removed from a model, its distortion, and refitting of the rest.

A structure either offers options layer by layer, among which an allocator chooses (`Structure`), or makes one choice
for the whole model (`ModelStructure`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.models.analysis.layers import LayerSpec
from lpvit.models.analysis.passes import Batches
from lpvit.refitting.layer_fits import LayerFit
from lpvit.structures.calibration import Statistics

if TYPE_CHECKING:
    from lpvit.structures.settings import StructureSettings


@dataclass(frozen=True)
class Options:
    """What can be removed from every layer, and the distortion of removing it.

    Attributes:
        blocks: The removable pieces, schema ``BLOCKS``.
        curves: Distortion of every layer by the number of removed pieces, schema ``CURVES``.
    """

    blocks: pd.DataFrame
    curves: pd.DataFrame


@dataclass(frozen=True)
class Compressed:
    """A compressed model.

    Attributes:
        model: In evaluation mode; what was done to it is among its edits (`lpvit.models.edits`).
        keep_masks: Layer -> (R, C), bool, True where a block stays; empty where no blocks were pruned.
        block_shape: Rows and columns of a block; None where no blocks were pruned.
    """

    model: nn.Module
    keep_masks: Mapping[str, Tensor]
    block_shape: tuple[int, int] | None


class Structure(Protocol):
    """Options of every layer: measured, offered to an allocator, applied and refitted."""

    @property
    def measures_images(self) -> bool:
        """Whether `options` needs the model and the calibration images."""

    @property
    def compresses_by_statistics(self) -> bool:
        """Whether `compress` needs the statistics of the dense model."""

    def layers(self, model: nn.Module) -> list[LayerSpec]:
        """The layers that have options, in order of execution."""

    def pieces(self, model: nn.Module) -> Sequence[pd.DataFrame]:
        """What layers can lose, by their shapes alone, in order of execution.

        Returns:
            Alternatives for every layer, schema ``BLOCKS``; NaN where a saliency or norm is yet to be measured.
        """

    @property
    def name(self) -> str:
        """Of its package."""

    @property
    def statistics_needed(self) -> Mapping[str, Any]:
        """The settings that statistics depend on, as plain values; other settings reuse the same statistics."""

    @staticmethod
    def load_statistics(path: str | Path) -> Statistics:
        """Reads statistics that a stage has saved.

        Raises:
            LpvitError: The file is missing or damaged, or has other content.
        """

    def options(
        self, statistics: Statistics, model: nn.Module | None, images: Batches | None, device: torch.device | str
    ) -> Options:
        """The options that follow from the statistics; model and images are needed if `measures_images`."""

    def choose(self, blocks: pd.DataFrame, allocation: pd.DataFrame) -> Any:
        """The remaining part of every layer after an allocation (schema ``ALLOCATION``), in terms of this structure."""

    def compress(
        self,
        model: nn.Module,
        choice: Any,
        statistics: Statistics | None,
        images: Batches | None,
        device: torch.device | str,
    ) -> Compressed:
        """A compressed copy of a dense model, on the CPU; refitted where calibration images are given.

        Args:
            model: Dense.
            choice: From `choose`.
            statistics: Of the dense model, if `compresses_by_statistics`.
            images: Calibration images, or None.
            device: Where to compute.
        """


class FittedByLayer(Structure, Protocol):
    """A structure whose layers can be chosen and fitted one by one, amid layers of other structures."""

    @staticmethod
    def require_consistent(statistics: Statistics, path: str | Path) -> None:
        """Checks statistics that were read from a file.

        Raises:
            LpvitError: Their tables do not go together.
        """

    def choice_of(self, removed: Mapping[str, int], statistics: Statistics) -> Any:
        """The remaining part of layers that lose a number of their pieces (layer -> pieces), as `choose` gives it."""

    def fits(
        self, model: nn.Module, choice: Any, statistics: Statistics, device: torch.device | str
    ) -> Sequence[LayerFit]:
        """Fits of the layers of a choice, in order of execution; for the arguments, see `compress`."""


@runtime_checkable
class ModelStructure(Protocol):
    """One choice for the whole model."""

    def require_reachable(self, model: nn.Module, macs: float) -> None:
        """Checks that a share of the MACs of a dense model can be met.

        Args:
            model: On any device, also the meta device.
            macs: Share to keep.

        Raises:
            LpvitError: It cannot, or the model does not fit the structure.
        """

    def compress_to(self, model: nn.Module, images: Batches, macs: float, *, refit: bool) -> Compressed:
        """A compressed copy of a dense model that keeps at most a share of its MACs in linear layers."""


def structure_class(name: str) -> Any:
    """The class of a structure, made from its settings: ``STRUCTURE`` of `lpvit.structures.<name>.structure`."""
    return import_module(f"lpvit.structures.{name}.structure").STRUCTURE


def structure_of(pruning: "StructureSettings") -> Structure | ModelStructure:
    """The structure of the settings of a pruning."""
    structure: Structure | ModelStructure = structure_class(pruning.structure)(pruning)
    return structure
