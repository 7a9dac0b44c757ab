"""Rate-distortion curves: output change by pruning the least salient blocks of one layer, at every sparsity.

R, C = rows and columns of a grid of blocks; B = R * C.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.analysis.passes import Batches, first_images
from lpvit.structures.blocks import distortions
from lpvit.structures.blocks.curve import pruning_ranks, sampled_curve
from lpvit.structures.blocks.masking import MeasuredModel
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.calibration import Statistics


def rate_distortion_curves(
    statistics: Statistics,
    blocks: pd.DataFrame,
    pruning: Blocks,
    model: nn.Module | None = None,
    loader: Batches | None = None,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Curves by the distortion in the settings.

    Args:
        statistics: From `lpvit.structures.blocks.calibration.collect`.
        blocks: Scores, schema ``BLOCKS``.
        pruning: Distortion and its options.
        model: The dense model, if the distortion needs images (``pruning.measures_images``).
        loader: Calibration images, likewise.
        device: Where to measure.

    Returns:
        Schema ``CURVES``.

    Raises:
        LpvitError: As `lpvit.structures.blocks.masking.masked_curves`.
    """
    distortion: distortions.Distortion = pruning.distortion
    return distortion.curves(CurveInputs(statistics, blocks, pruning, model, loader, device))


@dataclass(frozen=True)
class CurveInputs:
    """Inputs of the `lpvit.structures.blocks.distortions`; for the fields, see `rate_distortion_curves`."""

    statistics: Statistics
    blocks: pd.DataFrame
    pruning: Blocks
    model: nn.Module | None
    loader: Batches | None
    device: torch.device | str

    def predicted(self, distortion: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> pd.DataFrame:
        """Curves predicted from the statistics.

        Args:
            distortion: From the statistics of a layer and the position of every block in its pruning order, (R, C), to
                the distortion of zeroing the first n blocks for n = 0 ... B, shape (B + 1,).
        """
        curves = []
        for layer, of_layer in self.blocks.groupby("layer", sort=False):
            at_every_count = distortion(self.statistics[str(layer)], pruning_ranks(of_layer))
            curves.append(sampled_curve(of_layer, self.pruning.points, at_every_count))
        return pd.concat(curves, ignore_index=True)

    def measured_model(self, count: int | None = None) -> MeasuredModel:
        """The model to measure, on the first ``count`` calibration images or on all."""
        assert self.model is not None, "the distortion needs images"
        assert self.loader is not None, "the distortion needs images"
        images = self.loader if count is None else first_images(self.loader, count)
        layers = prunable_layers(matrix_layers(self.model), self.pruning.layers)
        return MeasuredModel(self.model, images, layers, self.pruning.block_shape, self.device)
