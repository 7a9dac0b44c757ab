"""The configuration as closed, typed models. Imports no torch, so a dry run is fast.

Each section of ``config/config.yaml`` has named settings (a dataset, a budget, ...); an experiment selects one name
from each. The descriptions below become the reference of configuration keys.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from lpvit.allocation.settings import Budget
from lpvit.benchmark.settings import Benchmark
from lpvit.config.old_keys import upgraded
from lpvit.costs.settings import Energy
from lpvit.data.settings import Calibration, Dataset
from lpvit.errors import LpvitError, nearest
from lpvit.export.settings import Export
from lpvit.mistakes import mistakes
from lpvit.models.settings import Model
from lpvit.quantisation.settings import Quantisation
from lpvit.schemes.settings import AnyScheme, require_compatible
from lpvit.settings import Compute, LocalPath, Name, Section
from lpvit.structures.settings import AnyStructure
from lpvit.training.settings import Recipe

_logger = logging.getLogger(__name__)


class Published(Section):
    """A row of the paper's tables."""

    row: str = Field(description="name in the paper")
    top1: float | None = Field(None, gt=0, le=100, description="published top-1 accuracy in %; null if not known")
    gmacs: float | None = Field(None, gt=0, description="published multiply-accumulates in G; null if not known")
    stage: Literal["dense", "final"] = Field("final", description="the dense model, or the experiment's last one")


class Experiment(Section):
    """One name from each section; the names form the path of its artifacts."""

    dataset: str = Field(description="name in `datasets`")
    model: str = Field(description="name in `models`")
    calibration: str = Field(description="name in `calibrations`")
    pruning: str = Field(description="name in `prunings`")
    budget: str = Field(description="name in `budgets`")
    schemes: tuple[str, ...] = Field(
        (),
        description="names in `schemes`, added to the pruned model in this order; its budget is a share of "
        "the dense model's cost with them",
    )
    recipe: str | None = Field(None, description="name in `recipes`; null evaluates without fine-tuning")
    quantisation: str | None = Field(
        None,
        description="name in `quantisations`, for the pruned and the fine-tuned model; null is none",
    )
    published: Published | None = Field(None, description="row of the paper that it reproduces in `paper_tables`")


