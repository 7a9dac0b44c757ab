"""timm's transforms of Pillow images, seeded image by image.

C, H, W = channels, height and width of the model's input.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import timm.data
import torch
from PIL import Image
from torch import Tensor

from lpvit.data.preprocessing import Augmentation, Preprocessing

Transform = Callable[[Image.Image], Tensor]


def create_transform(preprocessing: Preprocessing, augmentation: Augmentation | None) -> Transform:
    """The transform of timm for evaluation, or for training with the given augmentation.

    Returns:
        A function from an image to a float32 tensor (C, H, W), normalised.
    """
    random_steps = {} if augmentation is None else _random_steps(augmentation)
    transform: Transform = timm.data.create_transform(
        input_size=preprocessing.input_size,
        is_training=augmentation is not None,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        **random_steps,
    )
    return transform


def seed_transforms(seed: int) -> None:
    """Seeds the three generators that timm's transforms draw from, with a number from 0 to 2^32 - 1."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - timm draws from the global generator
    torch.default_generator.manual_seed(seed)


@contextmanager
def undisturbed_generators(on_gpus: bool = False) -> Iterator[None]:
    """Restores the state of Python's, NumPy's and torch's global generators on exit.

    Args:
        on_gpus: Those of all GPUs as well, if any has been used.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    gpus = range(torch.cuda.device_count()) if on_gpus and torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def _random_steps(augmentation: Augmentation) -> dict[str, object]:
    return {
        "scale": augmentation.crop_scale,
        "ratio": augmentation.crop_ratio,
        "hflip": augmentation.horizontal_flip,
        "color_jitter": augmentation.color_jitter or None,
        "auto_augment": augmentation.rand_augment,
    }
