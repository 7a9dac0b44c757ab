"""Measured by masking one layer at a time: the mean over the images of the squared change of the logits."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from lpvit.structures.blocks.rate_distortion import CurveInputs

UNIT = "logit² per image"


def needs() -> set[str]:
    return {"images"}


def curves(inputs: "CurveInputs") -> "pd.DataFrame":
    from lpvit.structures.blocks.masking import masked_curves

    return masked_curves(inputs.measured_model(), inputs.blocks, inputs.pruning.points)
