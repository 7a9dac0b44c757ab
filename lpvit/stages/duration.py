"""How long a run will take here: a batch of every model is timed, and multiplied by the images that it will see.

N = images of a batch; C, H, W = channels, height and width of the model's input.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

from lpvit.config.config import Config, Experiment
from lpvit.data.index import class_names
from lpvit.models.outputs import read
from lpvit.models.sources.dense import configured_source
from lpvit.models.sources.timm import input_size

BATCH = 4
BACKWARD = 2  # passes that a backward pass costs


class Pace(NamedTuple):
    """Seconds for an image.

    Attributes:
        forward: In inference.
        step: Of training: forward, backward and the optimiser.
    """

    forward: float
    step: float


def expected_seconds(settings: Config, images: Mapping[str, pd.DataFrame]) -> float:
    """Seconds of all trainings, calibrations and evaluations together, each counted once; images are not decoded.

    Args:
        settings: The whole config.
        images: Dataset -> schema ``IMAGES``.
    """
    paces: dict[tuple[str, str], Pace] = {}
    jobs: dict[tuple[str, ...], float] = {}
    for experiment in settings.experiments.values():
        names = experiment.dataset, experiment.model
        if names not in paces:
            paces[names] = pace_of(_built(settings, experiment, images[experiment.dataset]), settings.compute.device)
        jobs |= _jobs(settings, experiment, images[experiment.dataset]["split"].value_counts(), paces[names])
    return sum(jobs.values())


def _jobs(settings: Config, experiment: Experiment, count: pd.Series, pace: Pace) -> dict[tuple[str, ...], float]:
    """Decisions of a result -> seconds until it is there."""
    train, validation = int(count.get("train", 0)), int(count.get("validation", 0))
    names = (experiment.dataset, experiment.model)
    budget = settings.budgets[experiment.budget]
    calibration = settings.calibrations[experiment.calibration].images
    probes = getattr(settings.prunings[experiment.pruning], "probes", 1)
    pass_of_images = calibration * pace.forward * (1 + BACKWARD * probes)
    measured = (*names, experiment.calibration, experiment.pruning)
    compressed = (*measured, experiment.budget, *experiment.schemes)
    evaluation = validation * pace.forward
    jobs = {
        (*names, "evaluation"): evaluation,
        measured: 2 * pass_of_images,
        (*compressed, "compressed"): 2 * pass_of_images * budget.steps + evaluation,
    }
    for recipe, place in ((settings.models[experiment.model].recipe, names), (experiment.recipe, compressed)):
        if recipe is not None:
            epochs, taught = settings.recipes[recipe].epochs, settings.recipes[recipe].teacher is not None
            step = pace.step + taught * pace.forward
            jobs[*place, recipe] = epochs * (train * step + evaluation) / settings.compute.processes
    return jobs


def pace_of(model: nn.Module, device: str) -> Pace:
    """Times a batch of random images in inference and in training."""
    where = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    model = model.to(where)
    images = torch.randn(BATCH, *input_size(model), device=where)

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    def step() -> None:
        read(model, model(images)).square().mean().backward()  # type: ignore[no-untyped-call]

    return Pace(_seconds(forward, where), _seconds(step, where))


def _seconds(run: Callable[[], None], device: str) -> float:
    """Seconds for an image: the faster of two runs after one to warm up."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:]) / BATCH


def _built(settings: Config, experiment: Experiment, images: pd.DataFrame) -> nn.Module:
    model = settings.models[experiment.model]
    return configured_source(model, len(class_names(images)) or None).build(seed=model.seed)
