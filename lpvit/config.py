"""The configuration as closed, typed models. Imports no torch, so that a dry-run stays fast.

Each section of ``config/config.yaml`` names decisions (a dataset, a budget, ...); an experiment chooses one name
from each. The descriptions below are the README's reference of configuration keys.
"""

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from lpvit.errors import LpvitError

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]  # becomes a folder


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"found {list(bounds)}, expected a positive number and one that is not smaller")
    return bounds


def _unquoted(value: Any) -> Any:
    """What the user wrote where YAML reads a bare `off` or `on` as a truth value."""
    return {False: "off", True: "on"}[value] if isinstance(value, bool) else value


Range = Annotated[tuple[float, float], AfterValidator(_rising)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_key_is_a_switch(cls, data: Any) -> Any:
        for key, value in data.items() if isinstance(data, Mapping) else ():
            if isinstance(value, bool) and key != "power_beta":
                raise ValueError(f"{key}: found {str(value).lower()}, expected a value; no key takes yes or no")
        return data


class Dataset(Section):
    """Labelled images with a training and a validation split."""

    source: Literal["folder", "digits"] = Field(
        "folder", description="`folder`: one folder of images per class; `digits`: the set that scikit-learn ships"
    )
    root: Path | None = Field(None, description="folder that holds the splits (`folder` only)")
    train: str = Field("train", description="training split, a folder below `root`")
    validation: str = Field("val", description="validation split, a folder below `root`")
    loader: Literal["dali", "memory", "timm"] = Field(
        "dali", description="`dali`: JPEG folders; `memory`: small sets, decoded once; `timm`: whatever Pillow reads"
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error", description="an image that cannot be decoded stops the run, or is left out and counted"
    )

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> "Dataset":
        if self.source == "folder" and self.root is None:
            raise ValueError("root: missing; a dataset with source 'folder' needs the folder that holds its splits")
        if self.source == "digits" and (self.root is not None or self.loader != "memory"):
            raise ValueError("source 'digits' takes no root and needs 'loader: memory'")
        return self


class Model(Section):
    """A timm model and where its dense weights come from."""

    timm: str = Field(description="model name in timm, for example `deit_small_patch16_224`")
    options: dict[str, Any] = Field({}, description="keyword arguments for `timm.create_model`, for example `depth`")
    data_config: dict[str, Any] = Field(
        {}, description="overrides of the model's timm data config: `mean`, `std`, `interpolation`, `crop_pct`, ..."
    )
    weights: Literal["pretrained", "checkpoint", "train", "random"] = Field(
        "pretrained", description="timm's weights, a local `checkpoint`, training by `recipe`, or none (for tests)"
    )
    checkpoint: Path | None = Field(None, description="`.safetensors`, or `.pt`/`.pth` holding a state dict")
    recipe: str | None = Field(
        None, description="recipe that trains the dense model from scratch (`train`), or on from the weights given"
    )
    seed: int = Field(0, ge=0, description="seed of the initial weights (`train`, `random`)")

    @model_validator(mode="after")
    def _weights_have_their_source(self) -> "Model":
        if (self.weights == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("checkpoint: give a path together with 'weights: checkpoint', and only then")
        if self.weights == "train" and self.recipe is None:
            raise ValueError("recipe: missing; 'weights: train' needs the recipe that trains the model")
        if self.weights == "random" and self.recipe is not None:
            raise ValueError("recipe: 'weights: random' is not trained; for training from scratch use 'weights: train'")
        return self


class Calibration(Section):
    """Training images that the statistics and curves are measured on."""

    images: int = Field(gt=0, description="number of images, class-balanced")
    seed: int = Field(0, ge=0, description="seed of the draw")


class Pruning(Section):
    """How blocks are scored and how the distortion of pruning them is measured."""

    block_shape: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] = Field(
        description="rows (output features) and columns (input features) of a block"
    )
    saliency: Literal["taylor", "l1", "gauss_newton"] = Field(
        "taylor",
        description="score of a block: mean |w g| (LPViT), mean |w|, or the predicted distortion of zeroing it alone; "
        "the lowest are pruned first",
    )
    distortion: Literal["taylor", "gauss_newton", "empirical"] = Field(
        "taylor",
        description="curve of a layer: predicted from the averaged gradient, predicted from the gradients of every "
        "image, or measured by masking",
    )
    order: Literal[1, 2] = Field(2, description="order of the Taylor expansion (`distortion: taylor`)")
    form: Literal["cumulative", "diagonal"] = Field(
        "cumulative", description="with or without the interaction of blocks (`distortion: gauss_newton`)"
    )
    probes: int = Field(
        2, ge=1, le=8, description="backward passes per image (`gauss_newton`, as saliency or as distortion)"
    )
    correction_images: int = Field(
        0,
        ge=0,
        description="images on which predicted curves are corrected for the finite size of the change "
        "(`distortion: gauss_newton`); 0 is off",
    )
    points: int = Field(101, ge=2, description="sparsities at which a curve is sampled, evenly from 0 to 1")
    layers: tuple[str, ...] = Field(
        ("qkv", "proj", "fc1", "fc2"),
        min_length=1,
        description="prunable layers: `qkv`, `proj`, `fc1`, `fc2`, and on request `patch_embed`, `head`, `reduction`",
    )
    batch_size: int = Field(64, gt=0, description="images per pass")

    @property
    def probes_used(self) -> int:
        """`probes` where the saliency or the distortion is `gauss_newton`, else 0."""
        return self.probes if "gauss_newton" in (self.saliency, self.distortion) else 0

    @property
    def averages_gradients(self) -> bool:
        """Whether the saliency or the distortion is `taylor`."""
        return "taylor" in (self.saliency, self.distortion)

    @property
    def measures_images(self) -> bool:
        """Whether curves need another look at the calibration images."""
        return self.distortion == "empirical" or (self.distortion == "gauss_newton" and self.correction_images > 0)


class Budget(Section):
    """What may stay, and who decides where."""

    macs: Fraction | None = Field(
        None,
        description="share of the dense model's MACs in linear layers (patch embedding and heads included) to keep",
    )
    sparsity: Share | None = Field(None, description="share of the prunable weights to remove")
    energy: Fraction | None = Field(
        None,
        description="share of the dense model's modelled energy to keep, in the layers that `macs` counts",
    )
    latency: Fraction | None = Field(
        None, description="share of the prunable layers' dense milliseconds to keep, as measured in `latency_table`"
    )
    latency_table: Path | None = Field(
        None, description="`latency.parquet` of the machine that counts (`latency`); null measures it on this one"
    )
    structure: Literal["blocks", "width"] = Field(
        "blocks",
        description="what is removed: `blocks` of the prunable layers, or `width`: the whole model made narrower by "
        "Torch-Pruning and dense as before (`macs` alone; ViT and DeiT)",
    )
    allocator: Literal["lagrangian", "exact", "lpvit", "uniform", "uniform_plus", "global", "lamp", "erk"] = Field(
        "lagrangian", description="rule that gives every layer its sparsity"
    )
    min_keep_ratio: Share = Field(0.05, description="share of the blocks of every layer that always stays")
    smoothing: Fraction = Field(
        0.5, description="weight of the newest point in the exponential smoothing of curves (`lpvit`); 1 is none"
    )
    stencil_step: int = Field(4, gt=0, description="step, in curve points, of the five-point slope (`lpvit`)")
    power_beta: Annotated[Literal["off", "auto"] | Annotated[float, Field(ge=0)], BeforeValidator(_unquoted)] = Field(
        "off", description="weight of the power term (`lpvit`): `off`, `auto` or a number"
    )
    reconstruction: Literal["none", "least_squares"] = Field(
        "none",
        description="weights that stay: as they were, or fitted layer by layer to the dense outputs on the calibration "
        "images",
    )
    steps: int = Field(
        1, gt=0, description="steps to the budget, each with curves of the model that those before left (reconstructed)"
    )

    @property
    def on_the_way(self) -> list["Budget"]:
        """The budgets of all steps but the last: every step keeps the same share of what the one before kept."""

        def target(name: str, last: float, step: int) -> float:
            kept = math.pow(1 - last if name == "sparsity" else last, step / self.steps)
            return 1 - kept if name == "sparsity" else kept

        return [
            self.model_copy(update={name: target(name, last, step) for name, last in self.targets.items()})
            for step in range(1, self.steps)
        ]

    @property
    def targets(self) -> dict[str, float]:
        """Quantity -> target, of the one or two that are given."""
        given = {name: getattr(self, name) for name in ("macs", "sparsity", "energy", "latency")}
        return {name: target for name, target in given.items() if target is not None}

    @model_validator(mode="after")
    def _keys_fit(self) -> "Budget":
        targets = self.targets
        if not 1 <= len(targets) <= 2:
            raise ValueError("give one of 'macs', 'sparsity', 'energy' and 'latency', or two of them")
        if self.structure == "width":
            defaults = {name: field.default for name, field in type(self).model_fields.items()}
            changed = [name for name, default in defaults.items() if getattr(self, name) != default]
            if others := [name for name in changed if name not in ("structure", "macs")]:
                raise ValueError(f"structure: 'width' goes by 'macs' alone, found '{others[0]}'; leave it out")
        if len(targets) == 2 and self.allocator not in ("lagrangian", "exact"):
            raise ValueError(
                f"allocator: '{self.allocator}' meets one budget, found {' and '.join(targets)}; "
                "use 'lagrangian' or 'exact'"
            )
        if self.latency_table is not None and self.latency is None:
            raise ValueError("latency_table: give the table of measured milliseconds together with 'latency'")
        if self.sparsity is not None and self.sparsity + self.min_keep_ratio > 1 + 1e-9:
            raise ValueError(
                f"sparsity: {self.sparsity:g} is impossible while min_keep_ratio {self.min_keep_ratio:g} always stays"
            )
        return self


class Energy(Section):
    """The energy model: what a multiply-accumulate and a moved byte cost. Defaults: Horowitz, ISSCC 2014, 45 nm."""

    dtype: Literal["float32", "float16", "int8"] = Field("float32", description="type of weights and activations")
    mac: float | None = Field(
        None, ge=0.001, description="pJ of a multiply-accumulate; null is 4.6, 1.5 or 0.23 as `dtype` asks"
    )
    dram: float = Field(162.5, ge=0, description="pJ to move a byte between DRAM and the chip")
    sram: float = Field(12.5, ge=0, description="pJ to move a byte to or from the on-chip memory (1 MB)")
    buffer: float = Field(1.25, ge=0, description="pJ to read a byte from the buffers at the arithmetic (8 kB)")
    reuse: float = Field(16.0, ge=1, description="multiply-accumulates that a byte read from the buffers serves")
    batch_size: int = Field(1, gt=0, description="images for which a weight is fetched from DRAM once")


class Benchmark(Section):
    """How speed and energy are measured. Changing it measures anew; of what is pruned, only under `latency`."""

    arms: tuple[Literal["dense", "masked", "sparse", "dense_compiled", "sparse_compiled"], ...] = Field(
        ("dense", "masked", "sparse"),
        description="what takes turns: the dense model, the pruned one with zeros, the pruned one block-sparse; "
        "`_compiled` by torch.compile, which takes minutes on a small machine",
    )
    batch_sizes: tuple[Annotated[int, Field(gt=0)] | Literal["largest"], ...] = Field(
        (1, 32, "largest"),
        min_length=1,
        description="images per pass; `largest` is the largest power of two that fits on a GPU, up to 1024, and 128 on "
        "a CPU",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="type of weights and activations")
    seconds: float = Field(3, gt=0, description="time for each arm and batch size")
    energy_seconds: float = Field(
        10,
        gt=0,
        description="length of a window in which energy is measured; three for each arm, at the last batch size",
    )
    layer_batch_size: int = Field(8, gt=0, description="images per pass for the milliseconds of a budget in `latency`")

    @model_validator(mode="after")
    def _dense_is_timed(self) -> "Benchmark":
        if "dense" not in self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError("arms: name 'dense', which the others are compared with, and each arm once")
        return self


class Recipe(Section):
    """Training: from scratch for a dense model, or with frozen masks for a pruned one."""

    epochs: int = Field(gt=0, description="passes over the training split")
    batch_size: int = Field(gt=0, description="images per optimiser step, over all processes")
    learning_rate: float = Field(gt=0, description="peak learning rate at this batch size (no rescaling is done)")
    min_learning_rate: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine")
    warmup_epochs: float = Field(0, ge=0, description="epochs of linear warm-up")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay; not for biases and norms")
    clip_grad_norm: float | None = Field(None, gt=0, description="largest norm of the gradient")
    label_smoothing: Share = Field(0.0, description="share of the target spread over all classes")
    drop_path: Share = Field(0.0, description="stochastic depth rate")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix; 0 is off")
    crop_scale: Range = Field((0.08, 1.0), description="range of the area of a random crop")
    crop_ratio: Range = Field((3 / 4, 4 / 3), description="range of the aspect ratio of a random crop")
    horizontal_flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    color_jitter: float = Field(0.0, ge=0, description="strength of colour jitter; timm uses it without RandAugment")
    rand_augment: str | None = Field(None, description="timm's policy string, for example `rand-m9-mstd0.5-inc1`")
    random_erasing: float = Field(0.0, ge=0, le=1, description="probability of erasing a rectangle")
    repeated_augmentation: int = Field(1, gt=0, description="times an image is repeated in an epoch of equal length")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights; null is off")
    distillation: Literal["none", "soft", "hard"] = Field("none", description="loss against the teacher")
    teacher: str | None = Field(None, description="`dense` (the model before pruning) or a timm model name")
    teacher_checkpoint: Path | None = Field(None, description="local weights of a timm teacher; else timm's own")
    distillation_alpha: float = Field(0.5, ge=0, le=1, description="share of the distillation loss")
    distillation_temperature: float = Field(1.0, gt=0, description="temperature of soft distillation")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="autocast of the forward pass")
    seed: int = Field(0, ge=0, description="seed of data order, augmentation and dropout")

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        if (self.distillation == "none") != (self.teacher is None):
            raise ValueError("teacher: give a teacher together with 'distillation: soft' or 'hard', and only then")
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs; lower it")
        if self.teacher_checkpoint is not None and self.teacher in (None, "dense"):
            raise ValueError("teacher_checkpoint: only a timm teacher takes a checkpoint")
        return self


