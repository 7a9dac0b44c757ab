"""Weights from files, as trainers write them, and checks that they fit a model."""

import argparse
import json
import logging
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor, nn

from lpvit.errors import LpvitError, one_line

_logger = logging.getLogger(__name__)

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher")  # keys of averaged weights
_PLAIN = ("model", "state_dict", "model_state_dict", "module")  # keys of weights
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_NO_WEIGHTS = ("decoder", "mask_token")  # of a masked autoencoder, beside its encoder


_ALLOWED: list[
    Any
] = [  # by name, besides tensors and plain containers; settings become a dict, none of their code runs
    argparse.Namespace,
    (OrderedDict, "yacs.config.CfgNode"),  # Swin
    (OrderedDict, "fvcore.common.config.CfgNode"),
    (OrderedDict, "lightning.fabric.utilities.data.AttributeDict"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    *((np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)),
]


def read_checkpoint(path: str | Path, model: nn.Module | None = None) -> dict[str, Tensor]:
    """The weights in a file or folder, as timm, DeiT, Swin, MAE, DINO, Lightning and transformers write them.

    Averaged weights (EMA) are taken where there are some, and that is said in a line. Prefixes of wrappers
    (``module.``, ``_orig_mod.``) are removed.

    Args:
        path: ``.safetensors``; ``.pt``, ``.pth`` or ``.bin``; an index of shards; or a folder that has one of these
            under the name that transformers gives it.
        model: That the weights are for: a prefix that all its names have in the file is removed, and names and shapes
            of official files are converted as timm (``checkpoint_filter_fn``) or transformers does.

    Raises:
        LpvitError: The file is missing, damaged, or holds no state dict, or other objects than settings beside it.
    """
    path = Path(path)
    if path.is_dir():
        names = [name for name in (*_WHOLE, *_INDICES) if (path / name).is_file()]
        if not names:
            raise LpvitError(f"{path}: a folder without {' or '.join(_WHOLE)}, or an index of shards")
        path = path / names[0]
    if not path.is_file():
        raise LpvitError(f"{path}: checkpoint not found; correct the path")
    state = clean_state_dict(_weights_in(_content(path), path))
    return state if model is None else _for_model(state, model, path)


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".json":
            shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
            if any(Path(shard).name != shard for shard in shards):
                raise ValueError("names shards in other folders")
            return {name: value for shard in shards for name, value in _content(path.parent / shard).items()}
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, "cpu", weights_only=True)
    except LpvitError:
        raise
    except Exception as error:  # safetensors and torch raise different types for different damage
        text = str(error)
        _, _, unknown = text.partition("Unsupported global: GLOBAL ")
        if unknown:
            reason = f"holds a '{unknown.split()[0]}', which is code; save its state dict alone"
            raise LpvitError(f"{path}: {reason}") from None
        reason = text.partition("\n")[0]
        raise LpvitError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {reason})") from None


def _weights_in(content: Any, path: Path) -> dict[str, Tensor]:
    found = content
    for key in (*_AVERAGED, *_PLAIN):
        inner = content.get(key) if isinstance(content, dict) else None
        if isinstance(inner, dict) and inner:
            found = inner
            if key in _AVERAGED:
                _logger.info("%s: takes the averaged weights, '%s'", path, key)
            break
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise LpvitError(f"{path}: holds no state dict (names with tensors)")
    return found


def _for_model(state: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The weights under the model's names."""
    own = model.state_dict()
    first = next(iter(own), "")
    prefixes = [name.removesuffix(first) for name in state if name.endswith(f".{first}")]
    prefixes = [prefix for prefix in prefixes if all(f"{prefix}{name}" in state for name in own)]
    if prefixes and first not in state:
        prefix = next((prefix for prefix in prefixes if "ema" in prefix or "teacher" in prefix), prefixes[0])
        left = len(state) - len(own)
        _logger.info("%s: takes the weights under '%s', and leaves %d others", path, prefix, left)
        return {name: state[f"{prefix}{name}"] for name in own}
    if own.keys() != state.keys() or any(state[name].shape != value.shape for name, value in own.items()):
        library = "transformers" if hasattr(model, "from_pretrained") else "timm"
        try:
            converted = (_by_transformers if library == "transformers" else _by_timm)(dict(state), model)
        except Exception as error:  # of another family
            _logger.info("%s: %s does not convert it (%s)", path, library, one_line(error))
            return state
        if converted.keys() != state.keys() or any(converted[name].shape != state[name].shape for name in state):
            _logger.info("%s: names or shapes are converted as %s does", path, library)
        others = [name for name in converted if name not in own and name.startswith(_NO_WEIGHTS)]
        if others:
            _logger.info("%s: leaves %d tensors of a decoder", path, len(others))
        return {name: value for name, value in converted.items() if name not in others}
    return state


def _by_timm(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return state if convert is None else dict(convert(state, model))


def _by_transformers(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Names of files are not those of modules; those that do not fit stay, so that they are named."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        given, about = type(model).from_pretrained(
            None, config=model.config, state_dict=state, output_loading_info=True
        )
    if about["missing_keys"] or about["unexpected_keys"] or about["mismatched_keys"]:
        return state
    return dict(given.state_dict())


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


def _is_alike(found: Tensor, expected: Tensor) -> bool:
    """Whether both are floating point or have the same type, and are strided."""
    both_floating = found.dtype in _FLOATS and expected.dtype in _FLOATS
    return found.layout == expected.layout and (both_floating or found.dtype == expected.dtype)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "a number"
