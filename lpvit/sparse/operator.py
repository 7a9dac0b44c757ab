"""The torch operator ``lpvit::block_sparse_linear``, and the choice of its implementation.

B = leading dimensions, any number; I, O = input and output features; r, c = rows and columns of a block;
R = rows of the grid; K = kept blocks.
"""

import functools
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from lpvit.precisions import PRECISIONS, has_kernel, name_of
from lpvit.sparse.build import cpu_kernel
from lpvit.sparse.storage import decompress
from lpvit.structures.blocks.grid import BlockGrid

_logger = logging.getLogger(__name__)

FUSED_OPERATIONS = "Tensor? norm_weight=None, Tensor? norm_bias=None, float norm_epsilon=0.0, Tensor? residual=None"
_ARGUMENTS = (
    "(Tensor inputs, Tensor values, Tensor crow_indices, Tensor col_indices, Tensor? bias, int out_features, "
    f"bool gelu, {FUSED_OPERATIONS})"
)
LIBRARY = torch.library.Library("lpvit", "DEF")  # type: ignore[no-untyped-call]
define: Callable[..., str] = LIBRARY.define
implement: Callable[..., None] = LIBRARY.impl
define(f"block_sparse_linear{_ARGUMENTS} -> Tensor", tags=(torch.Tag.needs_exact_strides,))
define(f"masked_dense_linear{_ARGUMENTS} -> Tensor")


class FusedOperations(NamedTuple):
    """Prologue and epilogue fused into a layer.

    Attributes:
        norm_weight: Shape (I,), float32: LayerNorm of the inputs; or None.
        norm_bias: Shape (I,), float32, or None.
        norm_epsilon: That LayerNorm adds to the variance.
        residual: Added to the outputs, shape (B, O), in the dtype of the inputs; or None.
    """

    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    norm_epsilon: float = 0.0
    residual: Tensor | None = None

    def before(self, inputs: Tensor) -> Tensor:
        """Inputs (B, I) after the prologue; in float32 if they are normalised."""
        if self.norm_weight is None:
            return inputs
        return F.layer_norm(inputs.float(), inputs.shape[-1:], self.norm_weight, self.norm_bias, self.norm_epsilon)

    def after(self, outputs: Tensor) -> Tensor:
        """Outputs (B, O) after the epilogue."""
        return outputs if self.residual is None else outputs + self.residual


class SparseLayer(NamedTuple):
    """What the operator takes beside the inputs and `FusedOperations`.

    Attributes:
        values: Shape (K, r, c); read without a copy if the memory order is (K, c, r) on a CPU, (K, r, c) on a GPU.
        crow_indices: Shape (R + 1,), int32.
        col_indices: Shape (K,), int32.
        bias: Shape (O,), or None.
        out_features: O.
        gelu: Whether GELU (erf) follows.
    """

    values: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    bias: Tensor | None
    out_features: int
    gelu: bool


def block_sparse_linear(inputs: Tensor, layer: SparseLayer, fused: FusedOperations) -> Tensor:
    """Inputs (B, I) through a block-sparse layer: (B, O), in their dtype, which is that of the values."""
    outputs: Tensor = torch.ops.lpvit.block_sparse_linear(inputs, *layer, *fused)
    return outputs


@dataclass(frozen=True)
class Path:
    """An implementation of the operator.

    Attributes:
        name: Of the kernel, or ``masked dense``.
        reason: Why there is no kernel; empty for a kernel.
    """

    name: str
    reason: str = ""


def path_for(device: torch.device, dtype: torch.dtype, block_columns: int = 2) -> Path:
    """The implementation for tensors of this device and dtype; builds the CPU kernels if it is one of them.

    Args:
        device: Of values and inputs.
        dtype: Of the values.
        block_columns: c; the CPU kernel for bfloat16 processes them in pairs.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return Path("masked dense", "Triton is not installed")
    if not any(device.type in row.kernels for row in PRECISIONS.values()):
        return Path("masked dense", f"no kernel for the device '{device.type}'")
    if not has_kernel(dtype, device.type):
        return Path("masked dense", f"no kernel for {name_of(dtype)} on '{device.type}'")
    return Path("triton") if device.type == "cuda" else _cpu_path(dtype, block_columns)


def _cpu_path(dtype: torch.dtype, block_columns: int) -> Path:
    kernel = cpu_kernel()
    if dtype != torch.bfloat16:
        name = kernel.int8 if dtype == torch.int8 else kernel.instruction_set
        reason = kernel.reason
    else:
        name, reason = kernel.bfloat16, kernel.reason or f"'{kernel.instruction_set}' has no kernel for bfloat16"
        if name and block_columns % 2:
            name, reason = None, f"no kernel for blocks of {block_columns} columns, an odd number, in bfloat16"
    return Path(name) if name else Path("masked dense", reason)


def path_of(values: Tensor) -> Path:
    """The implementation for a layer with these values (K, r, c), in int8 (K, r, g, 4)."""
    return path_for(values.device, values.dtype, values.shape[2])


def _masked_dense_linear(inputs: Tensor, *arguments: Any) -> Tensor:
    layer, fused = _parted(arguments)
    log_once(path_of(layer.values).reason)
    grid = BlockGrid((layer.out_features, inputs.shape[-1]), (layer.values.shape[1], layer.values.shape[2]))
    weight = decompress(layer.values, layer.crow_indices, layer.col_indices, grid)
    outputs = F.linear(fused.before(inputs).to(inputs.dtype), weight, layer.bias)
    return fused.after(F.gelu(outputs) if layer.gelu else outputs)


def _linear_without_kernel(inputs: Tensor, values: Tensor, *others: Any) -> Tensor:
    """Called by torch where no kernel is registered; on a CPU, possibly at the first use."""
    kernel_was_registered = path_of(values).reason == "" and values.device.type == "cpu"
    operator = torch.ops.lpvit.block_sparse_linear if kernel_was_registered else torch.ops.lpvit.masked_dense_linear
    outputs: Tensor = operator(inputs, values, *others)
    return outputs


def _linear_on_gpu(inputs: Tensor, *arguments: Any) -> Tensor:
    layer, fused = _parted(arguments)
    if path_of(layer.values).reason:
        outputs: Tensor = torch.ops.lpvit.masked_dense_linear(inputs, *arguments)
        return outputs
    from lpvit.sparse.triton_kernel import block_sparse_linear as linear_by_triton

    flat = fused.before(inputs).to(inputs.dtype).reshape(inputs.shape[:-1].numel(), inputs.shape[-1])
    return fused.after(linear_by_triton(flat, *layer).view(*inputs.shape[:-1], layer.out_features))


def _parted(arguments: Sequence[Any]) -> tuple[SparseLayer, FusedOperations]:
    count = len(SparseLayer._fields)
    return SparseLayer(*arguments[:count]), FusedOperations(*arguments[count:])


def _shape_only(inputs: Tensor, *arguments: Any) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], _parted(arguments)[0].out_features)


@functools.cache
def log_once(reason: str, what: str = "block-sparse layers run as masked dense ones") -> None:
    _logger.warning("%s: %s", what, reason)


implement("masked_dense_linear", _masked_dense_linear, "CompositeExplicitAutograd")
implement("block_sparse_linear", _linear_without_kernel, "CompositeExplicitAutograd")
implement("block_sparse_linear", _linear_on_gpu, "CUDA")
torch.library.register_fake("lpvit::block_sparse_linear", _shape_only, lib=LIBRARY)
torch.library.register_fake("lpvit::masked_dense_linear", _shape_only, lib=LIBRARY)
