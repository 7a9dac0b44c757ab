"""Saves a pruned model as one safetensors file, without pruned blocks and with the arguments to rebuild the model.

A layer with a mask is stored as ``LAYER.values``, shape (K, r, c): its kept blocks, row by row, those at ragged edges
padded with zeros (`lpvit.sparse.storage`). Everything else is stored as in the state dict. The metadata has
three entries: ``lpvit``, a `Header` as JSON, whose architecture has the masks among its edits; ``description``, the
classes and the preprocessing for other programs (`lpvit.export.description`); and the digest of the file
(`lpvit.store.digest`).

K = kept blocks; r, c = rows and columns of a block.
"""

import json
import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import is_zipfile

import pandas as pd
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveInt
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lpvit import __version__
from lpvit.allocation.settings import Budget, budget_of_format_1
from lpvit.api.arguments import require_file, require_path, require_type
from lpvit.api.format_1 import without_indices
from lpvit.api.pruned import Pruned, require_pruned
from lpvit.costs.cost import measure_costs
from lpvit.errors import LpvitError, one_line
from lpvit.export.description import metadata_of
from lpvit.models.analysis.layers import weight_matrix
from lpvit.models.analysis.network import require_plain_module, require_weights
from lpvit.models.architecture import Architecture, outline
from lpvit.models.drop_rates import drop_rates
from lpvit.models.format_1 import architecture_of_format_1
from lpvit.models.outputs import read
from lpvit.models.preparation import plain_copy
from lpvit.models.sources.checkpoints import load_weights, require_same_architecture
from lpvit.models.sources.families import call_modules
from lpvit.models.sources.given import Given
from lpvit.models.sources.source import Source
from lpvit.models.sources.timm import Timm, input_size
from lpvit.sparse.storage import block_indices, compress, decompress
from lpvit.store.artifacts import replace_atomically
from lpvit.store.digest import BLANK, seal, verify
from lpvit.structures.blocks.edit import kept_blocks_of, with_keep_masks
from lpvit.structures.blocks.grid import BlockGrid

FORMAT = 2


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

    format: int = FORMAT
    version: str = __version__
    architecture: Architecture
    block_shape: tuple[PositiveInt, PositiveInt]
    budget: Annotated[Budget | None, BeforeValidator(budget_of_format_1)]


def save(
    pruned: Pruned,
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    source: Source | Literal["given"] | None = None,
) -> None:
    """Writes a pruned model, fine-tuned or not, without its pruned blocks.

    The file says how to build the model, if that is known: models of timm, transformers and torchvision tell it. Of
    others it has weights and edits, and `load` is given the model.

    Args:
        pruned: From `lpvit.prune` or `lpvit.load`; its model may have been trained since, with fixed masks.
        path: Target, ``.safetensors``.
        options: Arguments of ``timm.create_model`` besides name, ``pretrained`` and ``num_classes``, if there are
            others than image size, number of channels and stochastic depth.
        source: What builds the model, such as `lpvit.models.sources.open_clip.OpenClip`; ``given`` leaves that to
            whoever loads the file.

    Raises:
        LpvitError: A pruned weight is not zero, or source, name and options build another model than this one.
    """
    require_type("options", options, Mapping | None, "arguments of timm.create_model, by name")
    path, architecture = require_path(path), Architecture.of(require_pruned(pruned).model, options)
    built = Given.of(pruned.model) if source == "given" else source
    require_type("source", built, Source | None, "a source of lpvit.models.sources, or 'given'")
    if built is not None:
        architecture = architecture.model_copy(update={"source": built})
    _require_rebuilt(architecture, pruned.model)
    header = Header(architecture=architecture, block_shape=pruned.block_shape, budget=pruned.budget)
    metadata = {"lpvit": header.model_dump_json(), "digest": BLANK, **metadata_of(pruned.model)}
    with replace_atomically(path) as partial:
        partial.touch()
        rights = partial.stat().st_mode
        save_file(_compressed(pruned), partial, metadata)
        partial.chmod(rights)  # default permissions; safetensors restricts them to the owner
        seal(partial)


def load(path: str | Path, model: nn.Module | None = None) -> Pruned:
    """Reads a file of `save`, on the CPU, with zeros for the pruned weights.

    Args:
        path: Of the file.
        model: The dense model, with any weights, if the file does not say how to build it; left as it is.

    Raises:
        LpvitError: The file is missing, damaged, not from `save`, of another format, or does not fit its architecture;
            or the model is none, or on the meta device.
    """
    if model is not None:
        require_plain_module(model)
        require_weights(model)
    header, tensors = _read(require_path(path))
    try:
        return _restored(header, tensors, None if model is None else plain_copy(model).cpu())
    except LpvitError as error:
        raise LpvitError(f"{path}: {one_line(error)}") from None


