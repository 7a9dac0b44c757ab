"""Settings of models and their weights."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from lpvit.moved import forwards
from lpvit.settings import LocalPath, Section


class Model(Section):
    """A timm model and the source of its dense weights."""

    timm: str = Field(description="model name in timm, for example `deit_small_patch16_224`")
    options: dict[str, Any] = Field({}, description="keyword arguments for `timm.create_model`, for example `depth`")
    data_config: dict[str, Any] = Field(
        {}, description="overrides of the model's timm data config: `mean`, `std`, `interpolation`, `crop_pct`, ..."
    )
    weights: Literal["pretrained", "checkpoint", "train", "random"] = Field(
        "pretrained", description="timm's weights, a local `checkpoint`, training by `recipe`, or none (for tests)"
    )
    checkpoint: LocalPath | None = Field(None, description="`.safetensors`, or `.pt`/`.pth` holding a state dict")
    recipe: str | None = Field(
        None, description="recipe that trains the dense model from scratch (`train`), or from the given weights"
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
        if self.weights == "checkpoint":
            self.without("seed", because="'weights: checkpoint' draws no weights")
        return self


if not TYPE_CHECKING:  # or any name would pass
    __getattr__ = forwards(__name__)
