"""Single images through Pillow, in eight bits per channel.

As in timm, transparency is dropped, EXIF orientation is not applied, and of several frames the first counts.
"""

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from lpvit.data.encoded import read_encoded
from lpvit.errors import LpvitError

_MODES = {1: "L", 3: "RGB"}
_SIXTEEN_BITS = ("PNG", "PPM")  # formats in which Pillow's 32-bit mode I holds 16 bits


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
            return in_eight_bits(image).convert(_MODES[channels])
    except LpvitError as error:
        raise LpvitError(f"{root / path}: {error}; replace or remove it") from None
    except Exception as error:  # Pillow raises different types for different damage
        raise LpvitError(f"{root / path}: cannot be decoded ({type(error).__name__}); replace or remove it") from None


def in_eight_bits(image: Image.Image) -> Image.Image:
    """An image with deeper pixels scaled to 0 to 255: those of 16 bits, and floating-point ones from 0 to 1.

    Pillow's own conversion cuts them off at 0 and 255.

    Raises:
        LpvitError: Their range is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode not in ("I", "F"):
        return image
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if image.mode == "F" and low >= 0 and high <= 1:
        return Image.fromarray(np.rint(255 * pixels).astype(np.uint8))
    kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
    raise LpvitError(f"holds {kind} from {low:g} to {high:g}, expected 8 or 16 bits, or floats from 0 to 1")


def unknown_range(file: Path) -> str:
    """Why the pixels of a file cannot be scaled to eight bits; empty if they can, or if it is damaged otherwise."""
    try:
        with Image.open(io.BytesIO(read_encoded(file))) as image:
            in_eight_bits(image)
    except LpvitError as error:
        return str(error)
    except Exception:  # the index names the damage
        return ""
    return ""


def _read_digit(path: str) -> Image.Image:
    return Image.fromarray(_digits()[int(path.removeprefix("digits/"))])


@cache
def _digits() -> np.ndarray:
    """scikit-learn's digits as grey images, shape (1797, 8, 8), uint8."""
    from sklearn.datasets import load_digits

    images: np.ndarray = load_digits().images
    return np.rint(images * (255 / 16)).astype(np.uint8)
