"""Settings of models: which one, with which weights, and the constants of its energy model."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from lpvit.settings import Section
from lpvit.variants import chooses

SCHEMES = "lpvit.models.schemes"


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


class Energy(Section):
    """The energy model: what a multiply-accumulate and a moved byte cost. Defaults: Horowitz, ISSCC 2014, 45 nm."""

    dtype: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        "float32", description="type of weights and activations; layers of a quantised model count in theirs"
    )
    mac: float | None = Field(
        None, ge=0.001, description="pJ of a multiply-accumulate in `dtype`; null is 4.6, 1.5, 1.5 or 0.23"
    )
    dram: float = Field(162.5, ge=0, description="pJ to move a byte between DRAM and the chip")
    sram: float = Field(12.5, ge=0, description="pJ to move a byte to or from the on-chip memory (1 MB)")
    buffer: float = Field(1.25, ge=0, description="pJ to read a byte from the buffers at the arithmetic (8 kB)")
    reuse: float = Field(16.0, ge=1, description="multiply-accumulates that a byte read from the buffers serves")
    batch_size: int = Field(1, gt=0, description="images for which a weight is fetched from DRAM once")

    def of_dtype(self, dtype: str) -> "Energy":
        """The same machine computing in another dtype, at the default energy of a multiply-accumulate in it."""
        return self if dtype == self.dtype else self.model_copy(update={"dtype": dtype, "mac": None})


@chooses(scheme=SCHEMES)
class Scheme(Section):
    """What makes a model compute less beside pruned blocks."""

    scheme: str = Field(description="which; the other keys belong to one scheme each")
