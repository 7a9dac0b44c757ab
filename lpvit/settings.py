"""What all sections of the configuration are made of. Imports no torch, so that a dry-run stays fast."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Fraction = Annotated[float, Field(gt=0, le=1)]


Share = Annotated[float, Field(ge=0, lt=1)]


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]  # becomes a folder


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_key_is_a_switch(cls, data: Any) -> Any:
        for key, value in data.items() if isinstance(data, Mapping) else ():
            if isinstance(value, bool) and key != "power_beta":
                raise ValueError(f"{key}: found {str(value).lower()}, expected a value; no key takes yes or no")
        return data


class Compute(Section):
    """Where and how wide the stages run. Changing it reruns nothing."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` takes the GPU where there is one")
    threads: int = Field(8, gt=0, description="CPU threads of a stage and of its loader, at most those of `--cores`")
    processes: int = Field(1, gt=0, description="processes that train side by side (one per GPU)")
    nodes: tuple[str, ...] | Literal["slurm"] = Field(
        (), description="addresses of the machines that train together, this one first, or those of the SLURM job"
    )
    node_command: str = Field("ssh {host}", description="what starts a command on another of the `nodes`")
    checkpoint_minutes: float = Field(10, gt=0, description="between the states that a killed training goes on from")
    tensorboard: Path | None = Field(None, description="folder for TensorBoard's events of every training; null is off")
    evaluation_batch_size: int = Field(256, gt=0, description="images per pass of an evaluation")
