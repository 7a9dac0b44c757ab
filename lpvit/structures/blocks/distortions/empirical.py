from typing import TYPE_CHECKING, ClassVar, Literal

from lpvit.structures.blocks.distortions import Distortion

if TYPE_CHECKING:
    import pandas as pd

    from lpvit.structures.blocks.rate_distortion import CurveInputs


class EmpiricalDistortion(Distortion):
    """Measured by masking one layer at a time: the mean over the images of the squared change of the logits."""

    unit: ClassVar = "logit² per image"

    name: Literal["empirical"] = "empirical"

    @property
    def measures_images(self) -> bool:
        return True

    def curves(self, inputs: "CurveInputs") -> "pd.DataFrame":
        from lpvit.structures.blocks.masking import masked_curves

        return masked_curves(inputs.measured_model(), inputs.blocks, inputs.pruning.points)
