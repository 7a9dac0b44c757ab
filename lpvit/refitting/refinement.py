"""Refinement: gradient steps on all refitted parameters of a transformer block at once, towards the dense one's output.

A closed form fits one layer for fixed others; what layers of a block can do for each other is left to gradients
(BRECQ, arXiv 2102.05426, has the same order for quantised weights). No labels; the inputs of a block are those that
reach it in the compressed network as refined up to there, so a block also makes up for what those before it lost.

N = images of a batch; T = tokens of an image; D = features of the residual stream.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpvit.models.analysis.network import analyse
from lpvit.models.analysis.passes import Batches, CachedPass, evaluation_mode, run_through
from lpvit.progress import bar
from lpvit.refitting.reconstruction import HELD_OUT

LEARNING_RATE = 3e-4  # of Adam, relative to the root mean square of a parameter; falls to 0 by a cosine

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
) -> None:
    """Moves the parameters of transformer blocks of a compressed model, one block after the other.

    Held-out images judge: a block that gets no better on them keeps the parameters that it had.

    Args:
        model: Dense, on the device.
        compressed: On the device; changed in place.
        targets: Name of a transformer block -> what is trained of it; others are left alone.
        loader: Calibration images.
        steps: Of a batch each, for every block.
        device: Where to compute.
    """
    resume_points, shares = analyse(model).resume_points, []
    with evaluation_mode(model), evaluation_mode(compressed), torch.enable_grad():
        dense = [CachedPass(images.cpu()) for images, _ in bar(loader, "calibration images", "batch")]
        passes = list(dense)
        for point in bar(resume_points, "refinement", "transformer block"):
            outputs = []
            for number, cached in enumerate(dense):
                with torch.no_grad():
                    output, dense[number] = run_through(model, resume_points, cached, point, device)
                outputs.append(output.cpu())
            if point in targets and steps:
                block = _Refined(compressed, resume_points, point, targets[point], device)
                shares.append(block.train(list(zip(passes, outputs, strict=True)), steps))
            with torch.no_grad():
                passes = [run_through(compressed, resume_points, cached, point, device)[1] for cached in passes]
    if shares:
        _logger.info("refinement: error on held-out images falls to %.1f %% (mean of %d blocks)", *_mean(shares))


def _mean(shares: Sequence[float]) -> tuple[float, int]:
    return 100 * sum(shares) / len(shares), len(shares)


@dataclass(frozen=True)
class _Refined:
    """A transformer block in training."""

    model: nn.Module
    resume_points: Sequence[str]
    point: str
    target: BlockTarget
    device: torch.device | str

    def train(self, batches: Sequence[tuple[CachedPass, Tensor]], steps: int) -> float:
        """Takes the steps; the error on held-out images that is left, as a share of that of before, at most 1."""
        parameters = self.target.parameters
        start = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.Adam(
            [
                {"params": [each], "lr": LEARNING_RATE * float(each.detach().square().mean().sqrt())}
                for each in parameters
            ]
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
        before = self._held_out(batches)
        for step in range(steps):
            error = self._error(*batches[step % len(batches)], held_out=False)
            gradients = torch.autograd.grad(error, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()
        after = self._held_out(batches)
        if after < before:
            return after / before
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        return 1.0

    @torch.no_grad()
    def _held_out(self, batches: Sequence[tuple[CachedPass, Tensor]]) -> float:
        return sum(float(self._error(*batch, held_out=True)) * len(batch[1]) for batch in batches)

    def _error(self, cached: CachedPass, target: Tensor, *, held_out: bool) -> Tensor:
        output, _ = run_through(self.model, self.resume_points, cached, self.point, self.device)
        chosen = (torch.arange(len(target)) % HELD_OUT == 0) == held_out
        return self.target.error(output[chosen.to(output.device)], target[chosen].to(output.device))
