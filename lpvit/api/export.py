"""Export to ONNX."""

from pathlib import Path

from lpvit.api.pruned import Pruned
from lpvit.models.onnx import write_onnx
from lpvit.store.artifacts import replace_atomically


def export_onnx(pruned: Pruned, path: str | Path) -> None:
    """Writes the model with its pruned weights as zeros, for any number of images at once.

    Layers in int8 stay so: their tokens are quantised at run time, in operators that onnxruntime computes in int8.

    Input ``images`` (N, channels, height, width), float32, normalised; output ``logits`` (N, classes).

    Args:
        pruned: From `lpvit.prune`, `lpvit.quantise` or `lpvit.load`.
        path: Target, ``.onnx``; weights included.

    Raises:
        LpvitError: The packages that write ONNX are not installed.
    """
    with replace_atomically(path) as partial:
        write_onnx(pruned.model, partial)
