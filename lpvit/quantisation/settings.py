"""Settings of what is done to the weights of a pruned model at last."""

from typing import Literal

from pydantic import Field

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
        description="linear layers that multiply in int8; patch embedding and head are not worth their error",
    )
    rounding: Literal["error_feedback", "nearest"] = Field(
        "error_feedback",
        description="weights in int8: layer by layer on the calibration images, what one is rounded by made up for by "
        "the others (GPTQ), or each to the nearest of its grid, without images",
    )

    @property
    def looks_at_images(self) -> bool:
        return self.precision == "int8" and self.rounding == "error_feedback"
