"""Saves a pruned model as one safetensors file, without pruned blocks and with the arguments to rebuild the model.

A layer with a mask is stored as ``LAYER.values``, ``LAYER.crow_indices`` and ``LAYER.col_indices``
(`lpvit.sparse.storage`), from which the mask follows; everything else is stored as in the state dict. The
metadata has two entries: ``lpvit``, a `Header` as JSON, and the digest of the file (`lpvit.store.digest`).
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lpvit import __version__
from lpvit.allocation.settings import Budget
from lpvit.api.pruned import Pruned
from lpvit.errors import LpvitError, one_line
from lpvit.models.analysis.layers import weight_matrix
from lpvit.models.architecture import Architecture, input_size, outline
from lpvit.models.sources.checkpoints import load_weights, require_one_type, require_same_architecture
from lpvit.models.sources.families import call_modules
from lpvit.sparse.storage import PARTS, compress, decompress, indexed_keep_mask
from lpvit.store.artifacts import replace_atomically
from lpvit.store.digest import BLANK, seal, verify
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.masks import expand_keep_masks, verify_pruned

FORMAT_VERSION = 1


class Header(BaseModel):
    """Metadata of the tensors.

    Attributes:
        format: Version of the layout of the file.
        version: Of lpvit that wrote it.
        architecture: Builds the model.
        block_shape: Rows and columns of a block.
        budget: Of the pruned model, if known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT_VERSION
    version: str = __version__
    architecture: Architecture
    block_shape: tuple[PositiveInt, PositiveInt]
    budget: Budget | None


def save(pruned: Pruned, path: str | Path, options: Mapping[str, Any] | None = None) -> None:
    """Writes a pruned model, fine-tuned or not, without its pruned blocks.

    Args:
        pruned: From `lpvit.prune` or `lpvit.load`; its model may have been trained since, with fixed masks.
        path: Target, ``.safetensors``.
        options: Arguments of ``timm.create_model`` besides name, ``pretrained`` and ``num_classes``, if there are
            others than image size and number of channels.

    Raises:
        LpvitError: A pruned weight is not zero, or name and options build another model than this one.
    """
    architecture = pruned.architecture
    if architecture is None or options is not None:
        architecture = Architecture.of(pruned.model, options)
    _require_zeros(pruned)
    _require_rebuilt(architecture, pruned.model)
    header = Header(architecture=architecture, block_shape=pruned.block_shape, budget=pruned.budget)
    metadata = {"lpvit": header.model_dump_json(), "digest": BLANK}
    with replace_atomically(path) as partial:
        partial.touch()
        rights = partial.stat().st_mode
        save_file(_compressed(pruned), partial, metadata)
        partial.chmod(rights)  # default permissions; safetensors restricts them to the owner
        seal(partial)


def load(path: str | Path) -> Pruned:
    """Reads a file of `save`, on the CPU, with zeros for the pruned weights.

    Raises:
        LpvitError: The file is missing, damaged, not from `save`, of another format, or does not fit its architecture.
    """
    header, tensors = _read(Path(path))
    try:
        return _restored(header, tensors)
    except LpvitError as error:
        raise LpvitError(f"{path}: {error}") from None


def _restored(header: Header, tensors: dict[str, Tensor]) -> Pruned:
    """Builds the model after checking that the content of the file is consistent; until then it uses no memory."""
    model = outline(header.architecture, tensors)
    layers = dict.fromkeys(name.rpartition(".")[0] for name in tensors if name.endswith(PARTS))
    stored = {layer: [part for part in PARTS if f"{layer}.{part}" in tensors] for layer in layers}
    parts = {layer: {part: tensors.pop(f"{layer}.{part}") for part in names} for layer, names in stored.items()}
    weights = {f"{layer}.weight" for layer in layers}
    whole = {name: value for name, value in model.state_dict().items() if name in weights}
    require_same_architecture(model, tensors | whole, "its weights")
    keep_masks = {}
    for layer in layers:
        try:
            weight, keep_masks[layer] = _restore(model.get_submodule(layer), parts[layer], header.block_shape)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError, LpvitError) as error:
            raise LpvitError(f"'{layer}' does not fit its model ({error}); save it again") from None
        tensors[f"{layer}.weight"] = weight
    require_same_architecture(model, tensors, "its weights")
    require_one_type(model, tensors, "its weights")
    model = _build(header.architecture)
    model.load_state_dict(tensors, assign=True)  # in the saved dtype
    return Pruned(model, keep_masks, header.block_shape, header.budget, header.architecture)


