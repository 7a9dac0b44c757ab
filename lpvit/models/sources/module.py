"""Models that a function of the user builds, named by its path: ``package.module:function``."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, final

import torch
from pydantic import Field
from torch import nn

from lpvit.errors import LpvitError, one_line
from lpvit.models.sources.source import Source

if TYPE_CHECKING:
    from lpvit.models.settings import Model

_allowed: set[str] = set()


def allow(path: str) -> None:
    """Lets this process import and call a function that a file names; said by a config, never by a file."""
    _allowed.add(path)


@final
class Module(Source):
    """A model that a callable returns.

    Attributes:
        path: ``package.module:function``; the folder of the run is searched too.
        options: Its keyword arguments; it also gets ``num_classes`` if there are any.
    """

    source: Literal["module"] = "module"
    path: str = Field(pattern=r"^[\w.]+:\w+$")
    options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def configured(cls, settings: "Model", num_classes: int) -> Self:
        path = str(settings.module)
        allow(path)
        return cls(path=path, num_classes=num_classes, options=settings.options, data_config=settings.data_config)

    def build(self, pretrained: bool = False, seed: int = 0) -> nn.Module:
        if self.path not in _allowed:
            raise LpvitError(
                f"its model is built by code, '{self.path}', which a file does not run; build it: "
                "lpvit.load(file, model=...)"
            )
        torch.default_generator.manual_seed(seed)
        function = _imported(self.path)
        arguments = {**self.options, **({"num_classes": self.num_classes} if self.num_classes else {})}
        try:
            model = function(**arguments)
        except Exception as error:
            raise LpvitError(
                f"models: '{self.path}' fails with {arguments}: {type(error).__name__}: {one_line(error)}"
            ) from None
        if not isinstance(model, nn.Module):
            raise LpvitError(f"models: '{self.path}' returns a {type(model).__name__}, expected a torch.nn.Module")
        return self.described(model, getattr(model, "pretrained_cfg", None) or {})

    def __str__(self) -> str:
        return f"'{self.path}' with {self.options}"


def _imported(path: str) -> Any:
    name, _, attribute = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return getattr(import_module(name), attribute)
    except (ImportError, AttributeError) as error:
        raise LpvitError(f"models: '{path}' cannot be imported from {here} ({one_line(error)})") from None
