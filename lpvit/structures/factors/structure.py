"""Low-rank factors as a structure."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import InstanceOf
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import LayerSpec, matrix_layers, prunable_layers
from lpvit.models.analysis.passes import Batches, every_nth
from lpvit.models.edits import record_edit
from lpvit.moments.moments import LayerMoments
from lpvit.store.artifacts import load
from lpvit.structures.calibration import Statistics
from lpvit.structures.factors.edit import LowRankLayers
from lpvit.structures.factors.factorise import FactorFit, factor_fits, factorised
from lpvit.structures.factors.options import CURVE_IMAGES, options, parts_of_layers
from lpvit.structures.factors.ranks import allocated_ranks, ladder, units_of
from lpvit.structures.factors.settings import Factors
from lpvit.structures.structure import Compressed, Options

_MOMENTS = [field.name for field in fields(LayerMoments)]


@dataclass(frozen=True)
class FactorStructure:
    """Every layer gets a rank; its factors are truncated in the metric of the logits and refitted in order.

    Attributes:
        settings: Metric, form and multiples of ranks.
    """

    settings: Factors

    @property
    def measures_images(self) -> bool:
        return True

    @property
    def compresses_by_statistics(self) -> bool:
        return self.settings.compresses_by_statistics

    def layers(self, model: nn.Module) -> list[LayerSpec]:
        return prunable_layers(matrix_layers(model), self.settings.layers)

    def pieces(self, model: nn.Module) -> list[pd.DataFrame]:
        multiple, form = self.settings.rank_multiple, self.settings.form
        units = [units_of(layer.name, layer.shape, multiple, form) for layer in self.layers(model)]
        return [pd.concat(units, ignore_index=True)]

    @property
    def name(self) -> str:
        return self.settings.structure

    @property
    def statistics_needed(self) -> Mapping[str, Any]:
        return self.settings.statistics_needed

    @staticmethod
    def load_statistics(path: str | Path) -> Statistics:
        statistics: Statistics = load(path, "statistics", dict[str, dict[str, InstanceOf[Tensor]]])
        FactorStructure.require_consistent(statistics, path)
        return statistics

    @staticmethod
    def require_consistent(statistics: Statistics, path: str | Path) -> None:
        for layer, tables in statistics.items():
            sizes = {name: tuple(table.shape) for name, table in tables.items()}
            inputs, outputs = sizes.get("input_mean", (0,)), sizes.get("output_sensitivity", (0,))[:1]
            tokens = sizes.get("token_sensitivity", (0,))[:1]
            expected = [(), (), inputs, inputs * 2, outputs * 2, tokens]
            if sizes != dict(zip(_MOMENTS, expected, strict=True)):
                raise LpvitError(f"{path}: the moments of '{layer}' do not go together; delete it and rerun")

    def options(
        self, statistics: Statistics, model: nn.Module | None, images: Batches | None, device: torch.device | str
    ) -> Options:
        assert model is not None, "curves of factors are measured on images"
        assert images is not None, "curves of factors are measured on images"
        moments = moments_of(statistics, device)
        parts = parts_of_layers(model, moments, self.settings.metric)
        counted = min(of_layer.images for of_layer in moments.values())
        few = list(every_nth(images, max(1, counted // CURVE_IMAGES)))
        return Options(*options(model.to(device), few, self.layers(model), parts, self.settings, device))

    def choose(self, blocks: pd.DataFrame, allocation: pd.DataFrame) -> dict[str, int]:
        return allocated_ranks(allocation, self.settings.rank_multiple)

    def choice_of(self, removed: Mapping[str, int], statistics: Statistics) -> dict[str, int]:
        ranks = {}
        for layer, units in removed.items():
            tables = statistics[layer]
            shape = (len(tables["output_sensitivity"]), len(tables["input_mean"]))
            ranks[layer] = ladder(shape, self.settings.rank_multiple, self.settings.form)[units - 1]
        return ranks

    def fits(
        self, model: nn.Module, choice: Mapping[str, int], statistics: Statistics, device: torch.device | str
    ) -> list[FactorFit]:
        return factor_fits(model.to(device), moments_of(statistics, device), choice)

    def compress(
        self,
        model: nn.Module,
        choice: Mapping[str, int],
        statistics: Statistics | None,
        images: Batches | None,
        device: torch.device | str,
    ) -> Compressed:
        assert statistics is not None, "factors are truncated and refitted by the moments of the layers"
        moments = moments_of(statistics, device)
        compressed = factorised(model, images, moments, choice, self.settings, device).cpu()
        record_edit(compressed, LowRankLayers(form=self.settings.form, ranks=dict(choice)))
        return Compressed(compressed, {}, None)


def moments_of(statistics: Statistics, device: torch.device | str) -> dict[str, LayerMoments]:
    """Statistics as the moments that they hold."""
    return {layer: _layer_moments(tables, device) for layer, tables in statistics.items()}


def _layer_moments(tables: Mapping[str, Tensor], device: torch.device | str) -> LayerMoments:
    images, tokens, *others = (tables[name] for name in _MOMENTS)
    return LayerMoments(int(images), int(tokens), *(table.to(device) for table in others))


STRUCTURE = FactorStructure