def _require_zeros(pruned: Pruned) -> None:
    expanded = expand_keep_masks(pruned.model, pruned.keep_masks, pruned.block_shape)
    try:
        verify_pruned(pruned.model.state_dict(), expanded)
    except AssertionError as error:
        raise LpvitError(f"model: {error}; train it with fixed masks, or set them to zero") from None


@torch.no_grad()
def _require_rebuilt(architecture: Architecture, model: nn.Module) -> None:
    """Checks that an architecture builds the model: same weights, and same logits of a random image."""
    hint = (
        f"model: is not what timm builds as '{architecture.timm}' with {architecture.options}; pass all arguments "
        "of timm.create_model as 'options'"
    )
    rebuilt = _build(architecture)
    try:
        load_weights(rebuilt, model.state_dict(), "model")
    except LpvitError as error:
        raise LpvitError(f"{hint} ({error})") from None
    given = call_modules(deepcopy(model).cpu().float().eval())
    image = torch.rand(1, *input_size(model), generator=torch.Generator().manual_seed(0))
    if not torch.allclose(rebuilt(image), given(image), rtol=1e-3, atol=1e-4):
        raise LpvitError(f"{hint} (same weights, other logits)")


def _build(architecture: Architecture) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # keeps the state of the user's generator, which building a model changes
        return architecture.build()


def _compressed(pruned: Pruned) -> dict[str, Tensor]:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in pruned.model.state_dict().items()}
    for layer, keep_mask in pruned.keep_masks.items():
        blocks = compress(tensors.pop(f"{layer}.weight").flatten(1), keep_mask.cpu(), pruned.block_shape)
        tensors |= {f"{layer}.{part}": tensor for part, tensor in zip(PARTS, blocks, strict=True)}
    return tensors


def _restore(module: nn.Module, parts: Mapping[str, Tensor], block_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Weight of a layer, in its shape there, and keep mask.

    Raises:
        TypeError, ValueError, LpvitError: The layer has no weight matrix, or the parts do not fit it.
    """
    if missing := [part for part in PARTS if part not in parts]:
        raise ValueError(f"{missing[0]} are missing")
    matrix = weight_matrix(module)
    grid = BlockGrid((matrix.shape[0], matrix.shape[1]), block_shape)
    weight: Tensor = module.weight  # type: ignore[assignment]
    values = parts["values"]
    if any(parts[part].dtype != torch.int32 for part in PARTS[1:]):
        raise ValueError("its indices are not int32")
    if values.shape[1:] != block_shape:
        raise ValueError(f"blocks of {tuple(values.shape[1:])}, expected {block_shape}")
    keep_mask = indexed_keep_mask(parts["crow_indices"], parts["col_indices"], len(values), grid)
    return decompress(**parts, grid=grid).reshape(weight.shape), keep_mask


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    if not path.is_file():
        raise LpvitError(f"{path}: file not found")
    if is_zipfile(path):  # format of torch
        raise LpvitError(
            f"{path}: is not a file of lpvit.save; if the pipeline wrote it, create one with 'lpvit export {path} "
            f"model.safetensors' or, for all experiments, 'snakemake export'"
        )
    verify(path, "save the model again; for dense weights use timm.create_model")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # safetensors and torch raise different types for different damage
        raise LpvitError(f"{path}: cannot be read as safetensors ({error}); it is another type of file") from None
    if "lpvit" not in metadata:
        raise LpvitError(f"{path}: not written by lpvit.save; for dense weights use timm.create_model")
    return _header(metadata["lpvit"], path), tensors


def _header(text: str, path: Path) -> Header:
    try:
        found = json.loads(text)["format"]
        if found == FORMAT_VERSION:
            return Header.model_validate(json.loads(text))
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # pydantic's errors are ValueErrors
        raise LpvitError(f"{path}: its metadata is damaged ({one_line(error)}); save the model again") from None
    raise LpvitError(
        f"{path}: format {one_line(found)}, this lpvit {__version__} reads format {FORMAT_VERSION}; use another lpvit"
    )
