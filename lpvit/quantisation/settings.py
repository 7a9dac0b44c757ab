"""Settings of what is done to the weights of a pruned model at last."""

from typing import Literal

from pydantic import Field, model_validator

from lpvit.settings import Section


class Quantisation(Section):
    """How a pruned model is made coarser for inference, after any fine-tuning."""

    precision: Literal["int8", "bfloat16"] = Field(
        "int8",
        description="`int8`: weights by a scale a row, inputs by one a token as they come, the other layers in "
        "float32; `bfloat16`: the whole model",
    )
    layers: tuple[str, ...] = Field(
        ("qkv", "proj", "fc1", "fc2"),
        min_length=1,
        description="of `int8`: linear layers that multiply so; patch embedding and head are not worth their error",
    )
    rounding: Literal["error_feedback", "nearest"] = Field(
        "error_feedback",
        description="of `int8`, weights: layer by layer on the calibration images, what one is rounded by made up for "
        "by the others (GPTQ), or each to the nearest of its grid, without images",
    )

    @model_validator(mode="after")
    def _keys_fit(self) -> "Quantisation":
        for name in ("layers", "rounding"):
            if self.precision != "int8" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: belongs to precision 'int8', not to '{self.precision}'; leave it out")
        return self

    @property
    def looks_at_images(self) -> bool:
        return self.precision == "int8" and self.rounding == "error_feedback"
