"""Settings of structures: what is removed from a model, and its measures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from lpvit.settings import Section
from lpvit.strategies import Registry

if TYPE_CHECKING:
    from lpvit.allocation.settings import Budget


Freedom = Literal["centre", "residual", "values", "queries", "hidden"]  # of `lpvit.bases.align`
Basis = Literal["given", "aligned"] | tuple[Freedom, ...]


def freedoms_of(basis: Basis) -> tuple[Freedom, ...]:
    """The freedoms of a key ``basis``."""
    return () if basis == "given" else get_args(Freedom) if basis == "aligned" else basis


class StructureSettings(Section):
    """Base of the settings of a structure: in the ``settings.py`` of a package that also has a ``structure.py``."""

    registry: ClassVar = Registry(
        "lpvit.structures", tag="structure", files=("settings", "structure"), default="blocks"
    )

    rounds: ClassVar = 1  # pruning rounds, for a budget given as a number
    compresses_by_statistics: ClassVar = False  # whether `Structure.compress` needs those of the dense model
    compress_keys: ClassVar[tuple[str, ...]] = ()  # that decide, with an allocation, how a model is compressed
    after_curves: ClassVar[tuple[str, ...]] = ()  # those of them that scores and curves do not depend on

    units: ClassVar[str] = "blocks"  # that a layer keeps or loses, in captions of figures

    structure: str
    batch_size: int = Field(64, gt=0, description="images per pass")

    @property
    def parts(self) -> Mapping[str, "StructureSettings"]:
        """The structures that it is made of, by name."""
        return {self.structure: self}

    @property
    def timed_shapes(self) -> tuple[tuple[int, int], ...]:
        """What layers are timed as for a budget in milliseconds: rows and columns of a block, or ``FACTORS``."""
        return ()

    @property
    def freedoms(self) -> tuple[str, ...]:
        """The freedoms of `lpvit.bases.align` that the dense model is first aligned by."""
        return ()

    @property
    def distortion_unit(self) -> str:
        """Unit of the curves; empty where there are none."""
        return ""

    @property
    def measures_images(self) -> bool:
        """Whether curves need a pass over the calibration images beside that of the statistics."""
        return False

    @property
    def statistics_needed(self) -> dict[str, Any]:
        """The settings that the statistics of the layers depend on."""
        return {}

    def require_budget(self, budget: "Budget") -> None:
        """Raises for a budget that this structure does not support.

        Raises:
            ValueError: The budget has unsupported keys.
        """


AnyStructure = Annotated[StructureSettings, StructureSettings.registry]
