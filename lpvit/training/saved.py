"""What a training checkpoint holds, and whether it belongs to an optimiser."""

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, InstanceOf, NonNegativeInt
from torch import Tensor

from lpvit.store.artifacts import load

State = dict[str, InstanceOf[Tensor]]


class Best(BaseModel):
    """The best epoch so far, on the held-out images."""

    model_config = ConfigDict(extra="forbid")

    epoch: NonNegativeInt
    merit: float
    loss: float
    score: str
    state: State


class Saved(BaseModel):
    """A training after an optimiser step.

    Attributes:
        model: Weights.
        ema: Averaged weights, if asked for.
        optimizer: Its state dict; `require_fitting` checks it.
        scaler: State of the loss scale in float16, else empty.
        steps: Optimiser steps in all.
        keep_masks: Kept blocks.
        steps_done: Optimiser steps of the current epoch.
        processes: Sums of the loss and the images of these steps, and states of all generators, for each process.
        fingerprint: Of everything that the result depends on.
        history: A row for each finished epoch.
        best: If epochs are chosen.
    """

    model_config = ConfigDict(extra="forbid")

    model: State
    ema: State | None
    optimizer: dict[str, Any]
    scaler: dict[str, int | float]
    steps: NonNegativeInt
    keep_masks: State
    steps_done: NonNegativeInt
    processes: list[tuple[list[float], dict[str, Any]]]
    fingerprint: str
    history: list[dict[str, int | float]]
    best: Best | None = None


def read_progress(file: str | Path) -> Saved:
    """Reads a training checkpoint.

    Raises:
        LpvitError: As `lpvit.store.artifacts.load`.
    """
    saved: Saved = load(file, "training", Saved)
    return saved


def require_fitting(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Checks the state of an AdamW before it is loaded, which checks nothing but the number of parameters.

    Raises:
        ValueError: It is of another optimiser, or of parameters of other shapes.
    """
    own = optimizer.state_dict()["param_groups"]
    if [_without_rate(group) for group in saved["param_groups"]] != [_without_rate(group) for group in own]:
        raise ValueError("the optimiser has other settings")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in saved["state"].items():
        shape = parameters[number].shape
        found = {name: (moment.shape, moment.is_floating_point()) for name, moment in moments.items()}
        if found != {"step": (torch.Size(), True), "exp_avg": (shape, True), "exp_avg_sq": (shape, True)}:
            raise ValueError(f"the optimiser has no moments of parameter {number} as it is")


def _without_rate(group: dict[str, Any]) -> dict[str, Any]:
    """Settings that a training does not change."""
    return {name: value for name, value in group.items() if name != "lr"} | {"lr": float(group["lr"]) >= 0}
