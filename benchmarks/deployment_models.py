"""Models of `deployment.py`: a dense model by every method and budget, as files, with the images that they need.

N = images.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from subject import Batches, read_subject
from torch import Tensor, nn

import lpvit
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.api.batches import UserBatches
from lpvit.bases.align import align
from lpvit.costs.cost import measure_costs
from lpvit.models.sources.timm import create_model, input_size
from lpvit.pruning.prune import Measured
from lpvit.pruning.rounds import measure
from lpvit.structures.settings import StructureSettings
from lpvit.structures.structure import ModelStructure, structure_of

DENSE = "dense"
GAUSS_NEWTON = {"saliency": "gauss_newton", "distortion": "gauss_newton"}
METHODS: dict[str, StructureSettings] = {
    "factors": lpvit.Factors(),
    "narrower": lpvit.Width(),
    "blocks": lpvit.Blocks(block_shape=(16, 16), basis="aligned", **GAUSS_NEWTON),
    "blocks_32": lpvit.Blocks(block_shape=(32, 32), basis="aligned", **GAUSS_NEWTON),
    "mixed": lpvit.Mixed(),
    "mixed_32": lpvit.Mixed(block_shape=(32, 32)),
    "pivoted": lpvit.Factors(form="pivoted"),
    **{f"factors_{multiple}": lpvit.Factors(rank_multiple=multiple) for multiple in (16, 32, 64)},
}
SHAPES = ("deit_small", "deit_base")
RANDOM_IMAGES = 16  # for ranks, masks and scales of models with random weights


@dataclass(frozen=True)
class Images:
    """Images of a model, N each.

    Attributes:
        calibration: Batches of images (N, channels, height, width).
        tests: The same with labels (N,); empty for a model with random weights.
    """

    calibration: list[Tensor]
    tests: Batches


def make(arguments: argparse.Namespace) -> None:
    """Makes the models that a folder lacks."""
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    maker = Maker(*(of_shape(arguments.shape) if arguments.shape else of_config(arguments)), not arguments.shape)
    if not (folder / "images.pt").exists():
        torch.save((maker.images.calibration, maker.images.tests), folder / "images.pt")
    wanted = {DENSE: (DENSE, 1.0), **configurations(arguments.methods, arguments.macs)}
    for name, (method, macs) in wanted.items():
        file = folder / f"{name}.safetensors"
        if not file.exists():
            lpvit.save(maker.make(method, macs), file)
            print(f"{file}: made", flush=True)
    for name in wanted:
        if not (quantised := folder / f"{name}.int8.safetensors").exists():
            lpvit.save(maker.quantise(lpvit.load(folder / f"{name}.safetensors")), quantised)
            print(f"{quantised}: made", flush=True)


def configurations(methods: list[str], macs: list[float]) -> dict[str, tuple[str, float]]:
    """Name of a model -> its method and share of the MACs."""
    return {f"{method}_{round(100 * share)}": (method, share) for method in methods for share in macs}


def read_images(folder: Path) -> Images:
    """The images that `make` left in a folder."""
    return Images(*torch.load(folder / "images.pt", weights_only=True, mmap=True))


@dataclass
class Maker:
    """Compresses one dense model; what is measured of it is shared by the budgets of a method.

    Attributes:
        dense: Not modified.
        images: Of the model.
        trained: Whether its weights are; random ones are neither refitted nor rounded with error feedback.
    """

    dense: nn.Module
    images: Images
    trained: bool
    _aligned: dict[tuple[str, ...], nn.Module] = field(default_factory=dict)
    _measured: dict[str, Measured] = field(default_factory=dict)

    def make(self, method: str, macs: float) -> lpvit.Pruned:
        """A model of a method and a share of the MACs: one round of `lpvit.prune`."""
        if method == DENSE:
            return lpvit.Pruned(self.dense, {}, (1, 1))
        fit = "least_squares" if self.trained else "none"
        budget, settings = Budget(macs=macs, reconstruction=fit), METHODS[method]
        if isinstance(structure_of(settings), ModelStructure):
            return lpvit.prune(self.dense, self.images.calibration, budget=budget, pruning=settings)
        compressed = self._options(method, settings).compress(budget)
        costs = measure_costs(self.dense)
        return lpvit.Pruned(
            compressed.model, dict(compressed.keep_masks), compressed.block_shape or (1, 1), budget, costs
        )

    def quantise(self, pruned: lpvit.Pruned) -> lpvit.Pruned:
        """In our int8."""
        if not self.trained:
            return lpvit.quantise(pruned, quantisation=lpvit.Quantisation(rounding="nearest"))
        return lpvit.quantise(pruned, self.images.calibration)

    def _options(self, method: str, settings: StructureSettings) -> Measured:
        if method not in self._measured:
            self._measured.clear()  # statistics of a DeiT-B take gigabytes
            structure, batches = structure_of(settings), self._batches
            assert not isinstance(structure, ModelStructure)
            model = self._in_bases(settings.freedoms)
            options, statistics = measure(model, batches, structure, "cpu")
            tables = LayerTables(options.curves, options.blocks, measure_costs(self.dense))
            self._measured[method] = Measured(model, batches, structure, tables, statistics, "cpu")
        return self._measured[method]

    @property
    def _batches(self) -> UserBatches:
        return UserBatches(self.images.calibration, torch.float32)

    def _in_bases(self, freedoms: tuple[str, ...]) -> nn.Module:
        if not freedoms:
            return self.dense
        if freedoms not in self._aligned:
            self._aligned[freedoms], _ = align(self.dense, self._batches, freedoms, "cpu")
        return self._aligned[freedoms]


def of_shape(name: str) -> tuple[nn.Module, Images]:
    """A DeiT of 224 x 224 with random weights, and random images."""
    dense = create_model(f"{name}_patch16_224", 1000)
    images = torch.randn(RANDOM_IMAGES, *input_size(dense), generator=torch.Generator().manual_seed(0))
    return dense, Images(list(images.split(8)), [])


def of_config(arguments: argparse.Namespace) -> tuple[nn.Module, Images]:
    """The dense model of a config with calibration and test images of its dataset."""
    subject = read_subject(arguments)
    calibration = [images for images, _ in subject.calibration(arguments.calibration, seed=0)]
    return subject.model, Images(calibration, subject.validation(arguments.images))


def ranks_of(pruned: lpvit.Pruned) -> pd.Series:
    """Layer -> rank, of the layers that are factors."""
    layers = {name: module for name, module in pruned.model.named_modules() if name.endswith(".reduce")}
    return pd.Series({name.removesuffix(".reduce"): module.weight.shape[0] for name, module in layers.items()})