def _restored(header: Header, tensors: dict[str, Tensor], given: nn.Module | None) -> Pruned:
    """Builds the model after checking that the content of the file is consistent; until then it uses no memory."""
    model = outline(header.architecture, tensors, given)
    architecture = header.architecture
    if header.format == 1:
        tensors, keep_masks = without_indices(model, tensors, header.block_shape)
        edits = with_keep_masks(architecture.edits, keep_masks, header.block_shape)
        architecture = architecture.with_edits(edits)
    kept = kept_blocks_of(architecture.edits)
    keep_masks = {} if kept is None else kept.unpacked()
    if kept is not None and kept.block_shape != header.block_shape:
        found, beside = ("x".join(map(str, shape)) for shape in (kept.block_shape, header.block_shape))
        raise LpvitError(f"has blocks of {found} in its edits and of {beside} in its header; save it again")
    for layer, keep_mask in keep_masks.items():
        try:
            values = tensors.pop(f"{layer}.values")
            tensors[f"{layer}.weight"] = _whole(model.get_submodule(layer), values, keep_mask, header.block_shape)
        except KeyError:
            raise LpvitError(f"'{layer}' does not fit its model (values are missing); save it again") from None
        except (IndexError, RuntimeError, TypeError, ValueError, LpvitError) as error:
            raise LpvitError(f"'{layer}' does not fit its model ({one_line(error)}); save it again") from None
    require_same_architecture(model, tensors, "its weights")
    dense_costs = None if given is None else _dense_costs(architecture, given)
    model = architecture.build(given=given)
    model.load_state_dict(tensors, assign=True)  # in the saved dtype
    return Pruned(model, keep_masks, header.block_shape, header.budget, dense_costs)


def _dense_costs(architecture: Architecture, given: nn.Module) -> pd.DataFrame:
    """Costs of the model without the edits that removed something."""
    others = [edit for edit in architecture.edits if not edit.removes]
    return measure_costs(architecture.with_edits(others).build(given=deepcopy(given)))


@torch.no_grad()
def _require_rebuilt(architecture: Architecture, model: nn.Module) -> None:
    """Checks that an architecture builds the model: same weights, and same logits of a random image."""
    if isinstance(architecture.source, Given):
        return
    way = "all its arguments as 'options'" if isinstance(architecture.source, Timm) else "another 'source'"
    hint = f"model: is not what builds {architecture.source}; pass {way}, or source='given'"
    try:
        rebuilt = architecture.build()
        load_weights(rebuilt, model.state_dict(), "model")
    except LpvitError as error:
        raise LpvitError(f"{hint} ({error})") from None
    rates, again = drop_rates(model), drop_rates(rebuilt)
    for name in rates | again:
        found, saved = rates.get(name, 0.0), again.get(name, 0.0)
        if not math.isclose(found, saved, rel_tol=1e-4):
            raise LpvitError(f"{hint} ('{name}' drops at the rate {found:g}, not {saved:g})")
    given = call_modules(deepcopy(model).cpu().float().eval())
    image = torch.rand(1, *input_size(model), generator=torch.Generator().manual_seed(0))
    if not torch.allclose(read(given, rebuilt(image)), read(given, given(image)), rtol=1e-3, atol=1e-4):
        raise LpvitError(f"{hint} (same weights, other outputs)")


def _compressed(pruned: Pruned) -> dict[str, Tensor]:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in pruned.model.state_dict().items()}
    for layer, keep_mask in pruned.keep_masks.items():
        weight = tensors.pop(f"{layer}.weight").flatten(1)
        tensors[f"{layer}.values"] = compress(weight, keep_mask.cpu(), pruned.block_shape)[0]
    return tensors


def _whole(module: nn.Module, values: Tensor, keep_mask: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """Weight of a layer, in its shape there.

    Raises:
        TypeError, ValueError: The layer has no weight matrix, or the values do not fit it.
    """
    matrix = weight_matrix(module)
    grid = BlockGrid((matrix.shape[0], matrix.shape[1]), block_shape)
    weight: Tensor = module.weight  # type: ignore[assignment]
    kept = int(keep_mask.sum())
    if values.shape != (kept, *block_shape):
        raise ValueError(f"values are {tuple(values.shape)}, expected {kept} blocks of {block_shape}")
    return decompress(values, *block_indices(keep_mask), grid).reshape(weight.shape)


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    require_file(path)
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
        content = json.loads(text)
        found = content["format"]
        if found == 1:
            content["architecture"] = architecture_of_format_1(content["architecture"])
        if found in (1, FORMAT):
            return Header.model_validate(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # pydantic's errors are ValueErrors
        raise LpvitError(f"{path}: its metadata is damaged ({one_line(error)}); save the model again") from None
    raise LpvitError(
        f"{path}: format {one_line(found)}, this lpvit {__version__} reads formats 1 and {FORMAT}; use another lpvit"
    )
