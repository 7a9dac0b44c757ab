"""Settings of structures: what is removed from a model, and its measures."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lpvit.settings import Section
from lpvit.strategies import Registry

if TYPE_CHECKING:
    from lpvit.allocation.settings import Budget


class StructureSettings(Section):
    """Base of the settings of a structure, each in the ``settings.py`` of its package."""

    registry: ClassVar = Registry("lpvit.structures", tag="structure", file="settings", default="blocks")

    rounds: ClassVar = 1  # pruning rounds, for a budget given as a number

    structure: str
    batch_size: int = Field(64, gt=0, description="images per pass")

    def require_budget(self, budget: "Budget") -> None:
        """Raises for a budget that this structure does not support.

        Raises:
            ValueError: The budget has unsupported keys.
        """


AnyStructure = Annotated[StructureSettings, StructureSettings.registry]
