"""Names of a model's classes, from the loader of a user."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from lpvit.api.arguments import require_type
from lpvit.api.pruned import Pruned
from lpvit.data.classes import require_same_order
from lpvit.errors import LpvitError
from lpvit.models.architecture import classes_of, record_classes, source_of


def classes_by(loader: Iterable[Any], model: nn.Module) -> tuple[str, ...]:
    """The names that a model carries already, or those of the loader's dataset; none if their number is another.

    Args:
        loader: A DataLoader, whose dataset may be a subset of one of torchvision or timm; or anything else.
        model: Gives the number of classes.
    """
    if carried := classes_of(model):
        return carried
    names = _classes_in(loader)
    return names if len(names) == source_of(model).num_classes else ()


def require_classes_by(loader: Iterable[Any], model: nn.Module) -> None:
    """Checks that a model and the dataset of a loader have the same classes in the same order, if they have the same.

    Raises:
        LpvitError: In another order.
    """
    known, found = classes_of(model), _classes_in(loader)
    if set(known) == set(found):
        require_same_order(known, found, "loader: the model")


def _classes_in(loader: Iterable[Any]) -> tuple[str, ...]:
    """Names of the classes of a loader's dataset, by label, if it has one that says them."""
    dataset: Any = getattr(loader, "dataset", None)
    while hasattr(dataset, "dataset"):  # a subset
        dataset = dataset.dataset
    by_rank = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    found = sorted(by_rank, key=by_rank.__getitem__) if isinstance(by_rank, dict) else getattr(dataset, "classes", ())
    names = tuple(found) if isinstance(found, list | tuple) else ()
    return names if all(isinstance(name, str) for name in names) else ()


def name_classes(model: nn.Module | Pruned, classes: Sequence[str]) -> None:
    """Names the classes of a model; its files and exports carry them.

    Args:
        model: Dense or compressed.
        classes: In the order of the logits.

    Raises:
        LpvitError: Their number is not that of the model's classes.
    """
    module = model.model if isinstance(model, Pruned) else model
    require_type("model", module, nn.Module, "a model, or the result of lpvit.prune")
    require_type("classes", classes, Sequence, "a list of names")
    expected = source_of(module).num_classes or len(classes)
    if isinstance(classes, str) or len(classes) != expected:
        raise LpvitError(f"classes: found {len(classes)} names, the model has {expected} classes")
    record_classes(module, tuple(map(str, classes)))