class Experiment(Section):
    """One choice from each section; its artifacts lie in the folder that these names spell."""

    dataset: str = Field(description="name in `datasets`")
    model: str = Field(description="name in `models`")
    calibration: str = Field(description="name in `calibrations`")
    pruning: str = Field(description="name in `prunings`")
    budget: str = Field(description="name in `budgets`")
    recipe: str | None = Field(None, description="name in `recipes`; null evaluates without fine-tuning")


class Compute(Section):
    """Where and how wide the stages run. Changing it reruns nothing."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` takes the GPU where there is one")
    threads: int = Field(8, gt=0, description="CPU threads of a stage and of its loader, at most those of `--cores`")
    processes: int = Field(1, gt=0, description="processes that train side by side (one per GPU)")
    evaluation_batch_size: int = Field(256, gt=0, description="images per pass of an evaluation")


class Config(Section):
    """The whole file."""

    results: Path = Field(Path("results"), description="folder of all artifacts")
    report: Name = Field("main", description="folder of this config's tables and figures in `results/report`")
    compute: Compute = Field(Compute(), description="device, threads, processes")
    energy: Energy = Field(Energy(), description="constants of the energy model")
    benchmark: Benchmark = Field(Benchmark(), description="how speed and energy are measured")
    datasets: dict[Name, Dataset] = Field(description="images")
    models: dict[Name, Model] = Field(description="dense models")
    calibrations: dict[Name, Calibration] = Field(description="calibration sets")
    prunings: dict[Name, Pruning] = Field(description="block shapes, saliencies, curves")
    budgets: dict[Name, Budget] = Field(description="budgets and allocators")
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
