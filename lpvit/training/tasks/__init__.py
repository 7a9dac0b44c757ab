"""Tasks: what a model is trained and evaluated for, one file each."""

from collections.abc import Callable
from typing import Any

from lpvit.errors import LpvitError, nearest
from lpvit.training.tasks.classification import Classification
from lpvit.training.tasks.multi_label import MultiLabel
from lpvit.training.tasks.own import OwnLoss
from lpvit.training.tasks.regression import Regression
from lpvit.training.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "regression": Regression,
}


def task_of(given: str | Callable[[Any, Any], Any]) -> Task:
    """The task of a name, or of the user's own loss.

    Raises:
        LpvitError: There is none of this name.
    """
    if isinstance(given, str) and given in TASKS:
        return TASKS[given]()
    if callable(given):
        return OwnLoss(given)
    hint = nearest(given, TASKS) if isinstance(given, str) else ""
    found = f"'{given:.60}'" if isinstance(given, str) else type(given).__name__
    raise LpvitError(
        f"task: found {found}{hint}, expected {', '.join(TASKS)}, or a function of model output and batch that "
        "returns the loss"
    )
