"""Weights from files, and whether they fit a model."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lpvit.errors import LpvitError


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a ``.safetensors`` or ``.pt``/``.pth`` file (plain, or under ``model`` or ``state_dict``).

    Raises:
        LpvitError: The file is missing, damaged, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise LpvitError(f"{path}: checkpoint not found; correct 'checkpoint' in the config")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise a different type for every kind of damage
        reason = str(error).partition("\n")[0]
        raise LpvitError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {reason})") from None
    for wrapper in ("model_ema", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise LpvitError(f"{path}: holds no state dict (names with tensors)")
    return {key.removeprefix("module."): value for key, value in content.items()}


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copies a state dict into a model of exactly the same architecture.

    Args:
        model: Changed in place.
        state: Names with tensors.
        source: Where it comes from, for the message.

    Raises:
        LpvitError: As `require_same_architecture`.
    """
    require_same_architecture(model, state, source)
    model.load_state_dict(dict(state))


def require_same_architecture(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Compares names and shapes; the model may be on the meta device.

    Raises:
        LpvitError: Names or shapes differ; the first differences are named.
    """
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown to the model" for name in state if name not in expected]
    problems += [
        f"{name} is {_shape(state[name])}, the model has {_shape(value)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise LpvitError(f"{source}: a checkpoint of another architecture: {'; '.join(problems[:3])}{more}")


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "a number"
