"""Base classes of the configuration's sections. Imports no torch, so a dry run is fast."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from lpvit.errors import LpvitError

Fraction = Annotated[float, Field(gt=0, le=1)]


Share = Annotated[float, Field(ge=0, lt=1)]


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]  # becomes a folder


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        """Called by people; the config is read by ``model_validate``, which names the place of every mistake.

        Raises:
            LpvitError: A key is unknown or missing, or a value does not fit.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            lines = mistakes(error, values, lambda _: type(self).model_fields)
            raise LpvitError("; ".join(f"{type(self).__name__}: {line}" for line in lines)) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # so that sections within a config are not made by it

    @model_validator(mode="before")
    @classmethod
    def _no_key_is_a_switch(cls, data: Any) -> Any:
        for key, value in data.items() if isinstance(data, Mapping) else ():
            if isinstance(value, bool) and key != "power_beta":
                raise ValueError(f"{key}: found {str(value).lower()}, expected a value; no key takes yes or no")
        return data


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
    tensorboard: Path | None = Field(None, description="folder for TensorBoard events of every training; null is off")
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
        return self


def mistakes(
    error: ValidationError, raw: Any, keys_at: Callable[[tuple[int | str, ...]], Iterable[str]]
) -> Iterator[str]:
    """One line for every mistake: where, what was found, what was expected.

    Args:
        error: Of a section.
        raw: What the section was made from.
        keys_at: The keys that may stand at a place.
    """
    places: dict[str, list[str]] = {}  # a value that fits no type of a union is a mistake for each of them
    for problem in error.errors():
        places.setdefault(_place(problem["loc"], raw), []).append(_explain(problem, keys_at))
    return (f"{place}{line}" for place, texts in places.items() for line in " or ".join(texts).splitlines())


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not among the known ones."""
    close = get_close_matches(name, known := list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known) or 'none'}"


def _place(location: tuple[int | str, ...], raw: Any) -> str:
    """Dotted path to a problem and a colon, without pydantic's names for branches of a union and for keys."""
    parts, node = [], raw
    for part in location:
        if part == "[key]" or not isinstance(node, Mapping | list | tuple):
            break
        parts.append(str(part))
        node = (node if isinstance(node, Mapping) else dict(enumerate(node))).get(part)
    return ".".join(parts) + ": " * bool(parts)


def _explain(problem: ErrorDetails, keys_at: Callable[[tuple[int | str, ...]], Iterable[str]]) -> str:
    location, kind = problem["loc"], problem["type"]
    if kind == "extra_forbidden":
        return f"unknown key{nearest(str(location[-1]), keys_at(location[:-1]))}"
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind in ("model_type", "dict_type"):
        return f"expected keys with values, found {problem['input']!r}"
    return f"{problem['msg'][0].lower()}{problem['msg'][1:]}, found {problem['input']!r}"