class Config(Section):
    """A whole config."""

    results: LocalPath = Field(Path("results"), description="folder of all artifacts")
    report: Name = Field("main", description="folder of this config's tables and figures in `results/report`")
    scale: Literal["paper", "proxy"] = Field(
        "paper",
        description="`proxy`: small models and images replace those of `published` rows, as tables state",
    )
    compute: Compute = Field(Compute(), description="device, threads, processes")
    energy: Energy = Field(Energy(), description="constants of the energy model")
    benchmark: Benchmark = Field(Benchmark(), description="how speed and energy are measured")
    export: Export = Field(Export(), description="how the rule `export` writes ONNX files")
    datasets: dict[Name, Dataset] = Field(description="images")
    models: dict[Name, Model] = Field(description="dense models")
    calibrations: dict[Name, Calibration] = Field(description="calibration sets")
    prunings: dict[Name, AnyStructure] = Field(description="structures, block shapes, saliencies, curves")
    budgets: dict[Name, Budget] = Field(description="budgets and allocators")
    schemes: dict[Name, AnyScheme] = Field({}, description="token and attention schemes besides pruning")
    recipes: dict[Name, Recipe] = Field({}, description="trainings")
    quantisations: dict[Name, Quantisation] = Field({}, description="precisions of finished models")
    experiments: dict[Name, Experiment] = Field(min_length=1, description="choices of names")

    @model_validator(mode="after")
    def _reports_have_their_folder(self) -> "Config":
        if "report" in self.datasets:
            raise ValueError("datasets.report: the folder 'report' is for reports; choose another name")
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> "Config":
        problems = [
            f"{place}: no '{name}' in {section}{nearest(name, getattr(self, section))}"
            for place, section, name in self._references()
            if name not in getattr(self, section)
        ]
        problems += [
            f"models.{key}.recipe: '{model.recipe}' learns from 'dense', the model that it trains; name a timm one"
            for key, model in self.models.items()
            if model.recipe in self.recipes and self.recipes[model.recipe].teacher == "dense"
        ]
        problems += [
            f"models.{key}.recipe: '{model.recipe}' has 'pruned_over', but a dense model has no blocks to prune"
            for key, model in self.models.items()
            if model.recipe in self.recipes and self.recipes[model.recipe].pruned_over
        ]
        problems += [
            f"recipes.{key}.batch_size: {recipe.batch_size} does not divide over compute.processes {processes}"
            for key, recipe in self.recipes.items()
            if recipe.batch_size % (processes := self.compute.processes)
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @model_validator(mode="after")
    def _structures_suit_budgets_and_recipes(self) -> "Config":
        for key, experiment in self.experiments.items():
            pruning = self.prunings[experiment.pruning]
            if experiment.recipe is not None:
                recipe, place = self.recipes[experiment.recipe], f"experiments.{key}.recipe: '{experiment.recipe}' has"
                if recipe.pruned_over and pruning.structure != "blocks":
                    raise ValueError(f"{place} 'pruned_over', which prunes blocks")
                if recipe.distillation_blocks and "residual" in pruning.freedoms:
                    raise ValueError(
                        f"{place} 'distillation_blocks', but in the bases of '{experiment.pruning}' transformer blocks "
                        "give other numbers than in the dense model; leave 'residual' out of 'basis'"
                    )
            try:
                pruning.require_budget(self.budgets[experiment.budget])
            except ValueError as error:
                raise ValueError(f"experiments.{key}.budget: '{experiment.budget}': {error}") from None
        return self

    @model_validator(mode="after")
    def _images_without_classes_are_followed(self) -> "Config":
        for key, experiment in self.experiments.items():
            dataset, model = self.datasets[experiment.dataset], self.models[experiment.model]
            if dataset.source.labelled and model.num_classes is not None:
                raise ValueError(
                    f"models.{experiment.model}.num_classes: '{experiment.dataset}' has classes; leave it out"
                )
            if dataset.source.labelled:
                continue
            place = f"experiments.{key}.dataset: '{experiment.dataset}' has no classes"
            for recipe in filter(None, (model.recipe, experiment.recipe)):
                if self.recipes[recipe].distillation != "features":
                    raise ValueError(f"{place}; give recipe '{recipe}' a teacher and 'distillation: features'")
            if self.budgets[experiment.budget].points_lost is not None:
                raise ValueError(f"{place}, which 'points_lost' counts; give budget '{experiment.budget}' others")
            if experiment.published is not None:
                raise ValueError(f"{place}, and a published row has an accuracy; leave 'published' out")
        return self

    @model_validator(mode="after")
    def _probes_have_classes(self) -> "Config":
        for key, dataset in self.datasets.items():
            if dataset.probe is not None and not self.datasets[dataset.probe].source.labelled:
                raise ValueError(f"datasets.{key}.probe: '{dataset.probe}' has no classes; name a dataset with some")
        return self

    @model_validator(mode="after")
    def _schemes_work_together(self) -> "Config":
        for key, experiment in self.experiments.items():
            try:
                require_compatible(self.schemes[name] for name in experiment.schemes)
            except ValueError as error:
                raise ValueError(f"experiments.{key}.schemes: {error}") from None
        return self

    def _references(self) -> Iterator[tuple[str, str, str]]:
        for key, dataset in self.datasets.items():
            if dataset.probe is not None:
                yield f"datasets.{key}.probe", "datasets", dataset.probe
        for key, model in self.models.items():
            if model.recipe is not None:
                yield f"models.{key}.recipe", "recipes", model.recipe
        for key, experiment in self.experiments.items():
            for field in ("dataset", "model", "calibration", "pruning", "budget", "recipe", "quantisation"):
                if (name := getattr(experiment, field)) is not None:
                    yield f"experiments.{key}.{field}", f"{field}s", name
            for name in experiment.schemes:
                yield f"experiments.{key}.schemes", "schemes", name


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Checks a configuration and fills in its defaults.

    Args:
        raw: The parsed YAML.

    Raises:
        LpvitError: One line per problem; an unknown key is reported with the nearest known one.
    """
    raw, moved = upgraded(raw)
    for line in moved:
        _logger.warning("config: %s", line)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise LpvitError("\n".join(f"config: {line}" for line in mistakes(error, raw, Config))) from None
