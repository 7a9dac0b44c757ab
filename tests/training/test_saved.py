"""Training checkpoints that are whole but not of this training: refused in one line, before anything is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import ToyData, assert_same, fit, recipe

from lpvit.errors import LpvitError
from lpvit.store.artifacts import load, save

Payload = dict[str, Any]


def first_moments(saved: Payload) -> Payload:
    moments: Payload = saved["optimizer"]["state"][0]
    return moments


FORGED: dict[str, Callable[[Payload], object]] = {
    "a moment is missing": lambda saved: first_moments(saved).pop("exp_avg_sq"),
    "a moment has another shape": lambda saved: first_moments(saved).update(exp_avg=torch.zeros(3)),
    "a moment is text": lambda saved: first_moments(saved).update(exp_avg="text"),
    "a moment is of no parameter": lambda saved: saved["optimizer"]["state"].update({999: first_moments(saved)}),
    "a setting is missing": lambda saved: saved["optimizer"]["param_groups"][0].pop("eps"),
    "a setting is another": lambda saved: saved["optimizer"]["param_groups"][0].update(weight_decay=9.0),
    "the rate is a list": lambda saved: saved["optimizer"]["param_groups"][0].update(lr=[]),
    "steps are text": lambda saved: saved.update(steps="text"),
    "steps are negative": lambda saved: saved.update(steps_done=-1),
    "an epoch is text": lambda saved: saved["history"][0].update(epoch="one"),
    "sums are text": lambda saved: saved.update(processes=[("text", {})]),
    "weights are missing": lambda saved: saved["model"].popitem(),
    "the average is missing": lambda saved: saved.update(ema=None),
    "something is added": lambda saved: saved.update(more=1),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_checkpoint_that_is_not_of_this_training_is_refused_in_one_line(forged: str, tmp_path: Path) -> None:
    settings, data, file = recipe(epochs=1, ema_decay=0.9), ToyData(images=8), tmp_path / "training.pt"
    state, _ = fit(tmp_path, settings, data)
    assert_same(state, fit(tmp_path, settings, data)[0])  # resumed
    payload = load(file, "training")
    FORGED[forged](payload)
    save(payload, file, "training")
    with pytest.raises(LpvitError, match=f"^{file}: is (not a state of this training|no 'training')[^\n]*rerun$"):
        fit(tmp_path, settings, data)
