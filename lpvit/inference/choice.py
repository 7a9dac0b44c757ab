"""The choice for a module: its own product, or a kernel that was measured to be faster."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Choice:
    """The choice for a masked layer, or for the product of an attention module.

    Attributes:
        module: Name in the model.
        kind: Layer or attention.
        by_kernel: Whether a kernel of ours computes it now.
        precision: Of its products now.
        sparsity: Share of its blocks that is pruned; None for attention.
        torch_seconds: Median time without our kernel, None where nothing was timed.
        kernel_seconds: The same of our (fastest) kernel, None where nothing was timed.
        reason: Why it was not replaced; empty if a kernel computes it.
    """

    module: str
    kind: Literal["layer", "attention"]
    by_kernel: bool
    precision: str
    sparsity: float | None = None
    torch_seconds: float | None = None
    kernel_seconds: float | None = None
    reason: str = ""


def slower(torch_seconds: float, kernel_seconds: float) -> str:
    """The reason of a module whose kernel is not faster."""
    return f"{1e3 * kernel_seconds:.3f} ms by our kernel, {1e3 * torch_seconds:.3f} ms without it"
