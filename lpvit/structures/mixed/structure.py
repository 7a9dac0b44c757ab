"""Several structures as one, composed by their interface."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from pydantic import InstanceOf
from torch import Tensor, nn

from lpvit.models.analysis.layers import LayerSpec
from lpvit.models.analysis.passes import Batches
from lpvit.refitting.layer_fits import LayerFit, fit_layers
from lpvit.store.artifacts import load
from lpvit.structures.calibration import Statistics
from lpvit.structures.mixed.calibration import statistics_of
from lpvit.structures.mixed.refitted_curves import SHARES, curves_of, refitted_distortions
from lpvit.structures.mixed.settings import Mixed
from lpvit.structures.mixed.union import chosen_of, union_of
from lpvit.structures.structure import Compressed, FittedByLayer, Options, structure_of

Choice = Mapping[str, Mapping[str, int]]  # structure -> layer -> pieces that are removed


@dataclass(frozen=True)
class MixedStructure:
    """Every layer stays dense or takes one of the parts; all are refitted in order of execution.

    Attributes:
        settings: Of the parts.
    """

    settings: Mixed

    @cached_property
    def parts(self) -> Mapping[str, FittedByLayer]:
        return {name: cast(FittedByLayer, structure_of(part)) for name, part in self.settings.parts.items()}

    @property
    def measures_images(self) -> bool:
        return True

    @property
    def compresses_by_statistics(self) -> bool:
        return self.settings.compresses_by_statistics

    def layers(self, model: nn.Module) -> list[LayerSpec]:
        return next(iter(self.parts.values())).layers(model)

    def pieces(self, model: nn.Module) -> list[pd.DataFrame]:
        return [table for part in self.parts.values() for table in part.pieces(model)]

    @property
    def name(self) -> str:
        return self.settings.structure

    @property
    def statistics_needed(self) -> Mapping[str, Any]:
        return self.settings.statistics_needed

    def load_statistics(self, path: str | Path) -> Statistics:
        statistics: Statistics = load(path, "statistics", dict[str, dict[str, InstanceOf[Tensor]]])
        for name, part in self.parts.items():
            part.require_consistent(statistics_of(name, statistics), path)
        return statistics

    def options(
        self, statistics: Statistics, model: nn.Module | None, images: Batches | None, device: torch.device | str
    ) -> Options:
        assert model is not None, "options are refitted on images"
        assert images is not None, "options are refitted on images"
        offered = {
            name: curves_of(part.options(statistics_of(name, statistics), model, images, device))
            for name, part in self.parts.items()
        }
        tried = {
            layer: [(name, option) for name in offered for option in offered[name][layer].near(SHARES)]
            for layer in statistics
        }
        fits = {
            layer: [partial(self._fit, model, layer, *option, statistics, device) for option in of_layer]
            for layer, of_layer in tried.items()
        }
        left = refitted_distortions(model, images, fits, device)
        measured: dict[str, dict[str, dict[int, float]]] = {name: {layer: {} for layer in tried} for name in offered}
        for layer, of_layer in tried.items():
            for (name, option), distortion in zip(of_layer, left[layer], strict=True):
                measured[name][layer][option] = distortion
        scaled = {
            name: {layer: curve.scaled(measured[name][layer]) for layer, curve in curves.items()}
            for name, curves in offered.items()
        }
        return union_of(scaled)

    def choose(self, blocks: pd.DataFrame, allocation: pd.DataFrame) -> Choice:
        return chosen_of(blocks, allocation)

    def compress(
        self,
        model: nn.Module,
        choice: Choice,
        statistics: Statistics | None,
        images: Batches | None,
        device: torch.device | str,
    ) -> Compressed:
        assert statistics is not None, "layers are refitted by statistics"
        compressed, keep_masks, fits = deepcopy(model).cpu(), dict[str, Tensor](), list[LayerFit]()
        for name, removed in choice.items():
            part, of_part = self.parts[name], statistics_of(name, statistics)
            chosen = part.choice_of(removed, of_part)
            step = part.compress(compressed, chosen, of_part, None, device)
            compressed, keep_masks = step.model, keep_masks | dict(step.keep_masks)
            fits += part.fits(model, chosen, of_part, device)
        if images is not None:
            fit_layers(model, compressed, _in_order(fits, statistics), images, device)
        return Compressed(compressed, keep_masks, self.settings.block_shape if keep_masks else None)

    def _fit(
        self, model: nn.Module, layer: str, name: str, option: int, statistics: Statistics, device: torch.device | str
    ) -> LayerFit:
        """That of a layer which takes an option of a part."""
        part, of_layer = self.parts[name], statistics_of(name, {layer: statistics[layer]})
        (fit,) = part.fits(model, part.choice_of({layer: option}, of_layer), of_layer, device)
        return fit


def _in_order(fits: Sequence[LayerFit], layers: Statistics) -> list[LayerFit]:
    place = {layer: number for number, layer in enumerate(layers)}
    return sorted(fits, key=lambda fit: place[fit.place.layer])


STRUCTURE = MixedStructure
