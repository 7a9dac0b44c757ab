"""Registry of distortions, one file each: estimates of the output change by pruning blocks of a layer."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from lpvit.settings import Section
from lpvit.strategies import Registry

if TYPE_CHECKING:
    import pandas as pd

    from lpvit.structures.blocks.rate_distortion import CurveInputs


class Distortion(Section):
    """Computes the rate-distortion curve of every layer.

    Attributes:
        unit: Of the curves; most distortions are only comparable among themselves.
        needs: Names of the `lpvit.structures.blocks.statistics` that it reads, besides ``weight_sums``.
    """

    registry: ClassVar = Registry("lpvit.structures.blocks.distortions")
    unit: ClassVar[str] = "arbitrary units"
    needs: ClassVar[tuple[str, ...]] = ()

    name: str

    @property
    def measures_images(self) -> bool:
        """Whether it needs the model and another pass over the images."""
        return False

    @abstractmethod
    def curves(self, inputs: "CurveInputs") -> "pd.DataFrame":
        """A curve of every layer, schema ``CURVES``."""
