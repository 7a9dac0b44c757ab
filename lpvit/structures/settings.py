"""Settings of structures: what is removed from a model, and how that is measured."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lpvit.settings import Section
from lpvit.strategies import Registry

if TYPE_CHECKING:
    from lpvit.allocation.settings import Budget


class StructureSettings(Section):
    """What is removed; each in the ``settings.py`` of its folder."""

    registry: ClassVar = Registry("lpvit.structures", tag="structure", file="settings", default="blocks")

    structure: str
    batch_size: int = Field(64, gt=0, description="images per pass")

    def require_budget(self, budget: "Budget") -> None:
        """Refuses a budget that this structure cannot be pruned to.

        Raises:
            ValueError: The budget asks for what the structure does not have.
        """


AnyStructure = Annotated[StructureSettings, StructureSettings.registry]
