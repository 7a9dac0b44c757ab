"""Weights from files, and checks that they fit a model."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lpvit.errors import LpvitError, one_line

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    except Exception as error:  # safetensors and torch raise different types for different damage
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
        source: Origin, for the message.

    Raises:
        LpvitError: As `require_same_architecture`.
    """
    require_same_architecture(model, state, source)
    model.load_state_dict(dict(state))


def require_same_architecture(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Compares names, shapes and kinds of numbers; model and tensors may be on the meta device.

    Raises:
        LpvitError: They differ, and the first differences are named; or a weight is not finite.
    """
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown to the model" for name in state if name not in expected]
    problems += [
        f"{name} is {_shape(state[name])}, the model has {_shape(value)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems += [
        f"{name} is of {state[name].dtype} ({state[name].layout}), the model's of {value.dtype} ({value.layout})"
        for name, value in expected.items()
        if name in state and not _is_alike(state[name], value)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise LpvitError(f"{source}: a checkpoint of another architecture: {one_line('; '.join(problems[:3]))}{more}")
    for name, tensor in state.items():
        if tensor.device.type != "meta" and tensor.is_floating_point() and not tensor.isfinite().all():
            raise LpvitError(f"{source}: {name} is not finite (NaN or infinite numbers); give other weights")


def require_one_type(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Checks that all floating-point parameters have one type, because mixed types cannot be multiplied.

    Raises:
        LpvitError: They have several.
    """
    types = {str(state[name].dtype) for name, value in model.named_parameters() if value.is_floating_point()}
    if len(types) > 1:
        raise LpvitError(f"{source}: are of several types ({', '.join(sorted(types))}); convert them to one")


def _is_alike(found: Tensor, expected: Tensor) -> bool:
    """Whether both are floating point or have the same type, and are strided."""
    both_floating = found.dtype in _FLOATS and expected.dtype in _FLOATS
    return found.layout == expected.layout and (both_floating or found.dtype == expected.dtype)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "a number"
