"""Constants of the energy model."""

from typing import Literal

from pydantic import Field

from lpvit.precisions import PRECISIONS
from lpvit.settings import Section

_DEFAULTS = ", ".join(f"{row.picojoules:.3g} ({name})" for name, row in PRECISIONS.items())


class Energy(Section):
    """The energy model: what a multiply-accumulate and a moved byte cost. Defaults: Horowitz, ISSCC 2014, 45 nm."""

    dtype: Literal[*PRECISIONS] = Field(  # type: ignore[valid-type]
        "float32", description="type of weights and activations; layers of a quantised model use their own"
    )
    mac: float | None = Field(
        None, ge=0.001, description=f"pJ of a multiply-accumulate in `dtype`; null is {_DEFAULTS}"
    )
    dram: float = Field(162.5, ge=0, description="pJ to move a byte between DRAM and the chip")
    sram: float = Field(12.5, ge=0, description="pJ to move a byte to or from the on-chip memory (1 MB)")
    buffer: float = Field(1.25, ge=0, description="pJ to read a byte from the buffers of the arithmetic units (8 kB)")
    reuse: float = Field(16.0, ge=1, description="multiply-accumulates per byte read from the buffers")
    batch_size: int = Field(1, gt=0, description="images for which a weight is fetched from DRAM once")

    def of_dtype(self, dtype: str) -> "Energy":
        """The same hardware with another dtype, at the default energy of a multiply-accumulate in it."""
        return self if dtype == self.dtype else self.model_copy(update={"dtype": dtype, "mac": None})
