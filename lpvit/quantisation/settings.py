"""Settings of quantisation."""

from typing import Literal

from pydantic import Field, model_validator

from lpvit.precisions import CONVERTED
from lpvit.settings import Section


class Quantisation(Section):
    """How a pruned model is quantised for inference, after any fine-tuning."""

    precision: Literal[CONVERTED] = Field(  # type: ignore[valid-type]
        "int8",
        description="`int8`: weights with one scale per row, inputs quantised per token at run time, other layers in "
        "float32; `bfloat16`: the whole model",
    )
    layers: tuple[str, ...] = Field(
        ("qkv", "proj", "fc1", "fc2"),
        min_length=1,
        description="linear layers that multiply in `int8`; patch embedding and head are not worth the error",
    )
    rounding: Literal["error_feedback", "nearest"] = Field(
        "error_feedback",
        description="rounding of `int8` weights: layer by layer on the calibration images with error feedback (GPTQ), "
        "or to the nearest grid point, without images",
    )

    @model_validator(mode="after")
    def _keys_fit(self) -> "Quantisation":
        if self.precision != "int8":
            self.without("layers", "rounding", because=f"belongs to precision 'int8', not to '{self.precision}'")
        return self

    @property
    def looks_at_images(self) -> bool:
        return self.precision == "int8" and self.rounding == "error_feedback"
