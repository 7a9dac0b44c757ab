"""Preprocessing of images: fixed operations, and random ones for training."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import timm.data
from torch import nn

from lpvit.errors import LpvitError


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalisation, as timm defines them.

    Attributes:
        input_size: (channels, height, width).
        mean: Subtracted from each channel, on the scale 0 to 1.
        std: Divides each channel afterwards.
        interpolation: ``bicubic``, ``bilinear``, ... (antialiased).
        crop_pct: Side of the centre crop over the side of the resized image.
        crop_mode: ``center``, ``squash`` or ``border``.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        if channels not in (1, 3):
            raise LpvitError(f"in_chans: {channels} found; images have 1 (grey) or 3 (RGB) channels")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise LpvitError(
                    f"data_config.{name}: {len(values)} values for {channels} channel(s); give one value per channel"
                )

    @classmethod
    def from_model(cls, model: nn.Module) -> "Preprocessing":
        """The preprocessing of a timm model, including overrides of its data config.

        Raises:
            LpvitError: Mean or standard deviation do not fit the number of channels.
        """
        config = timm.data.resolve_model_data_config(model)
        return cls(
            input_size=tuple(config["input_size"]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of the model's input."""
        return self.input_size[1:]

    @property
    def resize_size(self) -> tuple[int, int]:
        """(height, width) that the image is resized to before the crop, rounded as timm does."""
        height, width = self.crop_size
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)


@dataclass(frozen=True)
class Augmentation:
    """Random operations on single images; mixing and erasing act on the batch and are part of the training.

    Attributes:
        crop_scale: Range of the area of the random crop over the area of the image.
        crop_ratio: Range of the width of the random crop over its height.
        horizontal_flip: Probability.
        color_jitter: Largest change of brightness, contrast and saturation factors; off with RandAugment, as in timm.
        rand_augment: timm's policy string, or None.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5
    color_jitter: float = 0.0
    rand_augment: str | None = None

    def __post_init__(self) -> None:
        if self.rand_augment is not None:
            RandAugmentPolicy.parse(self.rand_augment)


@dataclass(frozen=True)
class RandAugmentPolicy:
    """RandAugment (Cubuk et al., 2020) with the settings of timm's policy strings.

    Attributes:
        magnitude: Strength of the operations, 0 to ``max_magnitude`` (``m``).
        layers: Operations drawn for an image (``n``).
        probability: That a drawn operation is applied (``p``).
        magnitude_std: Standard deviation of the strength; above 100 it is uniform from 0 to ``magnitude`` (``mstd``).
        max_magnitude: Upper bound of the strength (``mmax``).
        increasing: Whether every operation gets stronger with the magnitude (``inc``).
        operations: Name of another set of operations (``t``), or None for all.
    """

    magnitude: int = 10
    layers: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    max_magnitude: int = 10
    increasing: bool = False
    operations: str | None = None

    @classmethod
    def parse(cls, text: str) -> "RandAugmentPolicy":
        """Reads a policy such as ``rand-m9-mstd0.5-inc1``.

        Raises:
            LpvitError: The part that cannot be read is named.
        """
        variant, *parts = text.split("-")
        if variant != "rand":
            raise LpvitError(
                f"rand_augment: '{text}' does not start with 'rand'; give for example rand-m9-mstd0.5-inc1"
            )
        settings: dict[str, int | float | bool | str] = {}
        for part in parts:
            match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?)|t(weights|3aw|3a)", part)
            if match is None:
                raise LpvitError(
                    f"rand_augment: cannot read '{part}' in '{text}'; known are m, mstd, mmax, n, p, inc, t"
                )
            key, number, operations = match.groups()
            try:
                settings |= {"operations": operations} if operations else {_FIELDS[key][0]: _FIELDS[key][1](number)}
            except ValueError:
                raise LpvitError(f"rand_augment: '{part}' in '{text}' must be a whole number") from None
        return cls(**settings)  # type: ignore[arg-type]


_FIELDS: dict[str, tuple[str, Callable[[str], int | float | bool]]] = {
    "m": ("magnitude", int),
    "n": ("layers", int),
    "p": ("probability", float),
    "mstd": ("magnitude_std", float),
    "mmax": ("max_magnitude", int),
    "inc": ("increasing", lambda number: bool(int(number))),
}
