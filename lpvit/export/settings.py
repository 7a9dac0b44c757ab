"""Settings of ONNX files. Imports no torch."""

from typing import Literal

from pydantic import Field

from lpvit.settings import Section

ImageSize = Literal["fixed", "dynamic"]


class Export(Section):
    """How models become ONNX files, by the rule `export`."""

    opset: int | None = Field(
        None, gt=0, description="version of ONNX's operators, for engines that are older; null is torch's choice"
    )
    image_size: ImageSize = Field(
        "fixed", description="`dynamic`: the file takes images of any size that the model takes, where it takes several"
    )
