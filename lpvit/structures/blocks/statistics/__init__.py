"""Registry of statistics, one file each: what saliencies and distortions read of the blocks of every layer.

R, C = rows and columns of the grid of blocks of a layer; S = samples, for example images x probes.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from lpvit.settings import Section
from lpvit.strategies import Registry

if TYPE_CHECKING:
    from lpvit.structures.blocks.calibration import StatisticInputs
    from lpvit.structures.calibration import Statistics


class Statistic(Section):
    """Tables of every layer, collected in one pass over the calibration images and saved with those of the others.

    It is collected if the saliency or the distortion has its name among its ``needs``. A field takes the value of the
    key of the same name in `lpvit.structures.blocks.settings.Blocks`; other keys do not rerun it.
    """

    registry: ClassVar = Registry("lpvit.structures.blocks.statistics")

    name: str

    @abstractmethod
    def collect(self, inputs: "StatisticInputs") -> "Statistics":
        """The tables of every layer.

        Returns:
            layer -> name of a table -> on the CPU, one number per block, (R, C), or per sample and block, (S, R * C).

        Raises:
            LpvitError: Something is not finite; the layer is named.
        """
