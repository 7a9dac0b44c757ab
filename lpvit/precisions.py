"""Precisions: what holds for numbers of a type, one row each; every other module asks this table.

A new precision is a row here, besides the kernels and conversions that the row claims. Imports no torch, because the
config reads it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Precision:
    """One type of numbers.

    Attributes:
        name: Name in torch; label in config, tables and messages.
        bytes: Size of a number.
        picojoules: Energy to multiply and add two numbers (Horowitz, ISSCC 2014, figure 1.1.9; 45 nm, 0.9 V).
        tolerance: Largest error of the logits of a correct kernel, over the largest logit.
        kernels: Devices with block-sparse kernels for it.
        rewriting: The tolerance for a model whose weights are rewritten without changing its function; None if no whole
            model is in this precision.
        engines: Other inference engines that compute in it.
        openvino: OpenVINO's name for the precision of operations that are not quantised.
        converts: Whether a pruned model can be converted to it for inference.
    """

    name: str
    bytes: int
    picojoules: float
    tolerance: float
    kernels: tuple[str, ...]
    rewriting: float | None = None
    engines: tuple[str, ...] = ()
    openvino: str = "f32"
    converts: bool = False

    @property
    def floating(self) -> bool:
        """Whether a whole model may be cast to it."""
        return "float" in self.name


PRECISIONS = {
    row.name: row
    for row in (
        Precision(
            "float32",
            bytes=4,
            picojoules=3.7 + 0.9,
            tolerance=1e-4,
            rewriting=5e-5,
            kernels=("cpu", "cuda"),
            engines=("openvino", "onnxruntime"),
        ),
        Precision(
            "bfloat16",
            bytes=2,
            picojoules=1.1 + 0.4,  # of float16; the source has no bfloat16
            tolerance=5e-2,
            rewriting=6e-2,
            kernels=("cpu", "cuda"),
            engines=("openvino",),
            openvino="bf16",
            converts=True,
        ),
        Precision("float16", bytes=2, picojoules=1.1 + 0.4, tolerance=1e-2, rewriting=6e-2, kernels=("cuda",)),
        Precision(
            "int8",
            bytes=1,
            picojoules=0.2 + 0.03,
            tolerance=5e-2,  # an input may be rounded differently than in torch's emulation
            kernels=("cpu", "cuda"),
            engines=("openvino", "onnxruntime"),
            converts=True,
        ),
    )
}
FLOATING = tuple(row.name for row in PRECISIONS.values() if row.floating)
SPARSE = tuple(row.name for row in PRECISIONS.values() if {"cpu", "cuda"} <= {*row.kernels})
CONVERTED = tuple(row.name for row in PRECISIONS.values() if row.converts)


def dtype_of(name: str) -> "torch.dtype":
    """The dtype of a precision."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def name_of(dtype: "torch.dtype") -> str:
    """Name of a dtype, in the table or not."""
    return str(dtype).removeprefix("torch.")


def has_kernel(dtype: "torch.dtype", device: str) -> bool:
    """Whether there are block-sparse kernels for a dtype on a type of devices."""
    name = name_of(dtype)
    return name in PRECISIONS and device in PRECISIONS[name].kernels
