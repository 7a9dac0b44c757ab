"""Single images through Pillow."""

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from lpvit.data.encoded import read_encoded
from lpvit.errors import LpvitError

_MODES = {1: "L", 3: "RGB"}


def read_image(root: Path | None, path: str, channels: int) -> Image.Image:
    """A decoded image.

    Args:
        root: Folder that the path is relative to; None for the digits set.
        path: As in `lpvit.data.encoded`, or ``digits/<n>``.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        LpvitError: The image cannot be decoded.
    """
    if root is None:
        return _read_digit(path).convert(_MODES[channels])
    try:
        with Image.open(io.BytesIO(read_encoded(root / path))) as image:
            return image.convert(_MODES[channels])
    except Exception as error:  # Pillow raises different types for different damage
        raise LpvitError(f"{root / path}: cannot be decoded ({type(error).__name__}); replace or remove it") from None


def _read_digit(path: str) -> Image.Image:
    return Image.fromarray(_digits()[int(path.removeprefix("digits/"))])


@cache
def _digits() -> np.ndarray:
    """scikit-learn's digits as grey images, shape (1797, 8, 8), uint8."""
    from sklearn.datasets import load_digits

    images: np.ndarray = load_digits().images
    return np.rint(images * (255 / 16)).astype(np.uint8)
