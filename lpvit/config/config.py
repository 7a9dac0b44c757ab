"""The configuration as closed, typed models. Imports no torch, so that a dry-run stays fast.

Each section of ``config/config.yaml`` names decisions (a dataset, a budget, ...); an experiment chooses one name
from each. The descriptions below are the README's reference of configuration keys.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from lpvit.allocation.settings import Budget
from lpvit.curves.settings import Pruning
from lpvit.data.settings import Calibration, Dataset
from lpvit.errors import LpvitError
from lpvit.measure.settings import Benchmark
from lpvit.models.settings import Energy, Model, Scheme
from lpvit.settings import Compute, Name, Section
from lpvit.training.settings import Recipe


class Published(Section):
    """A row of the paper's tables."""

    row: str = Field(description="what the paper calls it")
    top1: float | None = Field(None, gt=0, le=100, description="published top-1 accuracy in %; null is not known")
    gmacs: float | None = Field(None, gt=0, description="published multiply-accumulates in G; null is not known")
    stage: Literal["dense", "final"] = Field("final", description="the dense model, or the experiment's last one")


class Experiment(Section):
    """One choice from each section; its artifacts lie in the folder that these names spell."""

    dataset: str = Field(description="name in `datasets`")
    model: str = Field(description="name in `models`")
    calibration: str = Field(description="name in `calibrations`")
    pruning: str = Field(description="name in `prunings`")
    budget: str = Field(description="name in `budgets`")
    schemes: tuple[str, ...] = Field(
        (),
        description="names in `schemes`, added to the pruned model in this order; its budget is a share of "
        "what the dense model costs with them",
    )
    recipe: str | None = Field(None, description="name in `recipes`; null evaluates without fine-tuning")
    published: Published | None = Field(None, description="row of the paper that it stands for in `paper_tables`")


class Config(Section):
    """The whole file."""

    results: Path = Field(Path("results"), description="folder of all artifacts")
    report: Name = Field("main", description="folder of this config's tables and figures in `results/report`")
    scale: Literal["paper", "proxy"] = Field(
        "paper",
        description="`proxy`: small models and images stand in for those of `published` rows; tables say so",
    )
    compute: Compute = Field(Compute(), description="device, threads, processes")
    energy: Energy = Field(Energy(), description="constants of the energy model")
    benchmark: Benchmark = Field(Benchmark(), description="how speed and energy are measured")
    datasets: dict[Name, Dataset] = Field(description="images")
    models: dict[Name, Model] = Field(description="dense models")
    calibrations: dict[Name, Calibration] = Field(description="calibration sets")
    prunings: dict[Name, Pruning] = Field(description="block shapes, saliencies, curves")
    budgets: dict[Name, Budget] = Field(description="budgets and allocators")
    schemes: dict[Name, Scheme] = Field({}, description="what makes models compute less beside pruned blocks")
    recipes: dict[Name, Recipe] = Field({}, description="trainings")
    experiments: dict[Name, Experiment] = Field(min_length=1, description="choices of names")

    @model_validator(mode="after")
    def _reports_have_their_folder(self) -> "Config":
        if "report" in self.datasets:
            raise ValueError("datasets.report: reports lie in the folder 'report'; choose another name")
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> "Config":
        problems = [
            f"{place}: no '{name}' in {section}{_nearest(name, getattr(self, section))}"
            for place, section, name in self._references()
            if name not in getattr(self, section)
        ]
        problems += [
            f"models.{key}.recipe: '{model.recipe}' learns from 'dense', the model that it trains; name a timm one"
            for key, model in self.models.items()
            if model.recipe in self.recipes and self.recipes[model.recipe].teacher == "dense"
        ]
        problems += [
            f"recipes.{key}.batch_size: {recipe.batch_size} does not divide over compute.processes {processes}"
            for key, recipe in self.recipes.items()
            if recipe.batch_size % (processes := self.compute.processes)
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _references(self) -> Iterator[tuple[str, str, str]]:
        for key, model in self.models.items():
            if model.recipe is not None:
                yield f"models.{key}.recipe", "recipes", model.recipe
        for key, experiment in self.experiments.items():
            for field in ("dataset", "model", "calibration", "pruning", "budget", "recipe"):
                if (name := getattr(experiment, field)) is not None:
                    yield f"experiments.{key}.{field}", f"{field}s", name
            for name in experiment.schemes:
                yield f"experiments.{key}.schemes", "schemes", name


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Checks a configuration and fills in its defaults.

    Args:
        raw: The parsed YAML.

    Raises:
        LpvitError: One line per problem; an unknown key comes with the nearest known one.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        places: dict[str, list[str]] = {}  # a value that fits no type of a union is a problem for each of them
        for problem in error.errors():
            places.setdefault(_place(problem["loc"], raw), []).append(_explain(problem))
        lines = (f"{place}{line}" for place, texts in places.items() for line in " or ".join(texts).splitlines())
        raise LpvitError("\n".join(f"config: {line}" for line in lines)) from None


def _place(location: tuple[int | str, ...], raw: Any) -> str:
    """Dotted path to a problem and a colon, without pydantic's names for branches of a union and for keys."""
    parts, node = [], raw
    for part in location:
        if part == "[key]" or not isinstance(node, Mapping | list | tuple):
            break
        parts.append(str(part))
        node = (node if isinstance(node, Mapping) else dict(enumerate(node))).get(part)
    return ".".join(parts) + ": " * bool(parts)


def _explain(problem: ErrorDetails) -> str:
    location, kind = problem["loc"], problem["type"]
    if kind == "extra_forbidden":
        return f"unknown key{_nearest(str(location[-1]), _model_at(location[:-1]).model_fields)}"
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind in ("model_type", "dict_type"):
        return f"expected keys with values, found {problem['input']!r}"
    return f"{problem['msg'][0].lower()}{problem['msg'][1:]}, found {problem['input']!r}"


_SECTIONS: dict[str, type[Section]] = {
    "datasets": Dataset,
    "models": Model,
    "calibrations": Calibration,
    "prunings": Pruning,
    "budgets": Budget,
    "schemes": Scheme,
    "recipes": Recipe,
    "experiments": Experiment,
    "compute": Compute,
    "energy": Energy,
    "benchmark": Benchmark,
}


def _model_at(location: tuple[int | str, ...]) -> type[Section]:
    return _SECTIONS[str(location[0])] if location else Config


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known) or 'none'}"
