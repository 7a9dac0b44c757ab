"""Settings of models and their weights."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from lpvit.moved import forwards
from lpvit.settings import LocalPath, Section

SOURCES = ("timm", "transformers", "torchvision", "open_clip", "module")  # keys that name a model


class Model(Section):
    """A model, named by one of `timm`, `transformers`, `torchvision`, `open_clip`, `module`, and its dense weights."""

    timm: str | None = Field(None, description="model name in timm, for example `deit_small_patch16_224`")
    transformers: str | None = Field(None, description="folder (or name) of a Hugging Face model, with `config.json`")
    torchvision: str | None = Field(None, description="builder of torchvision, for example `vit_b_16` or `swin_t`")
    open_clip: str | None = Field(
        None, description="model of open_clip and tag of its weights, for example `ViT-B-32/laion2b_s34b_b79k`"
    )
    module: str | None = Field(
        None, description="`file:function` or `package.module:function`, which returns the model; runs your code"
    )
    options: dict[str, Any] = Field(
        {}, description="further arguments of the model: keywords of `timm.create_model`, values of a config, ..."
    )
    data_config: dict[str, Any] = Field(
        {}, description="overrides of the model's timm data config: `mean`, `std`, `interpolation`, `crop_pct`, ..."
    )
    output: tuple[str, ...] = Field(
        (), description="what counts of a model that returns several tensors; by default logits, else features"
    )
    num_classes: int | None = Field(
        None,
        ge=0,
        description="outputs of the head, for images without classes; 0 is no head, null that of the source's weights",
    )
    weights: Literal["pretrained", "checkpoint", "train", "random"] = Field(
        "pretrained",
        description="the source's weights, a local `checkpoint`, training by `recipe`, or none (for tests)",
    )
    checkpoint: LocalPath | None = Field(None, description="`.safetensors`, or `.pt`/`.pth` holding a state dict")
    recipe: str | None = Field(
        None, description="recipe that trains the dense model from scratch (`train`), or from the given weights"
    )
    seed: int = Field(0, ge=0, description="seed of the initial weights (`train`, `random`)")

    @property
    def source(self) -> str:
        """The key that names the model: one of `SOURCES`."""
        return next(key for key in SOURCES if getattr(self, key) is not None)

    @property
    def name(self) -> str:
        """Its value."""
        return str(getattr(self, self.source))

    @property
    def files(self) -> list[Path]:
        """Local files of its weights, its config and the code that builds it."""
        weights, config = (".json", ".safetensors", ".bin"), Path(self.transformers or "")
        found = [] if self.checkpoint is None else _below(self.checkpoint, weights)
        if self.transformers is not None and config.is_dir():
            found += _below(config, weights if self.weights == "pretrained" else (".json",))
        if self.module is not None:
            code = Path(*self.module.partition(":")[0].split(".")).with_suffix(".py")
            found += [code] if code.is_file() else []  # else an installed package
        return found

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        found = [key for key in SOURCES if getattr(self, key) is not None]
        if not found:
            raise ValueError(f"timm: missing; a model is named by one of {', '.join(SOURCES)}")
        if len(found) > 1:
            raise ValueError(f"{found[1]}: found beside {found[0]}; a model is named by one of {', '.join(SOURCES)}")
        return self

    @model_validator(mode="after")
    def _weights_have_their_source(self) -> "Model":
        if (self.weights == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("checkpoint: give a path together with 'weights: checkpoint', and only then")
        if self.weights == "train" and self.recipe is None:
            raise ValueError("recipe: missing; 'weights: train' needs the recipe that trains the model")
        if self.weights == "random" and self.recipe is not None:
            raise ValueError("recipe: 'weights: random' is not trained; for training from scratch use 'weights: train'")
        if self.weights == "checkpoint":
            self.without("seed", because="'weights: checkpoint' draws no weights")
        return self


def _below(place: Path, suffixes: Collection[str]) -> list[Path]:
    """A file, or the files of a folder with these suffixes."""
    return sorted(file for file in place.iterdir() if file.suffix in suffixes) if place.is_dir() else [place]


if not TYPE_CHECKING:  # or any name would pass
    __getattr__ = forwards(__name__)
