"""Quantises a pruned model in one call, with the functions of the workflow."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from lpvit.api.arguments import require_type
from lpvit.api.batches import UserBatches, accepted_by
from lpvit.api.pruned import Pruned, require_pruned
from lpvit.data.transforms import undisturbed_generators
from lpvit.quantisation.quantise import quantise_model
from lpvit.quantisation.settings import Quantisation


@undisturbed_generators(on_gpus=True)
def quantise(pruned: Pruned, loader: Iterable[Any] | None = None, quantisation: Quantisation | None = None) -> Pruned:
    """Converts a pruned model to int8 or bfloat16, for inference; fine-tune before, not after.

    Args:
        pruned: From `lpvit.prune` or `lpvit.load`, or fine-tuned since; not modified.
        loader: Calibration images as for `lpvit.prune`; None if the quantisation needs none.
        quantisation: Default int8, weights rounded with error feedback on the calibration images.

    Returns:
        With layers that quantise their inputs at run time, like the kernels of `lpvit.sparsify`, which have the same
        accuracy.

    Raises:
        LpvitError: Images are missing, the loader cannot be read twice or does not fit, or the model is
            already quantised.
    """
    model = require_pruned(pruned).model
    require_type("quantisation", quantisation, Quantisation | None, "an lpvit.Quantisation")
    parameter = next(model.parameters())
    batches = None if loader is None else UserBatches(loader, parameter.dtype)
    arguments = (model, pruned.keep_masks, pruned.block_shape, batches, quantisation or Quantisation())
    with torch.inference_mode(False), nullcontext() if batches is None else accepted_by(model, batches):
        quantised = quantise_model(*arguments, parameter.device)
    return replace(pruned, model=quantised.to(parameter.device))
