"""Checks the arguments of models in a config or file: only those that shape a model, as plain values.

Other arguments of timm (``checkpoint_path``, ``pretrained_cfg_overlay``, ``cache_dir``, ...) belong to no class of
models and are never passed to it.
"""

import functools
import inspect
import math
import sys
from collections.abc import Collection, Mapping
from typing import Any

import timm
from torch import nn

from lpvit.errors import LpvitError

DATA_CONFIG = ("mean", "std", "interpolation", "crop_pct", "crop_mode")  # of the preprocessing, besides the input size
LARGEST = 2**16  # largest integer: layers, features, pixels of a side, ...


def require_plain(name: str, options: Mapping[str, Any], data_config: Mapping[str, Any]) -> None:
    """Checks that options are arguments of this kind of model, with plain values of limited size.

    Args:
        name: Of a model of timm.
        options: Keyword arguments besides the number of classes.
        data_config: Overrides of the model's data config.

    Raises:
        LpvitError: A name or a value is not allowed.
    """
    known = _arguments(timm.model_entrypoint(name.partition(".")[0]).__module__)
    require_known(options, known, f"'{name}'", "its class in timm")
    size = options.get("img_size", 1)
    sides = [options.get("in_chans", 1), *(size if isinstance(size, list | tuple) else [size, size])]
    if len(sides) != 3 or not all(type(side) is int and side > 0 for side in sides):
        raise LpvitError(
            f"options: img_size {_shown(size)} and in_chans {_shown(sides[0])} are no whole numbers above 0"
        )
    require_data_config(data_config)


def require_known(options: Mapping[str, Any], known: Collection[str], name: str, documented: str) -> None:
    """Checks that options are among the known ones, with plain values.

    Args:
        options: Name -> value.
        known: Names that are allowed.
        name: Of the model, for the message.
        documented: Where its arguments are described.

    Raises:
        LpvitError: A name or a value is not allowed.
    """
    for key, value in options.items():
        if key not in known:
            raise LpvitError(f"options: {name} takes no {key!a}; see the arguments of {documented}")
        if not _is_plain(value):
            raise LpvitError(
                f"options: {key} {_shown(value)} is no number up to {LARGEST}, text, truth value, or list of them"
            )


def require_data_config(data_config: Mapping[str, Any], known: Collection[str] = DATA_CONFIG) -> None:
    """Checks the preprocessing of a model.

    Args:
        data_config: In timm's words.
        known: Keys that are allowed.

    Raises:
        LpvitError: A key is unknown, or a value is not of its kind.
    """
    for key, value in data_config.items():
        if key not in known:
            raise LpvitError(f"data_config: {key!a} is unknown; there are {', '.join(known)}")
        if not _fits(key, value):
            raise LpvitError(
                f"data_config: {key} {_shown(value)} is not of its kind (a number, a list of them, a name)"
            )


def _fits(key: str, value: Any) -> bool:
    if key in ("mean", "std", "input_size"):
        return isinstance(value, list | tuple) and all(map(_is_number, value))
    return _is_number(value) if key == "crop_pct" else isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list | tuple):
        return depth < 2 and len(value) < LARGEST and all(_is_plain(part, depth + 1) for part in value)
    return value is None or isinstance(value, bool | str) or _is_number(value)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


@functools.cache
def _arguments(module: str) -> frozenset[str]:
    """Names of the arguments of all classes that a module of timm defines or uses, and of those below them."""
    classes = [value for value in vars(sys.modules[module]).values() if inspect.isclass(value)]
    return frozenset(
        name
        for one in classes
        if issubclass(one, nn.Module)
        for base in one.__mro__
        if "__init__" in vars(base)
        for name in inspect.signature(base.__init__).parameters  # type: ignore[misc]
        if name not in ("self", "args", "kwargs", "num_classes")
    )
