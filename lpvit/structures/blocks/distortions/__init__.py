"""Distortions, one file each: what pruning blocks of a layer does to the model's output."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from lpvit.settings import Section
from lpvit.strategies import Registry

if TYPE_CHECKING:
    import pandas as pd

    from lpvit.structures.blocks.rate_distortion import CurveInputs


class Distortion(Section):
    """Gives every layer its curve.

    Attributes:
        unit: Of the curves; most distortions only order and compare.
    """

    registry: ClassVar = Registry("lpvit.structures.blocks.distortions")
    unit: ClassVar[str] = "arbitrary units"

    name: str

    @property
    def needs(self) -> frozenset[str]:
        """What of the calibration it looks at: ``averaged_gradients``, ``block_products``, or the ``images`` anew."""
        return frozenset()

    @abstractmethod
    def curves(self, inputs: "CurveInputs") -> "pd.DataFrame":
        """A curve of every layer, schema ``CURVES``."""
