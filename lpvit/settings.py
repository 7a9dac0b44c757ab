"""Base classes of the configuration's sections. Imports no torch, so a dry run is fast."""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from lpvit.errors import LpvitError
from lpvit.mistakes import mistakes
from lpvit.strategies import registry_of

Fraction = Annotated[float, Field(gt=0, le=1)]


Share = Annotated[float, Field(ge=0, lt=1)]


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]  # becomes a folder


def local_path(given: Any) -> Any:
    """A path with ``~`` and ``$VARIABLES`` filled in; other values unchanged.

    Raises:
        ValueError: A variable is not set, or it is the address of a remote store.
    """
    if not isinstance(given, str | Path):
        return given
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text := str(given)):
        raise ValueError(f"'{text}' is in a remote store; mount or copy it, and give a path of this machine")
    path = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser fails for unknown users
    if missing := re.search(r"\$\{?\w+\}?", path):
        raise ValueError(f"'{text}': the variable {missing[0]} is not set")
    return Path(path)


LocalPath = Annotated[Path, BeforeValidator(local_path)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    moved_keys: ClassVar[Mapping[str, str]] = {}  # of the last release -> the key whose strategy has them now

    def __init__(self, **values: Any) -> None:
        """Called by people; the config is read by ``model_validate``, which names the place of every mistake.

        Raises:
            LpvitError: A key is unknown or missing, or a value does not fit.
        """
        values, moved = with_moved_keys(type(self), values)
        for line in moved:
            warnings.warn(f"{type(self).__name__}: {line}", DeprecationWarning, stacklevel=2)
        try:
            super().__init__(**values)
        except ValidationError as error:
            lines = mistakes(error, values, type(self))
            raise LpvitError("; ".join(f"{type(self).__name__}: {line}" for line in lines)) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # so that sections within a config are not made by it

    @model_validator(mode="before")
    @classmethod
    def _no_key_is_a_switch(cls, data: Any) -> Any:
        for key, value in data.items() if isinstance(data, Mapping) else ():
            if isinstance(value, bool) and key != "power_beta":
                raise ValueError(f"{key}: found {str(value).lower()}, expected a value; no key takes yes or no")
        return data

    def without(self, *keys: str, because: str) -> None:
        """Refuses keys that would do nothing beside the others.

        Raises:
            ValueError: One of them is not its default.
        """
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].get_default():
                raise ValueError(f"{key}: {because}; leave it out")


class Compute(Section):
    """Device, threads and processes. Changes rerun nothing."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` uses a GPU if there is one")
    threads: int = Field(8, gt=0, description="CPU threads of a stage and of its loader, at most those of `--cores`")
    processes: int = Field(1, gt=0, description="training processes (one per GPU)")
    nodes: tuple[str, ...] | PositiveInt | Literal["slurm"] = Field(
        (),
        description="machines of a training: addresses, this one first; a number of nodes from SLURM; or `slurm`: all "
        "nodes of the job that runs the workflow",
    )
    node_command: str = Field("ssh {host}", description="starts a command on another of the `nodes`")
    checkpoint_minutes: float = Field(10, gt=0, description="between checkpoints of a training")
    tensorboard: LocalPath | None = Field(
        None, description="folder for TensorBoard events of every training; null is off"
    )
    scratch: Path | None = Field(
        None,
        description="folder on a local disk, with `$VARIABLES`; images are copied there once and read from there",
    )
    evaluation_batch_size: int = Field(256, gt=0, description="images per pass of an evaluation")

    @model_validator(mode="after")
    def _processes_divide_over_nodes(self) -> "Compute":
        nodes = self.nodes if isinstance(self.nodes, int) else len(self.nodes) * (self.nodes != "slurm")
        if nodes and self.processes % nodes:
            raise ValueError(f"processes: {self.processes} do not divide over {nodes} nodes")
        if not isinstance(self.nodes, tuple) or not self.nodes:
            self.without("node_command", because="is for addresses in 'nodes'; SLURM has its own")
        return self


def with_moved_keys(section: type[Section], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Keys of the last release, put into the strategies that have them now; a line for each of these.

    A key that does not belong to the strategy that is chosen stays where it is, and is refused there.
    """
    values, lines = dict(values), []
    for field in dict.fromkeys(section.moved_keys.values()):
        info = section.model_fields[field]
        chosen, registry = values.get(field, info.default), registry_of(info)
        assert registry is not None, f"{section.__name__}.{field} chooses no strategy"
        strategy = {registry.tag: chosen} if isinstance(chosen, str) else chosen
        name = str(strategy.get(registry.tag)) if isinstance(strategy, Mapping) else ""
        known = registry[name].model_fields if name in registry else ()
        if moved := [key for key, to in section.moved_keys.items() if to == field and key in values and key in known]:
            values[field] = {**strategy, **{key: values.pop(key) for key in moved}}
            now = ", ".join(f"{key}: {'off' if value is False else value}" for key, value in values[field].items())
            lines.append(f"{', '.join(moved)}: moved into '{field}'; write {field}: {{{now}}}")
    return values, lines
