"""Subject of the pruning benchmarks: a dense model of the workflow, and images of its dataset in memory."""

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
import yaml
from torch import Tensor, nn

from lpvit.config.config import Config, parse_config
from lpvit.data.calibration import sample_calibration
from lpvit.data.index import usable_images
from lpvit.data.loading import evaluation_loader
from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import LayerSpec, matrix_layers, prunable_layers
from lpvit.models.architecture import Architecture, load_model
from lpvit.settings import Compute
from lpvit.store.schemas import IMAGES
from lpvit.store.tables import read_parquet

Batches = list[tuple[Tensor, Tensor]]  # images (N, C, H, W) and labels (N,)


@dataclass(frozen=True)
class Subject:
    """A dense model of a config, trained or converted by ``snakemake results/<dataset>/<model>/dense.pt``."""

    config: Config
    dataset: str
    name: str
    compute: Compute

    @cached_property
    def architecture(self) -> Architecture:
        return self._dense[0]

    @cached_property
    def model(self) -> nn.Module:
        architecture, state = self._dense
        return architecture.build(state).to(self.compute.device).eval()

    @cached_property
    def layers(self) -> list[LayerSpec]:
        return prunable_layers(matrix_layers(self.model), ("qkv", "proj", "fc1", "fc2"))

    @cached_property
    def images(self) -> pd.DataFrame:
        return read_parquet(self._made(self.config.results / self.dataset / "images.parquet"), IMAGES)

    def calibration(self, count: int, seed: int) -> Batches:
        """Training images, sampled as in the workflow."""
        return self._batches(sample_calibration(self.images, count, seed))

    def validation(self, count: int) -> Batches:
        """Validation images, evenly spread over the split."""
        return self._batches(usable_images(self.few_images(1, count), "validation"))

    def training(self, count: int) -> Batches:
        """Training images, evenly spread over the split."""
        return self._batches(usable_images(self.few_images(count, 1), "train"))

    def few_images(self, training: int, validation: int) -> pd.DataFrame:
        """As many images of each split, evenly spread over it, schema ``IMAGES``."""
        counts = {"train": training, "validation": validation}
        parts = []
        for split, count in counts.items():
            images = self.images[(self.images["split"] == split) & self.images["problem"].isna()]
            parts.append(images.iloc[:: max(1, len(images) // count)].head(count))
        return pd.concat(parts, ignore_index=True)

    def _batches(self, images: pd.DataFrame) -> Batches:
        dataset = self.config.datasets[self.dataset].model_dump()
        loader = evaluation_loader(images, dataset, self.model, 128, self.compute)
        return [(batch.clone(), labels.clone()) for batch, labels in loader]

    @cached_property
    def _dense(self) -> tuple[Architecture, dict[str, Tensor]]:
        return load_model(self._made(self.config.results / self.dataset / self.name / "dense.pt"), "dense")

    @staticmethod
    def _made(path: Path) -> Path:
        if not path.exists():
            raise SystemExit(f"{path}: missing; first run: snakemake --cores all {path} --configfile <the config>")
        return path


@torch.no_grad()
def logits_of(model: nn.Module, batches: Batches) -> Tensor:
    """Shape (N, classes), of all images."""
    return torch.cat([model.eval()(images) for images, _ in batches])


def squared_change(logits: Tensor, dense: Tensor) -> float:
    """Distortion of logits (N, classes): mean over the images, in squared logits."""
    return float((logits - dense).double().square().sum(dim=1).mean())


def top1(logits: Tensor, batches: Batches) -> float:
    """Share of the images in %."""
    labels = torch.cat([labels for _, labels in batches])
    return 100 * float((logits.argmax(dim=1) == labels).double().mean())


def points_lost(logits: Tensor, dense: Tensor, batches: Batches) -> tuple[float, float]:
    """Points of top-1 below the dense model, and half the width of their 95 % interval, paired by image."""
    labels = torch.cat([labels for _, labels in batches])
    lost = 100 * ((dense.argmax(dim=1) == labels).double() - (logits.argmax(dim=1) == labels).double())
    return float(lost.mean()), float(1.96 * lost.std() / len(lost) ** 0.5)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that choose the subject."""
    parser.add_argument("--config", type=Path, required=True, help="config of the workflow that made the dense model")
    parser.add_argument("--dataset", required=True, help="name in the config's `datasets`")
    parser.add_argument("--model", required=True, help="name in the config's `models`")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")


def read_subject(arguments: argparse.Namespace) -> Subject:
    """The subject that `add_arguments` chose; on the GPU if there is one."""
    torch.set_num_threads(arguments.threads)
    try:
        config = parse_config(yaml.safe_load(arguments.config.read_text()))
    except LpvitError as error:
        raise SystemExit(f"{arguments.config}: {error}") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    compute = config.compute.model_copy(update={"device": device, "threads": arguments.threads})
    return Subject(config, arguments.dataset, arguments.model, compute)
