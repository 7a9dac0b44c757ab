"""Tiny models and images, made alike for all tests: small enough for a hundred passes a second, random but not trivial.

N = images; C, H, W = channels, height and width.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import timm
import torch
from torch import Tensor, nn

from lpvit.models.analysis.layers import LayerSpec
from lpvit.models.analysis.passes import Batches
from lpvit.models.analysis.trace import IMAGES
from lpvit.structures.blocks.calibration import StatisticInputs, block_statistics
from lpvit.structures.blocks.rate_distortion import rate_distortion_curves
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.statistics.averaged_gradients import AveragedGradients
from lpvit.structures.blocks.statistics.block_products import BlockProducts
from lpvit.structures.blocks.statistics.weight_sums import WeightSums
from lpvit.structures.calibration import Statistics

VIT = {"img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 20, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 1), "num_heads": (2, 2)}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
}


def dense_model(kind: str, **others: Any) -> nn.Module:
    """As a user makes it: by timm, which does not note the options; those of `MODELS`, and others."""
    name, options = MODELS[kind]
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=5, **options, **others)
    for parameter in model.parameters():  # timm starts with weights so small that outputs hardly depend on images
        nn.init.normal_(parameter, std=0.3)
    return model


def photographs(kind: str, count: int = 24) -> Tensor:
    """Smooth random images that the model takes, (N, C, H, W)."""
    options = MODELS[kind][1]
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, options.get("in_chans", 3), 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, (options["img_size"],) * 2, mode="bilinear")


def counted_calls(model: nn.Module, *modules: str) -> list[str]:
    """A list that gets the name of a module whenever it runs on more images than the package looks at a model with."""
    calls: list[str] = []

    def note(name: str, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > IMAGES:
            calls.append(name)

    for name in modules:
        model.get_submodule(name).register_forward_hook(lambda _, inputs, __, name=name: note(name, inputs))
    return calls


def statistics_of(
    model: nn.Module, loader: Batches, layers: Sequence[LayerSpec], block_shape: tuple[int, int], probes: int = 0
) -> Statistics:
    """Sums of weights and averaged gradients, and with ``probes`` block products."""
    others = [BlockProducts(probes=probes)] if probes else []
    inputs = StatisticInputs(model, loader, layers, block_shape, "cpu")
    return block_statistics(inputs, [WeightSums(), AveragedGradients(), *others])


def predicted_curves(statistics: Statistics, blocks: pd.DataFrame, points: int, **pruning: Any) -> pd.DataFrame:
    """Curves by a distortion that looks at no images."""
    settings = Blocks(block_shape=(1, 1), points=points, **pruning)  # the shape has gone into the statistics
    return rate_distortion_curves(statistics, blocks, settings)


def sized_model(kind: str, **others: Any) -> nn.Module:
    """The same in evaluation mode, with a data config that says the size of the images that it takes."""
    model = dense_model(kind, **others).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": tuple(photographs(kind, 1).shape[1:])}  # type: ignore[dict-item, assignment]
    return model
