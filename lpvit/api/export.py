"""Export to ONNX."""

from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import torch

from lpvit.api.pruned import Pruned
from lpvit.errors import LpvitError
from lpvit.models.architecture import input_size
from lpvit.store.artifacts import replace_atomically


def export_onnx(pruned: Pruned, path: str | Path) -> None:
    """Writes the model with its pruned weights as zeros, for any number of images at once.

    Input ``images`` (N, channels, height, width), float32, normalised; output ``logits`` (N, classes).

    Args:
        pruned: From `lpvit.prune` or `lpvit.load`.
        path: Target, ``.onnx``; weights included.

    Raises:
        LpvitError: The packages that write ONNX are not installed.
    """
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise LpvitError(f"{path}: writing ONNX needs the package '{missing[0]}'; pip install 'lpvit[onnx]'")
    model = deepcopy(pruned.model).cpu().float().eval()
    images = torch.zeros(2, *input_size(model))
    program = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None  # as it is with dynamo
    with replace_atomically(path) as partial:
        program.save(partial)
