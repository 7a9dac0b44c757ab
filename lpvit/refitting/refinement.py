"""Refinement: gradient steps on everything that was refitted, at once, towards the outputs of the dense network.

A closed form fits one layer for fixed others; what layers can do for each other is left to gradients. No labels: the
loss is the distortion of the logits plus that of the output of every transformer block: a large network learns the
logits of a few hundred images by heart, and the tokens of all blocks hold far more numbers (as in the distillation of
features; FitNets, arXiv 1412.6550). The dense network runs along, so that images may be mirrored at random.

N = images of a batch; T = tokens of an image; D = features of the residual stream.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor, nn

from lpvit.models.analysis.passes import Batches, evaluation_mode, recorded_outputs
from lpvit.progress import bar

BATCH = 32  # images of a step
HELD_OUT = 20  # every twentieth calibration image is held out to judge
LEARNING_RATE = 1e-3  # of Adam, relative to the root mean square of a parameter; falls to 0 by a cosine
WARM_UP = 5  # steps

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockTarget:
    """What is trained of a transformer block, and what counts of its output.

    Attributes:
        parameters: That gradient steps move.
        output_root: R of the metric R R^T in which an error of the output is measured, (D, D).
        token_weights: What each token counts, (T,).
    """

    parameters: Sequence[nn.Parameter]
    output_root: Tensor
    token_weights: Tensor

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over images of the weighted squared error, from outputs (N, ..., D)."""
        difference = ((output - target) @ self.output_root.to(output)).square().sum(dim=-1).reshape(len(output), -1)
        return (difference * self.token_weights.to(difference)).sum(dim=1).mean()


def refine(
    model: nn.Module,
    compressed: nn.Module,
    targets: Mapping[str, BlockTarget],
    loader: Batches,
    steps: int,
    device: torch.device | str,
    seed: int = 0,
) -> None:
    """Moves the parameters of the transformer blocks of a compressed model, all at once.

    Held-out images judge: a model that gets no better on them keeps the parameters that it had.

    Args:
        model: Dense, on the device.
        compressed: On the device; changed in place.
        targets: Name of a transformer block -> what is trained of it; others are left alone.
        loader: Calibration images.
        steps: Of `BATCH` images each.
        device: Where to compute.
        seed: Of the order of the images, and of which are mirrored.
    """
    if not (targets and steps):
        return
    images = torch.cat([batch.cpu() for batch, _ in loader])
    judges = torch.arange(len(images)) % HELD_OUT == 0
    pair = _Pair(model, compressed, targets, device)
    parameters = list(chain.from_iterable(target.parameters for target in targets.values()))
    start = [parameter.detach().clone() for parameter in parameters]
    with evaluation_mode(model), evaluation_mode(compressed):
        before = pair.mean_error(images[judges])
        with torch.enable_grad():
            _descend(pair, parameters, islice(_drawn(images[~judges], seed), steps), steps)
        after = pair.mean_error(images[judges])
    _logger.info("refinement: error on held-out images %.4g -> %.4g after %d steps", before, after, steps)
    if not after < before:
        _logger.warning("refinement: no better on held-out images; the model stays as refitted")
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)


@dataclass(frozen=True)
class _Pair:
    """A dense and a compressed network that see the same images."""

    model: nn.Module
    compressed: nn.Module
    targets: Mapping[str, BlockTarget]
    device: torch.device | str

    def error(self, images: Tensor) -> Tensor:
        """Distortion of the logits, and of the outputs of the blocks, for images (N, channels, height, width)."""
        images = images.to(self.device)
        with torch.no_grad(), recorded_outputs(self.model, self.targets) as wanted:
            logits = self.model(images)
        with recorded_outputs(self.compressed, self.targets) as found:
            change = self.compressed(images) - logits
        of_blocks = [target.error(found[block], wanted[block]) for block, target in self.targets.items()]
        total: Tensor = change.square().sum(dim=-1).mean() + torch.stack(of_blocks).sum()
        return total

    @torch.no_grad()
    def mean_error(self, images: Tensor) -> float:
        return sum(float(self.error(part)) * len(part) for part in torch.split(images, BATCH)) / len(images)


def _descend(pair: _Pair, parameters: Sequence[nn.Parameter], batches: Iterator[Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(
        [{"params": [each], "lr": LEARNING_RATE * float(each.detach().square().mean().sqrt())} for each in parameters]
    )

    def share(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for images in bar(batches, "refinement", "step", total=steps):
        gradients = torch.autograd.grad(pair.error(images), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()


def _drawn(images: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches in random order, epoch after epoch, each image mirrored or not."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.split(torch.randperm(len(images), generator=generator), BATCH):
            mirrored = torch.rand(len(chosen), 1, 1, 1, generator=generator) < 0.5
            yield torch.where(mirrored, images[chosen].flip(-1), images[chosen])
