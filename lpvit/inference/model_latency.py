"""Time of a whole compressed model for one image."""

from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from lpvit.inference.sparsify import sparsify_layers
from lpvit.measure.timing import Interval, median_interval, time_in_turns
from lpvit.models.sources.families import call_modules
from lpvit.structures.structure import Compressed

SECONDS = 1.0  # of timing


@torch.inference_mode()
def milliseconds_per_image(compressed: Compressed, image: Tensor) -> Interval:
    """Median milliseconds of a forward pass, with block-sparse kernels where blocks were pruned.

    Args:
        compressed: Not modified; a copy runs on the device of the image, with torch's number of threads.
        image: A batch of one, (1, channels, height, width), normalised.
    """
    model = call_modules(deepcopy(compressed.model).to(image.device).eval().requires_grad_(False))
    if compressed.block_shape is not None:
        sparsify_layers(model, compressed.keep_masks, compressed.block_shape, batch_size=1)
    (seconds,) = time_in_turns({"model": partial(model, image)}, device=image.device, seconds=SECONDS).values()
    return median_interval(1000 * seconds)
