"""RandAugment's random choices as arrays, for loaders that apply them to whole batches.

N = images; L = layers (operations drawn for an image).
"""

from typing import NamedTuple

import numpy as np

from lpvit.data.preprocessing import RandAugmentPolicy

NOTHING, WARP, SHIFT, TONE, COLOR, SHARPNESS, BITS, SOLARIZE, SOLARIZE_ADD, EQUALIZE, AUTO_CONTRAST = range(11)

_KINDS = {
    "auto_contrast": AUTO_CONTRAST,
    "equalize": EQUALIZE,
    "invert": BITS,
    "rotate": WARP,
    "posterize": BITS,
    "solarize": SOLARIZE,
    "solarize_add": SOLARIZE_ADD,
    "color": COLOR,
    "contrast": TONE,
    "brightness": TONE,
    "sharpness": SHARPNESS,
    "shear_x": WARP,
    "shear_y": WARP,
    "translate_x": SHIFT,
    "translate_y": SHIFT,
}
OPERATIONS = tuple(_KINDS)

_FULL_MAGNITUDE = 10  # timm's scale of magnitudes
_SMOOTHING = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # Pillow's filter SMOOTH


class RandAugmentDraws(NamedTuple):
    """Operations of every image in every layer; parameters that the kind does not use are neutral.

    Attributes:
        kind: One of the eleven kinds of operation above, shape (N, L), int32.
        matrix: Position in the result (x, y, 1) to position in the source (x, y), pixels, shape (N, L, 2, 3), float32.
        brightness: Factor, shape (N, L), float32.
        contrast: Factor around the mean grey, shape (N, L), float32.
        saturation: Factor around the grey image, shape (N, L), float32.
        kernel: Sharpening filter, shape (N, L, 3, 3), float32.
        added: Added to values below 128, shape (N, L), uint8.
        kept_bits: Bits that are kept, shape (N, L), uint8.
        flipped_bits: Bits that are inverted, shape (N, L), uint8.
        threshold: Values from here on are inverted, 0 to 256, shape (N, L), int32.
    """

    kind: np.ndarray
    matrix: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    kernel: np.ndarray
    added: np.ndarray
    kept_bits: np.ndarray
    flipped_bits: np.ndarray
    threshold: np.ndarray


def draw_rand_augment(
    policy: RandAugmentPolicy, images: int, size: tuple[int, int], generator: np.random.Generator
) -> RandAugmentDraws:
    """Draws operations, magnitudes and signs as timm does for its full set of operations.

    Args:
        policy: Without a named subset of operations.
        images: N.
        size: (height, width) of the images.
        generator: Source of randomness.
    """
    shape = (images, policy.layers)
    operation = np.array(OPERATIONS)[generator.integers(len(OPERATIONS), size=shape)]
    applied = generator.random(shape) < policy.probability
    sign = generator.choice([-1.0, 1.0], size=shape)
    if policy.magnitude_std > 100:
        magnitude = generator.uniform(0, policy.magnitude, size=shape)
    else:
        magnitude = generator.normal(policy.magnitude, policy.magnitude_std, size=shape)
    magnitude = np.clip(magnitude, 0, policy.max_magnitude)
    operation = np.where(applied, operation, "nothing")
    return parametrise(operation, magnitude / _FULL_MAGNITUDE, sign, policy.increasing, size)


def parametrise(
    operation: np.ndarray, level: np.ndarray, sign: np.ndarray, increasing: bool, size: tuple[int, int]
) -> RandAugmentDraws:
    """Turns operations and levels into parameters, by the formulas of timm's ``auto_augment``.

    Translations are rounded to whole pixels, which makes them ten times as fast as a warp.

    Args:
        operation: Names out of `OPERATIONS`, or ``nothing``, shape (N, L).
        level: Strength, 0 to 1 (more if the policy's bound is above 10), shape (N, L).
        sign: -1 or 1, for the operations that have two directions, shape (N, L).
        increasing: Whether every operation gets stronger with the level.
        size: (height, width) of the images.
    """

    def only(name: str, value: np.ndarray, neutral: float) -> np.ndarray:
        return np.where(operation == name, value, neutral)

    factor = np.maximum(0.1, 1 + 0.9 * sign * level) if increasing else 0.1 + 1.8 * level
    bits = np.floor(4 * level)
    bits = np.clip(4 - bits if increasing else bits, 0, 8)
    threshold = np.minimum(256, np.floor(256 * level))
    threshold = 256 - threshold if increasing else threshold
    sharpness = only("sharpness", factor, 1.0)[..., None, None]
    return RandAugmentDraws(
        kind=np.vectorize({**_KINDS, "nothing": NOTHING}.__getitem__, otypes=[np.int32])(operation),
        matrix=_matrices(operation, level * sign, size).astype(np.float32),
        brightness=only("brightness", factor, 1.0).astype(np.float32),
        contrast=only("contrast", factor, 1.0).astype(np.float32),
        saturation=only("color", factor, 1.0).astype(np.float32),
        kernel=((1 - sharpness) * _SMOOTHING + sharpness * (np.indices((3, 3)) == 1).all(axis=0)).astype(np.float32),
        added=only("solarize_add", np.minimum(128, np.floor(110 * level)), 0).astype(np.uint8),
        kept_bits=only("posterize", 256 - 2 ** (8 - bits), 255).astype(np.uint8),
        flipped_bits=np.where(operation == "invert", 255, 0).astype(np.uint8),
        threshold=only("solarize", threshold, 256).astype(np.int32),
    )


def _matrices(operation: np.ndarray, level: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Inverse affine maps of the geometric operations at signed levels, shape (N, L, 2, 3); identity for the others."""
    height, width = size
    angle = np.where(operation == "rotate", np.radians(30 * level), 0.0)
    cosine, sine = np.cos(angle), np.sin(angle)
    x_by_y = -sine + np.where(operation == "shear_x", 0.3 * level, 0.0)
    y_by_x = sine + np.where(operation == "shear_y", 0.3 * level, 0.0)
    x_shift = np.where(operation == "translate_x", np.rint(0.45 * level * width), 0.0)
    y_shift = np.where(operation == "translate_y", np.rint(0.45 * level * height), 0.0)
    x_shift += (width - cosine * width + sine * height) / 2  # rotation is about the centre; shears are about the origin
    y_shift += (height - sine * width - cosine * height) / 2
    rows = [np.stack([cosine, x_by_y, x_shift], -1), np.stack([y_by_x, cosine, y_shift], -1)]
    return np.stack(rows, axis=-2)
