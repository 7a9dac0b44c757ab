"""Models of no known source: a file has their weights and edits, and their owner builds them."""

from typing import TYPE_CHECKING, Literal, NoReturn, Self, final

from torch import nn

from lpvit.errors import LpvitError
from lpvit.models.sources.source import Source, data_config_of

if TYPE_CHECKING:
    from lpvit.models.settings import Model


@final
class Given(Source):
    """A model that only its owner can build.

    Attributes:
        name: Of its class, for messages.
    """

    source: Literal["given"] = "given"
    name: str

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        classes = getattr(model, "num_classes", 0)
        return cls(
            name=f"{type(model).__module__}.{type(model).__qualname__}",
            num_classes=classes if isinstance(classes, int) else 0,
            data_config=data_config_of(model),
        )

    @classmethod
    def configured(cls, settings: "Model", num_classes: int) -> NoReturn:
        raise LpvitError("models: no config can describe a model that is given; in Python: lpvit.load(file, model=...)")

    def build(self, pretrained: bool = False, seed: int = 0) -> NoReturn:
        raise LpvitError(f"its model, a '{self.name}', is yours to build: lpvit.load(file, model=...)")

    def __str__(self) -> str:
        return f"a '{self.name}' that is given"
